"""From pose and camera to the frame of a view, in the index coordinates of a volume's grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

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
    """What view_frames needs of a volume, prepared once: all float64, on one device."""

    index_from_world: Tensor  # [3, 3], transposed: a row vector in mm times it is in index units
    offset: Tensor  # [4, 3], index coordinates of the world's origin in rows 0 and 1, else zero
    point: Tensor  # [4, 1], -1 for the two points of a frame, 0 for its two steps
    corners: Tensor  # [4, 8], corners of the grid with a border of one voxel, homogeneous world mm


def grid_constants(volume: VolumeLike, device: torch.device | str | None = None) -> GridConstants:
    """Prepare a volume for view_frames in a loop; device: default that of the volume's values."""
    device = volume.values.device if device is None else device
    linear, origin = _index_to_world(volume)
    inverse = torch.linalg.inv(linear)
    offset = torch.zeros(4, 3, dtype=torch.float64, device="cpu")
    offset[:2] = -inverse @ origin
    point = torch.tensor([[-1.0], [-1.0], [0.0], [0.0]], dtype=torch.float64, device="cpu")
    ends = [
        torch.tensor((-1.0, float(n)), dtype=torch.float64, device="cpu")
        for n in _shape_xyz(volume)
    ]
    corners = torch.cartesian_prod(*ends) @ linear.mT + origin
    homogeneous = torch.cat((corners, torch.ones(8, 1, dtype=torch.float64, device="cpu")), 1).mT
    constants = (inverse.mT, offset, point, homogeneous)
    return GridConstants(*(constant.contiguous().to(device) for constant in constants))


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

    Differentiable in world_to_camera, camera.K and camera.sdd; the result is on world_to_camera's
    device. Raises TypeError or ValueError for wrong shapes and dtypes; NaN propagates.
    """
    pose = batched_pose(world_to_camera, camera.batch).double()
    grid = volume if isinstance(volume, GridConstants) else grid_constants(volume, pose.device)
    rays = camera.pixel_rays().to(pose.device)
    if extend:
        rays = rays * _extension(grid, camera, rays.detach(), pose.detach())
    # Row vectors: (X_cam - t)' R for the two points, X_cam' R for the two steps.
    points = torch.addcmul(rays, grid.point, pose[:, None, :3, 3])
    # bmm, for a product of [3 B, 3] and [3, 3] may wake the threads of BLAS.
    turned = torch.bmm(pose[:, :3, :3], grid.index_from_world.expand(len(pose), 3, 3))
    return points @ turned + grid.offset


def volume_center(volume: VolumeLike) -> Tensor:
    """World position of the centre of a volume's grid: [3] float64 mm, on its values' device."""
    linear, origin = _index_to_world(volume)
    middle = torch.tensor(
        [(n - 1) / 2 for n in _shape_xyz(volume)], dtype=torch.float64, device="cpu"
    )
    return (linear @ middle + origin).to(volume.values.device)


def _extension(grid: GridConstants, camera: Camera, rays: Tensor, pose: Tensor) -> Tensor:
    """Factors of the rays' camera coordinates: [B, 1, 1], for a parallel beam [B, 1, 3]."""
    farthest = (pose[:, 2] @ grid.corners).amax(-1)
    factor = (farthest / rays[..., 1, 2]).clamp(min=1.0)[:, None, None]
    if camera.beam == "cone":
        return factor
    one = torch.ones_like(factor)
    return torch.cat((one, one, factor), -1)


def _shape_xyz(volume: VolumeLike) -> tuple[int, int, int]:
    depth, height, width = volume.values.shape[-3:]
    return width, height, depth


def _index_to_world(volume: VolumeLike) -> tuple[Tensor, Tensor]:
    """Index (x, y, z) to world mm: linear part [3, 3] and origin [3], float64 on the CPU."""
    direction, spacing, origin = (
        torch.as_tensor(numbers, dtype=torch.float64, device="cpu")
        for numbers in (volume.direction, volume.spacing, volume.origin)
    )
    return direction.reshape(3, 3) * spacing, origin
