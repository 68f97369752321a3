"""Convex solids and the exact length of every ray inside them: tools, tables, arms, gas, contrast.

All lengths in mm. A chord is that of the ray beyond its source, as far as it goes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Vector = np.ndarray


@dataclass(frozen=True, eq=False)
class Ellipsoid:
    """Centre [3], axes [3, 3] (rows: unit vectors), radii [3]."""

    center: Vector
    axes: Vector
    radii: Vector

    def chords(self, source: Vector, directions: Vector) -> Vector:
        """Length [N] of rays from the source along unit vectors [N, 3] inside the solid."""
        start = (self.axes @ (source - self.center)) / self.radii
        along = (directions @ self.axes.T) / self.radii
        return _length(*_quadratic(along, start))


@dataclass(frozen=True, eq=False)
class Cylinder:
    """A round rod with flat ends from one point [3] to another."""

    start: Vector
    end: Vector
    radius: float

    def chords(self, source: Vector, directions: Vector) -> Vector:
        """As Ellipsoid.chords."""
        span = self.end - self.start
        height = np.linalg.norm(span)
        axis = span / height
        offset = source - self.start
        flat = (directions - np.outer(directions @ axis, axis)) / self.radius
        side = _quadratic(flat, (offset - (offset @ axis) * axis) / self.radius)
        ends = _slab(offset @ axis, directions @ axis, 0.0, float(height))
        return _length(np.maximum(side[0], ends[0]), np.minimum(side[1], ends[1]))


@dataclass(frozen=True, eq=False)
class Box:
    """Centre [3], axes [3, 3] (rows: unit vectors), half edges [3]."""

    center: Vector
    axes: Vector
    half: Vector

    def chords(self, source: Vector, directions: Vector) -> Vector:
        """As Ellipsoid.chords."""
        start, along = self.axes @ (source - self.center), directions @ self.axes.T
        slabs = [_slab(start[i], along[:, i], -self.half[i], self.half[i]) for i in range(3)]
        near = np.maximum.reduce([slab[0] for slab in slabs])
        return _length(near, np.minimum.reduce([slab[1] for slab in slabs]))


Solid = Ellipsoid | Cylinder | Box


@dataclass(frozen=True, eq=False)
class Piece:
    """A solid of one material (of MASS_ATTENUATION); a negative density (g/cm^3) takes it away."""

    solid: Solid
    material: str
    density: float


def add_areas(
    areas: dict[str, np.ndarray], pieces: list[Piece], source: Vector, directions: Vector
) -> dict[str, np.ndarray]:
    """Area densities (g/cm^2, [N] by material) with pieces added; none falls below zero."""
    total = dict(areas)
    for piece in pieces:
        area = 0.1 * piece.density * piece.solid.chords(source, directions)
        total[piece.material] = total.get(piece.material, 0.0) + area
    return {material: np.maximum(area, 0.0) for material, area in total.items()}


def _quadratic(along: Vector, start: Vector) -> tuple[Vector, Vector]:
    """Where |start + t along| = 1; an empty interval where it never is."""
    a = np.maximum((along * along).sum(1), 1e-300)
    b = along @ start
    root = b * b - a * (start @ start - 1.0)
    half = np.sqrt(np.maximum(root, 0.0))
    empty = root <= 0.0
    return np.where(empty, 1.0, (-b - half) / a), np.where(empty, 0.0, (-b + half) / a)


def _slab(start: float, along: Vector, low: float, high: float) -> tuple[Vector, Vector]:
    """Where low <= start + t along <= high."""
    steady = np.abs(along) < 1e-12
    safe = np.where(steady, 1.0, along)
    a, b = (low - start) / safe, (high - start) / safe
    near, far = np.minimum(a, b), np.maximum(a, b)
    inside = low <= start <= high
    return (
        np.where(steady, -np.inf if inside else 1.0, near),
        np.where(steady, np.inf if inside else 0.0, far),
    )


def _length(near: Vector, far: Vector) -> Vector:
    return np.maximum(far - np.maximum(near, 0.0), 0.0)
