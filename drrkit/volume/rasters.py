"""What an image file holds, checked: pixels, their place in LPS mm, remarks on its header."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

MOST_BYTES = 1 << 38
"""More than any image: a header that promises more is damaged."""
MOST_PIXELS = 1 << 28
"""More than any picture or slice."""
GZIP_RATIO = 1040
"""Bytes that a byte of gzip or zlib can become, at most."""
SHEAR = 4e-3
"""Axes may be off a right angle by this much, the rounding of three digits; then they are
straightened."""
UNITS = {"mm": 1.0, "millimeter": 1.0, "millimetre": 1.0, "millimeters": 1.0, "": 1.0}
UNITS |= {"um": 1e-3, "µm": 1e-3, "micron": 1e-3, "micrometer": 1e-3, "micrometre": 1e-3}
UNITS |= {"cm": 10.0, "centimeter": 10.0, "centimetre": 10.0, "nm": 1e-6}
UNITS |= {"m": 1e3, "meter": 1e3, "metre": 1e3, "meters": 1e3}


class Raster(NamedTuple):
    """What an image file holds: pixels [y, x], [z, y, x] or [c, z, y, x] and their place in LPS mm.

    `notes` are remarks on what the file leaves open or says wrongly, `facts` what it says, by name.
    """

    pixels: np.ndarray
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: np.ndarray
    notes: tuple[str, ...] = ()
    facts: Mapping[str, str] = MappingProxyType({})


@contextmanager
def readable_errors(path: str | os.PathLike[str], doing: str) -> Iterator[None]:
    """Turns SimpleITK's RuntimeError into a ValueError that names the file and what is wrong."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "Unable to determine ImageIO reader" in text:
            reason = "its content is not an image of a known format"
        elif doing == "write":
            reason = "the disk may be full"
        else:
            reason = "it may be truncated or damaged"
        # ITK's "Reason:" is a stale errno, its addresses help nobody.
        lines = [line for line in text.splitlines() if line and not line.startswith("Reason:")]
        detail = re.sub(r"\(0x[0-9a-f]+\)", "", " ".join(lines[-1].split()))[-200:]
        message = f"{os.fspath(path)}: cannot {doing} this file: {reason} (SimpleITK: {detail})"
        raise (OSError if doing == "write" else ValueError)(message) from error


def image_of(raster: Raster) -> Any:
    """The SimpleITK image of a raster; channels become vector pixels."""
    import SimpleITK as sitk

    if raster.pixels.ndim == 4:
        image = sitk.GetImageFromArray(np.moveaxis(raster.pixels, 0, -1), isVector=True)
    else:
        image = sitk.GetImageFromArray(raster.pixels)
    image.SetSpacing(raster.spacing)
    image.SetOrigin(raster.origin)
    image.SetDirection(np.asarray(raster.direction, dtype=float).ravel().tolist())
    return image


def axes_letters(direction: np.ndarray) -> str:
    """Where the index axes x, y, z point, such as "L P S"."""
    letters = ("LR", "PA", "SI")
    largest = np.abs(direction).argmax(0)
    return " ".join(letters[a][int(direction[a, k] < 0)] for k, a in enumerate(largest))


def placed(
    path: Path, pixels: np.ndarray, affine: np.ndarray, notes: list[str], facts: dict[str, str]
) -> Raster:
    """The raster of pixels and an affine [4, 4], index (x, y, z) to LPS mm, checked."""
    if np.iscomplexobj(pixels):
        raise ValueError(f"{path}: expected real values, got complex ones")
    if pixels.dtype.kind not in "fiub":
        raise ValueError(f"{path}: expected a single-channel image, got colours ({pixels.dtype})")
    if not np.isfinite(affine).all():
        raise ValueError(f"{path}: the affine in its header has numbers that are not finite")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not (spacing > 0).all():
        raise ValueError(
            f"{path}: the axes in its header are not orthonormal: voxels of {spacing.tolist()} mm"
        )
    direction = affine[:3, :3] / spacing
    if abs(np.linalg.det(direction)) < 1e-6:
        raise ValueError(
            f"{path}: the axes in its header are not orthonormal: its affine is singular"
        )
    off = float(np.abs(direction.T @ direction - np.eye(3)).max())
    if off > SHEAR:
        raise ValueError(
            f"{path}: direction: expected orthonormal axes, they are off by {off:.2g} (a sheared "
            "affine, such as gantry tilt): give the folder of the DICOM series, which is resampled "
            "to upright slices, or the upright copy (_Tilt) that dcm2niix writes"
        )
    if off > 1e-5:
        left, _, right = np.linalg.svd(direction)
        direction = left @ right
        facts["axes"] = f"straightened: they were off right angles by {math.degrees(off):.2g} deg"
    origin = affine[:3, 3]
    x, y, z = (float(v) for v in spacing)
    place = (float(origin[0]), float(origin[1]), float(origin[2]))
    return Raster(pixels, (x, y, z), place, direction, tuple(notes), facts)


def checked_sizes(path: Path, sizes: tuple[int, ...], width: int, there: int) -> int:
    """The bytes that a header promises, which a file of `there` bytes can become."""
    if not sizes or min(sizes) < 1:
        raise ValueError(f"{path}: expected at least one voxel, its header says {sizes}")
    expected = math.prod(sizes) * width
    if expected > min(there, MOST_BYTES):
        raise ValueError(
            f"{path}: the file is truncated or damaged: its header promises {expected} bytes "
            f"({' x '.join(map(str, sizes))} voxels), it can hold {there}"
        )
    return expected


def at_most_3d(path: Path, pixels: np.ndarray, facts: dict[str, str]) -> np.ndarray:
    """Without dimensions of size 1 beyond the third, from [..., z, y, x]."""
    while pixels.ndim > 3 and pixels.shape[0] == 1:
        pixels = pixels[0]
    if pixels.ndim > 3:
        raise ValueError(
            f"{path}: expected a 3D image, got {pixels.ndim}D with {pixels.shape[0]} time points"
        )
    facts["size"] = " x ".join(str(n) for n in reversed(pixels.shape))
    return pixels
