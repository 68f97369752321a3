"""X-rays as pictures: PNG, TIFF, JPEG and BMP, by their content and not by their name.

SimpleITK decodes; what it leaves out is done here: the orientation that cameras and scanners write
(EXIF, TIFF), samples of 64 bits, colours.
Sources: TIFF 6.0, the BigTIFF extension, EXIF 2.3 (CIPA DC-008).
"""

from __future__ import annotations

import os
import struct
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from drrkit.volume import MOST_PIXELS, coded_size, readable_errors

__all__ = ["PICTURE_SUFFIXES", "grey", "read_picture"]

PICTURE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
"""Formats whose spacing, if any, is a printer's resolution."""
LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601."""
STARTS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"BM": "BMP",
}
ORIENTATION, WIDTH, HEIGHT, BITS, CODING, SAMPLES = 274, 256, 257, 258, 259, 277
STRIPS, STRIP_BYTES, PREDICTOR, SAMPLE_FORMAT, TILES = 273, 279, 317, 339, 322
DEFLATED = (8, 32946)
CODES = {1: "B", 3: "H", 4: "I", 16: "Q"}


class Tag(NamedTuple):
    """A field of a TIFF directory: whole numbers, where they stand, and how they are written."""

    values: tuple[int, ...]
    at: int
    form: str


class DecodedPicture(NamedTuple):
    """Grey pixels [rows, cols] or [pages, rows, cols], and remarks on how they came about."""

    pixels: np.ndarray
    notes: tuple[str, ...]
    format: str


def read_picture(source: Path) -> DecodedPicture:
    """The pixels of a picture, upright and grey.

    Raises OSError, and ValueError for a file that is none of these, or
    cannot be decoded.
    """
    data = source.read_bytes()
    kind = next((name for start, name in STARTS.items() if data.startswith(start)), None)
    if kind is None:
        raise ValueError(f"{source}: not an image: its content is no PNG, TIFF, JPEG or BMP")
    notes = []
    suffix = source.suffix.lower()
    if {".png": "PNG", ".bmp": "BMP"}.get(
        suffix, "TIFF" if suffix[1:3] == "ti" else "JPEG"
    ) != kind:
        notes.append(f"the file is named {suffix}, but is a {kind}")
    tags = _tags(_exif(data, kind) if kind != "TIFF" else data)
    _check_size(source, data, kind, tags)
    turn = tags[ORIENTATION].values[0] if ORIENTATION in tags else 1
    if kind == "TIFF" and turn != 1:
        # ITK turns some of them on its own.
        data = bytearray(data)
        struct.pack_into(tags[ORIENTATION].form, data, tags[ORIENTATION].at, 1)
    wide = kind == "TIFF" and BITS in tags and max(tags[BITS].values) == 64
    pixels = _of_64_bits(source, data, tags) if wide else _decoded(source, bytes(data), kind)
    pixels, more = grey(pixels)
    if 2 <= turn <= 8:
        pixels = _turned(pixels, turn)
        notes.append(f"turned as its orientation tag, {turn}, says")
    return DecodedPicture(pixels, (*notes, *more), kind)


def grey(pixels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Pixels [..., rows, cols] of such, or of [..., rows, cols, channels] with 2 to 4 channels.

    Grey with opacity, or colours with or without: the opacity says nothing. Also what is to be
    said of the colours, if there are some.
    """
    if pixels.ndim < 3 or pixels.shape[-1] not in (2, 3, 4):
        return pixels, []
    colors = pixels[..., : 1 if pixels.shape[-1] == 2 else 3]
    coloured = (colors != colors[..., :1]).any(-1)
    if not coloured.any():
        return colors[..., 0], []
    note = (
        f"{float(coloured.mean()):.1%} of the pixels have a colour: taken as grey (luma); mask "
        "letters and marks, which are no X-ray"
    )
    return colors.astype(np.float64) @ np.array(LUMA), [note]


def _decoded(source: Path, data: bytes, kind: str) -> np.ndarray:
    """What SimpleITK reads: [rows, cols], [pages, rows, cols], or with channels at the end."""
    import SimpleITK as sitk

    with tempfile.TemporaryDirectory() as folder, readable_errors(source, "read"):
        path = os.path.join(folder, f"picture.{kind.lower()}".replace("jpeg", "jpg"))
        with open(path, "wb") as file:
            file.write(data)
        pixels = sitk.GetArrayFromImage(sitk.ReadImage(path))
    return pixels


