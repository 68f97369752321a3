"""The geometry of a view as a drawing: source, detector, patient, the central ray."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from drrkit.geometry import Camera, volume_center
from drrkit.volume import Volume

__all__ = ["describe_geometry", "orientation", "scene_svg"]

WIDTH, HEIGHT, MARGIN = 560, 420, 36


def describe_geometry(volume: Volume, camera: Camera, world_to_camera: Tensor) -> str:
    """One sentence on where source and detector stand and what of the volume is in the picture."""
    pose = world_to_camera.detach().double().cpu().reshape(4, 4)
    center = volume_center(volume).cpu()
    x, y, depth = (pose[:3, :3] @ center + pose[:3, 3]).tolist()
    sdd = float(torch.as_tensor(camera.sdd).flatten()[0])
    right, down, beam = pose[:3, :3]
    off = math.degrees(math.atan2(math.hypot(x, y), depth))
    row, col = camera.pixel_spacing
    size = f"{camera.size[0] * float(row):.0f} x {camera.size[1] * float(col):.0f} mm"
    return (
        f"The source is {_towards(-beam)} of the patient, {depth:.0f} mm from the volume's centre, "
        f"the detector ({size}) {sdd:.0f} mm from the source: magnification {sdd / depth:.2f}. "
        f"Right in the image is the patient's {_towards(right)}, down is {_towards(down)}. "
        f"The volume's centre lies {off:.1f} degrees off the central ray."
    )


def orientation(world_to_camera: Tensor) -> tuple[str, str, str, str]:
    """Letters at a picture's left, top, right and bottom: the patient's L R, A P, H F there."""
    turn = world_to_camera.detach().double().cpu().reshape(4, 4)[:3, :3]
    letters = [_LETTERS[_towards(d)] for d in (-turn[0], -turn[1], turn[0], turn[1])]
    return letters[0], letters[1], letters[2], letters[3]


def scene_svg(volume: Volume, camera: Camera, poses: list[Tensor]) -> str:
    """The scene as an SVG drawing, oblique from above: the volume's box, and each pose's C-arm.

    poses: world_to_camera [4, 4]; drawn in the order of COLORS, the last one strongest
    """
    segments: list[tuple[Tensor, Tensor, str, float]] = []
    corners = _box(volume)
    for i, j in _BOX_EDGES:
        segments.append((corners[i], corners[j], "#667788", 1.2))
    for number, pose in enumerate(poses):
        color, width = ("#2a7ae2", 2.0) if number == len(poses) - 1 else ("#e28a2a", 1.2)
        source, plane = _carm(camera, pose)
        for k in range(4):
            segments.append((plane[k], plane[(k + 1) % 4], color, width))
            segments.append((source, plane[k], color, 0.5))
        segments.append((source, plane.mean(0), color, width))
    points = torch.stack([p for start, end, _, _ in segments for p in (start, end)]) @ _OBLIQUE.mT
    low, high = points.amin(0), points.amax(0)
    scale = min((WIDTH - 2 * MARGIN), (HEIGHT - 2 * MARGIN)) / float((high - low).max())
    lines = []
    for k, (_, _, color, width) in enumerate(segments):
        (x1, y1), (x2, y2) = ((points[2 * k + e] - low) * scale for e in (0, 1))
        lines.append(
            f'<line x1="{x1 + MARGIN:.1f}" y1="{y1 + MARGIN:.1f}" x2="{x2 + MARGIN:.1f}" '
            f'y2="{y2 + MARGIN:.1f}" stroke="{color}" stroke-width="{width}"/>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="C-arm and volume">{"".join(lines)}</svg>'
    )


_LETTERS = {
    "left": "L",
    "right": "R",
    "anterior": "A",
    "posterior": "P",
    "superior": "H",
    "inferior": "F",
}


def _oblique() -> Tensor:
    """From LPS to the page, [2, 3]: seen from the patient's front left and a little above."""
    turn, tilt = math.radians(35.0), math.radians(20.0)
    right = (math.cos(turn), -math.sin(turn), 0.0)
    down = (-math.sin(turn) * math.sin(tilt), -math.cos(turn) * math.sin(tilt), -math.cos(tilt))
    return torch.tensor((right, down), dtype=torch.float64)


_OBLIQUE = _oblique()
_BOX_EDGES = [
    (i, j) for i in range(8) for j in range(i + 1, 8) if bin(i ^ j).count("1") == 1
]  # corners whose binary numbers differ in one digit


def _box(volume: Any) -> Tensor:
    """The corners of the volume's grid, [8, 3] world mm."""
    ends = [(-0.5, n - 0.5) for n in volume.shape_xyz]
    index = [[ends[axis][(k >> axis) & 1] for axis in range(3)] for k in range(8)]
    return volume.index_to_world(torch.tensor(index, dtype=torch.float64)).cpu()


def _carm(camera: Camera, pose: Tensor) -> tuple[Tensor, Tensor]:
    """The source [3] and the detector's corners [4, 3] in world mm."""
    matrix = pose.detach().double().cpu().reshape(4, 4)
    frame = camera.pixel_rays().detach().cpu().reshape(-1, 4, 3)[0]
    rows, cols = camera.size
    around = ((-0.5, -0.5), (-0.5, cols - 0.5), (rows - 0.5, cols - 0.5), (rows - 0.5, -0.5))
    plane = torch.stack([frame[1] + c * frame[2] + r * frame[3] for r, c in around])
    turn, shift = matrix[:3, :3], matrix[:3, 3]
    return -turn.mT @ shift, (plane - shift) @ turn


def _towards(direction: Tensor) -> str:
    """The nearest of the patient's six directions."""
    names = (("left", "right"), ("posterior", "anterior"), ("superior", "inferior"))
    axis = int(direction.abs().argmax())
    return names[axis][0 if float(direction[axis]) > 0 else 1]
