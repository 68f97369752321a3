"""CT localizers (scouts, topograms, surveys): real X-rays of a patient in its CT's coordinates."""

from __future__ import annotations

import os
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from drrkit.files import FileWarning, existing_file
from drrkit.geometry import Camera, assemble
from drrkit.volume import DicomFile, named, stored_pixels

__all__ = ["Localizer", "read_localizer"]

# A fan's rows are at right angles to the table's way; directions may be off by rounding.
_ALONG_TABLE = 0.999
_PLANE = "ImageOrientationPatient"


class Localizer(NamedTuple):
    """A localizer as its source sees it, for `drrkit.registration.ScanScene`.

    image            [1, 1, rows, cols] float32, bright where the patient attenuates; the scale is
                     the maker's
    camera           of a row: its K's rows count the table's steps, p = sdd / fy mm
    world_to_camera  [4, 4] float64 of the row cy, in the CT's frame of reference
    """

    image: Tensor
    camera: Camera
    world_to_camera: Tensor


def read_localizer(path: str | os.PathLike[str], *, mirrored: bool = False) -> Localizer:
    """A CT localizer with the geometry of its header.

    path      a DICOM file of modality CT
    mirrored  whether the pixels are stored as seen from the detector, which no header says: the
              source is on the other side of the patient then. Register both; the wrong one fits
              worse

    Columns count mm at the isocentre, which is taken to be in the image's middle. Fields that mean
    nothing are a FileWarning. Raises OSError, and ValueError for a file that is no localizer, or
    lacks distances, place, orientation or spacing, or whose rows do not follow the table.
    """
    file = DicomFile(existing_file(path))
    if file.text("Modality") != "CT" or not file.is_localizer():
        raise ValueError(
            f"{file.source}: expected a CT localizer (Image Type LOCALIZER), got modality "
            f"{file.text('Modality')}, {file.text('ImageType')}"
        )
    (sdd,), (sod,) = (file.needed(f"DistanceSourceTo{end}", 1) for end in ("Detector", "Patient"))
    place = torch.tensor(file.needed("ImagePositionPatient", 3), dtype=torch.float64)
    turn = torch.tensor(file.needed(_PLANE, 6), dtype=torch.float64)
    across, down = turn.reshape(2, 3)
    row_mm, col_mm = file.needed("PixelSpacing", 2)
    if min(sdd, sod, row_mm, col_mm) <= 0:
        raise ValueError(f"{file.source}: expected positive distances and spacings")
    if abs(float(down[2])) < _ALONG_TABLE or abs(float(across[2])) > 1 - _ALONG_TABLE:
        raise ValueError(
            f"{file.source}: expected rows along the table, got {named(_PLANE)} {turn.tolist()}"
        )
    pixels = torch.from_numpy(stored_pixels(file).values[0].astype("float32"))
    slope, offset = file.number("RescaleSlope"), file.number("RescaleIntercept")
    pixels = pixels * (1.0 if slope is None else slope) + (0.0 if offset is None else offset)
    for text in file.notes:
        warnings.warn(f"{file.source}: {text}", FileWarning, stacklevel=2)
    rows, cols = pixels.shape
    middle = place + (cols - 1) / 2 * col_mm * across + (rows - 1) / 2 * row_mm * down
    if mirrored:
        pixels, across = pixels.flip(-1), -across
    beam = torch.linalg.cross(across, down)
    rotation = torch.stack((across, down, beam))
    pose = assemble(rotation, -(rotation @ (middle - sod * beam))[:, None])
    matrix = torch.tensor([sod / col_mm, sdd / row_mm, 1.0], dtype=torch.float64).diag()
    matrix[0, 2], matrix[1, 2] = (cols - 1) / 2, (rows - 1) / 2
    camera = Camera(matrix, (rows, cols), sdd, origin="header")
    return Localizer(pixels[None, None], camera, pose)
