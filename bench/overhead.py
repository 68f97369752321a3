"""What a call costs on the host besides its kernel: one view of 8 x 8 pixels of a tiny volume.

    python bench/overhead.py [--json FILE] [--rounds N]

Each row is one call on one thread: the least and the median of its wall times and of the processor
times of this process (which do not count what other programs on a shared machine take), and how
many ops torch's dispatcher sees (forward and backward). On a CPU the ops run inside the call; on a
GPU the wall time is that of the launches alone, as nothing waits for the device.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import drrkit
from drrkit._native import ops as _ops
from drrkit.machine import machine, versions

CALLS = 20  # a sample is the mean over so many calls: clocks tick in microseconds
SIZE = (8, 8)


class DispatchedOps(TorchDispatchMode):
    """Counts what the dispatcher sees."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument("--rounds", type=int, default=300, help="samples of every call")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    calls = make_calls(torch.device(options.device))
    rows = {name: {**times, **ops_of(calls[name])} for name, times in timed(calls, options).items()}
    print(
        f"{'us a call':44s} {'min':>7s} {'median':>7s} {'cpu min':>8s} {'cpu med':>8s} {'ops':>4s}"
    )
    for name, row in rows.items():
        print(
            f"{name:44s} {row['wall_min_us']:7.1f} {row['wall_median_us']:7.1f} "
            f"{row['cpu_min_us']:8.1f} {row['cpu_median_us']:8.1f} {row['ops']:4d}"
        )
    if options.json:
        record = {
            "machine": machine(),
            "versions": versions(("torch", "drrkit")),
            "device": options.device,
            "rows": rows,
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def timed(
    calls: dict[str, Callable[[], Any]], options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Microseconds a call; the calls take turns, so that the machine's pace meets all alike."""
    wall: dict[str, list[float]] = {name: [] for name in calls}
    processor: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(options.rounds + 3):
        for name, call in calls.items():
            begin, begin_processor = time.perf_counter(), time.process_time()
            for _ in range(CALLS):
                call()
            seconds = time.perf_counter() - begin, time.process_time() - begin_processor
            if index >= 3:  # the first rounds warm up
                wall[name].append(seconds[0] / CALLS * 1e6)
                processor[name].append(seconds[1] / CALLS * 1e6)
            if options.device == "cuda":
                torch.cuda.synchronize()
    return {
        name: {
            "wall_min_us": min(wall[name]),
            "wall_median_us": statistics.median(wall[name]),
            "cpu_min_us": min(processor[name]),
            "cpu_median_us": statistics.median(processor[name]),
        }
        for name in calls
    }


def ops_of(call: Callable[[], Any]) -> dict[str, Any]:
    with DispatchedOps() as seen:
        call()
    return {"ops": sum(seen.counts.values()), "ops_by_name": dict(seen.counts)}


def make_calls(device: torch.device) -> dict[str, Callable[[], Any]]:
    """One call a row of the table."""
    scene = Scene(device)
    return {
        "raw op project": scene.raw,
        "project, no gradient": scene.project,
        "project, frames need a gradient, forward": scene.project_with_gradient,
        "  and backward": scene.project_backward,
        "perturb, no gradient": scene.perturb,
        "perturb, forward and backward": scene.perturb_backward,
        "view_frames, no gradient": scene.frames,
        "view_frames, forward and backward": scene.frames_backward,
        "Projector, no gradient": scene.projector_call,
        "Projector, pose needs a gradient, forward": scene.projector_with_gradient,
        "  and backward ": scene.projector_backward,
        "perturb + Projector, forward and backward": scene.step,
        "perturb + Projector + MSE + Adam": scene.optimiser_step,
    }


class Scene:
    """A tiny volume in front of a tiny detector, and one method a row of the table."""

    def __init__(self, device: torch.device) -> None:
        volume = drrkit.Volume(torch.rand(4, 4, 4), spacing=(2.0, 2.0, 2.0), unit="mu").to(device)
        camera = drrkit.CArm(1020.0, SIZE, pixel_spacing=1.0)
        self.pose = drrkit.view_ap(volume, 800.0)
        self.center = drrkit.volume_center(volume)
        self.projector = drrkit.Projector(volume, camera)
        self.values = volume.values
        self.grid = drrkit.geometry.grid_constants(volume)
        self.camera = camera.to(device)
        self.frame = drrkit.view_frames(volume, camera, self.pose, extend=True)
        self.leaf_frame = self.frame.clone().requires_grad_()
        self.leaf_pose = self.pose.clone().requires_grad_()
        self.xi = torch.zeros(1, 6, dtype=torch.float64, device=device)
        self.leaf_xi = self.xi.clone().requires_grad_()
        self.cotangent = torch.ones(1, 1, *SIZE, device=device)
        self.on_frame = torch.ones_like(self.frame)
        self.on_pose = torch.ones_like(self.pose)
        self.fixed = 0.9 * self.projector(self.pose)
        self.parameter = torch.nn.Parameter(self.xi.clone())
        self.optimiser = torch.optim.Adam([self.parameter], lr=1e-9)
        flags = _ops.flags_of("joseph", "cone")
        self.spec = _ops.Spec((4, 4, 4), SIZE, (2.0, 2.0, 2.0), flags, 1.0)
        self.five_dimensional = self.values[None, None]

    def raw(self) -> Tensor:
        return _ops.project(self.five_dimensional, self.frame, False, self.spec)[0]

    def project(self) -> Tensor:
        return drrkit.project(self.values, self.frame, SIZE, spacing=(2.0, 2.0, 2.0))

    def project_with_gradient(self) -> Tensor:
        return drrkit.project(self.values, self.leaf_frame, SIZE, spacing=(2.0, 2.0, 2.0))

    def project_backward(self) -> Any:
        image = self.project_with_gradient()
        return torch.autograd.grad(image, self.leaf_frame, self.cotangent)

    def perturb(self) -> Tensor:
        return drrkit.perturb(self.pose, self.xi, self.center)

    def perturb_backward(self) -> Any:
        pose = drrkit.perturb(self.pose, self.leaf_xi, self.center)
        return torch.autograd.grad(pose, self.leaf_xi, self.on_pose)

    def frames(self) -> Tensor:
        return drrkit.view_frames(self.grid, self.camera, self.pose, extend=True)

    def frames_backward(self) -> Any:
        frame = drrkit.view_frames(self.grid, self.camera, self.leaf_pose, extend=True)
        return torch.autograd.grad(frame, self.leaf_pose, self.on_frame)

    def projector_call(self) -> Tensor:
        return self.projector(self.pose)

    def projector_with_gradient(self) -> Tensor:
        return self.projector(self.leaf_pose)

    def projector_backward(self) -> Any:
        return torch.autograd.grad(self.projector(self.leaf_pose), self.leaf_pose, self.cotangent)

    def step(self) -> Any:
        image = self.projector(drrkit.perturb(self.pose, self.leaf_xi, self.center))
        return torch.autograd.grad(image, self.leaf_xi, self.cotangent)

    def optimiser_step(self) -> None:
        self.optimiser.zero_grad()
        image = self.projector(drrkit.perturb(self.pose, self.parameter, self.center))
        torch.nn.functional.mse_loss(image, self.fixed).backward()
        self.optimiser.step()


if __name__ == "__main__":
    main()
