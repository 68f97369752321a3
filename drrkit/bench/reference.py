"""A common truth for the images: the trilinearly interpolated volume, sampled very finely.

Own rays (from K, sdd and world_to_camera), own clipping and torch's grid_sample in float64: neither
drrkit's kernels nor its frames are used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drrkit.geometry import Camera
from drrkit.volume import Volume


def fine_integrals(
    volume: Volume,
    camera: Camera,
    world_to_camera: Tensor,
    every: int = 1,
    samples: int = 2000,
) -> Tensor:
    """Midpoint sums of `samples` equal parts of each ray's stay in the volume: [rows, cols].

    volume [D, H, W] in 1/mm, interpolated against zeros beyond its outermost voxel centres;
    world_to_camera [1, 4, 4]; of the detector's rows only 0, every, 2 every, ... are computed.
    Rays run from the source to the detector. float64.
    """
    source, target = _rays_in_index_coordinates(volume, camera, world_to_camera)
    count = torch.tensor(volume.shape_xyz, dtype=torch.float64)
    direction = target - source
    faces = torch.stack((-1.0 - source, count - source))[:, None, None]  # of the support
    crossings = faces / direction  # [2, rows, cols, 3]
    enter = crossings.amin(0).amax(-1, keepdim=True).clamp(0.0, 1.0)
    leave = crossings.amax(0).amin(-1, keepdim=True).clamp(0.0, 1.0).maximum(enter)
    spacing = torch.tensor(volume.spacing, dtype=torch.float64)
    length = ((spacing * direction).norm(dim=-1, keepdim=True) * (leave - enter))[..., 0]

    values = volume.values.detach().double()[None, None]
    where = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples
    rows = []
    for row in range(0, camera.size[0], every):  # a row at a time keeps the memory small
        t = enter[row] + (leave - enter)[row] * where  # [cols, samples]
        points = source + t[..., None] * direction[row][:, None]
        grid = (2.0 * points + 1.0) / count - 1.0
        sampled = torch.nn.functional.grid_sample(values, grid[None, None], align_corners=False)
        rows.append(sampled[0, 0, 0].mean(-1) * length[row])
    return torch.stack(rows)


def _rays_in_index_coordinates(
    volume: Volume, camera: Camera, world_to_camera: Tensor
) -> tuple[Tensor, Tensor]:
    """Source [3] and pixel centres [rows, cols, 3], index coordinates (x, y, z)."""
    rows, cols = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float64) for n in camera.size), indexing="ij"
    )
    pixels = torch.stack((cols, rows, torch.ones_like(rows), torch.zeros_like(rows)), -1)
    seen = torch.eye(4, dtype=torch.float64)
    seen[:3, :3] = float(camera.sdd) * torch.linalg.inv(camera.K.double())
    index_from_camera = torch.linalg.inv(world_to_camera[0].double() @ volume.affine)
    source = index_from_camera[:3, 3]
    return source, source + (pixels @ seen.mT @ index_from_camera.mT)[..., :3]
