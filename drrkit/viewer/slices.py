"""Grey pictures that travel to the page: slices of the CT, X-rays, DRRs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drrkit.volume import Volume

PLANES = ("axial", "coronal", "sagittal")
LONGEST_SLICE = 512  # pixels; longer slices are thinned out


@dataclass(frozen=True)
class Picture:
    """Grey values [rows, cols] uint8 on the CPU and the size of a row and a column in mm."""

    pixels: Tensor
    row_mm: float = 1.0
    col_mm: float = 1.0


class Slices:
    """Slices of a CT through its voxels, as radiologists look at them.

    Axial: patient's left on the right, front up. Coronal: left on the right, head up. Sagittal:
    back on the right, head up. An oblique CT is cut along its own axes, each named after the
    nearest one of the patient.

    Args:
        volume: single-channel; black is its lowest value, white the 99.9th percentile.
    """

    def __init__(self, volume: Volume) -> None:
        values = volume.values.detach()
        # world axis -> index axis; a world axis is taken by the index axis that runs along it most
        direction = volume.direction.abs().clone()
        along = [0, 0, 0]
        for _ in range(3):
            world, index = divmod(int(direction.argmax()), 3)
            along[world] = index
            direction[world], direction[:, index] = -1.0, -1.0
        signs = [float(volume.direction[world, along[world]]) for world in range(3)]
        # [D, H, W] is (z, y, x): index axis i is dimension 2 - i.
        values = values.permute(*(2 - along[world] for world in (2, 1, 0)))
        flipped = [2 - world for world in range(3) if signs[world] < 0]
        self._values = values.flip(flipped) if flipped else values
        self._spacing = tuple(volume.spacing[along[world]] for world in range(3))
        thinned = self._values[tuple(slice(None, None, 1 + n // 64) for n in self._values.shape)]
        numbers = thinned.float().cpu().numpy()
        self._black, self._white = float(numbers.min()), float(np.percentile(numbers, 99.9))
        if self._white <= self._black:
            self._white = self._black + 1.0

    def cut(self, plane: str, share: float) -> Picture:
        """A slice.

        Args:
            plane: of PLANES.
            share: where, from 0 (foot, front, right) to 1 (head, back, left).

        Raises:
            ValueError: an unknown plane or a share out of bounds.
        """
        if plane not in PLANES:
            raise ValueError(f"plane: expected one of {', '.join(PLANES)}, got {plane!r}")
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"share: expected a number from 0 to 1, got {share!r}")
        dim = PLANES.index(plane)  # of (z, y, x)
        number = round(share * (self._values.shape[dim] - 1))
        image = self._values.select(dim, number)
        x, y, z = self._spacing
        row_mm, col_mm = ((y, x), (z, x), (z, y))[dim]
        if plane != "axial":
            image = image.flip(0)  # head up
        step = 1 + (max(image.shape) - 1) // LONGEST_SLICE
        image = image[::step, ::step].float().cpu()
        grey = (image - self._black) * (255.0 / (self._white - self._black))
        return Picture(grey.clamp(0, 255).round().to(torch.uint8), row_mm * step, col_mm * step)
