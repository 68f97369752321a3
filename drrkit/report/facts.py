"""What a registration's result means, in words and numbers for people."""

from __future__ import annotations

import math
import shlex
from typing import Any

import torch
from torch import Tensor

from drrkit.conversions import to_dicom_angles
from drrkit.geometry import Camera, project_points, volume_center
from drrkit.registration import DEPTH_LIMIT_MM, REASONS
from drrkit.report.placement import edge_letters, placement
from drrkit.volume import Volume

FAR_DEG, FAR_MM = 45.0, 150.0
"""A result farther from its start, without a search, gets a caution: a local optimiser does not
reach that far."""

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
    found, reasons = [], why_doubted(result)
    if result.get("accepted") is False:
        found.append(
            f"This registration was not accepted: {reasons or 'its loss is not a number'}. Do not "
            "rely on the pose. Compare the edges below: is bone bright in the X-ray, is the start "
            "near, are pixel spacing and source-to-detector distance right, does the X-ray show "
            "metal or a collimator that the CT lacks?"
        )
    elif reasons:
        found.append(f"{reasons.capitalize()}.")
    if result.get("stop_reason") == "interrupted":
        found.append("It was interrupted: the pose is the best one found before.")
    if result.get("depth_observable") is False:
        sigma = _sigmas(result)
        size = "" if sigma is None else f" (standard deviation {sigma[5]:.1f} mm)"
        found.append(
            f"The X-ray does not show the depth{size} to {DEPTH_LIMIT_MM:g} mm. A second view or a "
            "prior would determine it; the other directions may still be right."
        )
    if ended_far(result):
        motion = result["motion"]
        found.append(
            f"The pose ended far from its start, {motion['rotation_deg']:.0f}° and "
            f"{motion['translation_mm']:.0f} mm, and no search looked around it."
        )
    return found


def why_doubted(result: dict[str, Any]) -> str:
    """What speaks against the result, its confidence first; "" where nothing does."""
    confidence, least = result.get("confidence_10mm"), result.get("min_confidence")
    if confidence is None:  # a file of the time when there was one of them
        confidence = result.get("confidence")
    reasons = [REASONS.get(code, code) for code in result.get("reasons") or ()]
    if least is not None and (confidence is None or confidence < least):
        shown = shown_confidence(confidence)
        reasons.insert(0, f"its confidence, {shown} for 10 mm, is below {least:g}")
    return "; ".join(reasons)


def ended_far(result: dict[str, Any]) -> bool:
    """Whether the pose moved farther than a registration without a search does."""
    if (result.get("stages") or [{}])[0].get("optimiser") == "search":
        return False
    motion = result.get("motion") or {}
    turn, shift = motion.get("rotation_deg", 0.0), motion.get("translation_mm", 0.0)
    return turn > FAR_DEG or shift > FAR_MM


def shown_confidence(confidence: float | None) -> str:
    """A confidence in words; None is too little evidence for one."""
    return "unknown" if confidence is None else f"{confidence:.3f}"


def pose_words(volume: Volume, camera: Camera, pose: Tensor) -> dict[str, str]:
    """Where the C-arm stood at world_to_camera [4, 4], in clinical terms."""
    pose = pose.detach().double().cpu().reshape(4, 4)
    angles = to_dicom_angles(camera, pose, volume)
    sod = float(angles[3][0])
    primary, secondary, roll = (
        f"{float(value[0]):+.1f}°".replace("-", "−") for value in angles[:3]
    )
    center = volume_center(volume).cpu()
    row, col = project_points(camera, pose, center[None])[0, 0].tolist()
    edges = zip(("left", "top", "right", "bottom"), edge_letters(pose), strict=True)
    placed = placement(volume, camera, pose)
    return {
        "Beam": placed.direction(),
        "DICOM positioner angles": f"primary {primary} (LAO +), secondary {secondary} (CRA +), "
        f"detector turned about the beam by {roll}; the patient head first and supine, 0° is PA",
        "Source to the volume's centre": f"{sod:.1f} mm along the beam",
        "The volume's centre in the image": f"row {row:.1f}, column {col:.1f}",
        "Image edges": ", ".join(map(" ".join, edges)),
        "In a sentence": placed.sentence(),
    }


def uncertainty(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of direction, motion from the start, and standard deviation; unknown ones are –."""
    sigma, moved = _sigmas(result), (result.get("motion") or {}).get("xi_deg_mm")
    if sigma is None and moved is None:
        return []
    rows = []
    for axis, (name, unit) in enumerate(AXES):
        motion = "–" if moved is None else f"{moved[axis]:+.2f}{unit}".replace("-", "−")
        doubt = "–" if sigma is None else f"± {sigma[axis]:.3g}{unit}"
        rows.append((name, motion, doubt))
    return rows


def given_options(result: dict[str, Any]) -> dict[str, str]:
    """The options of the registration that have a value."""
    run, settings = result.get("run") or {}, result.get("settings") or {}
    given = {name.replace("_", "-"): value for name, value in (run.get("options") or {}).items()}
    given |= {name: run.get(name) for name in ("seed", "threads")}
    given |= {name: settings[name] for name in ("method", "device") if name in settings}
    return {name: _plain(value) for name, value in given.items() if _plain(value)}


def repeat_command(result: dict[str, Any], source: str | None) -> str | None:
    """The command that repeats the registration from the file that holds its result."""
    if source is None or (result.get("run") or {}).get("command") != "register":
        return None
    return f"drrkit register --config {shlex.quote(source)} --output repeated.json"


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
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
