"""Pose updates that networks predict, each with its inverse: the update between two poses.

Both turn the patient about a world point (normally the volume's centre) in camera axes and treat
where that point stands apart from the turn, so that no lever of the distance to the source gets
into the numbers:

    R' = turn R,   c' = shifted c,   c = M center

They differ in how the shift is written. Untangled (Li et al., "DeepIM: deep iterative matching for
6D pose estimation", ECCV 2018): as it is seen in the image, v_x = x'/z' - x/z, v_y = y'/z' - y/z,
v_z = log(z / z'). Riemannian (Gu et al., MLMI 2020, "DMW" in the ProST paper): the gradient of half
the squared distance in the product metric, -log, with millimetres in units of a length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drrkit.geometry import assemble, so3_exp, so3_log

__all__ = [
    "moved",
    "quaternion_rotation",
    "riemannian_gradient",
    "riemannian_step",
    "rotation_quaternion",
    "untangled_step",
    "untangled_update",
]


def moved(world_to_camera: Tensor, turn: Tensor, place: Tensor, center: Tensor) -> Tensor:
    """The patient turned by `turn` in camera axes, `center` put at `place`.

    Args:
        world_to_camera: [B, 4, 4] float64.
        turn: [B, 3, 3] rotations.
        place: [B, 3] camera mm.
        center: [3] world mm.

    Returns:
        [B, 4, 4] in the dtype of world_to_camera, differentiable in all.
    """
    rotation = turn.to(world_to_camera) @ world_to_camera[:, :3, :3]
    place, center = place.to(world_to_camera), center.to(world_to_camera)
    return assemble(rotation, (place - rotation @ center)[..., None])


def untangled_step(
    world_to_camera: Tensor, quaternion: Tensor, shift: Tensor, center: Tensor
) -> Tensor:
    """The poses after DeepIM's updates.

    Args:
        world_to_camera: [B, 4, 4].
        quaternion: [B, 4] = (w, x, y, z) of the turn, of any length but 0.
        shift: [B, 3] = (v_x, v_y, v_z), no unit.
        center: [3] world mm; stands in front of the camera.

    Returns:
        [B, 4, 4], differentiable in all.
    """
    ray, depth = _ray_and_depth(world_to_camera, center)
    shift = shift.to(world_to_camera)
    farther = depth * torch.exp(-shift[:, 2:])
    place = torch.cat((ray + shift[:, :2], torch.ones_like(farther)), 1) * farther
    return moved(world_to_camera, quaternion_rotation(quaternion), place, center)


def untangled_update(
    world_to_camera: Tensor, target: Tensor, center: Tensor
) -> tuple[Tensor, Tensor]:
    """The unit quaternion [B, 4], w >= 0, and shift [B, 3] that take poses to target poses.

    The inverse of `untangled_step`; arguments [B, 4, 4], [B, 4, 4] and [3].
    """
    turn = target[:, :3, :3] @ world_to_camera[:, :3, :3].mT
    ray, depth = _ray_and_depth(world_to_camera, center)
    goal, farther = _ray_and_depth(target, center)
    return rotation_quaternion(turn), torch.cat((goal - ray, torch.log(depth / farther)), 1)


def riemannian_step(
    world_to_camera: Tensor, gradient: Tensor, center: Tensor, unit_mm: float, step: float = 1.0
) -> Tensor:
    """The poses after a step against a Riemannian gradient; step 1 follows a true one to its end.

    Args:
        world_to_camera: [B, 4, 4].
        gradient: [B, 6] = (rad, mm / unit_mm).
        center: [3] world mm.
        unit_mm: the shift that counts as much as a turn of one radian.
        step: share of the way.

    Returns:
        [B, 4, 4], differentiable in all.
    """
    xi = -step * gradient.to(world_to_camera)
    place = _place(world_to_camera, center) + xi[:, 3:] * unit_mm
    return moved(world_to_camera, so3_exp(xi[:, :3].contiguous()), place, center)


def riemannian_gradient(
    world_to_camera: Tensor, target: Tensor, center: Tensor, unit_mm: float
) -> Tensor:
    """Gradient of half the squared product distance of poses to targets: [B, 6], the -log.

    (rotation vector, shift / unit_mm) from the target to the pose, in camera axes. Arguments as of
    `riemannian_step`, which it is the inverse of.
    """
    turn = so3_log((target[:, :3, :3] @ world_to_camera[:, :3, :3].mT).contiguous())
    shift = (_place(target, center) - _place(world_to_camera, center)) / unit_mm
    return -torch.cat((turn, shift), 1)


def quaternion_rotation(quaternion: Tensor) -> Tensor:
    """Rotation matrices [B, 3, 3] of quaternions [B, 4] = (w, x, y, z) of any length but 0."""
    w, x, y, z = (quaternion / quaternion.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def rotation_quaternion(rotation: Tensor) -> Tensor:
    """Unit quaternions [B, 4] = (w, x, y, z), w >= 0, of rotation matrices [B, 3, 3]."""
    half = 0.5 * so3_log(rotation.contiguous())
    angle = half.norm(dim=-1, keepdim=True)
    return torch.cat((angle.cos(), half * torch.sinc(angle / torch.pi)), -1)


def _place(world_to_camera: Tensor, center: Tensor) -> Tensor:
    """Where the world point stands: [B, 3] camera mm."""
    return world_to_camera[:, :3, :3] @ center.to(world_to_camera) + world_to_camera[:, :3, 3]


def _ray_and_depth(world_to_camera: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """(x / z, y / z) [B, 2] and z [B, 1] of the world point."""
    place = _place(world_to_camera, center)
    return place[:, :2] / place[:, 2:], place[:, 2:]
