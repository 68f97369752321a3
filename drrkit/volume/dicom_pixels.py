"""The pixels of a DICOM file, as stored.

pydicom reads uncompressed pixels and RLE, SimpleITK decodes the JPEG family.
Source: DICOM PS3.3 C.7.6.3 (Image Pixel), PS3.5 chapter 8 and annex A.
"""

from __future__ import annotations

import math
import os
import struct
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from drrkit.volume.dicom_file import PIXEL_KINDS, DicomFile, named, quiet_pydicom
from drrkit.volume.rasters import MOST_BYTES, MOST_PIXELS

RLE = "1.2.840.10008.1.2.5"
RLE_RATIO = 64
"""Bytes that a byte of RLE can become, at most."""
COLOURS = ("RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL")
TISSUE_HU = (-900.0, 3071.0)
ADVICE = "decompress the file (gdcmconv --raw, dcmdjpeg), or pip install pylibjpeg[all]"


class StoredPixels(NamedTuple):
    """Pixels [frames, rows, cols] as numbers before slope and intercept, and which are padding."""

    values: np.ndarray
    padded: np.ndarray | None


def stored_pixels(file: DicomFile) -> StoredPixels:
    """The pixels of a file of one sample per pixel; sizes are checked before anything is decoded.

    Raises ValueError for colours, sizes or bits that contradict each other, data that end before
    the pixels do, and codings that cannot be decoded.
    """
    shape = (file.frames, file.count("Rows"), file.count("Columns"))
    if file.count("SamplesPerPixel", 1) != 1 or file.text("PhotometricInterpretation") in COLOURS:
        kind = file.text("PhotometricInterpretation")
        raise ValueError(f"{file.source}: expected grey pixels, got colours ({kind})")
    kind = _kind(file)
    if real := PIXEL_KINDS[kind]:
        values = _plain(file, shape, np.dtype(real))
        return StoredPixels(values, _padding(file, values, values, kind))
    allocated = file.count("BitsAllocated")
    if allocated not in (8, 16, 32):
        raise ValueError(f"{file.source}: {allocated} bits per pixel (0028,0100) are not supported")
    representation = file.number("PixelRepresentation") or 0.0
    if representation not in (0.0, 1.0):
        file.note(f"{named('PixelRepresentation')}: expected 0 or 1, got {representation:g}")
    signed = representation == 1.0
    dtype = np.dtype(f"{'i' if signed else 'u'}{allocated // 8}")
    coded = _is_coded(file)
    raw = (_decoded if coded else _plain)(file, shape, dtype)
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


def check_size(file: DicomFile, shape: tuple[int, int, int], width: int) -> None:
    """Raises ValueError where a file cannot hold pixels [frames, rows, cols] of `width` bytes."""
    expected = math.prod(shape) * width
    if math.prod(shape[1:]) > MOST_PIXELS or expected > MOST_BYTES:
        raise ValueError(f"{file.source}: {shape} pixels are more than can be meant")
    if _is_coded(file):
        if file.syntax == RLE and expected > RLE_RATIO * len(_data(file)):
            raise ValueError(f"{file.source}: truncated or damaged: too few bytes for {shape}")
    elif len(_data(file)) < expected:
        raise ValueError(
            f"{file.source}: truncated or damaged: {len(_data(file))} of the {expected} bytes that "
            f"its header promises ({shape[0]} x {shape[1]} x {shape[2]} pixels)"
        )


def _kind(file: DicomFile) -> str:
    """What the name of the field begins with in which the pixels are."""
    return next((kind for kind in PIXEL_KINDS if kind and f"{kind}PixelData" in file.dataset), "")


def _data(file: DicomFile) -> bytes:
    """The bytes of the pixels, as they stand in the file."""
    try:
        with quiet_pydicom():
            return file.dataset[f"{_kind(file)}PixelData"].value or b""
    except Exception as error:
        raise ValueError(f"{file.source}: truncated or damaged: no pixels ({error})") from error


def _plain(file: DicomFile, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> np.ndarray:
    """Uncompressed pixels."""
    check_size(file, shape, dtype.itemsize)
    data, element = _data(file), file.dataset.get_item("PixelData")
    if len(data) > math.prod(shape) * dtype.itemsize + 1:  # an even number of bytes is usual
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
    check_size(file, shape, dtype.itemsize)
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
    with quiet_pydicom():
        data = file.dataset.PixelData
        parts = list(generate_frames(data, number_of_frames=count))
    if len(parts) != count:
        raise ValueError(f"{file.source}: expected {count} coded frames, got {len(parts)}")
    if file.syntax == RLE:
        with quiet_pydicom():
            # As if all bits were stored: what the header says of them is done once, by _shifted.
            pixels = pixel_array(file.dataset, bits_stored=8 * dtype.itemsize, raw=True)
        yield from pixels.reshape(shape)
        return
    for part in parts:
        coded = coded_size(part)
        if coded is None:  # none of JPEG's: what pydicom and its plug-ins can do, for one frame
            with quiet_pydicom():
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
