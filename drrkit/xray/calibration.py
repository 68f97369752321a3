"""Calibrated cameras from files: MayaCam, OpenCV's K, R, t as JSON, drrkit's pose files."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drrkit.conversions import CameraView, from_opencv, read_mayacam
from drrkit.files import existing_file
from drrkit.geometry import Camera

NAMES = {
    "K": ("K", "camera_matrix", "cameraMatrix", "intrinsics"),
    "R": ("R", "rvec", "rotation", "rotation_matrix"),
    "t": ("t", "T", "tvec", "translation"),
    "D": ("D", "dist_coeffs", "distortion_coefficients"),
}
"""The words OpenCV's samples use."""


def read_calibration(
    path: str | os.PathLike[str], size: tuple[int, int], sdd: float | None = None
) -> CameraView:
    """The camera and pose of a calibrated X-ray.

    path  MayaCam 2.0 (.txt, .csv); JSON with K, R (matrix or rotation vector) and t, plain lists
          or OpenCV's FileStorage matrices, pixel centres at integers; or a drrkit pose file
    size  (rows, cols) of the image
    sdd   source-to-detector distance in mm, needed where the file does not hold it ("sdd")

    Raises OSError, and ValueError for a file that is none of these, for lens distortion (an X-ray
    must be undistorted first), and for an image of another size.
    """
    source = existing_file(path)
    if source.suffix.lower() == ".json":
        view = _from_json(source, size, sdd)
    else:
        view = read_mayacam(source, _known(source, sdd))
    if view.camera.size != tuple(size):
        rows, cols = view.camera.size
        raise ValueError(
            f"{source}: calibrated for images of {rows}x{cols} pixels, this one has "
            f"{size[0]}x{size[1]}"
        )
    return view


def _from_json(source: Path, size: tuple[int, int], sdd: float | None) -> CameraView:
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{source}: expected a calibration as JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{source}: expected a JSON object, got {type(content).__name__}")
    if "world_to_camera" in content and isinstance(content.get("camera"), dict):
        camera = content["camera"]
        pose = _matrix(source, "world_to_camera", content["world_to_camera"], (4, 4))
        matrix = _matrix(source, "K", camera.get("K"), (3, 3))
        distance = sdd if sdd is not None else camera.get("sdd")
        shape = tuple(camera.get("size", size))
        return CameraView(Camera(matrix, shape, _known(source, distance)), pose[None])
    found = {name: _first(content, words) for name, words in NAMES.items()}
    missing = [name for name in "KRt" if found[name] is None]
    if missing:
        raise ValueError(
            f"{source}: expected K, R and t, or a drrkit pose file; {', '.join(missing)} missing"
        )
    if found["D"] is not None:
        distortion = _matrix(source, "D", found["D"], None)
        if bool((distortion != 0).any()):
            raise ValueError(
                f"{source}: expected no lens distortion, got {distortion.flatten().tolist()}; "
                "undistort the image first (cv2.undistort) and leave it out"
            )
    rotation = _matrix(source, "R", found["R"], None)
    rotation = rotation.reshape(3, 3) if rotation.numel() == 9 else rotation.reshape(-1)
    shift = _matrix(source, "t", found["t"], None).reshape(-1)
    if rotation.numel() not in (3, 9) or shift.numel() != 3:
        raise ValueError(f"{source}: expected R as 9 or 3 numbers and t as 3")
    distance = _known(source, sdd if sdd is not None else content.get("sdd"))
    shape = tuple(content.get("size", size))
    matrix = _matrix(source, "K", found["K"], (3, 3))
    return from_opencv(matrix, rotation, shift, shape, distance)


def _known(source: Path, sdd: Any) -> float:
    number = isinstance(sdd, (int, float)) and not isinstance(sdd, bool)
    if not number or not math.isfinite(sdd) or sdd <= 0:
        raise ValueError(
            f"sdd: {source} does not hold the source-to-detector distance; expected mm, got {sdd!r}"
        )
    return float(sdd)


def _first(content: dict[str, Any], words: tuple[str, ...]) -> Any:
    return next((content[word] for word in words if word in content), None)


def _matrix(source: Path, name: str, rows: Any, shape: tuple[int, int] | None) -> Tensor:
    """A tensor of lists, or of an OpenCV matrix {rows, cols, data}."""
    if isinstance(rows, dict) and {"rows", "cols", "data"} <= set(rows):
        try:
            return torch.tensor(rows["data"], dtype=torch.float64).reshape(
                int(rows["rows"]), int(rows["cols"])
            )
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{source}: {name}: a damaged OpenCV matrix") from None
    try:
        matrix = torch.tensor(rows, dtype=torch.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{source}: {name}: expected numbers, got {str(rows)[:60]}") from None
    if shape is not None and tuple(matrix.shape) != shape:
        raise ValueError(f"{source}: {name}: expected {shape}, got {tuple(matrix.shape)}")
    if not bool(matrix.isfinite().all()):
        raise ValueError(f"{source}: {name}: expected finite numbers, got {str(rows)[:60]}")
    return matrix
