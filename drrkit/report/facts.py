"""What a registration's result and its view mean, in words and numbers for people."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drrkit.conversions import to_dicom_angles
from drrkit.geometry import Camera, project_points, volume_center
from drrkit.registration import DEPTH_LIMIT_MM, REASONS
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


SIDES = (("left", "right"), ("posterior", "anterior"), ("superior", "inferior"))
"""Of a patient: where the axes of LPS point to, and where they come from."""
LETTERS = dict(zip(sum(SIDES, ()), "LRPAHF", strict=True))
LOOKS = {
    "posterior": ("from front to back", "AP"),
    "anterior": ("from back to front", "PA"),
    "left": ("from the patient's right to the left", "left lateral"),
    "right": ("from the patient's left to the right", "right lateral"),
    "superior": ("from the feet to the head", "axial"),
    "inferior": ("from the head to the feet", "axial"),
}
EXACT_DEG = 0.05
"""Smaller angles are left out of sentences."""


@dataclass(frozen=True)
class PlacedView:
    """A view of a patient; lengths in mm, angles in degrees.

    Attributes:
        view: the nearest of "AP", "PA", "left lateral", "right lateral" and "axial".
        looking: the same in words, along the beam.
        turned: how far the detector is turned about the patient's long axis from that view, and
            `turned_towards` which side of the patient; 0 in an axial view.
        cranial: how far the detector is tilted towards the head; caudal where negative.
        sdd: source to detector.
        source_to_center: source to the CT's centre.
        magnification: of what is in the plane of the CT's centre.
        detector: (height, width).
        filled: shares of the detector's height and width that the CT's box covers; None where the
            source is inside the box or beyond it.
        cut_off: whether the box reaches beyond the detector.
        off_axis: angle between the central ray and the CT's centre.
        right, down: what side of the patient is there in the image.
        beam: "cone" or "parallel".
    """

    view: str
    looking: str
    turned: float
    turned_towards: str
    cranial: float
    sdd: float
    source_to_center: float
    magnification: float
    detector: tuple[float, float]
    filled: tuple[float, float] | None
    cut_off: bool
    off_axis: float
    right: str
    down: str
    beam: str

    def sentence(self) -> str:
        """All of it in words."""
        height, width = self.detector
        distances = (
            f"The source is {self.sdd:.0f} mm from the detector and {self.source_to_center:.0f} mm "
            "from the CT's centre"
        )
        size = f"magnification {self.magnification:.2f}"
        if self.beam == "parallel":
            distances, size = "The rays are parallel", "no magnification"
        return (
            f"{distances}, looking {self.direction()}: {size}. The "
            f"detector covers {width:.0f} x {height:.0f} mm (width x height); {self._filling()}. "
            f"Right in the image is {_of_patient(self.right)}, down is {_of_patient(self.down)}; "
            f"the CT's centre lies {self.off_axis:.1f} degrees off the central ray."
        )

    def direction(self) -> str:
        """Where the beam goes: the nearest named view, and how far it is turned from it."""
        words = f"{self.looking} ({self.view})"
        if self.turned >= EXACT_DEG:
            side = _of_patient(self.turned_towards)
            words += f", with the detector turned {self.turned:.4g} degrees towards {side}"
        if abs(self.cranial) >= EXACT_DEG:
            name = "cranial" if self.cranial > 0 else "caudal"
            words += f", {abs(self.cranial):.4g} degrees {name}"
        return words

    def _filling(self) -> str:
        if self.filled is None:
            return "the CT is not in front of the source"
        if min(self.filled) == 0.0:
            return "the CT is not in the picture"
        height, width = (f"{100 * share:.0f} %" for share in self.filled)
        cut = ", and reaches beyond it" if self.cut_off else ""
        return f"the CT fills {width} of its width and {height} of its height{cut}"


def placement(volume: Volume, camera: Camera, world_to_camera: Tensor) -> PlacedView:
    """How a view [4, 4] of a volume is placed.

    Raises:
        TypeError, ValueError: several views, or a volume without a grid.
    """
    pose = world_to_camera.detach().double().cpu().reshape(4, 4)
    x, y, depth = (pose[:3, :3] @ volume_center(volume).cpu() + pose[:3, 3]).tolist()
    right, down, beam = pose[:3, :3]
    sdd = float(torch.as_tensor(camera.sdd).flatten()[0])
    row, col = (float(pitch) for pitch in camera.pixel_spacing)
    looking, view = LOOKS[nearest_side(beam)]
    turned, towards = _turn(beam, view)
    tilt = math.degrees(math.asin(max(-1.0, min(1.0, float(beam[2])))))
    filled, cut_off = _filled(volume, camera, pose)
    return PlacedView(
        view=view,
        looking=looking,
        turned=turned,
        turned_towards=towards,
        cranial=0.0 if view == "axial" else tilt,
        sdd=sdd,
        source_to_center=math.dist((x, y, depth), (0, 0, 0)),
        magnification=1.0 if camera.beam == "parallel" or depth == 0 else sdd / depth,
        detector=(camera.size[0] * row, camera.size[1] * col),
        filled=filled,
        cut_off=cut_off,
        off_axis=math.degrees(math.atan2(math.hypot(x, y), depth)),
        right=nearest_side(right),
        down=nearest_side(down),
        beam=camera.beam,
    )


def edge_letters(world_to_camera: Tensor) -> tuple[str, str, str, str]:
    """Letters at a picture's left, top, right and bottom: the patient's L R, A P, H F there."""
    turn = world_to_camera.detach().double().cpu().reshape(4, 4)[:3, :3]
    left, top, right, bottom = (
        LETTERS[nearest_side(d)] for d in (-turn[0], -turn[1], turn[0], turn[1])
    )
    return left, top, right, bottom


def nearest_side(direction: Tensor) -> str:
    """The nearest of the patient's six sides to a direction [3] in the world."""
    axis = int(direction.abs().argmax())
    return SIDES[axis][0 if float(direction[axis]) > 0 else 1]


