"""The files that commands share: poses and results as JSON, X-ray images, their masks.

A pose file holds a view's complete geometry, written by one command and read by the next: an
object with `world_to_camera` (4x4, patient LPS mm to camera mm) and, where known,
`camera` (K in pixels with pixel centres at integers, size as rows and cols, sdd in mm, beam). The
results of `drrkit register` are pose files too; a bare 4x4 list is one without a camera.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor

from drrkit import __version__
from drrkit.conversions import check_rigid, odd_camera
from drrkit.files import whole_file
from drrkit.geometry import Camera
from drrkit.xray import read_xray

SCHEMA_VERSION = 1


class PoseFile(NamedTuple):
    """The content of a pose file: world_to_camera [4, 4] float64, and the camera if it is there."""

    world_to_camera: Tensor
    camera: Camera | None


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is empty, binary or does not parse.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if not text.strip():
            raise ValueError(f"{path}: expected JSON, got an empty file")
        return json.loads(text)
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected JSON, got a binary file") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON; it does not parse: {error}") from None


def read_pose(path: Path) -> PoseFile:
    """Reads a pose file; what is odd about its camera is a warning.

    Raises:
        OSError, ValueError: as read_json; of a newer schema; its pose or camera mean nothing.
    """
    content = read_json(path)
    if isinstance(content, list):
        content = {"world_to_camera": content}
    if not isinstance(content, dict) or "world_to_camera" not in content:
        found = f"the keys {sorted(content)}" if isinstance(content, dict) else repr(content)[:60]
        raise ValueError(f"{path}: expected an object with 'world_to_camera', got {found}")
    version = content.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path}: expected schema_version {SCHEMA_VERSION}, got {version!r}")
    pose = _matrix(path, "world_to_camera", content["world_to_camera"], 4)
    check_rigid(f"{path}: world_to_camera", pose)
    pose[3] = pose.new_tensor((0.0, 0.0, 0.0, 1.0))  # an inverted matrix has it but for rounding
    camera = None if content.get("camera") is None else _camera(path, content["camera"])
    if camera is not None:
        for text in odd_camera(camera, matrix="schema" not in content):
            warn(f"{path}: {text}")
    return PoseFile(pose, camera)


def read_rig(path: Path) -> list[PoseFile]:
    """The cameras of several X-rays, the poses those from the first camera's coordinates.

    Raises:
        OSError, ValueError: as read_json; no such list of views.
    """
    content = read_json(path)
    views = content.get("views") if isinstance(content, dict) else content
    if not isinstance(views, list) or not all(
        isinstance(view, dict) and {"camera", "rig_to_camera"} <= set(view) for view in views
    ):
        raise ValueError(f"{path}: expected views with a camera and rig_to_camera each")
    rig = []
    for view in views:
        pose = _matrix(path, "rig_to_camera", view["rig_to_camera"], 4)
        check_rigid(f"{path}: rig_to_camera", pose)
        rig.append(PoseFile(pose, _camera(path, view["camera"])))
    return rig


def write_pose(path: Path, world_to_camera: Tensor, camera: Camera, **more: Any) -> None:
    """Writes a pose file with the camera and further keys. Raises OSError: it cannot be written."""
    content = {
        "schema": "drrkit.pose",
        "schema_version": SCHEMA_VERSION,
        "drrkit": __version__,
        "convention": "x_camera = world_to_camera x_world, mm; world LPS; camera x right, y down, "
        "z towards the detector, source at the origin",
        "world_to_camera": world_to_camera.reshape(4, 4).tolist(),
        "camera": camera_as_dict(camera),
        **more,
    }
    write_json(path, content)


def camera_as_dict(camera: Camera) -> dict[str, Any]:
    """A camera as JSON; K, size, sdd, beam and origin are complete, the rest is for people."""
    return {
        "K": camera.K.tolist(),
        "size": list(camera.size),
        "sdd": float(camera.sdd),
        "beam": camera.beam,
        "origin": camera.origin,
        "pixel_spacing": list(camera.pixel_spacing),
        "principal_point": [float(camera.K[0, 2]), float(camera.K[1, 2])],
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes `json_text`, whole or not at all. Raises OSError: it cannot be written."""
    with whole_file(path) as staged:
        staged.write_text(json_text(content), encoding="utf-8")


