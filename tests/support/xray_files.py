"""DICOM X-rays written by pydicom, which shares no code with the reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from tests.support.ct_files import set_tags

XA = "1.2.840.10008.5.1.4.1.1.12.1"
DX = "1.2.840.10008.5.1.4.1.1.1.1"


def write_dicom(path: Path, pixels: np.ndarray, **tags: Any) -> Path:
    """An X-ray of uint16 pixels [rows, cols] or [frames, rows, cols]; tags by keyword."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DX if tags.get("Modality") == "DX" else XA
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID = generate_uid(), generate_uid()
    data.PatientName, data.PatientID, data.Modality = "Phantom", "1", "XA"
    data.Rows, data.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        data.NumberOfFrames = len(pixels)
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.PixelData = pixels.astype("<u2").tobytes()
    set_tags(data, tags)
    data.save_as(path, enforce_file_format=True)
    return path


def carm_tags(**more: Any) -> dict[str, Any]:
    """The tags of a complete C-arm image."""
    return {
        "DistanceSourceToDetector": "1020",
        "DistanceSourceToPatient": "800",
        "ImagerPixelSpacing": ["2.5", "2.25"],
        "PositionerPrimaryAngle": "30",
        "PositionerSecondaryAngle": "-10",
        **more,
    }
