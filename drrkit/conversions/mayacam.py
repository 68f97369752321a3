"""MayaCam calibrations, both versions, as XMALab writes them and Autoscoper reads them.

Sources: saveMayaCamVersion2 and getMayaCam of XMALab's Camera.cpp, loadMayaCam1 and loadMayaCam2 of
Autoscoper's Camera.cpp.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from torch import Tensor

from drrkit.conversions.angles import euler_to_matrix, matrix_to_euler
from drrkit.conversions.pinhole import from_opencv
from drrkit.conversions.vectors import CameraView, checked_view
from drrkit.files import PathLike, existing_file, whole_file
from drrkit.geometry import Camera, checked_positive

PARTS = ("image size", "camera matrix", "rotation", "translation")
"""Of version 2, in its order."""
DEFAULT_SIZE = 1024
"""Rows and columns that version 1 leaves at zero."""
ROW_LENGTH, ROWS = 3, 5
"""Of version 1: source; angles x, y, z in degrees; film; u0, v0, focal length; scale, size."""


def write_mayacam(
    path: PathLike, camera: Camera, world_to_camera: Tensor, version: int = 2
) -> None:
    """A MayaCam calibration of one view [4, 4] or [1, 4, 4].

    version  2: OpenCV's K, R and t, mm and pixels; 1 (.csv): the source, three angles and one
             focal length in pixels, so the camera needs square pixels and no skew

    The distance of the detector is in neither. Raises ValueError for several views, another
    version, and a camera that version 1 cannot describe.
    """
    pose = checked_view(camera, world_to_camera)
    if len(pose) != 1:
        raise ValueError(f"world_to_camera: expected one view, got {len(pose)}")
    if version not in (1, 2):
        raise ValueError(f"version: expected 1 or 2, got {version!r}")
    matrix = camera.K.detach().double().cpu().reshape(-1, 3, 3)[0]
    write = _version_2 if version == 2 else _version_1
    text = write(matrix, pose[0].detach().cpu(), camera.size)
    with whole_file(path) as file:
        file.write_text(text, encoding="utf-8")


def read_mayacam(path: PathLike, sdd: float, unit_mm: float = 1.0) -> CameraView:
    """The view of a MayaCam calibration of either version.

    sdd      source-to-detector distance in mm, which the file does not hold
    unit_mm  the file's unit of length: XMALab's is that of its calibration object, 10 for one
             measured in cm

    Raises FileNotFoundError, and ValueError for a file that is no such calibration.
    """
    file = existing_file(path)
    scale = checked_positive("unit_mm", unit_mm)
    text = file.read_text(encoding="utf-8", errors="replace")
    matrix, rotation, shift, size = _read_1(file, text) if _is_1(text) else _read_2(file, text)
    distance = checked_positive("sdd", sdd)
    try:
        return from_opencv(matrix, rotation, scale * shift, size, distance)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _version_2(matrix: Tensor, pose: Tensor, size: tuple[int, int]) -> str:
    blocks = (torch.tensor([[size[1], size[0]]]), matrix, pose[:3, :3], pose[:3, 3:])
    text = []
    for name, block in zip(PARTS, blocks, strict=True):
        lines = [",".join(repr(number) for number in line) for line in block.tolist()]
        text.append("\n".join((name, *lines)) + "\n")
    return "\n".join(text)


def _version_1(matrix: Tensor, pose: Tensor, size: tuple[int, int]) -> str:
    """Its camera looks along -z with y up and counts pixels from one, rows from below."""
    (fx, skew, cx), (_, fy, cy), _ = matrix.tolist()
    if skew != 0.0 or abs(fx / fy - 1.0) > 1e-9:
        raise ValueError(
            "camera: MayaCam 1.0 has one focal length and no skew, got "
            f"fx {fx:g}, fy {fy:g}, skew {skew:g}; version 2 holds them"
        )
    rows, cols = size
    upright = pose[:3, :3].mT * pose.new_tensor((1.0, -1.0, -1.0))
    z, y, x = matrix_to_euler(upright, "ZYX").rad2deg().tolist()
    source = (-pose[:3, :3].mT @ pose[:3, 3]).tolist()
    u0, v0, scale = cx + 1.0, rows - cy, 0.1
    film = (scale * (cols / 2 - u0), scale * (rows / 2 - v0), -scale * fx)
    lines = (source, (x, y, z), film, (u0, v0, -fx), (scale, cols, rows))
    return "".join(",".join(repr(number) for number in line) + "\n" for line in lines)


def _is_1(text: str) -> bool:
    """Whether a text begins with numbers, as version 1 does."""
    first = text.lstrip("\ufeff \t\r\n")[:1]
    return first.isdigit() or first in ("-", "+", ".")


def _read_1(file: Path, text: str) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
    lines = [line for line in text.lstrip("\ufeff").splitlines() if line.strip()]
    table = [numbers(line, str(file)) for line in lines[:ROWS]]
    if len(table) != ROWS or any(len(row) < ROW_LENGTH for row in table):
        raise ValueError(f"{file}: expected five lines of three numbers as in MayaCam 1.0")
    if not all(math.isfinite(number) for row in table for number in row):
        raise ValueError(f"{file}: expected finite numbers as in MayaCam 1.0")
    source, angles, _, (u0, v0, focal, *_), (_, width, height, *_) = table
    if focal == 0.0:
        raise ValueError(f"{file}: expected a focal length as in MayaCam 1.0, got 0")
    size = _whole(file, width or DEFAULT_SIZE, height or DEFAULT_SIZE)
    turn = torch.tensor(angles[2::-1], dtype=torch.float64).deg2rad()
    rotation = (euler_to_matrix(turn, "ZYX") * turn.new_tensor((1.0, -1.0, -1.0))).mT
    shift = -rotation @ turn.new_tensor(source[:3])
    pitch = abs(focal)
    matrix = ((pitch, 0.0, u0 - 1.0), (0.0, pitch, size[0] - v0), (0.0, 0.0, 1.0))
    return turn.new_tensor(matrix), rotation, shift, size


def _read_2(file: Path, text: str) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
    found = _blocks(file, text)
    matrix, rotation = (
        torch.tensor(found[name], dtype=torch.float64).reshape(3, 3) for name in PARTS[1:3]
    )
    shift = torch.tensor(found["translation"], dtype=torch.float64)
    return matrix, rotation, shift, _whole(file, *found["image size"])


def _whole(file: Path, width: float, height: float) -> tuple[int, int]:
    if height != int(height) or width != int(width):
        raise ValueError(f"{file}: expected whole numbers as image size, got {width}, {height}")
    if height < 1 or width < 1:
        raise ValueError(f"{file}: expected an image of some pixels, got {width} x {height}")
    return int(height), int(width)


def _blocks(file: Path, text: str) -> dict[str, list[float]]:
    wanted = dict(zip(PARTS, (2, 9, 9, 3), strict=True))
    found: dict[str, list[float]] = {}
    part = None
    for line in text.lstrip("\ufeff").splitlines():
        name = line.strip().lower()
        if name in wanted:
            part = name
            found[part] = []
        elif name and part is not None:
            found[part] += numbers(name, f"{file}, {part}")
    for name, count in wanted.items():
        values = found.get(name, [])
        if len(values) != count or not all(map(math.isfinite, values)):
            raise ValueError(
                f"{file}: expected {count} numbers under {name!r} as in MayaCam 2.0, "
                f"got {len(values)}"
            )
    return found


def numbers(line: str, where: str) -> list[float]:
    """The numbers of a line, parted by commas, semicolons or blanks; `where` is for the error."""
    try:
        return [float(word) for word in re.split(r"[,;\s]+", line.strip()) if word]
    except ValueError:
        raise ValueError(f"{where}: expected numbers, got {line.strip()[:60]!r}") from None
