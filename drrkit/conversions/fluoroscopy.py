"""Files of programs that track bones and implants in fluoroscopy: XMALab, Autoscoper, JointTrack.

JointTrack's camera (also that of JointTrack Auto, JTML) looks along -z with x to the right and y
up; a row of a track is x, y, z (mm), then rotations about z, x, y (degrees) with R = Rz Rx Ry and
X = R v + t, v in the coordinates of the implant's surface file. drrkit's camera looks along +z with
y down, so world_to_camera = diag(1, -1, -1) [R | t], the surface file's coordinates being the
world. MayaCam 1.0 has that camera, too.

Sources: saveMayaCamVersion2 and getMayaCam of XMALab's Camera.cpp, loadMayaCam1 and loadMayaCam2 of
Autoscoper's Camera.cpp; pose_file_io and the calibration reader of JTML, whose handedness was
checked by projecting implants onto hand-drawn silhouettes at an expert's poses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from drrkit.conversions.angles import euler_to_matrix, matrix_to_euler
from drrkit.conversions.pinhole import check_rigid, from_opencv
from drrkit.conversions.vectors import CameraView, checked_view
from drrkit.files import PathLike, existing_file, whole_file
from drrkit.geometry import Camera, CArm, assemble, check_floating, checked_positive

PARTS = {"image size": 2, "camera matrix": 9, "rotation": 9, "translation": 3}
"""Of MayaCam 2.0, in its order, and how many numbers each has."""
DEFAULT_SIZE = 1024
"""Rows and columns that MayaCam 1.0 leaves at zero."""
ROW_LENGTH, ROWS = 3, 5
"""Of version 1: source; angles x, y, z in degrees; film; u0, v0, focal length; scale, size."""
CALIBRATIONS = ("JT_INTCALIB", "JTA_INTCALIB")
TRACKS = {".jts": "JT_EULER_312", ".jtak": "JTA_EULER_KINEMATICS", ".jtp": "JTA_EULER_POSE"}
"""The first line of JointTrack's tracks, by the suffix they are written with."""
COLUMNS = ("X_TRAN", "Y_TRAN", "Z_TRAN", "Z_ROT", "X_ROT", "Y_ROT")
WITHOUT_POSE = "NOT_OPTIMIZED"
_LOOKING_BACK = torch.tensor((1.0, -1.0, -1.0), dtype=torch.float64)
"""Between drrkit's camera axes and those of a camera that looks along -z with y up."""

Parts = tuple[Tensor, Tensor, Tensor, tuple[int, int]]
"""K, R, t and (rows, cols)."""


# ---- MayaCam


def write_mayacam(
    path: PathLike, camera: Camera, world_to_camera: Tensor, version: int = 2
) -> None:
    """A MayaCam calibration of one view [4, 4] or [1, 4, 4].

    version  2: OpenCV's K, R and t, mm and pixels; 1 (.csv): the source, three angles and one
             focal length in pixels, so the camera needs square pixels and no skew

    The distance of the detector is in neither. Raises ValueError for several views, another
    version, and a camera that version 1 cannot describe.
    """
    poses = checked_view(camera, world_to_camera)
    if len(poses) != 1:
        raise ValueError(f"world_to_camera: expected one view, got {len(poses)}")
    if version not in (1, 2):
        raise ValueError(f"version: expected 1 or 2, got {version!r}")
    pose = poses[0].detach().cpu()
    rows, cols = camera.size
    if version == 2:
        matrix = camera.K.detach().double().cpu().reshape(3, 3)
        blocks = ([[cols, rows]], matrix.tolist(), pose[:3, :3].tolist(), pose[:3, 3:].tolist())
        texts = ("\n".join((n, *map(_row, b))) for n, b in zip(PARTS, blocks, strict=True))
        return _write(path, "\n\n".join(texts).split("\n"))
    focal, cx, cy = _square(camera, "MayaCam 1.0 (not version 2)")
    z, y, x = matrix_to_euler(pose[:3, :3].mT * _LOOKING_BACK, "ZYX").rad2deg().tolist()
    source = (-pose[:3, :3].mT @ pose[:3, 3]).tolist()
    # It counts pixels from one, rows from below.
    u0, v0, scale = cx + 1.0, rows - cy, 0.1
    film = (scale * (cols / 2 - u0), scale * (rows / 2 - v0), -scale * focal)
    lines = (source, (x, y, z), film, (u0, v0, -focal), (scale, cols, rows))
    return _write(path, map(_row, lines))


