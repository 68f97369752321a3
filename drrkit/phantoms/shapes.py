"""Signed-distance shapes and the canvas that paints them into a voxel grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from drrkit.geometry import so3_exp

Point = tuple[float, float, float]
Box = tuple[slice, slice, slice]


class Shape(NamedTuple):
    """A signed distance (mm, negative inside) and the box (x, y, z) it is negative in."""

    low: Point
    high: Point
    distance: Callable[[Tensor, Tensor, Tensor], Tensor]

    def mirrored(self) -> Shape:
        """The shape on the other side of the plane x = 0."""
        low, high = (-self.high[0], *self.low[1:]), (-self.low[0], *self.high[1:])
        return Shape(low, high, lambda x, y, z: self.distance(-x, y, z))

    def tilted(self, pivot: Point, angle: float) -> Shape:
        """The shape turned about x at `pivot`, its z axis towards the front by `angle` rad."""
        reach = max(math.dist(pivot, corner) for corner in (self.low, self.high))
        c, s = math.cos(angle), math.sin(angle)

        def distance(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            py, pz = y - pivot[1], z - pivot[2]
            return self.distance(x, pivot[1] + c * py + s * pz, pivot[2] + c * pz - s * py)

        return Shape(*grown(pivot, pivot, (reach, reach, reach)), distance)

    def tightly_tilted(self, pivot: Point, angle: float) -> Shape:
        """`tilted` in the smallest box, which is quick to paint; it cuts off wide blends."""
        turned = Placement(shift=pivot, tilt=angle)
        ends = (
            (low - at, high - at) for low, high, at in zip(self.low, self.high, pivot, strict=True)
        )
        corners = [turned.to_world((x, y, z)) for x, y, z in product(*ends)]
        return Shape(*bounds(corners), self.tilted(pivot, angle).distance)


class Place(Protocol):
    """Where shapes lie on a canvas."""

    def box(self, canvas: Canvas, shape: Shape, margin: float) -> Box:
        """The voxels that may lie within `margin` world mm of the shape."""
        ...

    def distance(self, canvas: Canvas, shape: Shape, box: Box) -> Tensor:
        """World millimetres to the shape, negative inside, at the voxels of a box."""
        ...


class Placement(NamedTuple):
    """A Place: scaled, turned about x, mirrored (side = -1), then shifted."""

    side: int = 1
    scale: float = 1.0
    shift: Point = (0.0, 0.0, 0.0)
    tilt: float = 0.0  # rad; turns the shapes' z axis towards the front

    def to_world(self, point: Point) -> Point:
        c, s = math.cos(self.tilt), math.sin(self.tilt)
        x, y, z = (self.scale * q for q in point)
        moved = (self.side * x, c * y - s * z, s * y + c * z)
        return moved[0] + self.shift[0], moved[1] + self.shift[1], moved[2] + self.shift[2]

    def box(self, canvas: Canvas, shape: Shape, margin: float) -> Box:
        """See `Place`."""
        corners = product(*zip(shape.low, shape.high, strict=True))
        low, high = bounds([self.to_world((x, y, z)) for x, y, z in corners])
        return canvas.region(*grown(low, high, (margin, margin, margin)))

    def distance(self, canvas: Canvas, shape: Shape, box: Box) -> Tensor:
        """See `Place`."""
        c, s = math.cos(self.tilt) / self.scale, math.sin(self.tilt) / self.scale
        x, y, z = (q - t for q, t in zip(canvas.coordinates(box), self.shift, strict=True))
        x = x * (self.side / self.scale)
        local = (x, c * y, c * z) if s == 0.0 else (x, c * y + s * z, c * z - s * y)
        return self.scale * shape.distance(*local)


HERE = Placement()


def grown(low: Point, high: Point, reach: Point) -> tuple[Point, Point]:
    """Corners of a box that reaches further on every side."""
    return (
        (low[0] - reach[0], low[1] - reach[1], low[2] - reach[2]),
        (high[0] + reach[0], high[1] + reach[1], high[2] + reach[2]),
    )


def per_axis(name: str, value: Any, least: float, most: float) -> Point:
    """One number for every axis, or one each (x, y, z); ValueError below or above."""
    x, y, z = value if isinstance(value, (tuple, list)) and len(value) == 3 else (value,) * 3
    if not all(isinstance(n, (int, float)) and least <= n <= most for n in (x, y, z)):
        wanted = f"{least:g} to {most:g}, a number or three (x, y, z)"
        raise ValueError(f"{name}: expected {wanted}, got {value!r}")
    return x, y, z


def bounds(points: Sequence[Point]) -> tuple[Point, Point]:
    """Corners of the box around points."""
    xs, ys, zs = zip(*points, strict=True)
    return (min(xs), min(ys), min(zs)), (max(xs), max(ys), max(zs))


def ellipsoid(center: Point, radii: Point) -> Shape:
    """An ellipsoid along the axes; the distance is exact to first order at its surface."""

    def distance(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        px, py, pz = (
            (x - center[0]) / radii[0],
            (y - center[1]) / radii[1],
            (z - center[2]) / radii[2],
        )
        unit = (px**2 + py**2 + pz**2).sqrt()
        slope = ((px / radii[0]) ** 2 + (py / radii[1]) ** 2 + (pz / radii[2]) ** 2).sqrt()
        # At the centre itself both vanish; inside, the smallest radius bounds the distance.
        return (unit * (unit - 1.0) / slope.clamp(min=1e-9)).clamp(min=-min(radii))

    return Shape(*grown(center, center, radii), distance)


def capsule(a: Point, b: Point, radius_a: float, radius_b: float) -> Shape:
    """A rod from `a` to `b` with round ends, its radius changing linearly."""
    axis = (b[0] - a[0], b[1] - a[1], b[2] - a[2])
    square = sum(c * c for c in axis)
    r = max(radius_a, radius_b)

    def distance(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        px, py, pz = x - a[0], y - a[1], z - a[2]
        t = ((px * axis[0] + py * axis[1] + pz * axis[2]) / square).clamp(0.0, 1.0)
        away = (px - t * axis[0]) ** 2 + (py - t * axis[1]) ** 2 + (pz - t * axis[2]) ** 2
        return away.sqrt() - (radius_a + (radius_b - radius_a) * t)

    return Shape(*grown(*bounds([a, b]), (r, r, r)), distance)


def chain(*stations: tuple[float, float, float, float]) -> list[Shape]:
    """Capsules through the stations (x, y, z, radius)."""
    return [capsule(p[:3], q[:3], p[3], q[3]) for p, q in pairwise(stations)]


def drum(center: Point, radii: tuple[float, float], half_height: float) -> Shape:
    """A vertebral body: an elliptic drum along z, waisted, its rear (+y) flattened."""

    def distance(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        px, py, pz = x - center[0], y - center[1], z - center[2]
        waist = 0.9 + 0.1 * (pz / half_height) ** 2
        around = (((px / radii[0]) ** 2 + (py / radii[1]) ** 2).sqrt() - waist) * min(radii)
        rounded = smooth_max(around, pz.abs() - half_height, 4.0)
        return smooth_max(rounded, py - 0.75 * radii[1], 4.0)

    return Shape(*grown(center, center, (radii[0], radii[1], half_height)), distance)


def cup(center: Point, inner: float, outer: float, opening: Point, depth: float) -> Shape:
    """A spherical shell without the part beyond the plane `depth` mm along `opening` (a unit)."""

    def distance(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        px, py, pz = x - center[0], y - center[1], z - center[2]
        radius = (px**2 + py**2 + pz**2).sqrt()
        beyond = px * opening[0] + py * opening[1] + pz * opening[2] - depth
        return smooth_max(torch.maximum(radius - outer, inner - radius), beyond, 4.0)

    return Shape(*grown(center, center, (outer, outer, outer)), distance)


def sheet(
    outline: Sequence[tuple[float, float]],
    surface: Sequence[Point],
    thickness: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Shape:
    """A curved plate about x = X(y, z), X the cubic fitted to the points `surface` (y, z, x).

    outline (y, z): its closed, smoothed boundary.  thickness(y, z, depth) in mm, depth being the
    distance to the boundary.
    """
    polygon = _smooth_polygon(torch.tensor(outline, dtype=torch.float64)).to(torch.float32)
    points = torch.tensor(surface, dtype=torch.float64) / 50.0
    powers = [(i, j) for i in range(4) for j in range(4 - i)]
    matrix = torch.stack([points[:, 0] ** i * points[:, 1] ** j for i, j in powers], dim=-1)
    # A little damping keeps the cubic from swinging between its few points.
    normal = matrix.mT @ matrix + 1e-2 * torch.eye(len(powers), dtype=torch.float64)
    weights = torch.linalg.solve(normal, matrix.mT @ points[:, 2]).tolist()

    def distance(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        y, z = y + torch.zeros_like(z), z + torch.zeros_like(y)
        p, q = y / 50.0, z / 50.0
        terms = list(zip(weights, powers, strict=True))
        middle = 50.0 * sum(w * p**i * q**j for w, (i, j) in terms)
        slope_y = sum(w * i * p ** (i - 1) * q**j for w, (i, j) in terms if i)
        slope_z = sum(w * j * p**i * q ** (j - 1) for w, (i, j) in terms if j)
        stretch = (1.0 + slope_y**2 + slope_z**2).sqrt()
        edge = _polygon_distance(y, z, polygon)
        across = (x - middle).abs() / stretch - 0.5 * thickness(y, z, (-edge).clamp(min=0.0))
        return smooth_max(across, edge, 6.0)

    ys, zs, xs = ([p[k] for p in surface] for k in range(3))
    low = (min(xs) - 25.0, min(ys) - 10.0, min(zs) - 20.0)
    return Shape(low, (max(xs) + 25.0, max(ys) + 10.0, max(zs) + 15.0), distance)


def plate(
    center: Point, radii: tuple[float, float], thickness: float, bend: float, turn: Point
) -> Shape:
    """An elliptic plate across x with half axes `radii` (y, z), bent and turned about its centre.

    bend in 1/mm: the middle surface is x = bend (y^2 + z^2).  turn: rad about x, y and z, in this
    order.
    """
    x, y, z = so3_exp(torch.diag(torch.tensor(turn, dtype=torch.float64)))
    columns = (z @ y @ x).mT.tolist()  # offsets along them are those of the plate's own axes
    reach = math.hypot(max(radii), abs(bend) * max(radii) ** 2) + thickness

    def distance(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        px, py, pz = x - center[0], y - center[1], z - center[2]
        u, v, w = (px * a + py * b + pz * c for a, b, c in columns)
        square = v**2 + w**2
        stretch = (1.0 + 4.0 * bend**2 * square).sqrt()
        across = (u - bend * square).abs() / stretch - 0.5 * thickness
        edge = (((v / radii[0]) ** 2 + (w / radii[1]) ** 2).sqrt() - 1.0) * min(radii)
        return smooth_max(across, edge, 6.0)

    return Shape(*grown(center, center, (reach, reach, reach)), distance)


def from_table(table: Sequence[tuple[float, float, float, float]], power: float) -> Shape:
    """A tube along z of superelliptic sections: rows (z, half width, half depth, centre y)."""
    heights = [row[0] for row in table]

    def column(z: Tensor, k: int) -> Tensor:
        values = torch.full_like(z, table[0][k])
        for before, after in pairwise(table):
            t = ((z - before[0]) / (after[0] - before[0])).clamp(0.0, 1.0)
            values = values + (after[k] - before[k]) * t * t * (3.0 - 2.0 * t)
        return values

    def distance(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        py = y - column(z, 3)
        section = (x / column(z, 1)).abs() ** power + (py / column(z, 2)).abs() ** power
        section = section.clamp(min=1e-6) ** (1.0 / power)
        return (section - 1.0) * (x**2 + py**2).sqrt() / section

    width, depth = (max(row[k] for row in table) + 20.0 for k in (1, 2))
    return Shape((-width, -depth, min(heights)), (width, depth, max(heights)), distance)


def smooth_min(a: Tensor, b: Tensor, width: float) -> Tensor:
    """The smaller of two distances, the seam rounded over `width` mm."""
    if width <= 0.0:
        return torch.minimum(a, b)
    blend = (width - (a - b).abs()).clamp(min=0.0)
    return torch.minimum(a, b) - blend * blend / (4.0 * width)


def smooth_max(a: Tensor, b: Tensor, width: float) -> Tensor:
    """The larger of two distances, the edge rounded over `width` mm."""
    return -smooth_min(-a, -b, width)


def _smooth_polygon(corners: Tensor, rounds: int = 3) -> Tensor:
    """Chaikin's corner cutting of a closed polygon [n, 2]."""
    for _ in range(rounds):
        after = corners.roll(-1, dims=0)
        cut = torch.stack([0.75 * corners + 0.25 * after, 0.25 * corners + 0.75 * after], dim=1)
        corners = cut.reshape(-1, 2)
    return corners


