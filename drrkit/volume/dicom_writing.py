"""CT series as folders of DICOM slices, written through SimpleITK."""

from __future__ import annotations

import math
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from drrkit.volume.dicom_series import CT_IMAGE_STORAGE
from drrkit.volume.rasters import Raster, image_of, readable_errors


def write_series(raster: Raster, folder: Path) -> None:
    """Writes slices [z, y, x] in HU as CT Image Storage, one file a slice, into ``folder``.

    Whole numbers that fit are stored as they are (int16, slope 1, intercept 0). Others are
    rounded to the finest power-of-two slope that holds their range: the error is half of it,
    0.03 HU for the usual CT range.

    Args:
        raster: right-handed (DICOM knows no other stack: slices ascend along row x column).
    """
    import SimpleITK as sitk

    slope, intercept = _rescaling(raster.pixels)
    shared = _series_tags(raster, slope, intercept)
    if raster.pixels.dtype != np.int16:
        # Floats: GDCM then does the rescaling itself, rounding to the stored type named below.
        raster = raster._replace(pixels=raster.pixels.astype(np.float64))
        stored = {"0028|0100": "16", "0028|0101": "16", "0028|0102": "15", "0028|0103": "1"}
        shared.update(stored)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetImageIO("GDCMImageIO")
    normal = raster.direction[:, 2] * raster.spacing[2]
    digits = max(4, len(str(len(raster.pixels))))
    for k in range(len(raster.pixels)):
        place = np.array(raster.origin) + k * normal
        plane = raster._replace(pixels=raster.pixels[k : k + 1], origin=tuple(place.tolist()))
        image: Any = image_of(plane)
        own = {
            "0008|0018": _uid(),
            "0020|0013": str(k + 1),
            "0020|1041": _decimals(float(place @ raster.direction[:, 2])),
        }
        for key, value in (shared | own).items():
            image.SetMetaData(key, value)
        file = folder / f"{k + 1:0{digits}d}.dcm"
        writer.SetFileName(os.fspath(file))
        with readable_errors(file.name, "write"):
            writer.Execute(image)
        if file.stat().st_size < 2 * plane.pixels.size:
            raise OSError(f"{file.name}: the slice was not written in full; the disk may be full")


def _rescaling(pixels: np.ndarray) -> tuple[float, int]:
    """Slope and intercept that put the values into int16 with the least rounding."""
    if pixels.dtype == np.int16:
        return 1.0, 0
    low, high = float(pixels.min()), float(pixels.max())
    intercept = round((low + high) / 2)
    reach = max(high - intercept, intercept - low) / 32766
    return 2.0 ** max(math.ceil(math.log2(reach)) if reach > 0 else 0, -10), intercept


def _series_tags(raster: Raster, slope: float, intercept: int) -> dict[str, str]:
    """The header fields common to all slices of a new series; GDCM adds the geometry itself."""
    return {
        "0008|0008": "DERIVED\\SECONDARY\\AXIAL",
        "0008|0016": CT_IMAGE_STORAGE,
        "0008|0060": "CT",
        "0018|0050": _decimals(raster.spacing[2]),
        "0018|0088": _decimals(raster.spacing[2]),
        "0020|000d": _uid(),
        "0020|000e": _uid(),
        "0020|0052": _uid(),
        "0020|0011": "1",
        "0028|1052": str(intercept),
        "0028|1053": f"{slope:.10g}",
        "0028|1054": "HU",
    }


def _decimals(*values: float) -> str:
    """DICOM decimal strings: ten digits stay within their sixteen bytes."""
    return "\\".join(f"{v + 0.0:.10g}" for v in values)


def _uid() -> str:
    """A new unique identifier of the form DICOM reserves for UUIDs."""
    return f"2.25.{uuid.uuid4().int}"
