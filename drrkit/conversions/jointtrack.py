"""JointTrack (and JointTrack Auto, JTML): calibrations of one view, and tracks of implants.

JointTrack's camera looks along -z with x to the right and y up; a row of a track is
x, y, z (mm), then rotations about z, x, y (degrees) with R = Rz Rx Ry and X = R v + t, v in the
coordinates of the implant's surface file. drrkit's camera looks along +z with y down, so
world_to_camera = diag(1, -1, -1) [R | t], the surface file's coordinates being the world.

Source: pose_file_io and the calibration reader of JTML; the handedness was checked by projecting
implants onto hand-drawn silhouettes at an expert's poses.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from drrkit.conversions.angles import euler_to_matrix, matrix_to_euler
from drrkit.files import PathLike, existing_file, whole_file
from drrkit.geometry import Camera, CArm, assemble, check_floating

CALIBRATIONS = ("JT_INTCALIB", "JTA_INTCALIB")
TRACKS = {".jts": "JT_EULER_312", ".jtak": "JTA_EULER_KINEMATICS", ".jtp": "JTA_EULER_POSE"}
"""The first line of a track, by the suffix it is written with."""
COLUMNS = ("X_TRAN", "Y_TRAN", "Z_TRAN", "Z_ROT", "X_ROT", "Y_ROT")
WITHOUT_POSE = "NOT_OPTIMIZED"
_FLIP = torch.tensor((1.0, -1.0, -1.0), dtype=torch.float64)


def read_jointtrack_calibration(path: PathLike, size: tuple[int, int]) -> Camera:
    """The camera of a JT_INTCALIB or JTA_INTCALIB file: one view, square pixels.

    size  (rows, cols) of the X-ray, which the file does not hold

    The file's offsets (mm) are where the principal point lies from the image's middle, to the
    right and upwards. Raises FileNotFoundError, and ValueError for a file that is no such
    calibration or describes two views.
    """
    file = existing_file(path)
    words = re.split(r"[,\s]+", file.read_text(encoding="utf-8", errors="replace").strip())
    if words[0] not in CALIBRATIONS:
        raise ValueError(
            f"{file}: expected a calibration that begins with {' or '.join(CALIBRATIONS)}, "
            f"got {words[0][:40]!r}"
        )
    try:
        sdd, right, up, pixel = (float(word) for word in words[1:5])
    except ValueError:
        raise ValueError(
            f"{file}: expected principal distance, x and y offset and pixel size (mm), "
            f"got {' '.join(words[1:5])[:80]!r}"
        ) from None
    numbers = (sdd, right, up, pixel)
    if not (all(map(math.isfinite, numbers)) and sdd > 0.0 and pixel > 0.0):
        raise ValueError(
            f"{file}: expected a positive principal distance and pixel size, got {numbers}"
        )
    rows, cols = size
    middle = ((cols - 1) / 2 + right / pixel, (rows - 1) / 2 - up / pixel)
    return CArm(sdd, size, pixel, principal_point=middle)


def write_jointtrack_calibration(path: PathLike, camera: Camera) -> None:
    """A JT_INTCALIB file of one camera; the image's size is not in it.

    Raises ValueError for a camera with skew, pixels that are not square, or a parallel beam.
    """
    (fx, skew, cx), (_, fy, cy), _ = camera.K.detach().double().cpu().reshape(3, 3).tolist()
    if camera.beam != "cone" or skew != 0.0 or abs(fx / fy - 1.0) > 1e-9:
        raise ValueError(
            "camera: JointTrack knows a cone beam with square pixels and no skew, got "
            f"a {camera.beam} beam with fx {fx:g}, fy {fy:g}, skew {skew:g}"
        )
    rows, cols = camera.size
    pixel = camera.sdd / fx
    right, up = (cx - (cols - 1) / 2) * pixel, ((rows - 1) / 2 - cy) * pixel
    lines = ("JT_INTCALIB", *(repr(float(n)) for n in (camera.sdd, right, up, pixel)))
    with whole_file(path) as file:
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_jointtrack(path: PathLike) -> Tensor:
    """world_to_camera [T, 4, 4] float64 of a track (.jts, .jtak, .jtp), NaN where it has no pose.

    The world is the implant's surface file. Raises FileNotFoundError, and ValueError for a file
    that is no such track.
    """
    file = existing_file(path)
    lines = [
        line.strip()
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    if not lines or lines[0] not in TRACKS.values():
        raise ValueError(
            f"{file}: expected a track that begins with {', '.join(TRACKS.values())}, "
            f"got {(lines or [''])[0][:40]!r}"
        )
    rows = []
    for number, line in enumerate(lines[1:], 2):
        words = [word for word in re.split(r"[,\s]+", line) if word]
        if words[0] == WITHOUT_POSE:
            rows.append([math.nan] * 6)
            continue
        try:
            row = [float(word) for word in words[:6]]
        except ValueError:
            row = []
        if len(row) != 6 and number == 2:
            continue  # the columns' names
        if len(row) != 6:
            raise ValueError(f"{file}, line {number}: expected six numbers, got {line[:60]!r}")
        rows.append(row)
    if not rows:
        raise ValueError(f"{file}: expected at least one pose, got none")
    table = torch.tensor(rows, dtype=torch.float64)
    turn = euler_to_matrix(table[:, 3:].deg2rad(), "ZXY")
    poses = assemble(_FLIP[:, None] * turn, _FLIP[:, None] * table[:, :3, None])
    poses[table.isnan().any(1)] = math.nan
    return poses


def write_jointtrack(path: PathLike, poses: Tensor) -> None:
    """A track of world_to_camera [T, 4, 4]; the suffix chooses .jts, .jtak or .jtp (one pose).

    Poses that are not finite are written as not optimised. Raises ValueError for another suffix.
    """
    check_floating("poses", poses, (4, 4))
    matrix = poses.detach().double().cpu().reshape(-1, 4, 4)
    suffix = "." + str(path).rpartition(".")[2].lower()
    if suffix not in TRACKS:
        raise ValueError(f"path: expected a suffix of {', '.join(TRACKS)}, got {path}")
    if suffix == ".jtp" and len(matrix) != 1:
        raise ValueError(f"poses: a .jtp file holds one pose, got {len(matrix)}")
    angles = matrix_to_euler(_FLIP[:, None] * matrix[:, :3, :3], "ZXY").rad2deg()
    table = torch.cat((_FLIP * matrix[:, :3, 3], angles), 1)
    lines = [TRACKS[suffix], ",\t".join(COLUMNS)]
    for row in table.tolist():
        words = map(repr, row) if all(map(math.isfinite, row)) else [WITHOUT_POSE, *"00000"]
        lines.append(",\t".join(words))
    with whole_file(path) as file:
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