def read_mayacam(path: PathLike, sdd: float, unit_mm: float = 1.0) -> CameraView:
    """The view of a MayaCam calibration of either version.

    sdd      source-to-detector distance in mm, which the file does not hold
    unit_mm  the file's unit of length: XMALab's is that of its calibration object, 10 for one
             measured in cm

    Raises FileNotFoundError, and ValueError for a file that is no such calibration.
    """
    file, lines = _read(path)
    scale = checked_positive("unit_mm", unit_mm)
    first = lines[0][0] if lines else ""
    read = _mayacam_1 if first.isdigit() or first in ("-", "+", ".") else _mayacam_2
    matrix, rotation, shift, size = read(file, lines)
    distance = checked_positive("sdd", sdd)
    try:
        return from_opencv(matrix, rotation, scale * shift, size, distance)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _mayacam_1(file: Path, lines: list[str]) -> Parts:
    table = [_numbers(line, str(file)) for line in lines[:ROWS]]
    if len(table) != ROWS or any(len(row) < ROW_LENGTH for row in table):
        raise ValueError(f"{file}: expected five lines of three numbers as in MayaCam 1.0")
    if not all(math.isfinite(number) for row in table for number in row):
        raise ValueError(f"{file}: expected finite numbers as in MayaCam 1.0")
    source, angles, _, (u0, v0, focal, *_), (_, width, height, *_) = table
    if focal == 0.0:
        raise ValueError(f"{file}: expected a focal length as in MayaCam 1.0, got 0")
    size = _whole(file, width or DEFAULT_SIZE, height or DEFAULT_SIZE)
    turn = torch.tensor(angles[2::-1], dtype=torch.float64).deg2rad()
    rotation = (euler_to_matrix(turn, "ZYX") * _LOOKING_BACK).mT
    shift = -rotation @ turn.new_tensor(source[:3])
    pitch = abs(focal)
    matrix = ((pitch, 0.0, u0 - 1.0), (0.0, pitch, size[0] - v0), (0.0, 0.0, 1.0))
    return turn.new_tensor(matrix), rotation, shift, size


def _mayacam_2(file: Path, lines: list[str]) -> Parts:
    found: dict[str, list[float]] = {name: [] for name in PARTS}
    part = None
    for line in lines:
        if line.lower() in PARTS:
            part = line.lower()
            found[part] = []
        elif part is not None:
            found[part] += _numbers(line, f"{file}, {part}")
    for name, count in PARTS.items():
        if len(found[name]) != count or not all(map(math.isfinite, found[name])):
            raise ValueError(
                f"{file}: expected {count} numbers under {name!r} as in MayaCam 2.0, "
                f"got {len(found[name])}"
            )
    size, *numbers = found.values()
    matrix, rotation, shift = (torch.tensor(part, dtype=torch.float64) for part in numbers)
    return matrix.reshape(3, 3), rotation.reshape(3, 3), shift, _whole(file, *size)


def _whole(file: Path, width: float, height: float) -> tuple[int, int]:
    if height != int(height) or width != int(width):
        raise ValueError(f"{file}: expected whole numbers as image size, got {width}, {height}")
    if height < 1 or width < 1:
        raise ValueError(f"{file}: expected an image of some pixels, got {width} x {height}")
    return int(height), int(width)


# ---- Autoscoper


def write_autoscoper(path: PathLike, poses: Tensor) -> None:
    """A .tra track: a row of 16 numbers, the 4x4 matrix row by row, per pose [T, 4, 4].

    Frames without a pose are NaN, in the file too.
    """
    check_floating("poses", poses, (4, 4))
    _write(path, map(_row, poses.detach().double().cpu().reshape(-1, 16).tolist()))


def read_autoscoper(path: PathLike) -> Tensor:
    """The poses [T, 4, 4] float64 of a .tra track, NaN where a frame has none."""
    _, lines = _read(path)
    rows = []
    for number, line in enumerate(lines, 1):
        values = _numbers(line, f"{path}, line {number}")
        if len(values) != 16:
            raise ValueError(f"{path}, line {number}: expected 16 numbers, got {len(values)}")
        if not all(map(math.isnan, values)):
            pose = torch.tensor(values, dtype=torch.float64).reshape(4, 4)
            check_rigid(f"{path}, line {number}", pose)
        rows.append(values)
    if not rows:
        raise ValueError(f"{path}: expected rows of 16 numbers, got none")
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4, 4)


# ---- JointTrack


