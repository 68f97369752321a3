"""NRRD, whose headers pynrrd reads, and MetaImage, whose few lines are read here.

ITK's MetaImage reader believes lengths and counts, so that a damaged header ends the process.
Sources: the definition of NRRD (teem), MetaIO's documentation.
"""

from __future__ import annotations

import math
import os
import re
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from drrkit.volume.rasters import GZIP_RATIO, UNITS, Raster, at_most_3d, checked_sizes, placed

LONGEST_HEADER = 1 << 20
NRRD_SPACES = {
    "left-posterior-superior": (1.0, 1.0, 1.0),
    "right-anterior-superior": (-1.0, -1.0, 1.0),
    "left-anterior-superior": (1.0, -1.0, 1.0),
    "lps": (1.0, 1.0, 1.0),
    "ras": (-1.0, -1.0, 1.0),
    "las": (1.0, -1.0, 1.0),
}
META_TYPES = {"CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4"}
META_TYPES |= {"UINT": "u4", "LONG": "i4", "ULONG": "u4", "LONG_LONG": "i8", "ULONG_LONG": "u8"}
META_TYPES |= {"FLOAT": "f4", "DOUBLE": "f8"}


def read_nrrd(path: Path, dtype: Any) -> Raster:
    import nrrd

    lines, start = _nrrd_lines(path)
    with open(path, "rb") as file:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                header = nrrd.read_header(lines)
                stored = np.dtype(nrrd.reader._determine_datatype(header))
            sizes = tuple(int(n) for n in header["sizes"])
            encoding = str(header["encoding"])
            beside = header.get("data file", header.get("datafile"))
            data = path if beside is None else path.parent / str(beside)
            if not data.is_file():
                raise ValueError(f"{path}: its data file {str(beside)[:80]!r} is not there")
            ratio = 1 if encoding == "raw" else 1 << 20
            checked_sizes(path, sizes, stored.itemsize, data.stat().st_size * ratio)
            file.seek(start)
            pixels = nrrd.read_data(header, file, os.fspath(path), index_order="C")
        except (OSError, EOFError, zlib.error, MemoryError):
            raise
        except Exception as error:  # pynrrd's own, and whatever its parsers raise
            if str(path) in str(error):
                raise
            raise ValueError(
                f"{path}: not an image, or its NRRD header or data are truncated or damaged: "
                f"{type(error).__name__}: {error}"
            ) from error
    notes: list[str] = []
    facts = {"format": "NRRD"}
    affine, spatial = _nrrd_affine(path, header, len(sizes), notes, facts)
    if {"old min", "old max", "oldmin", "oldmax"} & set(header):
        notes.append("old min and old max are not applied: values are the stored ones")
    channels = [axis for axis in range(len(sizes)) if axis not in spatial]
    pixels = np.transpose(
        pixels, [len(sizes) - 1 - axis for axis in (*channels[::-1], *spatial[::-1])]
    )
    kind = _kind(header, channels[0]) if channels else ""
    if len(channels) == 1 and pixels.shape[0] > 1 and (channels == [0] or "color" in kind.lower()):
        facts["channels"] = f"{pixels.shape[0]} ({kind})"
        if "segment" in " ".join(header).lower() or kind == "list":
            facts["layers"] = str(pixels.shape[0])
    else:
        pixels = at_most_3d(path, pixels, facts)
    return placed(
        path, np.ascontiguousarray(pixels, dtype or stored.newbyteorder("=")), affine, notes, facts
    )


def _kind(header: Any, axis: int) -> str:
    kinds = header.get("kinds") or []
    return str(kinds[axis]) if axis < len(kinds) else ""


def _nrrd_lines(path: Path) -> tuple[list[str], int]:
    """The lines of the header, and where in the file the data begin."""
    with open(path, "rb") as file:
        head = file.read(LONGEST_HEADER)
    if head[:4] != b"NRRD":
        raise ValueError(f"{path}: not an image: it does not begin as NRRD does")
    end = re.search(rb"\r?\n[ \t]*\r?\n", head)
    if end is None and len(head) == LONGEST_HEADER:
        raise ValueError(f"{path}: the NRRD header is damaged: no empty line ends it")
    text = head[: end.start()] if end else head
    found = text.decode("utf-8", errors="replace").splitlines()
    # Fields, other than keys (`key:=value`), count in small and in capital letters.
    found = [re.sub(r"^[^#:]+:(?!=)", lambda name: name[0].lower(), line) for line in found]
    return [line for line in found if line.strip()], end.end() if end else len(head)


