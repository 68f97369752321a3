"""From pose and camera to the frame of a view, in the index coordinates of a volume's grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from drrkit._native import apply_map, map_flags
from drrkit.geometry.camera import Camera
from drrkit.geometry.checks import batched_pose


class VolumeLike(Protocol):
    """What geometry needs of a volume: its grid."""

    @property
    def values(self) -> Tensor: ...  # [D, H, W] or [C, D, H, W]

    @property
    def spacing(self) -> Sequence[float]: ...  # (x, y, z) mm

    @property
    def origin(self) -> Any: ...  # (x, y, z) world mm of the centre of voxel (0, 0, 0)

    @property
    def direction(self) -> Any: ...  # [3, 3], columns = world directions of the index axes


class GridConstants(NamedTuple):
    """What view_frames needs of a volume, prepared once."""

    grid: Tensor
    """[1, 8, 3] float64. Rows: three that take a row vector from mm to index units, the index
    coordinates of the world's origin, and in world mm the grid's centre and its three half edges
    with a border of one voxel."""


def grid_constants(volume: VolumeLike, device: torch.device | str | None = None) -> GridConstants:
    """Prepare a volume for view_frames in a loop; device: default that of the volume's values."""
    linear, origin, sizes = _index_to_world(volume)
    inverse = torch.linalg.inv(linear)
    center = linear @ ((sizes - 1) / 2) + origin
    half_edges = linear * ((sizes + 1) / 2)
    rows = (inverse.mT, (-inverse @ origin)[None], center[None], half_edges.mT)
    device = volume.values.device if device is None else device
    return GridConstants(torch.cat(rows)[None].to(device))


def view_frames(
    volume: VolumeLike | GridConstants,
    camera: Camera,
    world_to_camera: Tensor,
    *,
    extend: bool = False,
) -> Tensor:
    """The frames of a batch of poses: [B, 4, 3] float64, index coordinates (x, y, z).

    Rows: source s, centre o of pixel (0, 0), step u to the next column, step v to the next row.
    The ray of pixel (row i, column j) ends at o + j u + i v; it starts at s (cone) or at
    s + j u + i v (parallel).

    volume           anything with values, spacing, origin and direction, or, cheaper in a loop,
                     its grid_constants
    world_to_camera  [4, 4] or [B, 4, 4]; its rotation is assumed orthonormal (R^T is the inverse)
    extend           scale o - s (and u, v for a cone) of each view by one constant c >= 1, so that
                     every ray leaves the volume: c = max(1, z / sdd), z the largest camera z of
                     the grid's corners with a border of one voxel. Images and their pose
                     derivatives keep their pixels, c carries no gradient, the source stays.

    Differentiable in world_to_camera, camera.K and camera.sdd, twice; the result is on
    world_to_camera's device. Raises TypeError or ValueError for wrong shapes and dtypes; NaN
    propagates.
    """
    pose = batched_pose(world_to_camera, camera.batch)
    grid = volume if isinstance(volume, GridConstants) else grid_constants(volume, pose.device)
    if grid.grid.device != pose.device:
        raise ValueError(
            f"volume: expected grid constants on device {pose.device}, got {grid.grid.device}"
        )
    rays = camera.pixel_rays().to(pose.device)
    rays = rays if rays.dim() == 3 else rays.unsqueeze(0)
    return frames_of_rays(pose, rays, grid, camera.beam, extend)


def frames_of_rays(
    pose: Tensor, rays: Tensor, grid: GridConstants, beam: str, extend: bool
) -> Tensor:
    """view_frames of prepared arguments, unchecked.

    pose [B, 4, 4], rays [1, 4, 3] or [B, 4, 3] = pixel_rays of one camera or of as many, or the
    other way round, and a grid, all on one device.
    """
    return apply_map("frames", map_flags(beam, extend), pose.double(), rays, grid.grid)


def volume_center(volume: VolumeLike) -> Tensor:
    """World position of the centre of a volume's grid: [3] float64 mm, on its values' device."""
    linear, origin, sizes = _index_to_world(volume)
    return (linear @ ((sizes - 1) / 2) + origin).to(volume.values.device)


def _index_to_world(volume: VolumeLike) -> tuple[Tensor, Tensor, Tensor]:
    """Index (x, y, z) to world mm: linear part [3, 3] and origin [3]; the number of voxels [3].

    All float64 on the CPU.
    """
    shape_xyz = volume.values.shape[:-4:-1]
    direction, spacing, origin, sizes = (
        torch.as_tensor(numbers, dtype=torch.float64, device="cpu")
        for numbers in (volume.direction, volume.spacing, volume.origin, shape_xyz)
    )
    return direction.reshape(3, 3) * spacing, origin, sizes
