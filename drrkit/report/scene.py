"""The geometry of a view as a drawing: source, detector, patient, the central ray."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from drrkit.geometry import Camera
from drrkit.report.facts import box_corners
from drrkit.report.pictures import data_uri
from drrkit.volume import Volume

WIDTH, HEIGHT, MARGIN = 560, 400, 24
ENLARGED = 1.25
"""No scene is as wide from all sides as from its widest; turned there, corners are cut off."""

TURN, TILT = 0.61, 0.35  # rad: seen from the patient's front left and a little above
SCENE_STYLE = """
.scene line { stroke-linecap: round; fill: none }
.scene line.box { stroke: #7b8a99; stroke-width: 1 }
.scene line.now { stroke: #2a7ae2; stroke-width: 2 }
.scene line.before { stroke: #e28a2a; stroke-width: 1.3 }
.scene line.ray { stroke-width: .6 }
.scene line.beam { stroke-width: 1.3; stroke-dasharray: 6 4 }
.scene .bone { stroke: #9b8f74; stroke-width: 1.6; stroke-linecap: round; opacity: .55 }
.scene text { font: 13px system-ui, sans-serif; text-anchor: middle; dominant-baseline: middle;
  stroke: none; fill: #2a7ae2 }
.scene text.side { fill: #7b8a99; font-weight: 600 }
"""


def scene_svg(
    volume: Volume,
    camera: Camera,
    poses: Sequence[Tensor],
    *,
    points: Tensor | None = None,
    xray: Tensor | None = None,
) -> str:
    """The scene as an SVG drawing, seen obliquely from above: the volume's box, a C-arm per pose.

    Every element has its 3D points, whole mm about the drawing's middle, in `data-p`, so that a
    script can turn the scene.

    Args:
        volume: whose box is drawn.
        camera: whose rays and detector are drawn.
        poses: world_to_camera [4, 4]; the last one is drawn strongest, in blue, others in orange.
        points: [P, 3] world mm, drawn as dots: on bone, for example.
        xray: [rows, cols] or [rows, cols, 3] uint8, shown on the last pose's detector.
    """
    corners = box_corners(volume)
    arms = [_carm(camera, pose) for pose in poses]
    ends = torch.cat([corners, *(torch.cat((source[None], plane)) for source, plane in arms)])
    drawing = _Drawing((ends.amin(0) + ends.amax(0)) / 2, ends)
    if xray is not None:
        plane = arms[-1][1]
        drawing.image(plane[[0, 1, 3]], data_uri(xray))
    if points is not None:
        drawing.dots(points.double().cpu(), "bone")
    for i, j in _BOX_EDGES:
        drawing.line(corners[i], corners[j], "box")
    for number, (source, plane) in enumerate(arms):
        look = "now" if number == len(arms) - 1 else "before"
        for k in range(4):
            drawing.line(plane[k], plane[(k + 1) % 4], look)
            drawing.line(source, plane[k], f"{look} ray")
        drawing.line(source, plane.mean(0), f"{look} beam")
    source, plane = arms[-1]
    drawing.text(source, "source", "now")
    drawing.text(plane.mean(0) + 0.58 * (plane[2] - plane[1]), "detector", "now")
    middle, reach = corners.mean(0), 0.58 * (corners.amax(0) - corners.amin(0))
    for axis, letters in enumerate((("R", "L"), ("A", "P"), ("F", "H"))):
        for letter, sign in zip(letters, (-1.0, 1.0), strict=True):
            place = middle.clone()
            place[axis] += sign * reach[axis]
            drawing.text(place, letter, "side")
    return drawing.svg()


class _Drawing:
    """SVG elements whose 3D points are projected along the oblique direction.

    Args:
        middle: [3] world mm, in the middle of the page.
        ends: [N, 3] world mm that stay on the page when the scene turns about the patient's axis.
    """

    def __init__(self, middle: Tensor, ends: Tensor) -> None:
        self.middle = middle
        x, y, z = (ends - middle).unbind(-1)
        around = torch.hypot(x, y)
        upright = z.abs() * math.cos(TILT) + around * math.sin(TILT)
        self.scale = min(
            (WIDTH / 2 - MARGIN) / float(around.max()), (HEIGHT / 2 - MARGIN) / float(upright.max())
        )
        self.scale *= ENLARGED
        flat = (ends - middle) @ _OBLIQUE.mT * self.scale
        half = torch.tensor((WIDTH / 2, HEIGHT / 2), dtype=torch.float64)
        self.center = (half - (flat.amin(0) + flat.amax(0)) / 2).round().tolist()
        self.parts: list[str] = []

    def line(self, start: Tensor, end: Tensor, look: str) -> None:
        points = torch.stack((start, end))
        (x1, y1), (x2, y2) = self._page(points)
        self.parts.append(
            f'<line class="{look}" {self._data(points)} x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'
        )

    def dots(self, points: Tensor, look: str) -> None:
        path = "".join(f"M{x} {y}h0" for x, y in self._page(points))
        self.parts.append(f'<path class="{look}" {self._data(points)} d="{path}"/>')

    def text(self, place: Tensor, words: str, look: str) -> None:
        ((x, y),) = self._page(place[None])
        data = self._data(place[None])
        self.parts.append(f'<text class="{look}" {data} x="{x}" y="{y}">{words}</text>')

    def image(self, corners: Tensor, uri: str) -> None:
        """A picture whose first row begins at the first of the corners [3, 3] and ends at the
        second, and whose first column ends at the third."""
        (x, y), (right, down), (low, lowest) = self._page(corners)
        matrix = (right - x, down - y, low - x, lowest - y, x, y)
        numbers = " ".join(f"{number:.1f}" for number in matrix)
        self.parts.append(
            f'<image {self._data(corners)} href="{uri}" width="1" height="1" opacity="0.85" '
            f'preserveAspectRatio="none" transform="matrix({numbers})"/>'
        )

    def svg(self) -> str:
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'class="scene" data-scale="{self.scale:.5f}" data-turn="{TURN}" data-tilt="{TILT}" '
            'aria-label="C-arm and volume">'
            f"<style>{SCENE_STYLE}</style>{''.join(self.parts)}</svg>"
        )

    def _page(self, points: Tensor) -> list[tuple[float, float]]:
        """Where points [N, 3] lie on the page."""
        flat = (points - self.middle) @ _OBLIQUE.mT * self.scale
        return [
            (round(x + self.center[0], 1), round(y + self.center[1], 1)) for x, y in flat.tolist()
        ]

    def _data(self, points: Tensor) -> str:
        numbers = (points - self.middle).round().long().flatten().tolist()
        return f'data-p="{" ".join(map(str, numbers))}"'


_OBLIQUE = torch.tensor(
    (
        (math.cos(TURN), -math.sin(TURN), 0.0),
        (-math.sin(TURN) * math.sin(TILT), -math.cos(TURN) * math.sin(TILT), -math.cos(TILT)),
    ),
    dtype=torch.float64,
)
"""From LPS to the page, [2, 3]: to its right, and down."""

_BOX_EDGES = [
    (i, j) for i in range(8) for j in range(i + 1, 8) if bin(i ^ j).count("1") == 1
]  # corners whose binary numbers differ in one digit


def _carm(camera: Camera, pose: Tensor) -> tuple[Tensor, Tensor]:
    """The source [3] and the detector's corners [4, 3] in world mm."""
    matrix = pose.detach().double().cpu().reshape(4, 4)
    frame = camera.pixel_rays().detach().cpu().reshape(-1, 4, 3)[0]
    rows, cols = camera.size
    around = ((-0.5, -0.5), (-0.5, cols - 0.5), (rows - 0.5, cols - 0.5), (rows - 0.5, -0.5))
    plane = torch.stack([frame[1] + c * frame[2] + r * frame[3] for r, c in around])
    turn, shift = matrix[:3, :3], matrix[:3, 3]
    return -turn.mT @ shift, (plane - shift) @ turn
