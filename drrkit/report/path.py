"""The way a registration took: the best pose so far after every step, and how far off it was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from drrkit.metrics import mtre
from drrkit.volume import Volume

__all__ = [
    "PathStep",
    "bone_like_points",
    "distances",
    "registration_path",
    "stage_spans",
    "stage_starts",
]


class PathStep(NamedTuple):
    """Where a registration was after a step."""

    world_to_camera: Tensor
    """[4, 4] float64, the best pose so far."""
    loss: float | None
    """The lowest so far, comparable within a stage only; None before the first."""
    stage: int
    """From 1; 0 for the start."""
    step: int
    """Of the stage, from 1; 0 for the start."""
    similarity: str
    """Of the stage."""


def registration_path(result: dict[str, Any]) -> list[PathStep]:
    """The start, where it is known, and the steps of all stages.

    Args:
        result: what `drrkit register` writes or RegistrationResult.as_dict returns.

    Raises:
        ValueError: there are no poses of steps in it, or they are those of several bodies.
    """
    steps = []
    if result.get("initial_world_to_camera") is not None:
        steps.append(PathStep(_pose(result["initial_world_to_camera"]), None, 0, 0, ""))
    for number, stage in enumerate(result.get("stages") or (), 1):
        poses = stage.get("best_world_to_camera") or ()
        losses = [*(stage.get("best_loss") or ()), *[None] * len(poses)]
        for step, (pose, loss) in enumerate(zip(poses, losses, strict=False), 1):
            name = str(stage.get("similarity", ""))
            steps.append(PathStep(_pose(pose), loss, number, step, name))
    if not any(step.stage for step in steps):
        raise ValueError(
            "result: expected the poses of its steps (stages[..].best_world_to_camera); it was "
            "written by an older version: register again"
        )
    return steps


def bone_like_points(volume: Volume, count: int = 500, seed: int = 0) -> Tensor:
    """Random voxels of the 5 % that attenuate most: [count or fewer, 3] float64 world mm."""
    values = volume.values.detach().cpu()
    values = values.sum(0) if values.dim() == 4 else values
    flat = values.flatten()
    least = torch.quantile(flat[:: max(1, flat.numel() // 1_000_000)].float(), 0.95)
    dense = torch.nonzero(values >= float(least))
    order = torch.randperm(len(dense), generator=torch.Generator().manual_seed(seed))
    index = dense[order[:count]].flip(-1).double()
    return volume.index_to_world(index.to(volume.direction.device)).cpu()


def distances(path: Sequence[PathStep], reference: Tensor, points: Tensor) -> list[float]:
    """Mean distances in mm of points [P, 3] from where a reference pose [4, 4] puts them (mTRE)."""
    poses = torch.stack([step.world_to_camera for step in path])
    found = mtre(poses, reference.detach().double().cpu().reshape(1, 4, 4), points)
    return [distance if math.isfinite(distance) else math.nan for distance in found.tolist()]


def stage_spans(path: Sequence[PathStep]) -> list[tuple[int, int]]:
    """Of each stage, the start being one, the index of its first step and that after its last."""
    counts = [sum(1 for _ in steps) for _, steps in groupby(path, key=lambda step: step.stage)]
    ends = list(accumulate(counts))
    return list(zip([0, *ends], ends, strict=False))


def stage_starts(path: Sequence[PathStep]) -> list[tuple[int, str]]:
    """Index of each stage's first step, and the stage's number; without the start."""
    return [(first, str(path[first].stage)) for first, _ in stage_spans(path) if path[first].stage]


def _pose(rows: Any) -> Tensor:
    pose = torch.as_tensor(rows, dtype=torch.float64).cpu()
    if pose.shape != (4, 4):
        raise ValueError(f"result: expected poses [4, 4] of one body, got {tuple(pose.shape)}")
    return pose
