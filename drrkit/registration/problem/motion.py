"""How poses move: one rigid body, or several with poses of their own.

A pose is [..., 4, 4] with a centre [3], or [..., n, 4, 4] for n bodies with their centres [n, 3];
its xi is [..., 6] or [..., 6 n] (rad, mm), the bodies one after the other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from drrkit.geometry import Camera, perturb, se3_log
from drrkit.registration.problem.views import pixel_at

__all__ = ["mean_depth", "motion_of", "motion_units", "moved"]


def moved(world_to_camera: Tensor, xi: Tensor, center: Tensor) -> Tensor:
    """`perturb` for poses [B, 4, 4], xi [B, 6] and also for [B, n, 4, 4], [B, 6 n]."""
    if center.dim() == 1:
        return perturb(world_to_camera, xi, center)
    count, bodies = world_to_camera.shape[:2]
    found = perturb(
        world_to_camera.flatten(0, 1), xi.reshape(count * bodies, 6), center.repeat(count, 1)
    )
    return found.unflatten(0, (count, bodies))


def motion_of(start: Tensor, world_to_camera: Tensor, center: Tensor) -> Tensor:
    """The xi that moves a start to poses, the inverse of `moved`.

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


def motion_units(camera: Camera, depth: float, bodies: int = 1) -> Tensor:
    """How much of each component of xi moves the visible patient by about one mm.

    A rotation moves a point by angle times distance, so its unit is one mm over a quarter of the
    field of view's diagonal at the patient. A change of depth moves a point at that distance by the
    change of magnification, depth over distance to the source times as much; its unit is the
    geometric mean of that and one mm, a compromise between reach and stability.

    Args:
        camera: gives the field of view.
        depth: of the patient, mm from the source.
        bodies: how many of them have poses of their own.

    Returns:
        [6 bodies] float64: for each three times rad, then x, y, z in mm.
    """
    lever = 0.25 * pixel_at(camera, depth) * math.hypot(*camera.size)
    along = math.sqrt(max(depth / lever, 1.0))
    one = torch.tensor([1 / lever] * 3 + [1.0, 1.0, along], dtype=torch.float64)
    return one.repeat(bodies)


def mean_depth(world_to_camera: Tensor, center: Tensor) -> float:
    """Mean camera z of the centres under poses [K, 4, 4] or [K, n, 4, 4]; 1 mm at least."""
    z = (world_to_camera[..., 2, :3] * center).sum(-1) + world_to_camera[..., 2, 3]
    return float(z.mean().clamp_min(1.0))
