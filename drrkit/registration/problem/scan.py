"""What a CT's localizer (scout, topogram, survey) shows: a fan of rays per row, while the table
moves. `drrkit.xray.read_localizer` reads one."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from drrkit.geometry import Camera, volume_center
from drrkit.projector import render
from drrkit.registration.lengths import object_diagonal
from drrkit.volume import Volume

__all__ = ["ScanScene"]


class ScanScene:
    """A Volume in mu whose images are those of a source that moves along with the rows.

    The source of row i stands at (0, (i - cy) p, 0) in camera coordinates, p = sdd / fy: rows are
    parallel to one another and p apart wherever the patient is, columns are those of a cone. Rays
    end behind the volume. Register it in the place of the volume; what needs a cone or a volume of
    its own (a search, voxels of another size) is not for it.
    """

    def __init__(self, volume: Volume) -> None:
        self.scanned = volume

    @property
    def center(self) -> Tensor:
        """[3] float64 world mm: the centre of the grid."""
        return volume_center(self.scanned)

    @property
    def extent_mm(self) -> float:
        """Of the volume's dense voxels."""
        return object_diagonal(self.scanned)

    def render(self, camera: Camera, world_to_camera: Tensor, *, method: str = "joseph") -> Tensor:
        """Line integrals [B, C, rows, cols] for poses [4, 4] or [B, 4, 4], differentiable in them.

        Raises TypeError, ValueError as `drrkit.render`, and for a camera of another beam.
        """
        if camera.beam != "cone" or camera.K.numel() != 9:
            raise ValueError(f"camera: expected one of a cone beam, got {camera.beam!r}")
        rows, cols = camera.size
        pose = world_to_camera.reshape(-1, 4, 4).double()
        step = camera.sdd / camera.K.double()[1, 1]
        shift = (torch.arange(rows, dtype=torch.float64) - camera.K.double()[1, 2]) * step
        moved = torch.zeros(rows, 4, 4, dtype=torch.float64)
        moved[:, 1, 3] = -shift  # the patient comes instead of the source's going
        each = (pose[:, None] + moved.to(pose)).flatten(0, 1)
        matrix = camera.K.clone()
        matrix[1, 2] = 0.0
        fan = replace(camera, K=matrix, size=(1, cols), sigma=None)
        image = render(self.scanned, fan, each, method=method)
        return image[:, :, 0].unflatten(0, (len(pose), rows)).movedim(2, 1)