def box_corners(volume: Volume) -> Tensor:
    """The corners of the volume's grid, outer faces of its voxels: [8, 3] world mm."""
    ends = [(-0.5, n - 0.5) for n in volume.shape_xyz]
    index = [[ends[axis][(k >> axis) & 1] for axis in range(3)] for k in range(8)]
    return volume.index_to_world(torch.tensor(index, dtype=torch.float64)).cpu()


def _of_patient(side: str) -> str:
    return f"the patient's {side}" if side in ("left", "right") else side


def _turn(beam: Tensor, view: str) -> tuple[float, str]:
    """How far the beam is turned about the long axis from a named view, and to which side."""
    if view == "axial":
        return 0.0, ""
    along, across = (1, 0) if view in ("AP", "PA") else (0, 1)
    angle = math.degrees(math.atan2(float(beam[across]), abs(float(beam[along]))))
    return abs(angle), SIDES[across][0 if angle > 0 else 1]


def _filled(
    volume: Volume, camera: Camera, pose: Tensor
) -> tuple[tuple[float, float] | None, bool]:
    """Shares of the detector's rows and columns that the volume's box covers; whether it is cut."""
    seen = box_corners(volume) @ pose[:3, :3].mT + pose[:3, 3]
    if camera.beam == "parallel":
        seen[:, 2] = float(torch.as_tensor(camera.sdd).flatten()[0])
    elif not bool((seen[:, 2] > 0).all()):
        return None, True
    pixels = seen @ camera.K.detach().double().cpu().reshape(3, 3).mT
    pixels = pixels[:, :2] / pixels[:, 2:]
    low, high = pixels.amin(0).tolist(), pixels.amax(0).tolist()
    shares, cut = [], False
    for axis, size in ((1, camera.size[0]), (0, camera.size[1])):
        first, last = max(low[axis], -0.5), min(high[axis], size - 0.5)
        shares.append(max(0.0, last - first) / size)
        cut |= low[axis] < -0.5 - 1e-9 or high[axis] > size - 0.5 + 1e-9
    return (shares[0], shares[1]), cut
