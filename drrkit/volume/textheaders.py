"""Checks of MetaImage and NRRD headers before ITK reads them.

Both are lines of text. ITK's parsers hold some lengths and counts to be true, so that a damaged
header can corrupt memory and end the process; a NaN passes as a number, or as zero. Here a header
that is not plainly well-formed is refused, and the sizes are checked against the file.
"""

from __future__ import annotations

import math
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

LONGEST_LINE, MOST_LINES, MOST_DIMENSIONS = 2000, 200, 4
MOST_BYTES = 1 << 41
META_TYPES = {
    "MET_CHAR": 1,
    "MET_UCHAR": 1,
    "MET_SHORT": 2,
    "MET_USHORT": 2,
    "MET_INT": 4,
    "MET_UINT": 4,
    "MET_LONG": 8,
    "MET_ULONG": 8,
    "MET_LONG_LONG": 8,
    "MET_ULONG_LONG": 8,
    "MET_FLOAT": 4,
    "MET_DOUBLE": 8,
}
META_VECTORS = ("Offset", "Position", "Origin", "CenterOfRotation", "ElementSpacing", "ElementSize")
META_MATRICES = ("TransformMatrix", "Orientation", "Rotation")
META_FLAGS = ("BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedData")
META_WORDS = ("ObjectType", "ElementType", "ElementDataFile", "AnatomicalOrientation", "Modality")
META_INTEGERS = ("NDims", "ElementNumberOfChannels", "HeaderSize", "CompressedDataSize")
META_OTHERS = (
    "Comment",
    "Name",
    "ObjectSubType",
    "Color",
    "CompressionLevel",
    "DistanceUnits",
    "ID",
)
META_KNOWN = {
    *META_VECTORS,
    *META_MATRICES,
    *META_FLAGS,
    *META_WORDS,
    *META_INTEGERS,
    *META_OTHERS,
    "DimSize",
}
"""What a MetaImage header may hold. ITK writes further lines, with names of its dictionary's keys:
these may be any word, but not one of these names misspelt in their case."""

NRRD_TYPES = {
    1: ("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"),
    2: ("short", "short int", "signed short", "signed short int", "int16", "int16_t", "ushort")
    + ("unsigned short", "unsigned short int", "uint16", "uint16_t"),
    4: ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t")
    + ("float",),
    8: ("longlong", "long long", "long long int", "signed long long", "signed long long int")
    + ("int64", "int64_t", "ulonglong", "unsigned long long", "unsigned long long int", "uint64")
    + ("uint64_t", "double"),
}
NRRD_SIZES = {name: size for size, names in NRRD_TYPES.items() for name in names}


