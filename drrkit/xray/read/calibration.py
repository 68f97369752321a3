"""Calibrated cameras from files: MayaCam, OpenCV's K, R, t and distortion, drrkit's pose files."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from drrkit.conversions import CameraView, check_rigid, from_opencv, read_mayacam
from drrkit.files import existing_file
from drrkit.geometry import Camera
from drrkit.xray.read.opencv_storage import STORAGE_SUFFIXES, as_matrix, read_storage

__all__ = ["Calibration", "read_calibration"]

NAMES = {
    "K": ("k", "camera_matrix", "cameramatrix", "intrinsics", "intrinsic", "mtx"),
    "R": ("r", "rvec", "rotation", "rotation_matrix"),
    "t": ("t", "tvec", "translation"),
    "D": ("d", "dist", "dist_coeffs", "distcoeffs", "distortion", "distortion_coefficients"),
    "width": ("image_width", "width", "cols"),
    "height": ("image_height", "height", "rows"),
    "sdd": ("sdd",),
}
"""The words OpenCV's samples use, in any case."""


class Calibration(NamedTuple):
    """The camera and pose [1, 4, 4] of a calibrated X-ray, and OpenCV's distortion coefficients if
    there is one."""

    view: CameraView
    distortion: Tensor | None


def read_calibration(
    path: str | os.PathLike[str], size: tuple[int, int] | None, sdd: float | None = None
) -> Calibration:
    """The camera and pose of a calibrated X-ray.

    path  MayaCam 1.0 or 2.0 (.txt, .csv); .yml, .xml or .json with K, R (matrix or rotation vector)
          and t, plain lists or OpenCV's FileStorage matrices, pixel centres at integers; or a
          drrkit pose file (.json)
    size  (rows, cols) of the image; None: as the file says
    sdd   source-to-detector distance in mm, needed where the file does not hold it ("sdd")

    Raises OSError, and ValueError for a file that is none of these, and for an image of another
    size.
    """
    source = existing_file(path)
    if source.suffix.lower() in STORAGE_SUFFIXES:
        found = _from_storage(source, size, sdd)
    else:
        found = _calibrated(read_mayacam(source, _known(source, sdd)))
    rows, cols = found.view.camera.size
    if size is not None and (rows, cols) != tuple(size):
        raise ValueError(
            f"{source}: calibrated for images of {rows}x{cols} pixels, this one has "
            f"{size[0]}x{size[1]}"
        )
    return found


def _calibrated(view: CameraView, distortion: Tensor | None = None) -> Calibration:
    camera = replace(view.camera, origin="calibration", sigma=None)
    return Calibration(view._replace(camera=camera), distortion)


def _from_storage(source: Path, size: tuple[int, int] | None, sdd: float | None) -> Calibration:
    content = read_storage(source)
    if "world_to_camera" in content and isinstance(content.get("camera"), dict):
        return Calibration(_from_pose_file(source, content, size, sdd), None)
    found = {name: _first(content, words) for name, words in NAMES.items()}
    missing = [name for name in "KRt" if found[name] is None]
    if missing:
        raise ValueError(
            f"{source}: expected K, R and t, or a drrkit pose file; {', '.join(missing)} missing"
        )
    rotation = as_matrix(source, "R", found["R"])
    shift = as_matrix(source, "t", found["t"]).reshape(-1)
    if rotation.numel() not in (3, 9) or shift.numel() != 3:
        raise ValueError(f"{source}: expected R as 9 or 3 numbers and t as 3")
    rotation = rotation.reshape(3, 3) if rotation.numel() == 9 else rotation.reshape(-1)
    distance = _known(source, sdd if sdd is not None else found["sdd"])
    matrix = as_matrix(source, "K", found["K"], (3, 3))
    shape = _size(source, found, content, size)
    with _named(source):
        view = from_opencv(matrix, rotation, shift, shape, distance)
    distortion = None if found["D"] is None else as_matrix(source, "D", found["D"]).reshape(-1)
    if distortion is not None and not bool((distortion != 0).any()):
        distortion = None
    return _calibrated(view, distortion)


def _from_pose_file(
    source: Path, content: dict[str, Any], size: tuple[int, int] | None, sdd: float | None
) -> CameraView:
    camera = content["camera"]
    pose = as_matrix(source, "world_to_camera", content["world_to_camera"], (4, 4))
    check_rigid(f"{source}: world_to_camera", pose)
    matrix = as_matrix(source, "K", camera.get("K"), (3, 3))
    distance = sdd if sdd is not None else camera.get("sdd")
    shape = camera.get("size", size)
    if not isinstance(shape, (list, tuple)) or len(shape) != 2:
        raise ValueError(f"{source}: size: expected [rows, cols], got {shape!r}")
    known = {name: camera[name] for name in ("beam", "origin") if name in camera}
    with _named(source):
        found = Camera(matrix, tuple(shape), _known(source, distance), **known)
        return CameraView(found, pose[None])


@contextmanager
def _named(source: Path) -> Iterator[None]:
    """A camera that cannot be is the file's mistake: its error names the file."""
    try:
        yield
    except (TypeError, ValueError) as error:
        named = str(source) in str(error)
        raise ValueError(str(error) if named else f"{source}: {error}") from None


def _size(
    source: Path, found: dict[str, Any], content: dict[str, Any], size: tuple[int, int] | None
) -> tuple[int, int]:
    """(rows, cols) that the file says, else the image's."""
    told = content.get("size")
    if told is None and found["width"] is not None and found["height"] is not None:
        told = (found["height"], found["width"])
    if told is None:
        told = size
    if told is None:
        raise ValueError(f"{source}: size: the file does not say rows and columns of the image")
    try:
        rows, cols = (int(number) for number in told)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{source}: size: expected (rows, cols), got {told!r}") from None
    return rows, cols


def _known(source: Path, sdd: Any) -> float:
    number = isinstance(sdd, (int, float)) and not isinstance(sdd, bool)
    if not number or not math.isfinite(sdd) or sdd <= 0:
        raise ValueError(
            f"sdd: {source} does not hold the source-to-detector distance; expected mm, got {sdd!r}"
        )
    return float(sdd)


def _first(content: dict[str, Any], words: tuple[str, ...]) -> Any:
    lower = {name.lower(): value for name, value in reversed(content.items())}
    return next((lower[word] for word in words if word in lower), None)