def _nrrd_affine(
    path: Path, header: Any, dims: int, notes: list[str], facts: dict[str, str]
) -> tuple[np.ndarray, list[int]]:
    """Index to LPS mm, and which axes of the file are x, y, z."""
    affine = np.eye(4)
    space = str(header.get("space", "")).lower()
    sign = NRRD_SPACES.get(space.removesuffix("-time"))
    directions = header.get("space directions")
    if directions is not None:
        vectors = [np.full(3, np.nan) if d is None else np.atleast_1d(d) for d in directions]
        # A space of two or four dimensions: its first three.
        vectors = np.array([np.pad(v, (0, max(0, 3 - len(v))))[:3] for v in vectors], float)
        spatial = [a for a in range(len(vectors)) if np.isfinite(vectors[a]).all()]
        spatial = [a for a in spatial if len(spatial) < 4 or vectors[a].any()]
        scale = _nrrd_unit(path, header, spatial, facts)
        if len(vectors) != dims or len(spatial) not in (2, 3):
            raise ValueError(
                f"{path}: space directions: expected vectors of 3 numbers for 3 of {dims} axes, "
                f"got {vectors.tolist()}"
            )
        affine[:3, : len(spatial)] = scale * vectors[spatial].T
        if len(spatial) == 2:
            affine[:3, 2] = np.cross(affine[:3, 0], affine[:3, 1])
            affine[:3, 2] /= np.linalg.norm(affine[:3, 2]) or 1.0
        origin = header.get("space origin")
        if origin is None:
            notes.append("the file does not say where the image lies (no space origin): taken as 0")
        else:
            affine[: min(3, len(origin)), 3] = scale * np.asarray(origin, float)[:3]
        if sign is None:
            notes.append(
                f"space: {space or 'nothing'!r} does not say how the patient lies: taken as "
                "left-posterior-superior"
            )
            sign = (1.0, 1.0, 1.0)
        facts["space"] = space or "not said"
        return np.diag((*sign, 1.0)) @ affine, spatial
    domain = [a for a in range(dims) if _kind(header, a).lower() in ("domain", "space", "")]
    spatial = domain[-3:] if len(domain) > 3 else domain
    spacings = np.asarray(header.get("spacings", np.full(dims, np.nan)), float)
    steps = spacings[spatial] if len(spacings) == dims else np.full(len(spatial), np.nan)
    scale = _nrrd_unit(path, header, spatial, facts)
    missing = " nor how large its voxels are" if np.isnan(steps).any() else ""
    facts |= {"spacing": "not said"} if missing else {}
    notes.append(
        f"the file does not say how the image lies{missing} (no space directions): "
        "left-posterior-superior" + (" and 1 mm are" if missing else " is") + " assumed"
    )
    steps = np.where(np.isnan(steps), 1.0, scale * steps)
    affine[range(len(steps)), range(len(steps))] = steps
    return affine, spatial


def _nrrd_unit(path: Path, header: Any, spatial: list[int], facts: dict[str, str]) -> float:
    """What one unit of the file's world is in mm."""
    found = header.get("space units")
    if found is None:  # these are for axes without a direction, and written beside them, too
        units = list(header.get("units") or [])
        found = [units[a] for a in spatial if a < len(units)]
    words = ["" if u is None else str(u).strip().strip('"').lower() for u in found][:3]
    words = ["" if word in ("none", "???") else word for word in words]
    facts["unit"] = ", ".join(sorted({*words} - {""})) or "not said, taken for mm"
    # An axis of which nothing is said has millimetres: beside another unit it has none.
    scales = {UNITS.get(word) for word in words}
    if None in scales or len(scales) > 1:
        raise ValueError(
            f"{path}: space units: expected one of mm, cm, m, um for all axes, got {words}"
        )
    return scales.pop() or 1.0 if scales else 1.0


# ---- MetaImage


