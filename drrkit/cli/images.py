"""X-ray images from files, as what registration compares: bright where the patient attenuates."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from drrkit.volume import nifti
from drrkit.volume.itk import load_simpleitk, readable_errors

__all__ = ["XRAY_KINDS", "ImageFile", "read_image", "read_mask", "to_line"]

ITK_SUFFIXES = (".png", ".tif", ".tiff", ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
SPACING_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Formats whose spacing is in mm; a PNG's or TIFF's is often a printer's resolution."""

XRAY_KINDS = ("line", "intensity", "display", "inverted")


class ImageFile(NamedTuple):
    """pixels [1, 1, rows, cols] float32; pixel_spacing (row, col) mm, None where not known."""

    pixels: Tensor
    pixel_spacing: tuple[float, float] | None


def read_image(path: Path) -> ImageFile:
    """A grey image from .npy, .png, .tif, NIfTI, NRRD or MetaImage.

    Three-dimensional files may hold one slice, colours must be grey.

    Raises:
        OSError: the file cannot be opened.
        ImportError: SimpleITK is not installed (needed for all but .npy).
        ValueError: not an image, truncated, several slices, colours, not finite.
    """
    name = path.name.lower()
    if path.is_dir():
        raise ValueError(f"{path}: expected an image file, got a folder")
    if name.endswith(".npy"):
        pixels, spacing = _read_npy(path), None
    elif name.endswith(ITK_SUFFIXES):
        pixels, spacing = _read_itk(path)
    else:
        raise ValueError(f"{path}: expected one of .npy, {', '.join(ITK_SUFFIXES)}")
    shape = pixels.shape
    if pixels.ndim < 2 or pixels.size == 0 or pixels.size != shape[-1] * shape[-2]:
        raise ValueError(f"{path}: expected one image of rows x cols, got shape {shape}")
    image = torch.from_numpy(pixels.reshape(1, 1, *shape[-2:]).astype(np.float32))
    if not bool(torch.isfinite(image).all()):
        bad = int((~torch.isfinite(image)).sum())
        raise ValueError(f"{path}: expected finite pixels, got {bad} that are not")
    return ImageFile(image, spacing)


def to_line(path: Path, pixels: Tensor, kind: str, i0: float | None) -> Tensor:
    """Pixels on the scale of line integrals, up to the offset and gain that similarities ignore.

    Args:
        path: for messages.
        pixels: as read.
        kind: "line" and "display": bone is bright, taken as they are; "inverted": bone is dark,
            negated; "intensity": proportional to photons, -log(I / I0).
        i0: unattenuated intensity; default the brightest pixel. A pixel without any counts as the
            darkest that has some.

    Raises:
        ValueError: an image of one value, or intensities of which none is positive.
    """
    low, high = (float(value) for value in torch.aminmax(pixels))
    if low == high:
        raise ValueError(f"{path}: expected an X-ray, got an image whose pixels are all {low:g}")
    if kind == "inverted":
        return high - pixels
    if kind != "intensity":
        return pixels
    if low < 0:
        raise ValueError(
            f"{path}: expected intensities, 0 or more, got {low:g}; --xray-kind line says that "
            "these are line integrals"
        )
    darkest = float(pixels[pixels > 0].min())
    return -torch.log(pixels.clamp_min(darkest) / (high if i0 is None else i0))


def read_mask(path: Path, xray: Tensor) -> Tensor:
    """Weights of an X-ray's pixels [1, 1, rows, cols], scaled so that the largest is one.

    Raises:
        OSError, ImportError, ValueError: as read_image; of another size, negative, or all zero.
    """
    pixels = read_image(path).pixels
    if pixels.shape != xray.shape:
        wanted, found = ("x".join(map(str, image.shape[-2:])) for image in (xray, pixels))
        raise ValueError(
            f"{path}: expected a mask of {wanted} pixels as the X-ray has, got {found}"
        )
    low, high = (float(value) for value in torch.aminmax(pixels))
    if low < 0 or high <= 0:
        raise ValueError(
            f"{path}: expected weights 0 or more, some positive, got {low:g} to {high:g}"
        )
    return pixels / high


def _read_npy(path: Path) -> np.ndarray:
    try:
        pixels = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a NumPy array file, or a truncated one ({error})") from error
    if not isinstance(pixels, np.ndarray) or pixels.dtype.kind not in "fiub":
        kind = getattr(pixels, "dtype", type(pixels).__name__)
        raise ValueError(f"{path}: expected an array of real numbers, got {kind}")
    return pixels


def _read_itk(path: Path) -> tuple[np.ndarray, tuple[float, float] | None]:
    sitk = load_simpleitk()
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        nifti.check(path)  # ITK reads a truncated file as zeros
    with readable_errors(path, "read"):
        image = sitk.ReadImage(os.fspath(path))
    pixels = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        # Grey with opacity, or colours with or without: the opacity says nothing.
        colors = pixels[..., : 1 if pixels.shape[-1] == 2 else 3]
        if (colors != colors[..., :1]).any():
            raise ValueError(f"{path}: expected a grey image, got colours")
        pixels = colors[..., 0]
    if np.iscomplexobj(pixels):
        raise ValueError(f"{path}: expected real pixels, got complex ones")
    col, row = image.GetSpacing()[:2]
    return pixels, (row, col) if name.endswith(SPACING_SUFFIXES) else None
