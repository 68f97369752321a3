"""One DICOM file: its fields, with notes on those that mean nothing, and its pixels as stored.

pydicom reads headers, uncompressed pixels and RLE; SimpleITK decodes the JPEG family.
Source: DICOM PS3.3 C.7.6.3 (Image Pixel), PS3.5 chapter 8 and annex A.
"""

from __future__ import annotations

import math
import os
import struct
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from drrkit.volume.rasters import MOST_BYTES

INDEX_STORAGE = "1.2.840.10008.1.3.10"
"""Media Storage Directory (DICOMDIR): an index of other files."""
LOCALIZERS = {"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW", "SCANOGRAM"}
"""What makers call a localizer in Image Type."""
RLE = "1.2.840.10008.1.2.5"
PIXEL_KINDS = {"": "", "Float": "f4", "DoubleFloat": "f8"}
"""What the fields of pixels and of their padding begin with; of reals, their type."""
PLAIN = ("CS", "DS", "IS", "UI")
"""Value representations whose bytes are the text."""
LATER = 4096
"""Longer values are read from the file when they are asked for."""
TISSUE_HU = (-900.0, 3071.0)
RLE_RATIO = 64
"""Bytes that a byte of RLE can become, at most."""
ADVICE = "decompress the file (gdcmconv --raw, dcmdjpeg), or pip install pylibjpeg[all]"


def is_dicom(path: Path) -> bool:
    """Whether a file has DICOM's preamble, or begins like a data set without one."""
    with path.open("rb") as file:
        head = file.read(132)
    if head[128:] == b"DICM":
        return True
    if head[:2] not in (b"\2\0", b"\10\0", b"\0\10") or head[3:4] not in (b"\0", b"\5", b"\6"):
        return False
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return explicit or 0 <= int.from_bytes(head[4:8], "little") < LATER