def read_jointtrack_calibration(path: PathLike, size: tuple[int, int]) -> Camera:
    """The camera of a JT_INTCALIB or JTA_INTCALIB file: one view, square pixels.

    size  (rows, cols) of the X-ray, which the file does not hold

    The file's offsets (mm) are where the principal point lies from the image's middle, to the
    right and upwards. Raises FileNotFoundError, and ValueError for a file that is no such
    calibration or describes two views.
    """
    file, lines = _read(path)
    kind, *words = re.split(r"[,\s]+", " ".join(lines))
    if kind not in CALIBRATIONS:
        raise ValueError(
            f"{file}: expected a calibration that begins with {' or '.join(CALIBRATIONS)}, "
            f"got {kind[:40]!r}"
        )
    wanted = "principal distance, x and y offset and pixel size (mm)"
    found = _numbers(" ".join(words[:4]), f"{file}, {wanted}")
    if len(found) != 4 or not (all(map(math.isfinite, found)) and min(found[0], found[3]) > 0.0):
        raise ValueError(f"{file}: expected {wanted}, the first and the last positive, got {found}")
    sdd, right, up, pixel = found
    rows, cols = size
    middle = ((cols - 1) / 2 + right / pixel, (rows - 1) / 2 - up / pixel)
    return CArm(sdd, size, pixel, principal_point=middle)


def write_jointtrack_calibration(path: PathLike, camera: Camera) -> None:
    """A JT_INTCALIB file of one camera; the image's size is not in it.

    Raises ValueError for a camera with skew, pixels that are not square, or a parallel beam.
    """
    focal, cx, cy = _square(camera, "JointTrack")
    rows, cols = camera.size
    pixel = camera.sdd / focal
    right, up = (cx - (cols - 1) / 2) * pixel, ((rows - 1) / 2 - cy) * pixel
    _write(path, ("JT_INTCALIB", *(repr(float(n)) for n in (camera.sdd, right, up, pixel))))


def read_jointtrack(path: PathLike) -> Tensor:
    """world_to_camera [T, 4, 4] float64 of a track (.jts, .jtak, .jtp), NaN where it has no pose.

    The world is the implant's surface file. Raises FileNotFoundError, and ValueError for a file
    that is no such track.
    """
    file, lines = _read(path)
    if not lines or lines[0] not in TRACKS.values():
        raise ValueError(
            f"{file}: expected a track that begins with {', '.join(TRACKS.values())}, "
            f"got {(lines or [''])[0][:40]!r}"
        )
    rows = []
    for number, line in enumerate(lines[1:], 2):
        words = [word for word in re.split(r"[,\s]+", line) if word]
        if words[:1] == [WITHOUT_POSE]:
            rows.append([math.nan] * 6)
            continue
        try:
            row = [float(word) for word in words[:6]]
        except ValueError:
            row = []
        if len(row) != 6 and number > 2:  # the second line may name the columns
            raise ValueError(f"{file}, line {number}: expected six numbers, got {line[:60]!r}")
        rows += [row] if len(row) == 6 else []
    if not rows:
        raise ValueError(f"{file}: expected at least one pose, got none")
    table = torch.tensor(rows, dtype=torch.float64)
    turn = euler_to_matrix(table[:, 3:].deg2rad(), "ZXY")
    back = _LOOKING_BACK[:, None]
    poses = assemble(back * turn, back * table[:, :3, None])
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
    angles = matrix_to_euler(_LOOKING_BACK[:, None] * matrix[:, :3, :3], "ZXY").rad2deg()
    table = torch.cat((_LOOKING_BACK * matrix[:, :3, 3], angles), 1)
    lines = [TRACKS[suffix], ",\t".join(COLUMNS)]
    for row in table.tolist():
        words = map(repr, row) if all(map(math.isfinite, row)) else [WITHOUT_POSE, *"00000"]
        lines.append(",\t".join(words))
    _write(path, lines)


# ---- text files


def _read(path: PathLike) -> tuple[Path, list[str]]:
    """A text file and its lines, stripped, without empty ones."""
    file = existing_file(path)
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    return file, [line.strip() for line in text.splitlines() if line.strip()]


def _write(path: PathLike, lines: Iterable[str]) -> None:
    with whole_file(path) as file:
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _row(numbers: Iterable[float]) -> str:
    return ",".join(map(repr, numbers))


def _numbers(line: str, where: str) -> list[float]:
    """The numbers of a line, parted by commas, semicolons or blanks; `where` is for the error."""
    try:
        return [float(word) for word in re.split(r"[,;\s]+", line) if word]
    except ValueError:
        raise ValueError(f"{where}: expected numbers, got {line[:60]!r}") from None


def _square(camera: Camera, tool: str) -> tuple[float, float, float]:
    """Focal length, cx and cy in pixels of a camera that `tool` can describe."""
    (fx, skew, cx), (_, fy, cy), _ = camera.K.detach().double().cpu().reshape(3, 3).tolist()
    if camera.beam != "cone" or skew != 0.0 or abs(fx / fy - 1.0) > 1e-9:
        raise ValueError(
            f"camera: {tool} knows a cone beam with one focal length (square pixels) and no skew, "
            f"got a {camera.beam} beam with fx {fx:g}, fy {fy:g}, skew {skew:g}"
        )
    return fx, cx, cy
