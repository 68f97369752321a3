"""What ITK lets pass in a NIfTI file: missing voxels, zero spacing, contradictory scales, NaN.

ITK reads a truncated file and voxels that are not finite as zeros, replaces a zero or NaN spacing
by 1 mm, and reports success when the disk is full. Each would be a silently wrong patient, so the
header is read here too, and voxels that may be NaN.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np

GZIP_MAGIC = b"\x1f\x8b"
CHUNK = 1 << 22
"""Bytes read at once; a multiple of what a voxel has."""
REALS = {16: "f4", 64: "f8"}
"""Codes of the datatypes that can be NaN."""


class Header(NamedTuple):
    """The few fields of a NIfTI-1 or NIfTI-2 header that are checked."""

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    qform: tuple[float, ...] | None
    sform: np.ndarray | None
    length: int
    offset: int
    real: str | None
    """NumPy's word for the voxels if they are floating-point numbers."""


def check(path: str | os.PathLike[str]) -> Header:
    """Checks that a .nii or .nii.gz is whole and has a usable spacing and affine.

    Raises:
        OSError: the file cannot be opened.
        ValueError: not NIfTI, truncated, or numbers in the header that mean nothing.
    """
    name = os.fspath(path)
    header = _read_header(name)
    if not all(math.isfinite(s) and s > 0 for s in header.spacing):
        raise ValueError(
            f"{name}: the voxel spacing (pixdim) in its header must be positive and finite, "
            f"got {header.spacing}"
        )
    for form, numbers in (("qform", header.qform), ("sform", header.sform)):
        if numbers is not None and not np.isfinite(numbers).all():
            raise ValueError(f"{name}: the {form} in its header has numbers that are not finite")
    if not _is_whole(name, header.length):
        raise ValueError(
            f"{name}: the file is truncated or damaged: its data end before the {header.length} "
            f"bytes that its header promises (shape {header.shape})"
        )
    return header


def check_scales(
    header: Header, spacing: tuple[float, ...], direction: np.ndarray, name: str
) -> None:
    """Refuses a file read with the sform's axes but a pixdim spacing that contradicts them."""
    if header.sform is None:
        return
    columns = np.diag([-1.0, -1.0, 1.0]) @ header.sform[:, :3]
    scales = np.linalg.norm(columns, axis=0)
    if not np.allclose(columns, direction * scales, atol=1e-3 * float(scales.max())):
        return
    # ITK turns metres and micrometres into millimetres; the sform still holds the file's unit.
    ratio = scales / np.array(spacing)
    if not any(np.allclose(ratio, unit, rtol=1e-3) for unit in (1.0, 1e-3, 1e3)):
        raise ValueError(
            f"{name}: the header contradicts itself: spacing {tuple(spacing)} mm in pixdim, "
            f"{tuple(scales.round(6).tolist())} mm in the sform affine"
        )


def check_finite(path: str | os.PathLike[str], header: Header) -> None:
    """Checks that floating-point voxels are finite, as they are stored; reads all of them.

    Raises ValueError with the words of Volume, which would get zeros in their place.
    """
    if header.real is None:
        return
    name, count, first = os.fspath(path), 0, 0
    for start, values in _stored(name, header):
        bad = ~np.isfinite(values)
        if count == 0 and bad.any():
            first = start + int(bad.argmax())
        count += int(bad.sum())
    if count:
        index = tuple(int(i) for i in np.unravel_index(first, header.shape[::-1]))
        raise ValueError(
            f"{name}: values: expected finite numbers, got {count} that are not, "
            f"the first at index {index} ([..., z, y, x])"
        )


def _stored(name: str, header: Header) -> Iterator[tuple[int, np.ndarray]]:
    """The floating-point voxels piece by piece, each with the number of those before it."""
    dtype = np.dtype(header.real)
    total, start = math.prod(max(n, 0) for n in header.shape), 0
    try:
        with _unpacked(name) as file:
            file.seek(header.offset)
            while start < total:
                data = file.read(min(CHUNK, (total - start) * dtype.itemsize))
                if len(data) < dtype.itemsize:
                    return
                values = np.frombuffer(data, dtype, len(data) // dtype.itemsize)
                yield start, values
                start += values.size
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{name}: the file is truncated or damaged: {error}") from error


def _unpacked(name: str) -> BinaryIO:
    """The file as it would be without gzip."""
    with open(name, "rb") as file:
        packed = file.read(2) == GZIP_MAGIC
    return cast(BinaryIO, gzip.open(name)) if packed else open(name, "rb")


def _read_header(name: str) -> Header:
    try:
        with _unpacked(name) as file:
            data = file.read(540)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{name}: the file is truncated or damaged: its gzip stream ends in the header"
        ) from error
    order = next((o for o in "<>" if data[:4] in (struct.pack(o + "i", n) for n in (348, 540))), "")
    size = struct.unpack(order + "i", data[:4])[0] if order else 0
    if not order or len(data) < size:
        raise ValueError(f"{name}: not a NIfTI file, or one cut off within its header")
    if size == 348:
        dim = struct.unpack_from(order + "8h", data, 40)
        kind, bits = struct.unpack_from(order + "2h", data, 70)
        pixdim = struct.unpack_from(order + "8f", data, 76)
        (offset,) = struct.unpack_from(order + "f", data, 108)
        qform_code, sform_code = struct.unpack_from(order + "2h", data, 252)
        qform = struct.unpack_from(order + "6f", data, 256)
        sform = struct.unpack_from(order + "12f", data, 280)
    else:
        kind, bits = struct.unpack_from(order + "2h", data, 12)
        dim = struct.unpack_from(order + "8q", data, 16)
        pixdim = struct.unpack_from(order + "8d", data, 104)
        (offset,) = struct.unpack_from(order + "q", data, 168)
        qform_code, sform_code = struct.unpack_from(order + "2i", data, 344)
        qform = struct.unpack_from(order + "6d", data, 352)
        sform = struct.unpack_from(order + "12d", data, 400)
    if not 1 <= dim[0] <= 7 or not math.isfinite(offset):
        raise ValueError(f"{name}: the NIfTI header is damaged ({dim[0]} dimensions)")
    shape = tuple(dim[1 : 1 + dim[0]])
    length = int(offset) + math.prod(max(n, 0) for n in shape) * bits // 8
    return Header(
        shape,
        spacing=pixdim[1 : 1 + min(dim[0], 3)],
        qform=qform if qform_code > 0 else None,
        sform=np.array(sform).reshape(3, 4) if sform_code > 0 else None,
        length=length,
        offset=max(int(offset), size),
        real=order + REALS[kind] if kind in REALS else None,
    )


def _is_whole(name: str, expected: int) -> bool:
    """Whether the file, unpacked, has this many bytes; unpacks it only when it must."""
    size = Path(name).stat().st_size
    with open(name, "rb") as file:
        if file.read(2) != GZIP_MAGIC:
            return size >= expected
        file.seek(-4, os.SEEK_END)
        # The trailer of a gzip file holds its unpacked length modulo 2^32. It differs in a sound
        # file only where several streams were joined or something follows the voxels.
        if struct.unpack("<I", file.read(4))[0] == expected % 2**32:
            return True
    total = 0
    try:
        with gzip.open(name) as packed:
            while chunk := packed.read(CHUNK):
                total += len(chunk)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return False
    return total >= expected
