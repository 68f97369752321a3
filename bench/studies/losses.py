"""Cost of each similarity: many candidate poses against one X-ray, with and without gradient.

The moving images are renderings of a torso phantom at random poses around the AP view, the fixed
one is a rendering at that view with noise; float32 unless --double. Times are per candidate: the
median wall time of a call and the least process time (which other programs disturb less; on several
cores it is their sum), of the loss alone and of loss and gradient in the moving images. Memory is
the resident memory at the peak above what was there before the call, images and gradient included
in the latter; the moving images alone are given for comparison.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from torch import Tensor

import drrkit
from bench.projectors.timing import peak_bytes
from bench.studies.study import in_turns, json_file, recorded, write_json
from drrkit import losses

THREADS = 2
SDD, SOD = 1020.0, 800.0  # mm
FIELD = 128 * 2.176  # mm, width of the detector
SPREAD = (math.radians(10.0), 20.0)  # rad and mm, standard deviations of the poses


def options(add: Any) -> None:
    add("--sizes", type=int, nargs="+", default=[64, 128, 256])
    add("--batch", type=int, default=300)
    add("--rounds", type=int, default=5)
    names = list(losses.LOSSES)
    add("--losses", nargs="+", choices=names, default=names)
    add("--double", action="store_true")
    add("--device", default="cpu")


def run(options: argparse.Namespace) -> None:
    rows = []
    for size in options.sizes:
        moving, fixed = scene(size, options)
        for name in options.losses:
            rows.append({"loss": name, "size": size} | costs(name, moving, fixed, options))
            print(line(rows[-1]), flush=True)
    settings = {"batch": options.batch, "device": options.device}
    settings |= {"dtype": "float64" if options.double else "float32"}
    write_json(json_file(options), recorded(options, **settings, rows=rows))


def scene(size: int, options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Renderings [batch, 1, size, size] at random poses and a noisy one [1, 1, size, size]."""
    random = torch.Generator().manual_seed(0)
    dtype = torch.float64 if options.double else torch.float32
    volume = drrkit.phantoms.torso(spacing=4.0).to_mu().to(dtype=dtype)
    camera = drrkit.CArm(SDD, (size, size), FIELD / size)
    pose, center = drrkit.view_ap(volume, SOD), drrkit.volume_center(volume)
    unit = torch.tensor([SPREAD[0]] * 3 + [SPREAD[1]] * 3, dtype=torch.float64)
    xi = torch.randn(options.batch, 6, generator=random, dtype=torch.float64) * unit
    with torch.no_grad():
        moving = torch.cat(
            [drrkit.render(volume, camera, drrkit.perturb(pose, x, center)) for x in xi.split(20)]
        )
        fixed = drrkit.render(volume, camera, pose)
    noise = torch.randn(fixed.shape, generator=random, dtype=dtype)
    return moving.to(options.device), (fixed + 0.05 * noise).to(options.device)


def costs(name: str, moving: Tensor, fixed: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    call = getattr(losses, name)

    def value() -> Tensor:
        with torch.no_grad():
            return synchronized(call(moving, fixed))

    def gradient() -> Tensor:
        image = moving.detach().requires_grad_()
        return synchronized(torch.autograd.grad(call(image, fixed).sum(), image)[0])

    found: dict[str, Any] = {"moving_bytes": moving.numel() * moving.element_size()}
    for label, work in (("value", value), ("gradient", gradient)):
        times = in_turns({label: work}, options.rounds, unit="ms")[label]
        found[label] = {
            "wall_ms": times["wall_median_ms"] / moving.shape[0],
            "process_ms": times["cpu_min_ms"] / moving.shape[0],
            "peak_bytes": peak_bytes(work, moving.device),
        }
    return found


def synchronized(result: Tensor) -> Tensor:
    if result.device.type == "cuda":
        torch.cuda.synchronize()
    return result


def line(row: dict[str, Any]) -> str:
    parts = [f"{row['size']:4d}  {row['loss']:30s}"]
    for label in ("value", "gradient"):
        cost = row[label]
        memory = "" if cost["peak_bytes"] is None else f" {cost['peak_bytes'] / 1e6:7.0f} MB"
        parts.append(
            f"{label} {cost['wall_ms']:8.4f} ms (process {cost['process_ms']:8.4f}){memory}"
        )
    return "   ".join(parts) + f"   images {row['moving_bytes'] / 1e6:.0f} MB"
