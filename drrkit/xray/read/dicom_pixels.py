"""Pixels of a DICOM X-ray as its file holds them, whatever ITK does to show them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from drrkit.volume import load_simpleitk, readable_errors
from drrkit.xray.read.dicom import Header
from drrkit.xray.read.dicom_elements import read_elements

__all__ = ["grey", "padding", "read_dicom"]

CODINGS = {
    "1.2.840.10008.1.2.4.50": "JPEG baseline",
    "1.2.840.10008.1.2.4.51": "JPEG extended",
    "1.2.840.10008.1.2.4.57": "JPEG lossless",
    "1.2.840.10008.1.2.4.70": "JPEG lossless",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.81": "JPEG-LS",
    "1.2.840.10008.1.2.4.90": "JPEG 2000",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.4.100": "MPEG-2",
    "1.2.840.10008.1.2.4.101": "MPEG-2",
    "1.2.840.10008.1.2.4.201": "High-Throughput JPEG 2000",
    "1.2.840.10008.1.2.4.202": "High-Throughput JPEG 2000",
    "1.2.840.10008.1.2.4.203": "High-Throughput JPEG 2000",
    "1.2.840.10008.1.2.5": "RLE",
}
MOSTLY = 0.9
"""A padding value that more of the image has is none."""


def read_dicom(source: Path) -> tuple[np.ndarray, Header]:
    """The pixels with slope and intercept applied, [rows, cols] or [frames, rows, cols], and the
    header.

    What SimpleITK cannot decode is left to pydicom, if it is installed. Raises ImportError
    (SimpleITK), and ValueError for a file that is no image, colours, or pixels that cannot be
    decoded.
    """
    reader = load_simpleitk().ImageFileReader()
    reader.SetFileName(os.fspath(source))
    with readable_errors(source, "read"):
        reader.ReadImageInformation()
    header = Header(source, reader, read_elements(source))
    _refuse_shifted_bits(header)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        return _decoded_by_pydicom(header, error), header
    return as_stored(header, grey(source, image)), header


def grey(source: Path, image: Any) -> np.ndarray:
    """The pixels of a SimpleITK image without colours."""
    pixels = load_simpleitk().GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        # Grey with opacity, or colours with or without: the opacity says nothing.
        colors = pixels[..., : 1 if pixels.shape[-1] == 2 else 3]
        if (colors != colors[..., :1]).any():
            raise ValueError(f"{source}: expected a grey image, got colours")
        pixels = colors[..., 0]
    if np.iscomplexobj(pixels):
        raise ValueError(f"{source}: expected real pixels, got complex ones")
    return pixels


def as_stored(header: Header, pixels: np.ndarray) -> np.ndarray:
    """The rescaled pixels that the file holds: ITK reads MONOCHROME1 negated, to show it."""
    if header.text("0028|0004") != "MONOCHROME1":
        return pixels
    slope, intercept = _rescaling(header)
    bits = (header.numbers("0028|0101", 1) or [16.0])[0]
    signed = (header.numbers("0028|0103", 1) or [0.0])[0] == 1.0
    ends = -1.0 if signed else 2.0**bits - 1.0  # the lowest and the highest stored value's sum
    return slope * ends + 2.0 * intercept - pixels.astype(np.float64)


def padding(header: Header, pixels: np.ndarray) -> np.ndarray | None:
    """Which pixels [rows, cols] are no image in any frame; None where the file says nothing.

    (0028,0120) Pixel Padding Value, and to (0028,0121) where there is a range.
    """
    value = header.numbers("0028|0120", 1)
    if value is None:
        return None
    slope, intercept = _rescaling(header)
    bounds = (*value, *(header.numbers("0028|0121", 1) or value))
    low, high = sorted(slope * bound + intercept for bound in bounds)
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    frames = pixels.reshape(-1, *pixels.shape[-2:])
    empty = np.all((frames >= low - slack) & (frames <= high + slack), axis=0)
    return empty if 0.0 < float(np.mean(empty)) <= MOSTLY else None


def _rescaling(header: Header) -> tuple[float, float]:
    slope = (header.numbers("0028|1053", 1) or [1.0])[0]
    return slope, (header.numbers("0028|1052", 1) or [0.0])[0]


def _refuse_shifted_bits(header: Header) -> None:
    """ITK reads pixels that do not begin at the lowest bit wrong, without a word."""
    bits, high = header.numbers("0028|0101", 1), header.numbers("0028|0102", 1)
    if bits and high and high[0] != bits[0] - 1:
        raise ValueError(
            f"{header.source}: expected High Bit (0028,0102) one below Bits Stored (0028,0101), "
            f"got {high[0]:g} and {bits[0]:g}: pixels shifted within their bytes are not supported"
        )


def _decoded_by_pydicom(header: Header, error: RuntimeError) -> np.ndarray:
    syntax = header.elements.transfer_syntax
    coding = CODINGS.get(syntax, "an unusual one") if syntax else "not stated"
    advice = (
        f"{header.source}: SimpleITK cannot decode the pixels: they may be damaged, or their "
        f"coding (transfer syntax {syntax or '?'}, {coding}) is not one it knows. Decompress the "
        "file (gdcmconv --raw, dcmdjpeg), or pip install pydicom pylibjpeg[all], which are then "
        "used"
    )
    try:
        import pydicom
    except ImportError:
        raise ValueError(advice) from error
    try:
        pixels = np.asarray(pydicom.dcmread(header.source).pixel_array)
    except Exception as second:  # decoders raise what they like
        raise ValueError(f"{advice} (pydicom: {str(second)[:200]})") from second
    if pixels.ndim not in (2, 3) or (header.numbers("0028|0002", 1) or [1.0])[0] != 1.0:
        raise ValueError(f"{header.source}: expected a grey image, got colours") from error
    slope, intercept = _rescaling(header)
    return slope * pixels.astype(np.float64) + intercept