def _check_size(source: Path, data: bytes, kind: str, tags: dict[int, Tag]) -> None:
    """Raises ValueError for a picture larger than any X-ray, before it is decoded."""
    size = (0, 0)
    if kind == "PNG" and len(data) >= 24:
        size = struct.unpack(">II", data[16:24])
    elif kind == "JPEG":
        size = coded_size(data) or size
    elif kind == "BMP" and len(data) >= 26:
        size = tuple(abs(n) for n in struct.unpack("<ii", data[18:26]))
    elif kind == "TIFF" and WIDTH in tags and HEIGHT in tags:
        size = (tags[WIDTH].values[0], tags[HEIGHT].values[0])
    if size[0] * size[1] > MOST_PIXELS:
        raise ValueError(f"{source}: {size[0]} x {size[1]} pixels are more than is meant: damaged")


def _turned(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Pixels [..., rows, cols] as an orientation tag of 2 to 8 shows them."""
    if turn >= 5:
        pixels = np.swapaxes(pixels, -1, -2)
    if turn in (2, 3, 6, 7):
        pixels = pixels[..., ::-1]
    return pixels[..., ::-1, :] if turn in (3, 4, 7, 8) else pixels


def _exif(data: bytes, kind: str) -> bytes:
    """The TIFF directory that a JPEG or PNG has for EXIF."""
    at = data.find(b"Exif\0\0" if kind == "JPEG" else b"eXIf", 0, 1 << 17)
    return data[at + (6 if kind == "JPEG" else 4) :] if at >= 0 and kind != "BMP" else b""


def _tags(data: bytes) -> dict[int, Tag]:
    """The first directory's fields of whole numbers; nothing where there is none."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    found: dict[int, Tag] = {}
    if order is None:
        return found
    big = data[2:4] in (b"+\0", b"\0+")
    word, width, inline = ("Q", 20, 8) if big else ("I", 12, 4)
    try:
        (start,) = struct.unpack_from(order + word, data, 8 if big else 4)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
        for k in range(min(count, 1000)):
            at = start + (8 if big else 2) + k * width
            tag, code, length = struct.unpack_from(f"{order}HH{word}", data, at)
            if code not in CODES or not 0 < length < 1 << 20:
                continue
            form = f"{order}{length}{CODES[code]}"
            at += width - inline
            if struct.calcsize(form) > inline:
                (at,) = struct.unpack_from(order + word, data, at)
            found[tag] = Tag(struct.unpack_from(form, data, at), at, order + CODES[code])
    except struct.error:
        pass
    return found


def _of_64_bits(source: Path, data: bytes | bytearray, tags: dict[int, Tag]) -> np.ndarray:
    """A TIFF of 64-bit samples in strips, plain or deflated, which libtiff's users cannot read."""

    def value(tag: int, default: int) -> int:
        return tags[tag].values[0] if tag in tags else default

    coding = value(CODING, 1)
    if TILES in tags or value(PREDICTOR, 1) != 1 or coding not in (1, *DEFLATED):
        raise ValueError(
            f"{source}: a TIFF of 64-bit samples in tiles, with a predictor or a coding other than "
            "none and deflate is not supported: save it with 32 bits"
        )
    try:
        shape = (tags[HEIGHT].values[0], tags[WIDTH].values[0], value(SAMPLES, 1))
        kind = {1: "u8", 2: "i8", 3: "f8"}[value(SAMPLE_FORMAT, 1)]
        parts = [
            bytes(data[at : at + n])
            for at, n in zip(tags[STRIPS].values, tags[STRIP_BYTES].values, strict=True)
        ]
        if coding in DEFLATED:
            most = 8 * shape[0] * shape[1] * shape[2]
            parts = [zlib.decompressobj().decompress(part, most) for part in parts]
        pixels = np.frombuffer(b"".join(parts), tags[WIDTH].form[0] + kind)
        pixels = pixels[: shape[0] * shape[1] * shape[2]].reshape(shape)
    except (KeyError, ValueError, zlib.error) as error:
        raise ValueError(f"{source}: truncated or damaged TIFF of 64-bit samples") from error
    return pixels[..., 0].astype(np.float64) if shape[2] == 1 else pixels.astype(np.float64)
