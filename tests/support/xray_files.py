"""DICOM X-rays written by pydicom, which shares no code with the reader."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

import drrkit
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


def write_carm_xray(
    path: Path,
    ct: drrkit.Volume,
    size: tuple[int, int],
    pitch: float,
    off: list[float],
    primary: float = 20.0,
) -> torch.Tensor:
    """An image of a C-arm that is `off` (rad, mm) from where its file says; the true pose."""
    claimed = drrkit.view_carm(ct, 780.0, math.radians(primary), math.radians(5), base="PA")
    xi = torch.tensor(off, dtype=torch.float64)
    truth = drrkit.perturb(claimed, xi, drrkit.volume_center(ct))
    line = drrkit.simulate_xray(ct, drrkit.CArm(1020.0, size, pitch), truth, seed=3)[0, 0]
    counts = (20000 * torch.exp(-line.double())).round().clamp(0, 65535).numpy()
    tags = carm_tags(
        DistanceSourceToPatient="780",
        ImagerPixelSpacing=[str(pitch)] * 2,
        PositionerPrimaryAngle=str(primary),
        PositionerSecondaryAngle="5",
        PatientOrientation=["L", "F"],
        PixelIntensityRelationship="LIN",
        PixelIntensityRelationshipSign=1,
    )
    write_dicom(path, counts.astype(np.uint16)[:, ::-1].copy(), **tags)
    return truth
