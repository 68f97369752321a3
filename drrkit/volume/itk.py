"""SimpleITK where it is needed, with its errors turned into sentences."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from drrkit.volume import nifti, textheaders


class Raster(NamedTuple):
    """What an image file holds: pixels [z, y, x] or [c, z, y, x] and their place in LPS mm."""

    pixels: np.ndarray
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: np.ndarray


def load_simpleitk() -> Any:
    """The SimpleITK module.

    Raises:
        ImportError: it is not installed; the message says how to get it.
    """
    try:
        import SimpleITK
    except ImportError as error:
        raise ImportError(
            "reading and writing image files needs SimpleITK, which is not installed: "
            "pip install SimpleITK"
        ) from error
    return SimpleITK


@contextmanager
def readable_errors(path: str | os.PathLike[str], doing: str) -> Iterator[None]:
    """Turns SimpleITK's RuntimeError into a ValueError that names the file and what is wrong."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "Unable to determine ImageIO reader" in text:
            reason = "its content is not an image of a known format"
        elif "Zero-valued spacing" in text or "spacings" in text:
            reason = "the voxel spacing in its header is zero or not a number"
        elif "determinant is 0" in text or "space directions" in text:
            reason = "the direction in its header is singular or not a number"
        elif "orthonormal" in text:
            reason = "the axes in its header are not orthonormal (a sheared or singular affine)"
        elif doing == "write":
            reason = "the disk may be full"
        else:
            reason = "it may be truncated or damaged"
        # ITK's "Reason:" is a stale errno, its addresses help nobody.
        lines = [line for line in text.splitlines() if line and not line.startswith("Reason:")]
        detail = re.sub(r"\(0x[0-9a-f]+\)", "", " ".join(lines[-1].split()))[-200:]
        message = f"{os.fspath(path)}: cannot {doing} this file: {reason} (SimpleITK: {detail})"
        raise (OSError if doing == "write" else ValueError)(message) from error


def checked_header(path: str | os.PathLike[str]) -> nifti.Header | None:
    """Checks what ITK does not: the header of a NIfTI, MetaImage or NRRD file, by its name.

    Of NIfTI, whose reader makes zeros of voxels that are not finite, these too.

    Raises:
        OSError, ValueError: as nifti.check, nifti.check_finite and textheaders.check_metaimage.
    """
    name = os.fspath(path).lower()
    if name.endswith((".nii", ".nii.gz")):
        header = nifti.check(path)
        nifti.check_finite(path, header)
        return header
    if name.endswith((".mha", ".mhd")):
        textheaders.check_metaimage(path)
    elif name.endswith((".nrrd", ".nhdr")):
        textheaders.check_nrrd(path)
    return None


def raster_of(image: Any, path: str | os.PathLike[str], dtype: Any = None) -> Raster:
    """Pixels and geometry of a SimpleITK image; one copy, straight into ``dtype`` if given.

    Raises:
        ValueError: not three-dimensional (a fourth dimension of size 1 is dropped), or complex.
    """
    sitk = load_simpleitk()
    name, size = os.fspath(path), image.GetSize()
    if len(size) == 4 and size[3] != 1:
        raise ValueError(f"{name}: expected a 3D image, got 4D with {size[3]} time points {size}")
    if len(size) not in (3, 4):
        raise ValueError(f"{name}: expected a 3D image, got {len(size)}D of size {size}")
    pixels = sitk.GetArrayViewFromImage(image)
    if np.iscomplexobj(pixels):
        raise ValueError(f"{name}: expected real values, got {image.GetPixelIDTypeAsString()}")
    if image.GetNumberOfComponentsPerPixel() > 1:
        pixels = np.moveaxis(pixels, -1, 0)
    if len(size) == 4:
        pixels = pixels.squeeze(-4)
    # "C": a view of the image's own memory would dangle, and channels must come out in front.
    pixels = np.array(pixels, dtype=dtype or pixels.dtype, order="C")
    dim = len(size)
    direction = np.array(image.GetDirection()).reshape(dim, dim)[:3, :3]
    return Raster(pixels, image.GetSpacing()[:3], image.GetOrigin()[:3], direction)


def image_of(raster: Raster) -> Any:
    """The SimpleITK image of a raster; channels become vector pixels."""
    sitk = load_simpleitk()
    if raster.pixels.ndim == 4:
        image = sitk.GetImageFromArray(np.moveaxis(raster.pixels, 0, -1), isVector=True)
    else:
        image = sitk.GetImageFromArray(raster.pixels)
    image.SetSpacing(raster.spacing)
    image.SetOrigin(raster.origin)
    image.SetDirection(np.asarray(raster.direction, dtype=float).ravel().tolist())
    return image