class DicomFile:
    """The fields of a DICOM file by their keywords, and notes on those that mean nothing.

    What an enhanced object says in its functional groups, of one frame or of all, counts too.

    Raises OSError, and ValueError for a file that cannot be parsed.
    """

    def __init__(self, source: Path) -> None:
        import pydicom

        self.source = source
        self.notes: list[str] = []
        try:
            with _quiet():
                self.dataset = pydicom.dcmread(source, force=True, defer_size=LATER)
        except OSError:
            raise
        except Exception as error:  # a damaged file raises what it likes
            raise ValueError(f"{source}: not a DICOM file, or a damaged one ({error})") from error
        groups = self._items("SharedFunctionalGroupsSequence")
        self._shared, self._frames = groups[:1], self._items("PerFrameFunctionalGroupsSequence")
        self._words: dict[tuple[str, int | None], list[str]] = {}

    @property
    def sop_class(self) -> str:
        """SOP Class UID; "" where the file does not say it."""
        meta = getattr(self.dataset, "file_meta", {})
        return self.text("SOPClassUID") or str(meta.get("MediaStorageSOPClassUID", "")).strip()

    @property
    def syntax(self) -> str:
        """Transfer Syntax UID; "" where the file does not say it."""
        return str(getattr(self.dataset, "file_meta", {}).get("TransferSyntaxUID", "")).strip()

    @property
    def has_pixels(self) -> bool:
        """Whether there is any kind of pixel data."""
        return any(f"{kind}PixelData" in self.dataset for kind in PIXEL_KINDS)

    def is_localizer(self, frame: int | None = None) -> bool:
        """Whether the file, or a frame of an enhanced object, is a projection to plan a CT by."""
        words = self.words("ImageType" if frame is None else "FrameType", frame)
        return not LOCALIZERS.isdisjoint(words)

    @property
    def frames(self) -> int:
        """Number of Frames, 1 where the file does not say it, or nothing that can be."""
        found = self.number("NumberOfFrames")
        if found is not None and (found < 1 or found != int(found)):
            self.note(f"{named('NumberOfFrames')}: expected a whole number > 0, got {found:g}")
            return 1
        return int(found or 1)

    @property
    def described_frames(self) -> int:
        """How many frames have functional groups of their own, as enhanced objects have."""
        return len(self._frames)

    def words(self, keyword: str, frame: int | None = None) -> list[str]:
        """The values of a field as text; of frame number `frame` in an enhanced object."""
        if (keyword, frame) not in self._words:
            self._words[keyword, frame] = self._found(keyword, frame)
        return self._words[keyword, frame]

    def _found(self, keyword: str, frame: int | None) -> list[str]:
        own = _texts(self.dataset, keyword)
        if own and frame is None:
            return own
        groups = [*self._frames[slice(frame or 0, (frame or 0) + 1)], *self._shared]
        return next((found for group in groups if (found := _inside(group, keyword))), own)

    def text(self, keyword: str, frame: int | None = None) -> str | None:
        """The values of a field, parted by backslashes; None where it is absent or empty."""
        return "\\".join(self.words(keyword, frame)) or None

    def numbers(
        self, keyword: str, count: int | None = None, frame: int | None = None
    ) -> list[float] | None:
        """`count` finite numbers; None, with a note, where the field holds something else."""
        try:
            return self.needed(keyword, count, frame) if self.words(keyword, frame) else None
        except ValueError as error:
            self.note(f"{str(error).removeprefix(f'{self.source}: ')}; taken as unknown")
            return None

    def kinds(self, keyword: str) -> int:
        """How many different values a field has in the frames of an enhanced object."""
        return len({self.text(keyword, k) for k in range(self.described_frames)} - {None})

    def number(self, keyword: str) -> float | None:
        """A finite number; None, with a note, where the field holds something else."""
        found = self.numbers(keyword, 1)
        return None if found is None else found[0]

    def positive(self, keyword: str) -> float | None:
        """A number above zero; zero, which many machines write for unknown, is None."""
        found = self.number(keyword)
        if found is not None and found < 0:
            self.note(f"{named(keyword)}: expected a number > 0, got {found:g}; taken as unknown")
        return found if found is not None and found > 0 else None

    def needed(
        self, keyword: str, count: int | None = None, frame: int | None = None
    ) -> list[float]:
        """As `numbers`; raises ValueError where they are absent or something else."""
        words = self.words(keyword, frame)
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = []
        if values and count in (None, len(values)) and all(map(math.isfinite, values)):
            return values
        wanted = "numbers" if count is None else "a number" if count == 1 else f"{count} numbers"
        found = repr("\\".join(words)[:60]) if words else "nothing"
        raise ValueError(f"{self.source}: {named(keyword)}: expected {wanted}, got {found}")

    def note(self, text: str) -> None:
        """Remembers a remark, once."""
        if text not in self.notes:
            self.notes.append(text)

    def count(self, keyword: str, default: int | None = None) -> int:
        """A whole number above zero; raises ValueError for another, and where there is none."""
        if default is not None and not self.words(keyword):
            return default
        (value,) = self.needed(keyword, 1)
        if value < 1 or value != int(value):
            raise ValueError(
                f"{self.source}: {named(keyword)}: expected a whole number > 0, got {value:g}"
            )
        return int(value)

    def _items(self, keyword: str) -> list[Any]:
        try:
            return list(self.dataset.get(keyword) or [])
        except Exception:  # a damaged sequence: as if it were not there
            return []


class StoredPixels(NamedTuple):
    """Pixels [frames, rows, cols] as numbers before slope and intercept, and which are padding."""

    values: np.ndarray
    padded: np.ndarray | None


def named(keyword: str) -> str:
    """A field as errors name it: Pixel Spacing (0028,0030)."""
    from pydicom.datadict import dictionary_description, tag_for_keyword

    tag = tag_for_keyword(keyword) or 0
    return f"{dictionary_description(tag)} ({tag >> 16:04X},{tag & 0xFFFF:04X})"


