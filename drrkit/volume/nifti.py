"""NIfTI-1 and NIfTI-2: headers and affines as nibabel reads them.

Source: nifti1.h.
"""

from __future__ import annotations

import gzip
import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from drrkit.volume.rasters import (
    GZIP_RATIO,
    MOST_BYTES,
    UNITS,
    Raster,
    at_most_3d,
    checked_sizes,
    placed,
)

RAS = np.diag((-1.0, -1.0, 1.0, 1.0))
"""Between NIfTI's RAS and LPS."""


def read_nifti(path: Path, dtype: Any) -> Raster:
    import nibabel
    from nibabel.spatialimages import HeaderDataError
    from nibabel.volumeutils import array_from_file

    with _unpacked(path) as file:
        head = file.read(540)
        size = {b"\\\1\0\0": 348, b"\0\0\1\\": 348, b"\x1c\2\0\0": 540, b"\0\0\2\x1c": 540}
        length = size.get(head[:4])
        if length is None or len(head) < length:
            raise ValueError(f"{path}: not a NIfTI file, or one cut off within its header")
        kind = nibabel.nifti1.Nifti1Header if length == 348 else nibabel.nifti2.Nifti2Header
        try:
            header = kind(head[:length], check=False)
            shape = tuple(int(n) for n in header.get_data_shape())
            stored, offset = header.get_data_dtype(), header.get_data_offset()
            slope, intercept = header.get_slope_inter()
        except (HeaderDataError, ValueError, KeyError, OverflowError) as error:
            raise ValueError(f"{path}: the NIfTI header is damaged ({error})") from error
        if not 2 <= int(header["dim"][0]) <= 7 or not length <= offset < MOST_BYTES:
            raise ValueError(f"{path}: the NIfTI header is damaged (dimensions or offset)")
        there = path.stat().st_size * (GZIP_RATIO if _is_gzip(path) else 1) - offset
        checked_sizes(path, shape, stored.itemsize, there)
        notes: list[str] = []
        facts = {"format": "NIfTI-1" if length == 348 else "NIfTI-2"}
        affine = _nifti_affine(path, header, notes, facts)
        pixels = array_from_file(shape, stored, file, offset, mmap=False).T
    if pixels.ndim == 5 and pixels.shape[1] == 1 and pixels.shape[0] > 1:
        pixels = pixels[:, 0]  # a vector per voxel: channels
        facts["channels"] = str(len(pixels))
    else:
        pixels = at_most_3d(path, pixels, facts)
    if slope is not None and (slope, intercept) != (1.0, 0.0) and pixels.dtype.kind in "fiub":
        facts["scaling"] = f"value = {slope:g} x stored + {intercept:g}"
        pixels = pixels.astype(dtype or np.float64) * slope + intercept
    native = pixels.dtype.newbyteorder("=") if pixels.dtype.kind in "fiub" else pixels.dtype
    native = np.dtype(np.float64) if native.itemsize > 8 and native.kind == "f" else native
    pixels = np.ascontiguousarray(pixels, dtype or native if native.kind in "fiub" else native)
    return placed(path, pixels, affine, notes, facts)


