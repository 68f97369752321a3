"""Files of other programs: ITK transforms (3D Slicer), MayaCam calibrations, Autoscoper tracks."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import torch
from torch import Tensor

from drrkit.conversions.pinhole import from_opencv
from drrkit.conversions.vectors import CameraView, checked_view
from drrkit.files import existing_file, whole_file
from drrkit.geometry import Camera
from drrkit.geometry.checks import check_floating
from drrkit.geometry.se3 import assemble

PathLike = str | os.PathLike[str]

MAYACAM_PARTS = ("image size", "camera matrix", "rotation", "translation")


def write_itk_transform(path: PathLike, to_parent: Tensor) -> None:
    """A linear transform as ITK writes it (.tfm, .txt, .h5), in LPS mm.

    path       its suffix chooses the format
    to_parent  [4, 4] or [1, 4, 4]: where points go, what 3D Slicer shows as the transform's matrix
               (in RAS there)

    ITK's files hold the map of resampling, from the parent back, which is the inverse: 3D Slicer
    inverts it when it reads the file. With `world_to_camera` the CT appears in the C-arm's
    coordinates; with `inv(start) @ found` it moves from where it was believed to be to where it
    is. Needs SimpleITK. The file appears whole or not at all.
    """
    matrix = _single("to_parent", to_parent)
    sitk = _simpleitk()
    back = torch.linalg.inv(matrix)
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(back[:3, :3].flatten().tolist())
    transform.SetTranslation(back[:3, 3].tolist())
    with whole_file(path) as file:
        try:
            sitk.WriteTransform(transform, os.fspath(file))
        except RuntimeError as error:
            raise ValueError(f"path: ITK cannot write {path}; known are .tfm, .txt, .h5") from error


def read_itk_transform(path: PathLike) -> Tensor:
    """The matrix to_parent [4, 4] float64 of a linear ITK transform file, LPS mm.

    Raises FileNotFoundError, and ValueError for a file that is no linear 3D transform.
    """
    file = existing_file(path)
    sitk = _simpleitk()
    try:
        transform = sitk.ReadTransform(os.fspath(file))
    except RuntimeError as error:
        raise ValueError(f"{path}: not a transform that ITK reads") from error
    if transform.GetDimension() != 3 or not transform.IsLinear():
        raise ValueError(f"{path}: expected a linear 3D transform, got {transform.GetName()}")
    corners = ((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    images = [torch.tensor(transform.TransformPoint(c), dtype=torch.float64) for c in corners]
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, 3] = images[0]
    matrix[:3, :3] = torch.stack([image - images[0] for image in images[1:]], 1)
    return torch.linalg.inv(matrix)


def write_mayacam(path: PathLike, camera: Camera, world_to_camera: Tensor) -> None:
    """A MayaCam 2.0 calibration (XMALab, Autoscoper) of one view [4, 4] or [1, 4, 4].

    It holds OpenCV's K, R and t, mm and pixels, not the distance of the detector.
    """
    pose = _single("world_to_camera", checked_view(camera, world_to_camera))
    rows, cols = camera.size
    matrix = camera.K.double().reshape(-1, 3, 3)[0]
    blocks = (
        torch.tensor([[cols, rows]]),
        matrix,
        pose[:3, :3],
        pose[:3, 3:],
    )
    text = []
    for name, block in zip(MAYACAM_PARTS, blocks, strict=True):
        lines = [",".join(repr(number) for number in line) for line in block.tolist()]
        text.append("\n".join((name, *lines)) + "\n")
    with whole_file(path) as file:
        file.write_text("\n".join(text), encoding="utf-8")


def read_mayacam(path: PathLike, sdd: float) -> CameraView:
    """The view of a MayaCam 2.0 calibration; sdd in mm, which the file does not hold.

    Raises FileNotFoundError, and ValueError for a file that is no such calibration.
    """
    file = existing_file(path)
    found = _mayacam_blocks(file)
    cols, rows = found["image size"][:2]
    matrix, rotation = (
        torch.tensor(found[name], dtype=torch.float64).reshape(3, 3)
        for name in ("camera matrix", "rotation")
    )
    shift = torch.tensor(found["translation"], dtype=torch.float64)
    if rows != int(rows) or cols != int(cols):
        raise ValueError(f"{path}: expected whole numbers as image size, got {cols}, {rows}")
    return from_opencv(matrix, rotation, shift, (int(rows), int(cols)), sdd)


def write_autoscoper(path: PathLike, poses: Tensor) -> None:
    """A .tra track: a row of 16 numbers, the 4x4 matrix row by row, a pose [T, 4, 4].

    Frames without a pose are NaN, in the file too.
    """
    check_floating("poses", poses, (4, 4))
    rows = poses.detach().double().cpu().reshape(-1, 16).tolist()
    with whole_file(path) as file:
        lines = (",".join(repr(number) for number in row) for row in rows)
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_autoscoper(path: PathLike) -> Tensor:
    """The poses [T, 4, 4] float64 of a .tra track, NaN where a frame has none."""
    rows = []
    text = existing_file(path).read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        values = _numbers(line, f"{path}, line {number}")
        if len(values) != 16:
            raise ValueError(f"{path}, line {number}: expected 16 numbers, got {len(values)}")
        rows.append(values)
    if not rows:
        raise ValueError(f"{path}: expected rows of 16 numbers, got none")
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4, 4)


def _mayacam_blocks(file: Path) -> dict[str, list[float]]:
    wanted = dict(zip(MAYACAM_PARTS, (2, 9, 9, 3), strict=True))
    found: dict[str, list[float]] = {}
    part = None
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        name = line.strip().lower()
        if name in wanted:
            part = name
            found[part] = []
        elif name and part is not None:
            found[part] += _numbers(name, f"{file}, {part}")
    for name, count in wanted.items():
        values = found.get(name, [])
        if len(values) != count or not all(map(math.isfinite, values)):
            raise ValueError(
                f"{file}: expected {count} numbers under {name!r} as in MayaCam 2.0, "
                f"got {len(values)}"
            )
    return found


def _numbers(line: str, where: str) -> list[float]:
    try:
        return [float(word) for word in re.split(r"[,;\s]+", line.strip()) if word]
    except ValueError:
        raise ValueError(f"{where}: expected numbers, got {line.strip()[:60]!r}") from None


def _single(name: str, matrix: Tensor) -> Tensor:
    check_floating(name, matrix, (4, 4))
    if matrix.numel() != 16:
        raise ValueError(f"{name}: expected one matrix [4, 4], got {list(matrix.shape)}")
    return assemble(
        matrix.detach().double().cpu().reshape(1, 4, 4)[:, :3, :3],
        matrix.detach().double().cpu().reshape(1, 4, 4)[:, :3, 3:],
    )[0]


def _simpleitk():
    try:
        import SimpleITK as sitk
    except ImportError as error:
        raise ImportError("ITK transform files need SimpleITK: pip install SimpleITK") from error
    return sitk