def stored_pixels(file: DicomFile) -> StoredPixels:
    """The pixels of a file of one sample per pixel; sizes are checked before anything is decoded.

    Raises ValueError for colours, sizes or bits that contradict each other, data that end before
    the pixels do, and codings that cannot be decoded.
    """
    shape = (file.frames, file.count("Rows"), file.count("Columns"))
    if file.count("SamplesPerPixel", 1) != 1 or file.text("PhotometricInterpretation") in COLOURS:
        kind = file.text("PhotometricInterpretation")
        raise ValueError(f"{file.source}: expected grey pixels, got colours ({kind})")
    for kind, real in PIXEL_KINDS.items():
        if real and f"{kind}PixelData" in file.dataset:
            values = _plain(file, f"{kind}PixelData", shape, np.dtype(real))
            return StoredPixels(values, _padding(file, values, values, kind))
    allocated = file.count("BitsAllocated")
    if allocated not in (8, 16, 32):
        raise ValueError(f"{file.source}: {allocated} bits per pixel (0028,0100) are not supported")
    signed = file.number("PixelRepresentation") == 1.0
    dtype = np.dtype(f"{'i' if signed else 'u'}{allocated // 8}")
    if math.prod(shape) * dtype.itemsize > MOST_BYTES:
        raise ValueError(f"{file.source}: {shape} pixels are more than can be meant")
    coded = _is_coded(file)
    raw = _decoded(file, shape, dtype) if coded else _plain(file, "PixelData", shape, dtype)
    bits = file.count("BitsStored", allocated)
    high = file.number("HighBit")
    shift = 0 if high is None else int(high) + 1 - bits
    if bits > allocated or not 0 <= shift <= allocated - bits:
        raise ValueError(
            f"{file.source}: {allocated} bits allocated, {bits} stored and High Bit (0028,0102) "
            f"{high:g} contradict each other"
        )
    values = _shifted(file, raw, bits, shift, signed, coded and file.syntax != RLE)
    padded = _padding(file, raw, values)
    if not shift and values is not raw:
        left_out = (values != raw) & (raw >> bits != 0)  # zeros may stand above a sign
        if bool((left_out if padded is None else left_out & ~padded).any()):
            file.note(f"bits above the {bits} stored (0028,0101) are used: these are left out")
    return StoredPixels(values, padded)


COLOURS = ("RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL")


def _shifted(
    file: DicomFile, raw: np.ndarray, bits: int, shift: int, signed: bool, jpeg: bool
) -> np.ndarray:
    """The numbers of the stored bits alone; what stands above them is an old kind of overlay.

    JPEG's code streams may have the numbers without the shift that High Bit says.
    """
    allocated = raw.dtype.itemsize * 8
    if shift and bool(np.any(raw & raw.dtype.type((1 << shift) - 1))):
        if not jpeg or int(raw.max()) >> bits or int(raw.min()) < -(1 << bits - 1):
            raise ValueError(
                f"{file.source}: High Bit (0028,0102) is {bits + shift - 1} for {bits} bits "
                "stored, but the bits below are used too: the pixels are damaged or their header is"
            )
        shift = 0
    if bits == allocated:
        return raw
    low, high = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
    if not shift and low <= int(raw.min()) and int(raw.max()) < high:
        return raw
    above = allocated - bits - shift
    return (raw << above) >> (above + shift)


def _padding(
    file: DicomFile, raw: np.ndarray, values: np.ndarray, kind: str = ""
) -> np.ndarray | None:
    """Which pixels are padding: (0028,0120) Pixel Padding Value, and to (0028,0121) if there.

    A limit that would make tissue of a CT padding is left out. kind is "Float" or "DoubleFloat"
    for the fields of such pixels.
    """
    value = file.numbers(f"{kind}PixelPaddingValue", 1)
    if value is None:
        return None
    keyword = f"{kind}PixelPaddingRangeLimit"
    limit = file.numbers(keyword, 1) or value
    found = _between(raw, values, *sorted((*value, *limit)))
    if limit != value and file.text("Modality") == "CT":
        (slope,) = file.numbers("RescaleSlope", 1, 0) or [1.0]
        (intercept,) = file.numbers("RescaleIntercept", 1, 0) or [0.0]
        if is_tissue(slope * values[found] + intercept).any():
            file.note(f"{named(keyword)}: {limit[0]:g} would make tissue padding: left out")
            found = _between(raw, values, *value, *value)
    return found if bool(found.any()) else None


