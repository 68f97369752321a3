"""`drrkit bench`: how fast drrkit is on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drrkit._native import METHODS
from drrkit.cli.command import Answer, command
from drrkit.cli.options import COUNT, Size, argument, device_option, option, read_ct
from drrkit.geometry import CArm, view_carm
from drrkit.machine import machine, versions
from drrkit.phantoms import torso
from drrkit.projector import Projector
from drrkit.volume import Volume

__all__ = ["bench_command"]

PHANTOM_MM = 2.0
FIELD = 0.94  # of the volume's shortest extent is seen at its centre
CASES = {"joseph packed": ("joseph", "auto"), **{name: (name, None) for name in METHODS}}
"""Name: the Projector's method and pack."""
OPERATIONS = ("forward", "+ pose gradient", "+ volume gradient")
LEAST_TURN = 0.1  # s: a turn of short calls is repeated so long


@command("bench", epilog="Comparing other projectors needs a checkout: python -m bench.projectors.")
def bench_command(
    *,
    ct: Path | None = argument(required=False),
    views: int = option("Views per call.", type=COUNT, default=1),
    size: tuple[int, int] = option("Pixels of a view.", type=Size(), default="200x200"),
    rounds: int = option("Rounds in which the methods take turns.", type=COUNT, default=5),
    threads: int | None = option("CPU threads.  [default: all]", type=COUNT),
    device: torch.device = device_option(),
) -> Answer:
    """Measure drrkit's methods on CT (in HU; the built-in torso if none): images and gradients.

    Times are medians per call of all views, after one call that does not count. Measure on an
    otherwise idle machine.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        name = ct.name if ct else "torso phantom"
        found = torso(PHANTOM_MM) if ct is None else read_ct(ct)
        volume = replace(found, labels=None).to_mu().to(device)
        calls = _calls(volume, views, size)
        seconds = _measured(calls, rounds, device)
        here = machine(device)
    finally:
        torch.set_num_threads(before)
    rows = [
        {"method": case, "operation": operation, "seconds": statistics.median(found)}
        | {"least": min(found), "greatest": max(found), "calls": len(found)}
        for (case, operation), found in seconds.items()
    ]
    content = {
        "machine": here,
        "versions": versions(),
        "volume": {"name": name, "xyz": volume.shape_xyz, "spacing_mm": volume.spacing},
        "views": views,
        "size": size,
        "rows": rows,
    }
    hardware = here["gpu"]["name"] if "gpu" in here else f"{here['torch_threads']} threads"
    xyz = "x".join(map(str, volume.shape_xyz))
    head = f"{here['cpu']}, {hardware}; {name}, {xyz} voxels; {views} x {size[0]}x{size[1]} pixels"
    return Answer(content, "\n".join([head, *_table(rows)]))


def _calls(
    volume: Volume, views: int, size: tuple[int, int]
) -> dict[tuple[str, str], Callable[[], Any]]:
    """What is measured, by method and operation."""
    extent = [n * s for n, s in zip(volume.shape_xyz, volume.spacing, strict=True)]
    sod = max(800.0, 1.3 * sum(side**2 for side in extent) ** 0.5)  # the source stays outside
    camera = CArm(1.5 * sod, size, 1.5 * FIELD * min(extent) / max(size))
    angles = torch.linspace(-0.25, 0.25, views, dtype=torch.float64)
    poses = view_carm(volume, sod, angles).to(volume.values.device)
    given = torch.ones(views, 1, *size, device=poses.device)
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for case, (method, pack) in CASES.items():
        projector = Projector(volume, camera, method=method, pack=pack)
        calls[case, OPERATIONS[0]] = lambda p=projector: _forward(p, poses)
        calls[case, OPERATIONS[1]] = lambda p=projector: _pose_gradient(p, poses, given)
        if pack is None:  # a prepared copy is of constant voxels
            calls[case, OPERATIONS[2]] = lambda p=projector: _voxel_gradient(p, poses, given)
    return calls


def _forward(projector: Projector, poses: Tensor) -> Tensor:
    with torch.no_grad():
        return projector(poses)


def _pose_gradient(projector: Projector, poses: Tensor, given: Tensor) -> Tensor:
    leaf = poses.clone().requires_grad_()
    return torch.autograd.grad(projector(leaf), leaf, given)[0]


def _voxel_gradient(projector: Projector, poses: Tensor, given: Tensor) -> Tensor:
    values = projector.values.requires_grad_()
    try:
        return torch.autograd.grad(projector(poses), values, given)[0]
    finally:
        values.requires_grad_(False)


def _measured(
    calls: dict[tuple[str, str], Callable[[], Any]], rounds: int, device: torch.device
) -> dict[tuple[str, str], list[float]]:
    """Seconds of every call, in turns, so that a disturbance does not hit one method alone."""
    found: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for key, call in calls.items():
            spent = 0.0
            while spent < LEAST_TURN:
                _wait(device)
                begin = time.perf_counter()
                call()
                _wait(device)
                found[key].append(time.perf_counter() - begin)
                spent += found[key][-1]
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    found = {(row["method"], row["operation"]): row["seconds"] for row in rows}
    lines = [" " * 14 + "".join(f"{operation:>20}" for operation in OPERATIONS)]
    for case in CASES:
        times = [found.get((case, operation)) for operation in OPERATIONS]
        cells = ("" if s is None else f"{1e3 * s:.3g} ms" for s in times)
        lines.append(f"{case:14}" + "".join(f"{cell:>20}" for cell in cells))
    return [line.rstrip() for line in lines]
