"""CT series as folders of DICOM slices: choosing, checking, reading, writing."""

from __future__ import annotations

import math
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from drrkit.volume.itk import Raster, image_of, load_simpleitk, raster_of, readable_errors

POSITION, ORIENTATION = "0020|0032", "0020|0037"
MODALITY, SERIES_DESCRIPTION = "0008|0060", "0008|103e"
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
UNEVEN = 0.1
"""Slice distances a slice may stand off its place in an even stack before the series is refused."""


def read_series(folder: Path, series: str | None) -> Raster:
    """The one CT series in a folder, or the one named; values with slope and intercept applied.

    Args:
        folder: holds the slices, directly.
        series: a Series Instance UID; may be None when the folder holds one series only.

    Raises:
        ValueError: no DICOM there, several series and none chosen, an unknown one, slices without
            a position, slices missing, doubled or sheared, or files that cannot be read.
    """
    sitk = load_simpleitk()
    files = _chosen_files(folder, series)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    # Float: ITK would cast to the first slice's type, and slopes may differ between slices.
    reader.SetOutputPixelType(sitk.sitkFloat32)
    if len(files) > 1:
        first, step, axes = _even_stack(folder, files)
    with readable_errors(folder, "read"):
        raster = raster_of(reader.Execute(), folder)
    if len(files) == 1:
        if raster.pixels.shape[0] > 1:
            raise ValueError(f"{files[0]}: multi-frame DICOM is not supported, only single slices")
        return raster
    spacing = (raster.spacing[0], raster.spacing[1], step)
    return raster._replace(spacing=spacing, origin=first, direction=axes)


def _chosen_files(folder: Path, series: str | None) -> tuple[str, ...]:
    """The series' files in the order of their positions."""
    reader = load_simpleitk().ImageSeriesReader
    name = os.fspath(folder)
    with readable_errors(folder, "read"):
        series_ids = reader.GetGDCMSeriesIDs(name)
        found = {uid: reader.GetGDCMSeriesFileNames(name, uid) for uid in series_ids}
    if not found:
        raise ValueError(
            f"{folder}: no DICOM series in this folder (folders within it are not searched)"
        )
    _refuse_unread_slices(folder, {Path(f).name for files in found.values() for f in files})
    if series is None and len(found) == 1:
        return next(iter(found.values()))
    if series in found:
        return found[series]
    listed = []
    for uid, files in found.items():
        modality, description = _tags(files[0], MODALITY, SERIES_DESCRIPTION)
        named = f" {description!r}" if description else ""
        listed.append(f"{uid} ({modality}{named}, {len(files)} files)")
    problem = f"series: {series!r} is not in" if series is not None else "choose with series=... in"
    raise ValueError(f"{problem} {folder}, which holds {len(found)} series: {'; '.join(listed)}")


def _refuse_unread_slices(folder: Path, read: set[str]) -> None:
    """GDCM silently leaves out a slice it cannot read, which at an end of the stack would pass."""
    for file in sorted(folder.iterdir()):
        if file.name in read or not file.is_file():
            continue
        with open(file, "rb") as data:
            start = data.read(1024)
        # The file's own header names its class even where the rest is cut off. UIDs are padded to
        # even length, so that this does not match longer ones.
        if start[128:132] == b"DICM" and CT_IMAGE_STORAGE.encode() + b"\0" in start:
            raise ValueError(f"{file}: a CT slice that cannot be read; it is truncated or damaged")


def _tags(file: str, *keys: str) -> list[str]:
    """Header fields of one file, stripped; empty where absent."""
    reader = load_simpleitk().ImageFileReader()
    reader.SetFileName(file)
    with readable_errors(file, "read"):
        reader.ReadImageInformation()
    return [reader.GetMetaData(k).strip() if reader.HasMetaDataKey(k) else "" for k in keys]


def _numbers(file: str, tag: str, text: str, count: int) -> list[float]:
    """The numbers of a tag. Raises ValueError unless there are so many, and finite."""
    try:
        numbers = [float(word) for word in text.split("\\")]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{file}: {tag}: expected {count} numbers, got {text[:60]!r}")
    return numbers


def _even_stack(
    folder: Path, files: tuple[str, ...]
) -> tuple[tuple[float, float, float], float, np.ndarray]:
    """First position, slice distance and axes of a stack of slices, checked to be even.

    ITK takes the distance from the two ends: a missing slice or a gantry tilt would pass.
    """
    places, turns = [], []
    for file in files:
        position, orientation = _tags(file, POSITION, ORIENTATION)
        if not position or not orientation:
            raise ValueError(f"{file}: no Image Position / Orientation (Patient) in this slice")
        places.append(_numbers(file, "Image Position (Patient)", position, 3))
        turns.append(_numbers(file, "Image Orientation (Patient)", orientation, 6))
    if np.abs(np.ptp(turns, axis=0)).max() > 1e-3:
        raise ValueError(f"{folder}: the slices of the series have different orientations")
    row, column = np.array(turns[0][:3]), np.array(turns[0][3:])
    normal = np.cross(row, column)
    stack = np.array(places)
    along = stack @ normal
    step = float(along[-1] - along[0]) / (len(files) - 1)
    if step < 1e-6:
        raise ValueError(f"{folder}: the slices of the series all stand at the same place")
    even = stack[0] + step * np.arange(len(files))[:, None] * normal
    off = np.linalg.norm(stack - even, axis=1)
    if off.max() > UNEVEN * step:
        gaps = np.diff(along)
        raise ValueError(
            f"{folder}: the slices are not an even, straight stack: distances from {gaps.min():g} "
            f"to {gaps.max():g} mm, slice {int(off.argmax())} is {off.max():g} mm off; slices are "
            "missing or doubled, or the gantry was tilted"
        )
    x, y, z = places[0]
    return (x, y, z), step, np.stack([row, column, normal], axis=1)


def write_series(raster: Raster, folder: Path) -> None:
    """Writes slices [z, y, x] in HU as CT Image Storage, one file a slice, into ``folder``.

    Whole numbers that fit are stored as they are (int16, slope 1, intercept 0). Others are
    rounded to the finest power-of-two slope that holds their range: the error is half of it,
    0.03 HU for the usual CT range.

    Args:
        raster: right-handed (DICOM knows no other stack: slices ascend along row x column).
    """
    sitk = load_simpleitk()
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
        MODALITY: "CT",
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
