"""What ITK lets pass in a NIfTI file: missing voxels, zero spacing, contradictory scales.

ITK reads a truncated file as zeros, replaces a zero or NaN spacing by 1 mm, and reports success
when the disk is full. Each would be a silently wrong patient, so the header is read here too.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

GZIP_MAGIC = b"\x1f\x8b"


class Header(NamedTuple):
    """The few fields of a NIfTI-1 or NIfTI-2 header that are checked."""

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    qform: tuple[float, ...] | None
    sform: np.ndarray | None
    length: int


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


def _read_header(name: str) -> Header:
    with open(name, "rb") as file:
        packed = file.read(2) == GZIP_MAGIC
    try:
        with gzip.open(name) if packed else open(name, "rb") as file:  # type: ignore[attr-defined]
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
        (bits,) = struct.unpack_from(order + "h", data, 72)
        pixdim = struct.unpack_from(order + "8f", data, 76)
        (offset,) = struct.unpack_from(order + "f", data, 108)
        qform_code, sform_code = struct.unpack_from(order + "2h", data, 252)
        qform = struct.unpack_from(order + "6f", data, 256)
        sform = struct.unpack_from(order + "12f", data, 280)
    else:
        (bits,) = struct.unpack_from(order + "h", data, 14)
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
            while chunk := packed.read(1 << 22):
                total += len(chunk)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return False
    return total >= expected
