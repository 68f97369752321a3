"""Host time of a call besides its kernel: one view of 8 x 8 pixels of a tiny volume.

Each row is one call on one thread: the least and the median of its wall times and of the processor
times of this process (which other programs disturb less), and how many ops torch dispatches
(forward and backward). On a CPU the ops run inside the call; on a GPU the wall time is that of the
launches alone, as nothing waits for the device.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.autograd import grad
from torch.utils._python_dispatch import TorchDispatchMode

import drrkit
from bench.studies.study import in_turns, json_file, recorded, write_json

CALLS = 20  # a sample is the mean over so many calls: clocks tick in microseconds
WARM_UP = 3  # rounds
SIZE, SPACING = (8, 8), (2.0, 2.0, 2.0)
COLUMNS = ("wall_min_us", "wall_median_us", "cpu_min_us", "cpu_median_us", "ops")


class DispatchedOps(TorchDispatchMode):
    """Counts what the dispatcher sees, and keeps the last call of each op."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.calls: dict[str, Callable[[], Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func._schema.name] += 1
        self.calls[func._schema.name] = partial(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def options(add: Any) -> None:
    add("--rounds", type=int, default=300, help="samples of every call (300)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def run(options: argparse.Namespace) -> None:
    calls = make_calls(torch.device(options.device))
    rows = {name: times | ops_of(calls[name]) for name, times in timed(calls, options).items()}
    print(f"{'us per call':44s}" + "".join(f"{name:>15}" for name in COLUMNS))
    for name, row in rows.items():
        print(f"{name:44s}" + "".join(f"{row[column]:15.1f}" for column in COLUMNS))
    write_json(json_file(options), recorded(options, device=options.device, rows=rows))


def timed(
    calls: dict[str, Callable[[], Any]], options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Microseconds per call; nothing waits for a GPU within a sample."""
    wait = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    return in_turns(calls, options.rounds, unit="us", warm_up=WARM_UP, repeat=CALLS, between=wait)


def ops_of(call: Callable[[], Any]) -> dict[str, Any]:
    with DispatchedOps() as seen:
        call()
    return {"ops": sum(seen.counts.values()), "ops_by_name": dict(seen.counts)}


def make_calls(device: torch.device) -> dict[str, Callable[[], Any]]:
    """A call for each row of the table, of a tiny volume in front of a tiny detector."""
    volume = drrkit.Volume(torch.rand(4, 4, 4), SPACING, unit="mu").to(device)
    camera = drrkit.CArm(1020.0, SIZE, pixel_spacing=1.0)
    pose, center = drrkit.view_ap(volume, 800.0), drrkit.volume_center(volume)
    projector = drrkit.Projector(volume, camera)
    values, grid = volume.values, drrkit.geometry.grid_constants(volume)
    on_device = camera.to(device)
    frames = drrkit.view_frames(volume, camera, pose, extend=True)
    xi = torch.zeros(1, 6, dtype=torch.float64, device=device)
    leaves = [tensor.clone().requires_grad_() for tensor in (frames, pose, xi)]
    leaf_frames, leaf_pose, leaf_xi = leaves
    given = torch.ones(1, 1, *SIZE, device=device)
    on_frames, on_pose = torch.ones_like(frames), torch.ones_like(pose)
    fixed = 0.9 * projector(pose)
    parameter = torch.nn.Parameter(xi.clone())
    optimiser = torch.optim.Adam([parameter], lr=1e-9)

    def project(frames: torch.Tensor) -> torch.Tensor:
        return drrkit.project(values, frames, SIZE, spacing=SPACING)

    def moved(xi: torch.Tensor) -> torch.Tensor:
        return drrkit.perturb(pose, xi, center)

    def seen(pose: torch.Tensor) -> torch.Tensor:
        return drrkit.view_frames(grid, on_device, pose, extend=True)

    def step() -> None:
        optimiser.zero_grad()
        torch.nn.functional.mse_loss(projector(moved(parameter)), fixed).backward()
        optimiser.step()

    with DispatchedOps() as inside:
        project(frames)
    return {
        "raw op project": inside.calls["drrkit::project"],
        "project, no gradient": lambda: project(frames),
        "project, frames need a gradient, forward": lambda: project(leaf_frames),
        "  and backward": lambda: grad(project(leaf_frames), leaf_frames, given),
        "perturb, no gradient": lambda: moved(xi),
        "perturb, forward and backward": lambda: grad(moved(leaf_xi), leaf_xi, on_pose),
        "view_frames, no gradient": lambda: seen(pose),
        "view_frames, forward and backward": lambda: grad(seen(leaf_pose), leaf_pose, on_frames),
        "Projector, no gradient": lambda: projector(pose),
        "Projector, pose needs a gradient, forward": lambda: projector(leaf_pose),
        "  and backward ": lambda: grad(projector(leaf_pose), leaf_pose, given),
        "perturb + Projector, forward and backward": lambda: grad(
            projector(moved(leaf_xi)), leaf_xi, given
        ),
        "perturb + Projector + MSE + Adam": step,
    }
