"""Rays that a volume does not answer for: they pass a face at which tissue was cut off."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from drrkit.geometry import Camera
from drrkit.registration.lengths import DENSE
from drrkit.registration.problem.views import View
from drrkit.volume import Volume

__all__ = ["CutFaces"]


# A body that touches a face with its skin narrows towards it. Where it is cut, its area at the face
# is at least this share of that a tenth of the grid's length inside.
_INWARDS, _STILL_WIDE = 0.1, 0.7

# Share of a view's pixels that must be left.
_LEAST_LEFT = 0.25


@dataclass(frozen=True)
class _Face:
    """A side of the grid: its plane and where tissue touches it."""

    axis: int  # of x, y, z
    place: float  # index coordinate of the voxels' outer side
    tissue: Tensor  # [1, 1, n, m] 0 or 1 at the voxels of the other axes, the later one first


class CutFaces:
    """The faces of a volume that cut through tissue, and the rays that pass through them.

    What an X-ray shows along such a ray is more than the volume holds, at any pose.

    Args:
        scene: a Volume in mu; anything else has no such faces.
    """

    def __init__(self, scene: Any) -> None:
        self.faces: list[_Face] = []
        if not isinstance(scene, Volume):
            return
        self.affine, self.like = scene.affine, scene.values.detach().flatten()[:0]
        values = scene.values.detach()
        while values.dim() > 3:
            values = values.amax(0)
        least = DENSE * values.max()
        filled = (values > least).float()
        for axis in range(3):
            count = values.shape[2 - axis]
            inwards = max(1, round(_INWARDS * count))
            for end, behind, side in ((0, inwards, -0.5), (-1, -1 - inwards, count - 0.5)):
                tissue = filled.select(2 - axis, end)
                if float(tissue.sum()) > _STILL_WIDE * float(filled.select(2 - axis, behind).sum()):
                    self.faces.append(_Face(axis, side, tissue[None, None]))

    def rays(self, camera: Camera, world_to_camera: Tensor) -> Tensor | None:
        """1 where a pixel's ray and its neighbours' pass no cut face, else 0: [B, 1, rows, cols].

        None where no face is cut, none is seen, or the beam is parallel.
        """
        if not self.faces or camera.beam != "cone":
            return None
        pose = world_to_camera.double()
        world = pose[:, :3, :3].mT
        index = torch.linalg.inv(self.affine).to(pose)
        source = (-world @ pose[:, :3, 3:])[..., 0] @ index[:3, :3].mT + index[:3, 3]
        origin, first_pixel, u, v = camera.pixel_rays().detach().to(pose).reshape(4, 3)
        rows, cols = (torch.arange(n).to(pose) for n in camera.size)
        pixel = first_pixel - origin + rows[:, None, None] * v + cols[:, None] * u
        direction = pixel.reshape(1, -1, 3) @ world.mT @ index[:3, :3].mT  # [B, rows * cols, 3]
        left = torch.ones_like(direction[..., 0], dtype=torch.bool)
        for face in self.faces:
            along = direction[..., face.axis]
            reach = (face.place - source[:, None, face.axis]) / torch.where(
                along == 0, torch.finfo(along.dtype).tiny, along
            )
            first, second = (axis for axis in range(3) if axis != face.axis)
            sides = [face.tissue.shape[-1], face.tissue.shape[-2]]
            hit = [
                (source[:, None, axis] + reach * direction[..., axis] + 0.5) * (2.0 / side) - 1.0
                for axis, side in zip((first, second), sides, strict=True)
            ]
            grid = torch.stack(hit, -1).clamp(-10.0, 10.0)[:, None]
            tissue = face.tissue.to(grid).expand(len(grid), -1, -1, -1)
            seen = functional.grid_sample(tissue, grid, align_corners=False)[:, 0, 0]
            left &= ~((seen > 0.25) & (reach > 0))
        if bool(left.all()):
            return None
        cut = (~left).reshape(-1, 1, *camera.size).float()
        return 1.0 - functional.max_pool2d(cut, 3, stride=1, padding=1).to(self.like)

    def left_out(self, view: View, world_to_camera: Tensor) -> View:
        """The view without the rays that the volume does not answer for at a pose [1, 4, 4].

        All of them stay where hardly any would be left.
        """
        answered = self.rays(view.camera, view.pose(world_to_camera))
        if answered is None:
            return view
        mask = answered if view.mask is None else view.mask * answered
        before = mask.new_ones(()) if view.mask is None else view.mask.mean()
        return replace(view, mask=mask) if mask.mean() > _LEAST_LEFT * before else view
