"""What a registration's result means, in words and numbers for people."""

from __future__ import annotations

import math
import shlex
from typing import Any

import torch
from torch import Tensor

from drrkit.conversions import to_dicom_angles
from drrkit.geometry import Camera, project_points, volume_center
from drrkit.registration import DEPTH_LIMIT_MM
from drrkit.report.placement import placement
from drrkit.report.scene import orientation
from drrkit.volume import Volume

__all__ = [
    "cautions",
    "files",
    "options",
    "pose_words",
    "repeat_command",
    "uncertainty",
    "versions",
]

FAR_DEG, FAR_MM = 45.0, 150.0
"""Farther from its start a result that no search found is looked at twice."""

AXES = (
    ("about x, the image's horizontal", "°"),
    ("about y, the image's vertical", "°"),
    ("about z, the beam", "°"),
    ("right", " mm"),
    ("down", " mm"),
    ("depth, away from the source", " mm"),
)
"""The components of xi: camera axes, about the volume's centre."""


def cautions(result: dict[str, Any]) -> list[str]:
    """Why the result should be doubted, worst first; nothing where there is no reason."""
    found = []
    confidence, least = result.get("confidence"), result.get("min_confidence")
    if result.get("accepted") is False:
        reason = "its loss is not a number"
        if confidence is not None and least is not None and confidence < least:
            reason = f"its confidence, {confidence:.3f}, is below {least:g}"
        found.append(
            f"This registration was not accepted: {reason}. Do not rely on the pose. Compare the "
            "edges below: is bone bright in the X-ray, is the start near, are pixel spacing and "
            "source-to-detector distance right, does the X-ray show metal or a collimator that the "
            "CT lacks?"
        )
    if result.get("stop_reason") == "interrupted":
        found.append("It was interrupted: the pose is the best one up to then.")
    if result.get("depth_observable") is False:
        sigma = _sigmas(result)
        told = "" if sigma is None else f" (standard deviation {sigma[5]:.1f} mm)"
        found.append(
            f"The X-ray does not show the depth{told} to {DEPTH_LIMIT_MM:g} mm. A second view or a "
            "prior would tell it; the other directions may still be right."
        )
    motion = result.get("motion") or {}
    stages = result.get("stages") or [{}]
    searched = stages[0].get("optimiser") == "search"
    turn, shift = motion.get("rotation_deg", 0.0), motion.get("translation_mm", 0.0)
    if not searched and (turn > FAR_DEG or shift > FAR_MM):
        found.append(
            f"The pose ended far from its start, {turn:.0f}° and {shift:.0f} mm, and no search "
            "looked around it."
        )
    return found


def pose_words(volume: Volume, camera: Camera, pose: Tensor) -> dict[str, str]:
    """Where the C-arm stood at world_to_camera [4, 4], by what clinicians call it."""
    pose = pose.detach().double().cpu().reshape(4, 4)
    angles = to_dicom_angles(camera, pose, volume)
    primary, secondary, roll, sod = (float(value[0]) for value in angles[:4])
    center = volume_center(volume).cpu()
    row, col = project_points(camera, pose, center[None])[0, 0].tolist()
    left, top, right, bottom = orientation(pose)
    placed = placement(volume, camera, pose)
    return {
        "Beam": placed.direction(),
        "DICOM positioner angles": f"primary {_signed(primary)} (LAO +), secondary "
        f"{_signed(secondary)} (CRA +), detector turned about the beam by {_signed(roll)}; the "
        "patient head first and supine, 0° is PA",
        "Source to the volume's centre": f"{sod:.1f} mm along the beam",
        "The volume's centre in the image": f"row {row:.1f}, column {col:.1f}",
        "Image edges": f"left {left}, top {top}, right {right}, bottom {bottom}",
        "In a sentence": placed.sentence(),
    }


def uncertainty(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of direction, the way from the start, and standard deviation; what is unknown is –."""
    sigma, moved = _sigmas(result), (result.get("motion") or {}).get("xi_deg_mm")
    if sigma is None and moved is None:
        return []
    rows = []
    for axis, (name, unit) in enumerate(AXES):
        way = "–" if moved is None else f"{moved[axis]:+.2f}{unit}".replace("-", "−")
        doubt = "–" if sigma is None else f"± {sigma[axis]:.3g}{unit}"
        rows.append((name, way, doubt))
    return rows


def options(result: dict[str, Any]) -> dict[str, str]:
    """What the registration was told, as far as it was told anything."""
    run = result.get("run") or {}
    given = run.get("options") or {}
    told = {str(name).replace("_", "-"): _plain(value) for name, value in given.items()}
    for name in ("seed", "threads"):
        if run.get(name) is not None:
            told[name] = str(run[name])
    settings = result.get("settings") or {}
    told |= {name: _plain(settings[name]) for name in ("method", "device") if name in settings}
    return {name: value for name, value in told.items() if value}


def files(result: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows of what a file is, its name, size and SHA-256, where the result knows them."""
    rows = []
    for name, file in (result.get("files") or {}).items():
        size = f"{file['bytes'] / 1e6:.2f} MB" if file.get("bytes") is not None else "–"
        rows.append((str(name), str(file.get("path", "–")), size, str(file.get("sha256", "–"))))
    return rows


def versions(result: dict[str, Any]) -> dict[str, str]:
    """Of drrkit and the packages it used."""
    found = (result.get("run") or {}).get("versions") or result.get("versions") or {}
    return {str(name): str(value) for name, value in found.items() if value is not None}


def repeat_command(result: dict[str, Any], source: str | None) -> str | None:
    """The command that repeats the registration from the file that holds its result."""
    run = result.get("run") or {}
    if source is None or run.get("command") != "register":
        return None
    return f"drrkit register --config {shlex.quote(source)} --output repeated.json"


def _signed(degrees: float) -> str:
    return f"{degrees:+.1f}°".replace("-", "−")


def _sigmas(result: dict[str, Any]) -> list[float] | None:
    """Standard deviations of xi, degrees and mm."""
    covariance = result.get("covariance")
    if covariance is None:
        return None
    variance = torch.tensor(covariance, dtype=torch.float64).diagonal().clamp_min(0)
    sigma = variance.sqrt().tolist()
    return [*map(math.degrees, sigma[:3]), *sigma[3:6]]


def _plain(value: Any) -> str:
    if value is None or value is False or value == []:
        return ""
    if value is True:
        return "yes"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)