def _between(raw: np.ndarray, values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Which values lie between bounds, written signed or unsigned and in more bits than stored."""
    found = (values >= low) & (values <= high)
    if raw.dtype.kind == "f":
        return found
    least, most = np.iinfo(raw.dtype).min, np.iinfo(raw.dtype).max
    size = most - least + 1
    wrapped = [bound - size if bound > most else bound for bound in (low, high)]
    wrapped = [bound + size if bound < least else bound for bound in wrapped]
    if wrapped[0] <= wrapped[1]:
        found |= (raw >= wrapped[0]) & (raw <= wrapped[1])
    return found


def is_tissue(values: np.ndarray) -> np.ndarray:
    """Which values in HU are those of a patient, lung and bone included."""
    return (values > TISSUE_HU[0]) & (values <= TISSUE_HU[1])


def _plain(
    file: DicomFile, keyword: str, shape: tuple[int, int, int], dtype: np.dtype[Any]
) -> np.ndarray:
    """Uncompressed pixels."""
    expected = math.prod(shape) * dtype.itemsize
    element = file.dataset.get_item(keyword)
    try:
        with _quiet():
            data = file.dataset[keyword].value or b""
    except Exception as error:
        raise ValueError(f"{file.source}: truncated or damaged: no pixels ({error})") from error
    if len(data) < expected:
        raise ValueError(
            f"{file.source}: truncated or damaged: {len(data)} of the {expected} bytes that its "
            f"header promises ({shape[0]} x {shape[1]} x {shape[2]} pixels)"
        )
    if len(data) > expected + 1:  # an even number of bytes is usual
        file.note(f"more pixels than the header says, {shape[1]} x {shape[2]}: they are left out")
    _, little = file.dataset.original_encoding
    if little is False and dtype.itemsize == 1 and getattr(element, "VR", "") == "OW":
        data = np.frombuffer(data, ">u2").astype("<u2").tobytes()
    order = ">" if little is False else "<"
    pixels = np.frombuffer(data, dtype.newbyteorder(order), math.prod(shape))
    return pixels.reshape(shape).astype(dtype, copy=False)


# ---- compressed pixels


def _is_coded(file: DicomFile) -> bool:
    from pydicom.uid import UID

    syntax = UID(file.syntax)
    known = bool(syntax) and not syntax.is_private and syntax.is_transfer_syntax
    return known and syntax.is_compressed and not syntax.is_deflated


def _decoded(file: DicomFile, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> np.ndarray:
    try:
        frames = list(_coded_frames(file, shape, dtype))
        return np.stack(frames).reshape(shape).astype(dtype, copy=False)
    except Exception as error:  # decoders raise what they like
        if isinstance(error, ValueError) and str(file.source) in str(error):
            raise
        detail = " ".join(str(error).split())[-200:]
        raise ValueError(
            f"{file.source}: the pixels cannot be decoded: they may be damaged, or their coding "
            f"({file.syntax}) is not one that SimpleITK knows; {ADVICE} ({detail})"
        ) from error


def _coded_frames(
    file: DicomFile, shape: tuple[int, int, int], dtype: np.dtype[Any]
) -> Iterator[np.ndarray]:
    from pydicom.encaps import generate_frames
    from pydicom.pixels import pixel_array

    count, *size = shape
    with _quiet():
        data = file.dataset.PixelData
        parts = list(generate_frames(data, number_of_frames=count))
    if len(parts) != count:
        raise ValueError(f"{file.source}: expected {count} coded frames, got {len(parts)}")
    if file.syntax == RLE:
        if math.prod(shape) * dtype.itemsize > RLE_RATIO * len(data):
            raise ValueError(f"{file.source}: truncated or damaged: too few bytes for {shape}")
        with _quiet():
            # As if all bits were stored: what the header says of them is done once, by _shifted.
            pixels = pixel_array(file.dataset, bits_stored=8 * dtype.itemsize, raw=True)
        yield from pixels.reshape(shape)
        return
    for part in parts:
        coded = coded_size(part)
        if coded is None:  # none of JPEG's: what pydicom and its plug-ins can do, for one frame
            with _quiet():
                yield np.asarray(file.dataset.pixel_array)
            continue
        if coded != tuple(size):
            raise ValueError(
                f"{file.source}: Rows and Columns say {size[0]} x {size[1]} pixels, the coded "
                f"picture {coded[0]} x {coded[1]}"
            )
        yield _by_simpleitk(file, part)


def coded_size(data: bytes) -> tuple[int, int] | None:
    """(rows, cols) that a JPEG, JPEG-LS or JPEG 2000 code stream says; None for another one."""
    if data[:4] == b"\xff\x4f\xff\x51" and len(data) >= 24:
        right, low, left, top = struct.unpack(">4I", data[8:24])
        return low - top, right - left
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker, (length,) = data[at + 1], struct.unpack_from(">H", data, at + 2)
        if marker == 0xFF:
            at += 1
        elif (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            rows, cols = struct.unpack_from(">HH", data, at + 5)
            return rows, cols
        else:
            at += 2 + length
    return None


def _by_simpleitk(file: DicomFile, frame: bytes) -> np.ndarray:
    """A frame in a file of its own that holds nothing else, so that GDCM changes no number."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID, SecondaryCaptureImageStorage, generate_uid

    alone, meta = Dataset(), FileMetaDataset()
    meta.TransferSyntaxUID = UID(file.syntax)
    meta.MediaStorageSOPClassUID = alone.SOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = alone.SOPInstanceUID = generate_uid()
    alone.file_meta = meta
    alone.Rows, alone.Columns, bits = (file.count(k) for k in ("Rows", "Columns", "BitsAllocated"))
    alone.BitsAllocated, alone.BitsStored, alone.HighBit = bits, bits, bits - 1
    alone.PixelRepresentation = int(file.number("PixelRepresentation") or 0)
    alone.SamplesPerPixel, alone.PhotometricInterpretation = 1, "MONOCHROME2"
    alone.PixelData = encapsulate([frame])
    alone["PixelData"].VR = "OB"
    import SimpleITK as sitk

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "frame.dcm")
        alone.save_as(path, enforce_file_format=True)
        return np.squeeze(sitk.GetArrayFromImage(sitk.ReadImage(path)))


