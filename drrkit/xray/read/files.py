"""Reading X-rays: from any kind of file, with what the caller or a calibration says of them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from drrkit.conversions import CameraView, odd_camera, odd_lengths
from drrkit.files import existing_file
from drrkit.geometry import CArm, checked_positive
from drrkit.volume import READ_SUFFIXES, is_dicom, read_image
from drrkit.xray.read.calibration import read_calibration
from drrkit.xray.read.dicom import read_dicom_xray
from drrkit.xray.read.distortion import undistorted
from drrkit.xray.read.pictures import PICTURE_SUFFIXES, grey, read_picture
from drrkit.xray.read.xray import Xray, xray_image

__all__ = ["read_xray"]

RASTER_SUFFIXES = READ_SUFFIXES
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


def read_xray(
    path: str | os.PathLike[str],
    *,
    calibration: str | os.PathLike[str] | None = None,
    frames: int | slice | None = None,
    sdd: float | None = None,
    pixel_spacing: float | tuple[float, float] | None = None,
    principal_point: tuple[float, float] | None = None,
    orient: bool = True,
) -> Xray:
    """Reads an X-ray: DICOM (XA, RF, DX, CR), PNG, TIFF, JPEG, NIfTI, NRRD, MetaImage or .npy.

    path             .npy arrays are [rows, cols] or [frames, rows, cols]
    calibration      a MayaCam file, OpenCV's K, R, t as .yml, .xml or .json, or a drrkit pose
                     file: gives camera and pose; an image with lens distortion is straightened
    frames           of a run of images, an index or a slice; default all
    sdd, pixel_spacing, principal_point
                     as CArm takes them, in place of what the file says
    orient           DICOM: mirror the image so that it is seen from the source, as drrkit renders;
                     stored images are seen from the detector, facing the patient

    Raises OSError, and ValueError naming the file and what is wrong with it: not an image,
    several volumes, pixels that are not finite.
    """
    source = existing_file(path)
    name = source.name.lower()
    spacing = None if pixel_spacing is None else _pair(pixel_spacing)
    sdd = None if sdd is None else checked_positive("sdd", sdd)
    known = {"sdd": sdd, "pixel_spacing": spacing, "principal_point": principal_point}
    given = {k: v for k, v in known.items() if v is not None or calibration is not None}
    if name.endswith(".npy"):
        found = _read_npy(source)
    elif name.endswith(DICOM_SUFFIXES) or is_dicom(source):
        found = read_dicom_xray(source, given, orient)
    elif name.endswith(RASTER_SUFFIXES):
        found = _read_raster(source)
    elif name.endswith(PICTURE_SUFFIXES):
        picture = read_picture(source)
        image = xray_image(source, picture.pixels)
        found = Xray(image, warnings=picture.notes, facts={"format": picture.format})
    else:
        suffixes = ".npy, " + ", ".join(DICOM_SUFFIXES + PICTURE_SUFFIXES + RASTER_SUFFIXES)
        raise ValueError(f"{source}: expected a DICOM file or one of {suffixes}")
    found = _chosen(found, frames, source)
    rows, cols = found.image.shape[-2:]
    size = (int(rows), int(cols))
    if calibration is not None:
        found = _calibrated(found, *read_calibration(calibration, size, sdd))
    elif found.camera is None or principal_point is not None:
        spacing = spacing or found.pixel_spacing
        sdd = sdd if found.camera is None else float(found.camera.sdd)
        placed = sdd is not None and spacing is not None
        camera = CArm(sdd, size, spacing, principal_point) if placed else None
        found = replace(found, camera=camera, pixel_spacing=spacing)
    if found.camera is None:
        odd = odd_lengths(sdd, found.sod, found.pixel_spacing, size)
    else:
        odd = odd_camera(found.camera, found.sod, found.camera.origin == "calibration")
    return replace(found, warnings=(*found.warnings, *odd))


def _calibrated(xray: Xray, view: CameraView, distortion: Tensor | None) -> Xray:
    """The X-ray with a calibrated camera; a distorted image is straightened."""
    changes: dict[str, Any] = {}
    own, pitch = xray.pixel_spacing, view.camera.pixel_spacing
    told = []
    if own not in (None, (1.0, 1.0)) and any(
        abs(a / b - 1) > 0.05 for a, b in zip(own, pitch, strict=True)
    ):
        told.append(
            f"the file says pixels of {own[0]:.4g} x {own[1]:.4g} mm, the calibration those of "
            f"{pitch[0]:.4g} x {pitch[1]:.4g} mm at an sdd of {view.camera.sdd:g} mm, which are "
            "used: is one of them of another image?"
        )
    if view.camera.origin == "calibration" and xray.facts.get("image", "").startswith("mirrored"):
        told.append(
            "the image has been mirrored, and the calibration is taken for that of the mirrored "
            "one: orient=False is for a calibration of the image as it is stored"
        )
    if distortion is not None:
        image, seen = undistorted(xray.image, view.camera.K, distortion)
        mask = xray.mask
        if mask is not None:
            straight, _ = undistorted(mask, view.camera.K, distortion)
            seen = seen * (straight > 0.999)
        told.append("the image has been straightened by the calibration's distortion coefficients")
        changes = {"image": image, "mask": seen if bool((seen == 0).any()) else mask}
    return replace(
        xray,
        camera=view.camera,
        world_to_camera=view.world_to_camera,
        pixel_spacing=view.camera.pixel_spacing,
        warnings=(*xray.warnings, *told),
        **changes,
    )


def _pair(spacing: float | tuple[float, float]) -> tuple[float, float]:
    row, col = spacing if isinstance(spacing, (tuple, list)) else (spacing, spacing)
    return checked_positive("pixel_spacing", row), checked_positive("pixel_spacing", col)


def _chosen(xray: Xray, frames: int | slice | None, source: Path) -> Xray:
    """The X-ray with some of its frames."""
    if frames is None:
        return xray
    count = len(xray.image)
    index = range(count)[frames] if isinstance(frames, slice) else frames
    if isinstance(index, int):
        if not -count <= index < count:
            raise ValueError(f"frames: expected an index below {count} of {source}, got {index}")
        index = range(index % count, index % count + 1)
    if len(index) == 0:
        raise ValueError(f"frames: {frames} leaves none of the {count} frames of {source}")
    kept = list(index)
    angles = {
        name: None if value is None else value[kept] if len(value) == count else value
        for name, value in (
            ("primary_deg", xray.primary_deg),
            ("secondary_deg", xray.secondary_deg),
        )
    }
    return replace(xray, image=xray.image[kept], **angles)


def _read_npy(source: Path) -> Xray:
    try:
        pixels = np.load(source, mmap_mode="r")  # allocates nothing by what the header says
    except OSError:
        raise
    except Exception as error:  # the header is Python, and so are its errors, of any kind
        raise ValueError(
            f"{source}: not a NumPy array file, or a truncated one ({error})"
        ) from error
    if not isinstance(pixels, np.ndarray) or pixels.dtype.kind not in "fiub":
        kind = getattr(pixels, "dtype", type(pixels).__name__)
        raise ValueError(f"{source}: expected an array of real numbers, got {kind}")
    pixels, notes = _without_channels(source, pixels)
    return Xray(xray_image(source, pixels), warnings=tuple(notes), facts={"format": "NumPy"})


def _without_channels(source: Path, pixels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """An array of channels or colours, in front of the rows or last, as grey; and remarks.

    Raises ValueError for what can only be frames at the end.
    """
    shape = pixels.shape
    if len(shape) == 4 and 2 <= shape[1] <= 4 and min(shape[2:]) > 4:
        pixels = np.moveaxis(pixels, 1, -1)
    *_, rows, cols, last = 0, 0, 0, *pixels.shape
    if pixels.ndim < 3 or (last > 4 and 4 * last >= min(rows, cols)) or min(rows, cols) <= 4:
        return pixels, []
    if last == 1:
        return pixels[..., 0], []
    if last <= 4:
        pixels, notes = grey(pixels)
        return pixels, notes or [f"grey pixels {rows} x {cols} in {last} channels that are equal"]
    advice = f"frames last? np.moveaxis(array, -1, 0) of shape {shape} puts them first"
    if last <= 16:
        raise ValueError(f"{source}: expected [rows, cols] or [frames, rows, cols]: {advice}")
    return pixels, [f"{pixels.size // (cols * last)} frames of {cols} x {last} pixels: {advice}"]


def _read_raster(source: Path) -> Xray:
    raster = read_image(source)
    pixels, notes = raster.pixels, raster.notes
    if "channels" in raster.facts:
        pixels, more = grey(np.moveaxis(pixels, 0, -1))
        notes = (*notes, *more)
    known = "spacing" not in raster.facts
    spacing = (raster.spacing[1], raster.spacing[0]) if known else None
    if spacing == (1.0, 1.0):
        notes = (*notes, "pixels of 1 x 1 mm, which programs write where they know nothing better")
    # How a picture lies in a patient is no matter.
    notes = tuple(note for note in notes if " lies" not in note and "sform" not in note)
    return Xray(
        xray_image(source, pixels), pixel_spacing=spacing, warnings=notes, facts=dict(raster.facts)
    )