def _polygon_distance(y: Tensor, z: Tensor, polygon: Tensor) -> Tensor:
    """Signed distance to a closed polygon [n, 2] of (y, z)."""
    nearest = torch.full_like(y, float("inf"))
    inside = torch.zeros_like(y, dtype=torch.bool)
    ends = polygon.roll(-1, dims=0)
    for (ay, az), (by, bz) in zip(polygon.tolist(), ends.tolist(), strict=True):
        ey, ez, py, pz = by - ay, bz - az, y - ay, z - az
        t = ((py * ey + pz * ez) / (ey * ey + ez * ez)).clamp(0.0, 1.0)
        nearest = torch.minimum(nearest, (py - t * ey) ** 2 + (pz - t * ez) ** 2)
        if az != bz:
            inside = inside ^ (((az > z) != (bz > z)) & (py < ey * pz / ez))
    return torch.where(inside, -nearest.sqrt(), nearest.sqrt())


class Canvas:
    """A voxel grid about the world's origin with HU and labels, painted from back to front."""

    def __init__(self, field_mm: Point, spacing: Point) -> None:
        counts = [
            max(1, round(extent / pitch)) for extent, pitch in zip(field_mm, spacing, strict=True)
        ]
        self.axes = [
            (torch.arange(n, dtype=torch.float32) - 0.5 * (n - 1)) * pitch
            for n, pitch in zip(counts, spacing, strict=True)
        ]
        self.spacing = spacing
        self.origin = (self.axes[0][0].item(), self.axes[1][0].item(), self.axes[2][0].item())
        self.blur = math.prod(spacing) ** (1.0 / 3.0)  # width of the edges, for partial volume
        self.hu = torch.full(counts[::-1], -1000.0)
        self.labels = torch.zeros(counts[::-1], dtype=torch.int16)

    def region(self, low: Point, high: Point) -> Box:
        """Slices (z, y, x) of the voxels whose centres lie between the corners."""
        bounds = []
        for axis, pitch, first, last in zip(self.axes, self.spacing, low, high, strict=True):
            start = math.ceil((first - axis[0].item()) / pitch)
            stop = math.floor((last - axis[0].item()) / pitch) + 1
            bounds.append(slice(min(max(start, 0), len(axis)), min(max(stop, 0), len(axis))))
        return bounds[2], bounds[1], bounds[0]

    def whole(self) -> Box:
        """Slices of every voxel."""
        depth, height, width = self.hu.shape
        return slice(0, depth), slice(0, height), slice(0, width)

    def coordinates(self, box: Box) -> tuple[Tensor, Tensor, Tensor]:
        """World x [1, 1, W], y [1, H, 1], z [D, 1, 1] of a region's voxels."""
        x, y, z = (axis[part] for axis, part in zip(self.axes, box[::-1], strict=True))
        return x[None, None, :], y[None, :, None], z[:, None, None]

    def union(
        self, shapes: Sequence[Shape], place: Place = HERE, blend: float = 0.0
    ) -> tuple[Box, Tensor]:
        """Distance to the union of the shapes, in the smallest box of voxels that holds it."""
        boxes = [place.box(self, shape, 2.0 * self.blur + blend) for shape in shapes]
        depth, height, width = (
            slice(min(part.start for part in parts), max(part.stop for part in parts))
            for parts in zip(*boxes, strict=True)
        )
        whole = depth, height, width
        field = self.hu.new_full([part.stop - part.start for part in whole], 1e3)
        for shape, box in zip(shapes, boxes, strict=True):
            if any(b.start >= b.stop for b in box):
                continue  # outside the grid
            part = tuple(
                slice(b.start - w.start, b.stop - w.start) for b, w in zip(box, whole, strict=True)
            )
            field[part] = smooth_min(field[part], place.distance(self, shape, box), blend)
        return whole, field

    def carve(
        self, solid: tuple[Box, Tensor], holes: Sequence[Shape], place: Place = HERE
    ) -> tuple[Box, Tensor]:
        """A solid of `union` without the holes; its box is kept."""
        box, distance = solid
        for hole in holes:
            distance = torch.maximum(distance, -place.distance(self, hole, box))
        return box, distance

    def paint_bone(
        self,
        solid: tuple[Box, Tensor],
        label: int,
        cortex: float | Tensor,
        cortical: float,
        cancellous: Tensor,
    ) -> None:
        """A shell of `cortex` mm (a number, or a tensor of the box) around cancellous bone."""
        box, distance = solid
        self.paint(box, distance, cortical, label)
        self.paint(box, distance + cortex, cancellous, None)

    def paint(self, box: Box, distance: Tensor, hu: float | Tensor, label: int | None) -> None:
        """Paint where `distance` < 0; voxels at the surface mix in proportion to their coverage.

        hu: a number, or a tensor of the whole grid. label None leaves the labels as they are.
        """
        covered = (0.5 - distance / self.blur).clamp(0.0, 1.0)
        colour = hu[box] if isinstance(hu, Tensor) else hu
        below = self.hu[box]
        self.hu[box] = below + covered * (colour - below)
        if label is not None:
            labels = self.labels[box]
            self.labels[box] = torch.where(covered > 0.5, torch.full_like(labels, label), labels)

    def noise(self, seed: int, waves: int, shortest: float, longest: float) -> Tensor:
        """Smooth noise [D, H, W] of unit variance: plane waves of `shortest` to `longest` mm."""
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(waves, generator=generator, dtype=torch.float64)
        along = torch.randn(waves, 3, generator=generator, dtype=torch.float64)
        phase = 2 * math.pi * torch.rand(waves, generator=generator, dtype=torch.float64)
        length = shortest * (longest / shortest) ** uniform
        k = (2 * math.pi * along / along.norm(dim=-1, keepdim=True) / length[:, None]).float()
        x, y, z = self.axes
        rest = z[:, None, None] * k[:, 2] + y[:, None] * k[:, 1] + phase.float()  # [D, H, waves]
        first = x[:, None] * k[:, 0]  # [W, waves]
        # cos(a + b): as one matrix product it is a hundred times faster than wave by wave.
        left = torch.cat([rest.cos(), -rest.sin()], dim=-1)
        right = torch.cat([first.cos(), first.sin()], dim=-1)
        return math.sqrt(2.0 / waves) * (left @ right.mT)
