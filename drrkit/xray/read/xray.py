"""An X-ray that was read: pixels, and all the geometry that came with them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from drrkit.conversions import from_dicom_angles, odd_lengths, odd_place
from drrkit.files import FileWarning
from drrkit.geometry import Camera

__all__ = ["XRAY_KINDS", "Xray", "xray_image"]

Kind = Literal["line", "intensity", "display", "inverted"]
XRAY_KINDS: tuple[Kind, ...] = ("line", "intensity", "display", "inverted")
"""What pixels mean: line integrals; proportional to photons; a picture with bone bright; a picture
with bone dark."""


@dataclass(frozen=True, eq=False)
class Xray:
    """X-ray images of one source and detector, as seen from the source.

    Attributes:
        image: [F, 1, rows, cols] float32, one a frame; what its numbers mean is `kind`.
        kind: "line", "intensity", "display" or "inverted"; None where the file does not say.
        camera: with the size of the image; None where sdd or pixel spacing are not known.
        pixel_spacing: (row, col) mm at the detector, None where not known.
        mask: [1, 1, rows, cols] float32, 0 behind the collimator; None where there is none.
        world_to_camera: [4, 4] or [F, 4, 4], where the file holds a calibrated pose.
        primary_deg: [F] positioner primary angle, LAO positive; None where not known.
        secondary_deg: [F] positioner secondary angle, CRA positive.
        sod: source-to-isocentre distance, mm.
        warnings: what was assumed because the file does not say it, or says it wrongly.
        facts: what else the file says, in words, by name.
    """

    image: Tensor
    kind: Kind | None = None
    camera: Camera | None = None
    pixel_spacing: tuple[float, float] | None = None
    mask: Tensor | None = None
    world_to_camera: Tensor | None = None
    primary_deg: Tensor | None = None
    secondary_deg: Tensor | None = None
    sod: float | None = None
    warnings: tuple[str, ...] = field(default=())
    facts: dict[str, str] = field(default_factory=dict)

    def start(self, volume: Any, sod: float | None = None) -> Tensor:
        """Where a registration may start: poses [F, 4, 4] float64.

        The calibrated pose if there is one, else the C-arm at the file's angles with the volume's
        centre at the isocentre; sod (mm) in place of what the file says. A calibrated pose that
        does not show the volume is a FileWarning. Raises ValueError when the file says neither.
        """
        if self.world_to_camera is not None:
            poses = self.world_to_camera.reshape(-1, 4, 4)
            for text in () if self.camera is None else odd_place(volume, self.camera, poses):
                warnings.warn(text, FileWarning, stacklevel=2)
            return poses
        sod = self.sod if sod is None else sod
        if self.primary_deg is None or self.secondary_deg is None or sod is None:
            angles = self.primary_deg is None or self.secondary_deg is None
            raise ValueError(
                "the X-ray's file does not say where the C-arm stood: it has no "
                + ("positioner angles" if angles else "source-to-isocentre distance; give sod=")
            )
        sdd = None if self.camera is None else float(self.camera.sdd)
        for text in odd_lengths(sdd, sod) if sod != self.sod else ():
            warnings.warn(text, FileWarning, stacklevel=2)
        return from_dicom_angles(self.primary_deg, self.secondary_deg, sod, volume)


def xray_image(source: Path, pixels: np.ndarray) -> Tensor:
    """[F, 1, rows, cols] float32 of an array [rows, cols], [F, rows, cols] or with ones more."""
    if pixels.ndim == 2:
        pixels = pixels[None]
    frames = pixels.reshape(-1, *pixels.shape[-2:]) if pixels.ndim > 2 and pixels.size else pixels
    if pixels.ndim < 2 or pixels.size == 0:
        raise ValueError(f"{source}: expected images of rows x cols, got shape {pixels.shape}")
    image = torch.from_numpy(np.ascontiguousarray(frames[:, None]).astype(np.float32))
    bad = int((~torch.isfinite(image)).sum())
    if bad:
        raise ValueError(f"{source}: expected finite pixels, got {bad} that are not")
    return image
