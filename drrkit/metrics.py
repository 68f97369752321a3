"""How far a pose is from the truth, and how often a method succeeds.

Poses are world_to_camera matrices [4, 4] or [B, 4, 4] (patient world LPS mm -> camera mm, column
vectors); two batches broadcast. All results are float64 on the device of the poses, lengths in mm,
angles in radians. The functions are differentiable in the poses except where an error is zero.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from drrkit.geometry import batched, so3_log

if TYPE_CHECKING:
    from drrkit.volume import Volume


class SuccessRate(NamedTuple):
    """A share of successes with its Wilson 95 % interval, all as fractions of one."""

    rate: float
    low: float
    high: float
    successes: int
    total: int


def mtre(world_to_camera_a: Tensor, world_to_camera_b: Tensor, points: Tensor) -> Tensor:
    """Mean target registration error: the mean distance of points under two poses.

    mean_p || A p - B p || in camera coordinates, the same for either order of the poses.

    Args:
        world_to_camera_a, world_to_camera_b: [4, 4] or [B, 4, 4] poses.
        points: [P, 3] targets in world mm.

    Returns:
        [B] mm, B = 1 for two single poses.

    Raises:
        TypeError, ValueError: an argument is not a tensor of the shape expected.
    """
    first, second = _both(world_to_camera_a, world_to_camera_b)
    if not isinstance(points, Tensor):
        raise TypeError(f"points: expected a tensor [P, 3] in mm, got {type(points).__name__}")
    if points.dim() != 2 or points.shape[1] != 3 or points.shape[0] == 0:
        raise ValueError(f"points: expected shape [P, 3], P >= 1, got {tuple(points.shape)}")
    targets = points.to(device=first.device, dtype=torch.float64)
    difference = first - second
    moved = targets @ difference[:, :3, :3].transpose(-1, -2) + difference[:, None, :3, 3]
    return torch.linalg.vector_norm(moved, dim=-1).mean(dim=-1)


def rotation_error(world_to_camera_a: Tensor, world_to_camera_b: Tensor) -> Tensor:
    """Angle of the rotation between two poses, in radians, [B] between 0 and pi.

    The geodesic distance of the rotation parts: the angle of R_a R_b^T.

    Raises:
        TypeError, ValueError: an argument is not a tensor of the shape expected.
    """
    first, second = _both(world_to_camera_a, world_to_camera_b)
    relative = first[:, :3, :3] @ second[:, :3, :3].transpose(-1, -2)
    return torch.linalg.vector_norm(so3_log(relative), dim=-1)


def translation_error(
    world_to_camera_a: Tensor, world_to_camera_b: Tensor, center: Tensor
) -> Tensor:
    """Distance of one point under two poses, in mm, [B].

    A translation between two poses depends on the point that rotations turn about: usually the
    volume's centre (`drrkit.volume_center`).

    Args:
        world_to_camera_a, world_to_camera_b: [4, 4] or [B, 4, 4] poses.
        center: [3] the point, world mm.

    Raises:
        TypeError, ValueError: an argument is not a tensor of the shape expected.
    """
    if not isinstance(center, Tensor):
        raise TypeError(f"center: expected a tensor [3] in mm, got {type(center).__name__}")
    if center.shape != (3,):
        raise ValueError(f"center: expected shape [3] in mm, got {tuple(center.shape)}")
    return mtre(world_to_camera_a, world_to_camera_b, center[None])


def success_rate(errors: Tensor, threshold: float) -> SuccessRate:
    """Share of errors below a threshold, with the Wilson score interval at 95 %.

    An error that is not a number is a failure.

    Args:
        errors: numbers of any shape, at least one, in the threshold's unit.
        threshold: an error strictly below it is a success.

    Raises:
        TypeError, ValueError: errors is not a tensor or empty, or threshold is not positive.
    """
    if not isinstance(errors, Tensor):
        raise TypeError(f"errors: expected a tensor, got {type(errors).__name__}")
    if errors.numel() == 0:
        raise ValueError(f"errors: expected at least one number, got shape {tuple(errors.shape)}")
    if not threshold > 0:
        raise ValueError(f"threshold: expected a positive number, got {threshold!r}")
    count = errors.numel()
    successes = int((errors < threshold).sum())
    rate = successes / count
    z = 1.959963984540054  # the normal distribution's 97.5 % quantile
    shrink = 1.0 + z * z / count
    middle = (rate + z * z / (2 * count)) / shrink
    half = z * math.sqrt(rate * (1 - rate) / count + (z / (2 * count)) ** 2) / shrink
    # Rounding must not push the interval off a rate of exactly 0 or 1.
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == count else middle + half
    return SuccessRate(rate, low, high, successes, count)


def bone_points(
    volume: Volume, threshold_hu: float = 250.0, count: int = 2000, seed: int = 0
) -> Tensor:
    """Target points on bone: random voxels of the largest connected component above a threshold.

    Voxels that share a face are connected. The draw is without replacement: a component of fewer
    than `count` voxels gives fewer points.

    Args:
        volume: a Volume in HU with one channel.
        threshold_hu: voxels above it count as bone.
        count: number of points.
        seed: of the draw (numpy's default generator).

    Returns:
        [P, 3] float64 world mm on the CPU.

    Raises:
        ValueError: the volume is not in HU, has several channels or no voxel above the threshold,
            or count is not positive.
        ImportError: SimpleITK is missing.
    """
    import numpy as np
    import SimpleITK as sitk

    if volume.unit != "HU":
        raise ValueError(f"volume: expected values in HU, got unit {volume.unit!r}")
    if volume.values.dim() != 3:
        raise ValueError(f"volume: expected one channel, got {tuple(volume.values.shape)}")
    if count < 1:
        raise ValueError(f"count: expected a positive number of points, got {count!r}")
    bone = volume.values.detach().cpu().float().numpy() > threshold_hu
    if not bone.any():
        highest = float(volume.values.max())
        raise ValueError(
            f"volume: expected voxels above {threshold_hu} HU, got a maximum of {highest:.1f} HU"
        )
    components = sitk.ConnectedComponent(sitk.GetImageFromArray(bone.astype(np.uint8)))
    labels = sitk.GetArrayFromImage(components).ravel()
    sizes = np.bincount(labels)
    sizes[0] = 0  # the background
    voxels = np.flatnonzero(labels == sizes.argmax())
    if len(voxels) > count:
        voxels = np.random.default_rng(seed).choice(voxels, size=count, replace=False)
    z, y, x = np.unravel_index(voxels, bone.shape)
    index = torch.from_numpy(np.stack([x, y, z], axis=-1).astype(np.float64))
    affine = volume.affine.detach().cpu().to(torch.float64)
    return index @ affine[:3, :3].T + affine[:3, 3]


def _both(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two batches of poses as float64 [B, 4, 4], broadcast against each other."""
    first = batched("world_to_camera_a", a, (4, 4)).double()
    second = batched("world_to_camera_b", b, (4, 4)).double()
    if len(first) != len(second) and 1 not in (len(first), len(second)):
        raise ValueError(
            f"world_to_camera_b: expected {len(first)} poses or one to fit world_to_camera_a, "
            f"got {len(second)}"
        )
    first, second = torch.broadcast_tensors(first, second)
    return first, second