def _nifti_affine(path: Path, header: Any, notes: list[str], facts: dict[str, str]) -> np.ndarray:
    """Index to LPS mm: the sform, else the qform, as nibabel chooses."""
    spacing = [float(v) for v in header["pixdim"][1 : 1 + min(int(header["dim"][0]), 3)]]
    if not all(math.isfinite(s) and s > 0 for s in spacing):
        raise ValueError(
            f"{path}: the voxel spacing (pixdim) in its header must be positive and finite, "
            f"got {tuple(spacing)}"
        )
    if header["pixdim"][0] not in (1, -1):
        notes.append(
            f"qfac (pixdim[0]) is {header['pixdim'][0]:g}: taken as 1, as the standard says"
        )
        header["pixdim"][0] = 1
    forms = {}
    for form, read in (("sform", header.get_sform), ("qform", header.get_qform)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                affine, code = read(coded=True)
        except Exception as error:  # a quaternion that is none
            affine, code = np.full((4, 4), np.nan), int(header[f"{form}_code"])
            facts[form] = str(error)
        if code > 0 and affine is not None:
            forms[form] = np.asarray(affine, dtype=float)
    for form, affine in list(forms.items()):
        if np.isfinite(affine).all():
            continue
        if form == "sform" or len(forms) == 1:
            raise ValueError(f"{path}: the {form} in its header has numbers that are not finite")
        notes.append("the qform in its header is damaged: the sform is used")
        del forms[form]
    code = int(header["xyzt_units"]) & 7
    unit = {0: "", 1: "m", 2: "mm", 3: "um"}.get(code)
    if unit is None:
        notes.append(f"unknown unit of length (xyzt_units {code}): taken for mm")
    facts["unit"] = unit or "not said, taken for mm"
    if not forms:
        notes.append(
            "the file does not say how the image lies (qform_code and sform_code are 0): its first "
            "axis is taken to run to the left; it may be mirrored"
        )
    chosen = forms.get("sform", forms.get("qform", header.get_best_affine()))
    facts["place from"] = next(iter(forms), "nothing")
    if len(forms) == 2:
        _compare_forms(path, header, forms, notes)
    if "sform" in forms and len(spacing) == 3:
        scales = np.linalg.norm(chosen[:3, :3], axis=0)
        if not np.allclose(scales, spacing, rtol=1e-3) and abs(np.linalg.det(chosen)) > 0:
            raise ValueError(
                f"{path}: the header contradicts itself: spacing {tuple(spacing)} in pixdim, "
                f"{tuple(scales.round(6).tolist())} in the sform affine"
            )
    return np.diag((*[UNITS[unit or ""]] * 3, 1.0)) @ RAS @ chosen


def _compare_forms(path: Path, header: Any, forms: dict[str, np.ndarray], notes: list[str]) -> None:
    """Notes how far the qform puts the image from where the sform does."""
    ends = np.array([(0, max(n, 1) - 1) for n in (*header.get_data_shape(), 1, 1)[:3]])
    corners = np.stack(np.meshgrid(*ends, [1], indexing="ij"), -1).reshape(-1, 4)
    moved = corners @ (forms["sform"] - forms["qform"]).T
    away = float(np.linalg.norm(moved[:, :3], axis=1).max())
    if away > 0.1 * float(np.abs(header["pixdim"][1:4]).min()):
        origins = {n: tuple(np.round(a[:3, 3], 3).tolist()) for n, a in forms.items()}
        notes.append(
            f"sform and qform differ by up to {away:.3g} mm (origins {origins['sform']} and "
            f"{origins['qform']} in RAS): the sform is used, as nibabel does; other programs may "
            "take the qform"
        )


def write_nifti(raster: Raster, file: Path) -> None:
    import nibabel

    affine = np.eye(4)
    affine[:3, :3] = np.asarray(raster.direction, dtype=float) * np.array(raster.spacing)
    affine[:3, 3] = raster.origin
    pixels = raster.pixels[:, None] if raster.pixels.ndim == 4 else raster.pixels
    kind = nibabel.Nifti1Image if max(pixels.shape) < 2**15 else nibabel.Nifti2Image
    image = kind(pixels.T, RAS @ affine, dtype=pixels.dtype)
    image.set_sform(RAS @ affine, code=1)
    image.set_qform(RAS @ affine, code=1)
    image.header.set_xyzt_units("mm")
    if raster.pixels.ndim == 4:
        image.header.set_intent("vector")
    image.to_filename(os.fspath(file))


def _is_gzip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _unpacked(path: Path) -> Any:
    """The file as it would be without gzip."""
    return gzip.open(path) if _is_gzip(path) else open(path, "rb")
