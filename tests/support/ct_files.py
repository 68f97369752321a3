"""CT series written by pydicom, slice by slice, as scanners and other programs write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED = f"{CT}.1"
ROWS, COLS, SLICES, STEP = 36, 40, 5, 2.5
SPACING = (0.8, 0.7)
"""(row, col) mm."""
ORIGIN = (-20.0, 30.0, -100.0)

Change = Callable[[Dataset, int], None]
"""What is done to slice number k before it is written."""


def stored(slices: int = SLICES) -> np.ndarray:
    """Stored values [slices, rows, cols] with Rescale Intercept -1024: -1024 to 976 HU."""
    return np.random.default_rng(0).integers(0, 2000, (slices, ROWS, COLS)).astype(np.uint16)


def hu(slices: int = SLICES) -> np.ndarray:
    """What the slices mean."""
    return stored(slices).astype(np.float64) - 1024.0


def dataset(path: Path, sop_class: str = CT, **tags: Any) -> FileDataset:
    """A CT object without pixels; tags by keyword, None leaves one out."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    data.Modality, data.PatientPosition = "CT", "HFS"
    data.StudyInstanceUID = data.SeriesInstanceUID = data.FrameOfReferenceUID = "1.2.3"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    set_tags(data, tags)
    return data


def set_tags(data: Dataset, tags: dict[str, Any]) -> None:
    """Fields by keyword; None leaves one out, bytes stand in the file as they are."""
    for name, value in tags.items():
        tag = Tag(name)
        if value is None:
            if name in data:
                delattr(data, name)
        elif isinstance(value, bytes) and name != "PixelData":
            value += b" " * (len(value) % 2)
            kind = dictionary_VR(tag)
            data[tag] = RawDataElement(tag, kind, len(value), value, 0, False, True)
        else:
            setattr(data, name, value)


def write_series(
    folder: Path,
    change: Change | None = None,
    *,
    pixels: np.ndarray | None = None,
    places: Any = None,
    axes: Any = (1, 0, 0, 0, 1, 0),
    prefix: str = "",
    **tags: Any,
) -> Path:
    """A folder of slices [slices, rows, cols]; places [slices, 3] or the usual even stack."""
    folder.mkdir(exist_ok=True, parents=True)
    pixels = stored() if pixels is None else pixels
    if places is None:
        places = np.array(ORIGIN) + STEP * np.arange(len(pixels))[:, None] * (0, 0, 1)
    for k, (plane, place) in enumerate(zip(pixels, places, strict=True)):
        path = folder / f"{prefix}{k:03d}.dcm"
        data = dataset(path)
        data.Rows, data.Columns = plane.shape[:2]
        data.PixelSpacing = [str(n) for n in SPACING]
        data.ImageOrientationPatient = [f"{v:.8g}" for v in axes]
        data.ImagePositionPatient = [f"{v:.8g}" for v in place]
        data.RescaleSlope, data.RescaleIntercept = "1", "-1024"
        data.InstanceNumber = k + 1
        data.PixelData = plane.astype(plane.dtype.newbyteorder("<")).tobytes()
        set_tags(data, tags)
        if change is not None:
            change(data, k)
        data.save_as(path, enforce_file_format=True)
    return folder


def item(**tags: Any) -> Dataset:
    """A data set of these fields."""
    found = Dataset()
    for name, value in tags.items():
        setattr(found, name, value)
    return found


def write_enhanced(path: Path, **tags: Any) -> Path:
    """The usual stack as one Enhanced CT file, its frames in reverse order."""
    data = dataset(path, ENHANCED, **tags)
    pixels = stored()[::-1]
    data.Rows, data.Columns, data.NumberOfFrames = ROWS, COLS, len(pixels)
    data.PixelData = np.ascontiguousarray(pixels).tobytes()
    data.SharedFunctionalGroupsSequence = Sequence(
        [
            item(
                PixelMeasuresSequence=Sequence([item(PixelSpacing=[str(n) for n in SPACING])]),
                PlaneOrientationSequence=Sequence(
                    [item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]
                ),
                PixelValueTransformationSequence=Sequence(
                    [item(RescaleSlope="1", RescaleIntercept="-1024", RescaleType="HU")]
                ),
            )
        ]
    )
    data.PerFrameFunctionalGroupsSequence = Sequence(
        [
            item(
                PlanePositionSequence=Sequence(
                    [item(ImagePositionPatient=[*ORIGIN[:2], ORIGIN[2] + STEP * k])]
                )
            )
            for k in reversed(range(len(pixels)))
        ]
    )
    data.save_as(path, enforce_file_format=True)
    return path
