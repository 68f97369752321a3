"""Microseconds of each kind of work, as CUDA graphs and eagerly, on inputs that rotate."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import drrkit

from .machines import Emulated, Findings, Gpu, Step

INPUTS = 4  # sets of poses that take turns
ANGLES = {"AP": (0.0, 0.0), "lateral": (1.5708, 0.0)}
WORKS = (  # name, views, side of the image
    ("forward", 1, 200),
    ("forward", 16, 200),
    ("forward", 1, 1024),
    ("forward + pose", 1, 200),
    ("forward + pose", 16, 200),
    ("forward + volume", 16, 200),
    ("adjoint", 90, 512),
)


def speed(machine: Gpu | Emulated, repeats: int = 30) -> tuple[Findings, list[dict[str, Any]]]:
    """The table's rows; medians, and the quartiles around them."""
    findings, rows = Findings(), []
    if machine.dry:
        repeats = 2
    for name, row, steps in _works(machine):
        with findings.case(name), machine.here():
            made = steps()  # here: what Projectors prepare is this machine's
            row["eager"] = _quartiles(machine, made, repeats)
            replays = [machine.capture(step)[0] for step in made]
            row["graph"] = _quartiles(machine, replays, repeats)
            rows.append(row)
            print(row, flush=True)
    return findings, rows


def _quartiles(machine: Gpu | Emulated, steps: list[Step], repeats: int) -> list[float]:
    """Lower quartile, median and upper quartile, microseconds."""
    spent = []
    for _ in range(2):  # the first round warms up
        spent = [machine.microseconds(steps[i % len(steps)], 1)[0] for i in range(repeats)]
    return [round(x, 1) for x in statistics.quantiles(spent, n=4)]


def _volume(machine: Gpu | Emulated, sparse: bool) -> drrkit.Volume:
    """As large as a CT of the chest, with noise in a ball or, sparse, in two small cubes."""
    shape = (13, 24, 25) if machine.dry else (133, 512, 512)
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = sum(a.square() for a in axes) < 0.8
    if sparse:
        inside &= (axes[0] * axes[1] > 0.3) & (axes[2].abs() < 0.3)
    values = 0.02 * torch.rand(shape, generator=torch.Generator().manual_seed(0)) * inside
    return drrkit.Volume(machine.put(values), (0.7, 0.7, 2.5), unit="mu")


def _poses(volume: drrkit.Volume, views: int, angles: tuple[float, float], turn: int) -> Tensor:
    noise = torch.randn(views, 6, generator=torch.Generator().manual_seed(turn))
    xi = noise.double() * torch.tensor([0.03] * 3 + [5.0] * 3, dtype=torch.float64)
    start = drrkit.view_carm(volume, 800.0, *angles)
    xi = xi.to(start.device)
    return drrkit.perturb(start, xi, drrkit.volume_center(volume))


def _works(machine: Gpu | Emulated) -> Iterator[tuple[str, dict[str, Any], Any]]:
    volumes = {sparse: _volume(machine, sparse) for sparse in (False, True)}
    for kind, views, side in WORKS:
        views, side = (min(views, 2), 8) if machine.dry else (views, side)
        for view, angles in ANGLES.items():
            for pack in ("int16", "float32", None) if kind == "forward" else ("int16",):
                for sparse in (False, True) if (kind, pack) == ("forward", "int16") else (False,):
                    for fixed in (False, True) if kind == "adjoint" else (False,):
                        row = {"work": kind, "views": views, "side": side, "view": view}
                        row |= {"pack": pack, "sparse": sparse, "deterministic": fixed}
                        name = " ".join(str(v) for v in row.values())
                        made = (volumes[sparse], kind, views, side, angles, pack, fixed)
                        yield name, row, lambda made=made: _steps(*made)


def _steps(
    volume: drrkit.Volume,
    kind: str,
    views: int,
    side: int,
    angles: tuple[float, float],
    pack: str | None,
    fixed: bool,
) -> list[Step]:
    camera = drrkit.CArm(1020.0, (side, side), pixel_spacing=300.0 / side)
    project = drrkit.Projector(volume, camera, pack=pack)
    poses = [_poses(volume, views, angles, turn) for turn in range(INPUTS)]
    values = volume.values.detach().clone().requires_grad_()

    def forward(pose: Tensor) -> Tensor:
        return project(pose)

    def with_pose(pose: Tensor) -> Tensor:
        pose = pose.detach().requires_grad_()
        return torch.autograd.grad(project(pose).square().sum(), pose)[0]

    def with_volume(frames: Tensor) -> Tensor:
        image = drrkit.project(values, frames, (side, side), spacing=volume.spacing)
        return torch.autograd.grad(image.square().sum(), values)[0]

    def adjoint(frames: Tensor) -> Tensor:
        torch.use_deterministic_algorithms(fixed, warn_only=True)
        ones = torch.ones(views, 1, side, side, device=frames.device)
        shape = tuple(volume.values.shape)
        found = drrkit.backproject(ones, frames, shape, spacing=volume.spacing)
        torch.use_deterministic_algorithms(False)
        return found

    of_frames = {"forward + volume": with_volume, "adjoint": adjoint}
    if kind in of_frames:
        inputs = [drrkit.view_frames(volume, camera, pose) for pose in poses]
        return [lambda x=x: of_frames[kind](x) for x in inputs]
    step = forward if kind == "forward" else with_pose
    return [lambda x=x: step(x) for x in poses]
