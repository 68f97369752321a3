"""The bones of random subjects: what `random_anatomy` paints, drawn from a random generator.

Lengths in body millimetres: x left, y posterior, z superior. No number is measured from a person;
each is plausible for an adult, varies by about ten per cent, and is drawn separately for each side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from drrkit.geometry import so3_exp
from drrkit.phantoms.shapes import (
    Point,
    Shape,
    bounds,
    capsule,
    chain,
    cup,
    drum,
    ellipsoid,
    from_table,
    grown,
    plate,
    smooth_min,
)


class Draw:
    """Random numbers, one after the other, from a generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def between(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        unit = torch.rand((), generator=self._generator, dtype=torch.float64).item()
        return low + (high - low) * unit

    def about(self, value: float, share: float = 0.12) -> float:
        """`value` times a factor uniform within `share` of 1."""
        return value * self.between(1.0 - share, 1.0 + share)

    def near(self, point: Point, reach: float = 3.0) -> Point:
        """A point within `reach` mm along every axis."""
        x, y, z = (c + self.between(-reach, reach) for c in point)
        return x, y, z

    def integer(self) -> int:
        """A seed for what draws its own numbers."""
        return int(torch.randint(2**31 - 1, (), generator=self._generator))

    def rotation(self, sigma: float) -> Tensor:
        """[3, 3] float32; the three components of the rotation vector are N(0, sigma) rad."""
        drawn = torch.randn(3, generator=self._generator, dtype=torch.float64)
        return so3_exp(sigma * drawn).float()


class Bone(NamedTuple):
    """A solid made of shapes that blend into each other over `blend` mm."""

    shapes: list[Shape]
    cortex: float  # thickness of the cortical shell, mm
    blend: float = 5.0
    holes: tuple[Shape, ...] = ()
    moves: bool = False  # against the bones to be registered


class Anatomy(NamedTuple):
    """What a subject is painted from: the skin's outline, the bones, pockets of gas."""

    outline: Shape
    bones: list[Bone]
    gas: list[Shape]


def pelvis(draw: Draw) -> Anatomy:
    """Hip bones, sacrum, fifth lumbar vertebra; the upper ends of both femurs; bowel gas."""
    bones = []
    for side in (1, -1):
        bones += _hip_and_femur(draw, side)
    bones.append(_sacrum(draw))
    bones.append(_vertebra(draw, (draw.between(-3, 3), 22.0, 78.0), 0.35, 1.03))
    width, depth = draw.about(155.0), draw.about(106.0)
    outline = from_table(
        (
            (-260.0, draw.about(0.97 * width, 0.04), 0.95 * depth, 2.0),
            (-40.0, draw.about(1.04 * width, 0.03), depth, 4.0),
            (80.0, draw.about(0.93 * width, 0.04), 0.95 * depth, 0.0),
            (260.0, 0.9 * width, 0.95 * depth, -2.0),
        ),
        power=2.4,
    )
    gas = [
        ellipsoid(
            draw.near((0.0, -45.0, 55.0), 55.0),
            (draw.between(9, 24), draw.between(7, 14), draw.between(9, 22)),
        )
        for _ in range(4)
    ]
    return Anatomy(outline, bones, gas)


def _hip_and_femur(draw: Draw, side: int) -> list[Bone]:
    """One hip bone and its femur; side 1 is the left."""

    def place(x: float, y: float, z: float) -> Point:
        return draw.near((side * x * spread, y, z))

    spread = draw.about(1.0, 0.06)
    hip = place(82, -15, -35)
    head = draw.about(23.0, 0.08)
    wing = plate(
        place(90, 10, 38),
        (draw.about(64.0), draw.about(56.0)),
        draw.about(11.0, 0.2),
        bend=side * draw.about(0.0022, 0.4),
        turn=(0.0, side * draw.about(0.30, 0.3), side * draw.about(0.44, 0.2)),
    )
    pubis, body = place(46, -52, -42), place(11, -60, -54)
    ischium, ramus = place(60, 20, -92), place(26, -44, -88)
    opening = (side * 0.70, -0.25, -0.67)
    shapes = [
        wing,
        cup(hip, head + 3.5, head + draw.about(13.0), opening, depth=5.0),
        capsule(place(76, 8, -4), place(72, 0, -30), draw.about(17.0), draw.about(19.0)),
        capsule(place(62, 50, 24), place(76, 10, 0), draw.about(11.0), draw.about(15.0)),
        *_rods(draw, [place(68, -32, -34), pubis, body], [11.5, 8.5, 10.0]),
        *_rods(draw, [place(72, 4, -48), place(66, 16, -72), ischium], [16.0, 13.0, 14.0]),
        *_rods(draw, [ischium, ramus, body], [10.0, 7.0, 8.0]),
    ]
    socket = ellipsoid(hip, _alike(head + 3.5))
    neck, trochanter = place(107, -12, -56), place(124, -6, -66)
    knee = place(112, -10, -230)
    femur = [
        ellipsoid(hip, _alike(head)),
        *_rods(draw, [hip, neck, trochanter], [15.0, 14.0, 17.0]),
        ellipsoid(place(130, 0, -58), (11.0, 14.0, draw.about(17.0))),
        ellipsoid(place(105, 10, -97), (8.0, 9.0, 11.0)),
        *_rods(draw, [trochanter, place(117, -8, -102), knee], [17.0, 16.0, 14.0]),
    ]
    return [
        Bone(shapes, draw.about(3.0, 0.25), 6.0, holes=(socket,)),
        Bone(femur, draw.about(4.0, 0.25), 7.0, moves=True),
    ]


def _rods(draw: Draw, points: list[Point], radii: list[float]) -> list[Shape]:
    """Capsules through the points, every radius varied."""
    return chain(*((*p, draw.about(r)) for p, r in zip(points, radii, strict=True)))


def _sacrum(draw: Draw) -> Bone:
    """Segments that shrink along a curve, and the wings beside the upper ones."""
    lean = draw.between(-4.0, 4.0)
    size = draw.about(1.0, 0.1)
    shapes = []
    for y, z, width, depth, height, tilt in (
        (35.0, 50.0, 28.0, 17.0, 14.0, 0.62),
        (49.5, 27.0, 23.0, 14.0, 13.0, 0.55),
        (60.0, 5.0, 19.0, 11.5, 12.0, 0.33),
        (63.5, -16.0, 16.0, 9.5, 11.5, 0.0),
        (60.0, -35.0, 12.0, 7.5, 10.0, -0.35),
        (51.0, -53.0, 7.0, 5.5, 10.0, -0.6),
    ):
        center = (lean * (50.0 - z) / 50.0, y, z)
        segment = drum(center, (size * draw.about(width, 0.08), size * depth), size * height)
        shapes.append(segment.tightly_tilted(center, tilt * draw.about(1.0, 0.2)))
    for side in (-1, 1):
        stations = [(22, 38, 52, 14), (36, 46, 44, 13), (33, 56, 26, 11), (23, 62, 2, 8)]
        points = [draw.near((side * x, y, z), 2.0) for x, y, z, _ in stations]
        shapes += _rods(draw, points, [r for *_, r in stations])
    holes = tuple(
        capsule((side * (21.0 - 2.2 * k), 10.0, z), (side * (21.0 - 2.2 * k), 90.0, z), 4.0, 4.0)
        for side in (-1, 1)
        for k, z in enumerate((37.0, 15.0, -6.0))
    )
    return Bone(shapes, draw.about(2.5, 0.25), 6.0, holes=holes)


def _vertebra(draw: Draw, center: Point, tilt: float, size: float) -> Bone:
    """One vertebra, its two sides drawn separately; tilt turns its top to the front."""

    def place(x: float, y: float, z: float) -> Point:
        x, y, z = draw.near((x, y, z), 1.5)
        return center[0] + size * x, center[1] + size * y, center[2] + size * z

    radii = (size * draw.about(24.0), size * draw.about(17.0))
    shapes = [drum(center, radii, size * draw.about(13.0, 0.08))]
    for side in (-1, 1):
        pedicle, process = place(side * 14, 11, 4), place(side * 17, 27, 3)
        thick = size * draw.about(4.6, 0.15)
        shapes += [
            capsule(pedicle, process, thick, thick),
            capsule(process, place(side * draw.about(42, 0.2), 32, 5), thick, 0.7 * thick),
            capsule(place(side * 16, 30, 13), place(side * 15, 34, -14), thick, 1.15 * thick),
            capsule(process, place(0, 45, -4), thick, 0.9 * thick),
        ]
    spine = (size * draw.about(3.8, 0.2), size * draw.about(15.0), size * draw.about(10.5))
    shapes.append(ellipsoid(place(draw.between(-3, 3), 52, -7), spine))
    return Bone([s.tightly_tilted(center, tilt) for s in shapes], draw.about(2.2, 0.25), 3.0)


def spine(draw: Draw) -> Anatomy:
    """A stack of vertebrae along a bent column, ribs at its upper end, gas in front of it."""
    pitch = draw.about(34.0, 0.08)
    curve, sway = draw.between(-0.10, 0.10), draw.between(0.6, 1.4)
    phase = draw.between(0.0, 2.0 * math.pi)
    bones: list[Bone] = []
    ends: list[tuple[Point, float]] = []
    for k in range(-4, 5):
        z = k * pitch + draw.between(-1.0, 1.0)
        x = 5.0 * sway * math.sin(z / 70.0 + phase) + curve * z
        y = 10.0 * sway * math.cos((z + 20.0) / 75.0)
        tilt = 0.13 * sway * math.sin((z + 20.0) / 75.0) + draw.between(-0.05, 0.05)
        size = draw.about(1.0 - 0.03 * k, 0.05)
        bones.append(_vertebra(draw, (x, y, z), -tilt, size))
        ends.append(((x, y, z), size))
    thoracic = int(draw.between(2, 5))  # how many of the upper ones carry ribs
    for (x, y, z), size in ends[-thoracic:]:
        for side in (-1, 1):
            slope = draw.about(26.0, 0.3)
            stations = ((20, 24, 3), (62, 34, 0.3 * -slope), (98, 10, -slope))
            reach = [(x + side * a * size, y + b, z + c) for a, b, c in stations]
            points = [draw.near(point, 3.0) for point in reach]
            rib = _rods(draw, points, [5.0, 5.5, 5.0])
            bones.append(Bone(rib, draw.about(2.0, 0.2), moves=True))
    width, depth = draw.about(140.0, 0.15), draw.about(98.0, 0.12)
    outline = from_table(
        (
            (-260.0, width, depth, -22.0),
            (0.0, 0.95 * width, depth, -24.0),
            (260.0, width, depth, -20.0),
        ),
        power=2.3,
    )
    gas = [
        ellipsoid(
            (draw.between(-75, 75), draw.between(-85, -45), draw.between(-80, 80)),
            (draw.between(9, 24), draw.between(7, 15), draw.between(9, 24)),
        )
        for _ in range(4)
    ]
    return Anatomy(outline, bones, gas)


def skull(draw: Draw) -> Anatomy:
    """Cranium with its base, face and sinuses; mandible and upper neck; the airway."""
    half = (draw.about(70.0, 0.09), draw.about(88.0, 0.09), draw.about(68.0, 0.09))
    vault, wall = (0.0, 8.0, 25.0), draw.about(7.0, 0.25)
    bones = [_cranium(draw, vault, half, wall), _face(draw, half)]
    bones += _petrous_bones(draw)
    bones.append(_mandible(draw))
    for k, z in enumerate((-68.0, -86.0, -105.0, -124.0)):
        center = (draw.between(-2, 2), 22.0 + 2.0 * k + draw.between(-2, 2), z)
        bones.append(_vertebra(draw, center, -0.1, 0.62)._replace(moves=True))
    airway = [
        ellipsoid(draw.near((0.0, -62.0, -24.0), 2.0), (8.0, draw.about(16.0), draw.about(15.0))),
        *_rods(draw, [(0, -18, -40), (0, -4, -70), (0, 2, -140)], [7, 7, 8]),
    ]
    for side in (-1, 1):
        sinus = (draw.about(11.0, 0.3), draw.about(13.0, 0.3), draw.about(12.0, 0.3))
        airway.append(ellipsoid(draw.near((side * 24.0, -50.0, -26.0), 2.0), sinus))
    skin = draw.between(5.0, 9.0)
    neck = draw.about(58.0, 0.1)
    outline = _joined(
        [
            ellipsoid(vault, (half[0] + skin, half[1] + skin, half[2] + skin)),
            *chain((0, -34, -20, 52), (0, -38, -60, 44), (0, -44, -78, 40)),
            capsule((0, 18, -40), (0, 26, -260), 1.1 * neck, neck),
        ],
        blend=30.0,
    )
    return Anatomy(outline, bones, airway)


def _alike(radius: float) -> Point:
    return radius, radius, radius


def _joined(shapes: list[Shape], blend: float) -> Shape:
    """One shape out of several, their seams rounded over `blend` mm."""

    def distance(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        field = shapes[0].distance(x, y, z)
        for shape in shapes[1:]:
            field = smooth_min(field, shape.distance(x, y, z), blend)
        return field

    box = bounds([corner for shape in shapes for corner in (shape.low, shape.high)])
    return Shape(*grown(*box, _alike(blend)), distance)


def _cranium(draw: Draw, vault: Point, half: Point, wall: float) -> Bone:
    """A shell of bone, thicker at the back, with the bones of its base."""
    inner = half[0] - wall, half[1] - wall, half[2] - wall
    base = draw.about(-14.0, 0.2)
    shapes = [
        ellipsoid(vault, half),
        capsule((0, -40, base), (0, 42, base - 22), draw.about(15.0), draw.about(12.0)),
        ellipsoid(draw.near((0.0, 78.0, 8.0), 4.0), (16.0, 12.0, draw.about(10.0, 0.3))),
    ]
    for side in (-1, 1):
        mastoid = draw.near((side * 55.0, 28.0, -34.0))
        shapes.append(capsule(mastoid, (side * 54.0, 30.0, -8.0), draw.about(9.0, 0.2), 13.0))
    backwards = (vault[0] + draw.between(-2, 2), vault[1] - draw.between(1, 3), vault[2])
    holes = (
        ellipsoid((backwards[0], backwards[1], backwards[2] + 2.0), inner),
        capsule((0, 36, -50), (0, 34, -5), 15.0, 15.0),
    )
    return Bone(shapes, min(draw.about(2.6, 0.2), 0.4 * wall), 5.0, holes=holes)


def _face(draw: Draw, half: Point) -> Bone:
    """Brow, nose, cheeks, palate and upper teeth around two orbits and the nasal cavity."""
    front = 8.0 - half[1] + 8.0
    shapes = [
        ellipsoid((0.0, front + 12.0, 4.0), (draw.about(40.0), 15.0, 12.0)),
        capsule((0, front - 6, 2), (0, front - 16, -22), 7.0, 5.0),
        ellipsoid((0.0, front + 16.0, -50.0), (draw.about(26.0), draw.about(27.0), 10.0)),
    ]
    holes = [ellipsoid((0.0, front + 18.0, -26.0), (10.0, 24.0, draw.about(15.0)))]
    for side in (-1, 1):
        cheek, arch = draw.near((side * 46.0, front + 14.0, -26.0)), (side * 64.0, -10.0, -20.0)
        column = [(side * 44.0, front + 12.0, 2.0), cheek, (side * 30.0, front + 14.0, -48.0)]
        shapes += _rods(draw, column, [7.0, 9.0, 9.0])
        shapes += _rods(draw, [cheek, draw.near(arch), (side * 62.0, 12.0, -18.0)], [6.5, 4.5, 6.0])
        shapes.append(ellipsoid((side * 26.0, front + 26.0, -28.0), (18.0, 20.0, 20.0)))
        orbit = draw.near((side * 29.0, front + 8.0, -10.0), 2.0)
        holes.append(ellipsoid(orbit, (draw.about(17.0), 26.0, draw.about(15.0))))
        sinus = (12.0, 14.0, draw.about(13.0, 0.25))
        holes.append(ellipsoid(draw.near((side * 24.0, front + 28.0, -32.0), 2.0), sinus))
    return Bone(shapes, draw.about(2.2, 0.25), 4.0, holes=tuple(holes))


def _petrous_bones(draw: Draw) -> list[Bone]:
    """The densest bones of the skull, solid cortex, one per side."""
    bones = []
    for side in (-1, 1):
        base, tip = draw.near((side * 54.0, 20.0, -16.0)), draw.near((side * 16.0, 2.0, -14.0))
        bones.append(Bone([capsule(base, tip, draw.about(12.0), draw.about(7.0))], cortex=9.0))
    return bones


def _mandible(draw: Draw) -> Bone:
    """A horseshoe with two ascending branches, opened by a random angle."""
    drop, shift = draw.between(-4.0, 6.0), draw.between(-4.0, 4.0)
    chin = (shift, -82.0, -84.0 - drop)
    shapes = []
    for side in (-1, 1):
        angle = draw.near((side * 47.0 + shift, -22.0, -74.0 - 0.5 * drop))
        points = [chin, (side * 26.0 + shift, -68.0, -82.0 - drop), angle]
        shapes += _rods(draw, points, [10.0, 9.0, 9.0])
        shapes += _rods(draw, [angle, draw.near((side * 53.0, -6.0, -26.0), 2.0)], [8.5, 6.5])
    return Bone(shapes, draw.about(3.0, 0.2), 4.0, moves=True)


ANATOMIES: dict[str, Callable[[Draw], Anatomy]] = {
    "pelvis": pelvis,
    "spine": spine,
    "skull": skull,
}
"""A function of a `Draw` for every kind of subject."""