def _inside(group: Any, keyword: str) -> list[str]:
    """The values of a field in a functional group's nested sequences."""
    if found := _texts(group, keyword):
        return found
    for tag in list(group.keys()):
        try:
            items = group[tag].value if group[tag].VR == "SQ" else None
        except Exception:  # damaged: as if it were not there
            continue
        for item in items or []:
            if found := _inside(item, keyword):
                return found
    return []


@cache
def _tag(keyword: str) -> tuple[Any, str]:
    """A field's tag and value representation."""
    from pydicom.datadict import dictionary_VR
    from pydicom.tag import Tag

    tag = Tag(keyword)
    return tag, dictionary_VR(tag)


def _texts(dataset: Any, keyword: str) -> list[str]:
    """A field's values as text, also where they are not what its representation allows."""
    tag, kind = _tag(keyword)
    if tag not in dataset:
        return []
    raw = dataset.get_item(tag)
    value, written = raw.value, raw.VR or kind
    if isinstance(value, bytes) and written == "US" and len(value) == 2:
        value = [int.from_bytes(value, "little" if raw.is_little_endian else "big")]
    elif written not in PLAIN or not isinstance(value, bytes):
        try:
            with _quiet():
                value = dataset[tag].value
        except Exception:
            value = value if isinstance(value, (bytes, str)) else b""
    if isinstance(value, bytes):
        value = value.decode("latin-1").split("\\")
    several = isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue"
    words = [str(word).strip(" \0") for word in (value if several else [value])]
    words = [word.upper() for word in words] if kind == "CS" else words
    return words if any(word not in ("", "None") for word in words) else []


@contextmanager
def _quiet() -> Iterator[None]:
    """pydicom's remarks on values are said by this module, naming the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