def json_text(content: dict[str, Any]) -> str:
    """A JSON document; numbers that are not finite become null, paths strings."""
    text = json.dumps(_finite(content), indent=2, allow_nan=False, default=os.fspath) + "\n"
    # Rows of numbers on one line each. A string cannot match: its line breaks are escaped.
    return re.sub(r"\[\n[-+\d.eE,\s]+\]", lambda row: re.sub(r"\s+", " ", row[0]), text)


def warn(text: str) -> None:
    """A line for people about what may be wrong; the command goes on."""
    click.echo(f"Warning: {text}.", err=True)


def refuse_overwriting(outputs: Sequence[Path | None], inputs: Sequence[Path | None]) -> None:
    """Raises ValueError when an output is one of the inputs, or two outputs are one file."""
    seen: list[Path] = [path.resolve() for path in inputs if path is not None]
    for path in outputs:
        if path is None:
            continue
        if path.resolve() in seen:
            raise ValueError(f"{path}: would overwrite another file of this command")
        seen.append(path.resolve())


def to_line(path: Path, pixels: Tensor, kind: str, i0: float | None) -> Tensor:
    """Pixels on the scale of line integrals, up to the offset and gain that similarities ignore.

    Args:
        path: for messages.
        pixels: as read.
        kind: "line" and "display": bone is bright, taken as they are; "inverted": bone is dark,
            negated; "intensity": proportional to photons, -log(I / I0).
        i0: unattenuated intensity; default the brightest pixel. A pixel without any counts as the
            darkest that has some.

    Raises:
        ValueError: an image of one value, or intensities of which none is positive.
    """
    low, high = (float(value) for value in torch.aminmax(pixels))
    if low == high:
        raise ValueError(f"{path}: expected an X-ray, got an image whose pixels are all {low:g}")
    if kind == "inverted":
        return high - pixels
    if kind != "intensity":
        return pixels
    if low < 0:
        raise ValueError(
            f"{path}: expected intensities, 0 or more, got {low:g}; --xray-kind line says that "
            "these are line integrals"
        )
    darkest = float(pixels[pixels > 0].min())
    return -torch.log(pixels.clamp_min(darkest) / (high if i0 is None else i0))


def read_mask(path: Path, xray: Tensor) -> Tensor:
    """Weights of an X-ray's pixels [1, 1, rows, cols], scaled so that the largest is one.

    Raises:
        OSError, ImportError, ValueError: as read_xray; of another size, negative, or all zero.
    """
    pixels = read_xray(path).image
    if pixels.shape != xray.shape:
        wanted, found = ("x".join(map(str, image.shape[-2:])) for image in (xray, pixels))
        raise ValueError(
            f"{path}: expected a mask of {wanted} pixels as the X-ray has, got {found}"
        )
    low, high = (float(value) for value in torch.aminmax(pixels))
    if low < 0 or high <= 0:
        raise ValueError(
            f"{path}: expected weights 0 or more, some positive, got {low:g} to {high:g}"
        )
    return pixels / high


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _matrix(path: Path, name: str, rows: Any, size: int) -> Tensor:
    """A square matrix of finite numbers, float64."""
    try:
        found = torch.tensor(rows, dtype=torch.float64)
    except (TypeError, ValueError, OverflowError):
        found = torch.empty(0)
    if found.shape != (size, size) or not bool(found.isfinite().all()):
        raise ValueError(
            f"{path}: {name}: expected {size} rows of {size} finite numbers, got {str(rows)[:120]}"
        )
    return found


def _camera(path: Path, entry: Any) -> Camera:
    if not isinstance(entry, dict) or not {"K", "size", "sdd"} <= set(entry):
        found = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
        raise ValueError(f"{path}: camera: expected an object with K, size and sdd, got {found}")
    intrinsics = _matrix(path, "camera.K", entry["K"], 3)
    known = {name: entry[name] for name in ("sdd", "beam", "origin") if name in entry}
    try:
        return Camera(intrinsics, tuple(entry["size"]), **known)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: camera: {error}") from error