def check_metaimage(path: str | os.PathLike[str]) -> None:
    """Checks the header of an .mha or .mhd.

    Raises:
        OSError: the file cannot be opened.
        ValueError: lines, names or numbers that a MetaImage header does not have, or data that are
            shorter than it says.
    """
    name = os.fspath(path)
    fields: dict[str, str] = {}
    start = 0
    for line, end in _lines(name, "MetaImage"):
        key, separator, value = (part.strip() for part in line.partition("="))
        if not separator or not re.fullmatch(r"[A-Za-z0-9_|:. -]{1,80}", key):
            _refuse(name, "MetaImage", f"the line {line[:60]!r}")
        if key in fields and key in META_KNOWN:
            _refuse(name, "MetaImage", f"{key} twice")
        if key.lower() in {word.lower() for word in META_KNOWN} and key not in META_KNOWN:
            _refuse(name, "MetaImage", f"the name {key!r}")
        fields[key], start = value, end
        if key == "ElementDataFile":
            break
    for key in ("NDims", "DimSize", "ElementType", "ElementDataFile"):
        if key not in fields:
            _refuse(name, "MetaImage", f"no {key}")
    dims = _integers(name, "MetaImage", "NDims", fields["NDims"], 1)[0]
    if not 2 <= dims <= MOST_DIMENSIONS:
        _refuse(name, "MetaImage", f"{dims} dimensions")
    sizes = _integers(name, "MetaImage", "DimSize", fields["DimSize"], dims)
    for key, value in fields.items():
        if key in META_VECTORS or key in META_MATRICES:
            _numbers(name, "MetaImage", key, value, dims if key in META_VECTORS else dims**2)
        elif key in META_FLAGS and value not in ("True", "False", "true", "false", "1", "0"):
            _refuse(name, "MetaImage", f"{key} = {value[:40]!r}")
    spacing = fields.get("ElementSpacing") or fields.get("ElementSize")
    if spacing and not all(float(word) > 0 for word in spacing.split()):
        _refuse(name, "MetaImage", f"the spacing {spacing!r}")
    if fields["ElementType"].removesuffix("_ARRAY") not in META_TYPES:
        _refuse(name, "MetaImage", f"ElementType = {fields['ElementType'][:40]!r}")
    channels = 1
    if "ElementNumberOfChannels" in fields:
        key = "ElementNumberOfChannels"
        channels = _integers(name, "MetaImage", key, fields[key], 1)[0]
    if "HeaderSize" in fields and not re.fullmatch(r"-1|\d{1,9}", fields["HeaderSize"]):
        _refuse(name, "MetaImage", f"HeaderSize = {fields['HeaderSize'][:40]!r}")
    width = META_TYPES[fields["ElementType"].removesuffix("_ARRAY")]
    _check_meta_data(name, fields, math.prod(sizes) * channels * width, start)


def _check_meta_data(name: str, fields: dict[str, str], expected: int, start: int) -> None:
    """Whether the data are there; of files beside the header, that their names are plain."""
    place = fields["ElementDataFile"]
    if not 0 < expected < MOST_BYTES:
        _refuse(name, "MetaImage", f"DimSize = {fields['DimSize']!r}")
    packed = fields.get("CompressedData", "False") in ("True", "true", "1")
    if "CompressedDataSize" in fields:
        _integers(name, "MetaImage", "CompressedDataSize", fields["CompressedDataSize"], 1)
    if place.upper() != "LOCAL":
        if place.upper().startswith("LIST") or "%" in place:
            _refuse(name, "MetaImage", f"ElementDataFile = {place[:40]!r} (one data file is read)")
        file = Path(name).parent / place
        if not file.is_file():
            raise ValueError(f"{name}: its data file {place[:80]!r} is not there")
        if not packed and file.stat().st_size < expected:
            raise ValueError(f"{name}: truncated or damaged: its data file {place} is too short")
        return
    with open(name, "rb") as data:
        data.seek(start)
        rest = data.read()
    if packed:
        there = _unpacked(name, rest, expected)
    else:
        there = len(rest)
    if there < expected:
        raise ValueError(
            f"{name}: the file is truncated or damaged: its data end after {there} of the "
            f"{expected} bytes that its header promises"
        )


def check_nrrd(path: str | os.PathLike[str]) -> None:
    """Checks the header of an .nrrd or .nhdr; raises as check_metaimage."""
    name = os.fspath(path)
    fields: dict[str, str] = {}
    lines = _lines(name, "NRRD", until_empty=True)
    first = next(lines, ("", 0))[0]
    if not re.fullmatch(r"NRRD000[1-5]", first):
        _refuse(name, "NRRD", f"the first line {first[:40]!r}")
    for line, _ in lines:
        if line.startswith("#"):
            continue
        key, separator, value = line.partition(":")
        key = key.strip().lower()
        if not separator or not re.fullmatch(r"[A-Za-z0-9_ .|()/-]{1,80}", key):
            _refuse(name, "NRRD", f"the line {line[:60]!r}")
        if value.startswith("="):  # the user's own
            continue
        if key in fields:
            _refuse(name, "NRRD", f"{key} twice")
        fields[key] = value.strip()
    for key in ("dimension", "sizes", "type", "encoding"):
        if key not in fields:
            _refuse(name, "NRRD", f"no {key}")
    dims = _integers(name, "NRRD", "dimension", fields["dimension"], 1)[0]
    if not 2 <= dims <= MOST_DIMENSIONS:
        _refuse(name, "NRRD", f"{dims} dimensions")
    sizes = _integers(name, "NRRD", "sizes", fields["sizes"], dims)
    if fields["type"] not in NRRD_SIZES:
        _refuse(name, "NRRD", f"type: {fields['type'][:40]!r}")
    if not 0 < math.prod(sizes) * NRRD_SIZES[fields["type"]] < MOST_BYTES:
        _refuse(name, "NRRD", f"sizes: {fields['sizes'][:60]!r}")
    for key, count in (("spacings", dims), ("space directions", dims), ("space origin", 1)):
        if key in fields:
            _check_nrrd_numbers(name, key, fields[key], count)