def read_metaimage(path: Path, dtype: Any) -> Raster:
    fields, start = _meta_fields(path)

    def numbers(count: int, *names: str) -> list[float] | None:
        """The numbers of the first of these fields that is there; None where none is."""
        name = next((n for n in names if n.lower() in fields), None)
        if name is None:
            return None
        text = fields[name.lower()]
        try:
            found = [float(word) for word in text.split()]
        except ValueError:
            found = []
        if len(found) != count or not all(map(math.isfinite, found)):
            _refuse_meta(path, f"{name} = {text[:60]!r}")
        return found

    def flag(*names: str) -> bool:
        value = next((fields[n.lower()] for n in names if n.lower() in fields), "False").lower()
        if value not in ("true", "false", "1", "0"):
            _refuse_meta(path, f"{names[0]} = {value[:40]!r}")
        return value in ("true", "1")

    dims = int((numbers(1, "NDims") or [0])[0])
    if not 2 <= dims <= 4:
        _refuse_meta(path, f"{dims} dimensions")
    sizes = tuple(int(n) for n in numbers(dims, "DimSize") or ())
    channels = int((numbers(1, "ElementNumberOfChannels") or [1])[0])
    kind = fields.get("elementtype", "").removeprefix("MET_").removesuffix("_ARRAY")
    if kind not in META_TYPES:
        _refuse_meta(path, f"ElementType = {fields.get('elementtype', '')[:40]!r}")
    big = flag("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    stored = np.dtype((">" if big else "<") + META_TYPES[kind])
    notes: list[str] = []
    facts = {"format": "MetaImage"}
    pixels = _meta_pixels(path, fields, start, (*sizes, channels), stored, flag)
    pixels = pixels.reshape(*reversed(sizes), channels)
    pixels = np.moveaxis(pixels, -1, 0) if channels > 1 else pixels[..., 0]
    if channels == 1:
        pixels = at_most_3d(path, pixels, facts)
    else:
        facts["channels"] = str(channels)
    spacing = numbers(dims, "ElementSpacing", "ElementSize")
    if spacing is None:
        notes.append("the file does not say how large its voxels are: 1 mm is assumed")
        facts["spacing"] = "not said"
    elif min(spacing) <= 0:
        _refuse_meta(path, f"the spacing {spacing}")
    unit = fields.get("distanceunits", "").lower().replace("?", "").strip('" ')
    if unit not in UNITS:
        raise ValueError(f"{path}: DistanceUnits: expected mm, cm, m or um, got {unit!r}")
    facts["unit"] = unit or "not said, taken for mm"
    places = (("TransformMatrix", "Orientation", "Rotation"), ("Offset", "Position", "Origin"))
    missing = [names[0] for names in places if not any(n.lower() in fields for n in names)]
    if missing:
        notes.append(f"the file does not say how the image lies: no {', '.join(missing)}")
    if any(name.startswith("elementtointensityfunction") for name in fields):
        notes.append("ElementToIntensityFunction is not applied: values are the stored ones")
    turn = np.eye(4)[:dims, :dims]
    matrix = numbers(dims**2, *places[0])
    if matrix is not None:
        turn = np.array(matrix).reshape(dims, dims).T
    affine, n = np.eye(4), min(dims, 3)
    affine[:n, :n] = turn[:n, :n] * np.array((spacing or [1.0] * dims)[:n])
    affine[:n, 3] = (numbers(dims, *places[1]) or [0.0] * dims)[:n]
    scale = np.diag((*[UNITS[unit]] * 3, 1.0))
    native = dtype or stored.newbyteorder("=")
    return placed(path, np.array(pixels, native, order="C"), scale @ affine, notes, facts)


def _meta_fields(path: Path) -> tuple[dict[str, str], int]:
    """The header's fields, their names in small letters, and where in the file it ends."""
    fields: dict[str, str] = {}
    with open(path, "rb") as file:
        while file.tell() < LONGEST_HEADER and (line := file.readline(LONGEST_HEADER)):
            text = line.decode("utf-8", errors="replace").strip()
            key, separator, value = (part.strip() for part in text.partition("="))
            if text and (not separator or not re.fullmatch(r"[A-Za-z_][\w|:. -]{0,79}", key)):
                _refuse_meta(path, f"the line {text[:60]!r}")
            if key.lower() in fields:
                _refuse_meta(path, f"{key} twice")
            fields[key.lower()] = value
            if key.lower() == "elementdatafile":
                return fields, file.tell()
    return _refuse_meta(path, "no ElementDataFile")


def _meta_pixels(
    path: Path,
    fields: dict[str, str],
    start: int,
    sizes: tuple[int, ...],
    stored: np.dtype[Any],
    flag: Any,
) -> np.ndarray:
    """The flat pixels, from the file or from the one beside it."""
    place = fields["elementdatafile"]
    packed = flag("CompressedData")
    data = path if place.upper() == "LOCAL" else path.parent / place
    if place.upper().startswith("LIST") or "%" in place:
        _refuse_meta(path, f"ElementDataFile = {place[:40]!r} (one data file is read)")
    if not data.is_file():
        raise ValueError(f"{path}: its data file {place[:80]!r} is not there")
    skip = fields.get("headersize", "0")
    if not re.fullmatch(r"-1|\d{1,12}", skip):
        _refuse_meta(path, f"HeaderSize = {skip[:40]!r}")
    start = start if data == path else int(skip)
    there = data.stat().st_size - max(start, 0)
    expected = checked_sizes(path, sizes, stored.itemsize, there * (GZIP_RATIO if packed else 1))
    with open(data, "rb") as file:
        file.seek(start if start >= 0 else data.stat().st_size - expected)
        content = file.read() if packed or "binarydata" in fields else file.read(expected)
    if packed:
        content = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(content, expected)
    if "binarydata" in fields and not flag("BinaryData"):
        try:
            content = np.array(content.split(), stored).tobytes()
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{path}: expected numbers as text, got others ({error})") from error
    if len(content) < expected:
        raise ValueError(
            f"{path}: the file is truncated or damaged: its data end after {len(content)} of the "
            f"{expected} bytes that its header promises"
        )
    return np.frombuffer(content, stored, math.prod(sizes))


def _refuse_meta(path: Path, what: str) -> Any:
    raise ValueError(
        f"{path}: not an image, or its MetaImage header is damaged or cut off: it has {what}"
    )
