"""How poses move and how far they are apart: one rigid body, or several with poses of their own.

A pose is [..., 4, 4] with a centre [3], or [..., n, 4, 4] for n bodies with their centres [n, 3];
its xi is [..., 6] or [..., 6 n] (rad, mm), the bodies one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drrkit.geometry import perturb, se3_log

__all__ = [
    "Candidates",
    "distinct_poses",
    "motion_between",
    "motion_of",
    "moved_by",
    "neighbours",
]


@dataclass(frozen=True)
class Candidates:
    """Poses [K, 4, 4] float64 and their losses [K] in the stage they come from.

    [K, n, 4, 4] for n bodies.
    """

    pose: Tensor
    loss: Tensor

    @staticmethod
    def unjudged(pose: Tensor) -> Candidates:
        """Poses without a loss yet."""
        return Candidates(pose, pose.new_full((pose.shape[0],), torch.inf))

    @staticmethod
    def best_of_each(pose: Tensor, loss: Tensor, starts: int) -> Candidates:
        """The best of every `starts` poses [K * starts, ...] that follow one another."""
        lowest, best = loss.reshape(-1, starts).min(1)
        row = torch.arange(len(best), device=loss.device)
        return Candidates(pose.unflatten(0, (-1, starts))[row, best], lowest)


def moved_by(world_to_camera: Tensor, xi: Tensor, center: Tensor) -> Tensor:
    """`perturb` for poses [B, 4, 4], xi [B, 6] and also for [B, n, 4, 4], [B, 6 n]."""
    if center.dim() == 1:
        return perturb(world_to_camera, xi, center)
    count, bodies = world_to_camera.shape[:2]
    found = perturb(
        world_to_camera.flatten(0, 1), xi.reshape(count * bodies, 6), center.repeat(count, 1)
    )
    return found.unflatten(0, (count, bodies))


def motion_of(start: Tensor, world_to_camera: Tensor, center: Tensor) -> Tensor:
    """The xi that moves a start to poses, the inverse of `moved_by`.

    Args:
        start: [4, 4], or [n, 4, 4] for n bodies.
        world_to_camera: [B, 4, 4] or [B, n, 4, 4].
        center: [3] or [n, 3] world mm.

    Returns:
        [B, 6] or [B, 6 n] float64 (rad, mm), differentiable in world_to_camera.
    """
    middle = (start[..., :3, :3] @ center.unsqueeze(-1))[..., 0] + start[..., :3, 3]
    away = torch.eye(4).to(start).expand_as(start).clone()
    away[..., :3, 3] = -middle
    back = away.clone()
    back[..., :3, 3] = middle
    xi = se3_log(away @ world_to_camera.double() @ torch.linalg.inv(start) @ back)
    return xi.flatten(1)


def motion_between(
    world_to_camera: Tensor, others: Tensor, center: Tensor, units: Tensor
) -> Tensor:
    """Distances [N, M] between poses [N, 4, 4] and [M, 4, 4], in mm of motion.

    The mean over six points, before, behind and beside the centre at the distance where a turn by
    units[0] moves them by one mm. Displacements along the beam count by units[5], as they do in a
    step of an optimiser. For n bodies, poses [N, n, 4, 4], centres [n, 3] and units [6 n], it is
    the distance of the body that differs most.
    """
    if center.dim() == 2:
        bodies = zip(
            world_to_camera.unbind(1), others.unbind(1), center, units.split(6), strict=True
        )
        return torch.stack([motion_between(*body) for body in bodies]).amax(0)
    lever = 1.0 / units[:3].mean()
    axes = torch.eye(3).to(center)
    points = torch.cat((axes, -axes)) * lever + center

    def seen(pose: Tensor) -> Tensor:
        return (points @ pose[:, :3, :3].mT + pose[:, None, :3, 3]) / units[3:]

    difference = seen(world_to_camera)[:, None] - seen(others)[None]
    return difference.norm(dim=-1).mean(-1)


def distinct_poses(
    world_to_camera: Tensor,
    loss: Tensor,
    center: Tensor,
    units: Tensor,
    apart: float,
    count: int,
) -> Tensor:
    """Indices of at most `count` poses, best first, none closer than `apart` to a better one.

    Args:
        world_to_camera: [N, 4, 4] poses, or [N, n, 4, 4] of n bodies.
        loss: [N] their losses; NaN counts as infinite.
        center: [3] or [n, 3] world mm; units: [6] or [6 n], see motion_units.
        apart: mm of motion.
    """
    order = torch.nan_to_num(loss, nan=torch.inf).argsort(stable=True)
    chosen: list[Tensor] = []
    while order.numel() and len(chosen) < count:
        best = order[:1]
        chosen.append(best)
        rest = order[1:]
        distance = motion_between(world_to_camera[rest], world_to_camera[best], center, units)[:, 0]
        order = rest[distance >= apart]
    return torch.cat(chosen)


def neighbours(
    pose: Tensor,
    starts: int,
    spread: Sequence[float],
    center: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Every pose [K, ...] followed by random ones around it: [K * starts, ...]."""
    if starts == 1:
        return pose
    bodies = pose[0].numel() // 16
    shape = (pose.shape[0], starts, 2 * bodies, 3)
    direction = torch.randn(shape, generator=generator, dtype=torch.float64)
    direction = direction / direction.norm(dim=-1, keepdim=True)
    radius = torch.rand(shape[:3], generator=generator, dtype=torch.float64)[..., None]
    xi = direction * radius * _six(spread).reshape(2, 3).repeat(bodies, 1)
    xi[:, 0] = 0.0
    repeated = pose.repeat_interleave(starts, dim=0)
    return moved_by(repeated, xi.flatten(0, 1).flatten(1).to(pose), center)


def _six(spread: Sequence[float]) -> Tensor:
    numbers = torch.tensor(spread, dtype=torch.float64)
    return numbers if len(numbers) == 6 else numbers.repeat_interleave(3)