def _check_nrrd_numbers(name: str, key: str, value: str, count: int) -> None:
    """Numbers, vectors in brackets or "none" in the right number."""
    vectors = re.findall(r"\([^()]*\)|none", value) if key != "spacings" else value.split()
    rest = re.sub(r"\([^()]*\)|none", "", value).strip() if key != "spacings" else ""
    if len(vectors) != count or rest:
        _refuse(name, "NRRD", f"{key}: {value[:60]!r}")
    for vector in vectors:
        if vector == "none" or (key == "spacings" and vector.lower() == "nan"):
            continue
        words = vector.strip("()").split(",")
        if not all(_is_number(word) for word in words) or len(words) > MOST_DIMENSIONS:
            _refuse(name, "NRRD", f"{key}: {value[:60]!r}")


def _lines(name: str, kind: str, until_empty: bool = False) -> Iterator[tuple[str, int]]:
    """The header's lines, each with the place in the file where it ends."""
    with open(name, "rb") as file:
        for _ in range(MOST_LINES):
            raw = file.readline(LONGEST_LINE + 2)
            if not raw:
                return
            if len(raw) > LONGEST_LINE:
                _refuse(name, kind, "a line without end")
            try:
                line = raw.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                _refuse(name, kind, "a line that is no text")
            if any(ord(letter) < 32 and letter != "\t" for letter in line):
                _refuse(name, kind, "a line that is no text")
            if not line and until_empty:
                return
            if line.strip():
                yield line, file.tell()
    _refuse(name, kind, f"more than {MOST_LINES} lines")


def _numbers(name: str, kind: str, key: str, value: str, count: int) -> None:
    words = value.split()
    if len(words) != count or not all(_is_number(word) for word in words):
        _refuse(name, kind, f"{key} = {value[:60]!r}")


def _integers(name: str, kind: str, key: str, value: str, count: int) -> list[int]:
    words = value.split()
    if len(words) != count or not all(re.fullmatch(r"\d{1,15}", word) for word in words):
        _refuse(name, kind, f"{key} = {value[:60]!r}")
    numbers = [int(word) for word in words]
    if not all(numbers):
        _refuse(name, kind, f"{key} = {value[:60]!r}, and at least one voxel is expected")
    return numbers


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _unpacked(name: str, packed: bytes, expected: int) -> int:
    """How many bytes the zlib stream holds, counted up to what is expected."""
    stream, total = zlib.decompressobj(), 0
    try:
        for start in range(0, len(packed), 1 << 20):
            piece = packed[start : start + (1 << 20)]
            while piece and total < expected:
                total += len(stream.decompress(piece, 1 << 24))
                piece = stream.unconsumed_tail
            if stream.eof or total >= expected:
                break
        return total + len(stream.flush())
    except zlib.error as error:
        raise ValueError(f"{name}: the file is damaged: its data do not unpack ({error})") from None


def _refuse(name: str, kind: str, what: str) -> None:
    raise ValueError(
        f"{name}: not an image, or its {kind} header is damaged or cut off: it has {what}"
    )
