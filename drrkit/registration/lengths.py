"""What lengths are measured against: the object in the image, its pixels, its visible motion.

A registration of a finger takes the steps of one of a pelvis, in proportion. Lengths in a Stage are
therefore shares of the object's extent unless the stage says `mm=True`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from drrkit.geometry import Camera
from drrkit.volume import Volume

__all__ = [
    "DENSE",
    "Share",
    "check_spread",
    "extent_mm",
    "field_diagonal",
    "length_in_mm",
    "mean_depth",
    "motion_units",
    "object_diagonal",
    "object_faces",
    "pixel_at",
    "positive_lengths",
    "spread_in_mm",
    "whole_number",
]

# Voxels above this share of the largest attenuation belong to the object.
DENSE = 0.05

# Depths are at least this, mm: a pose may be behind the source.
_NEAREST = 1e-3


class Share(float):
    """A length that is a share of the object's extent even where others are in mm."""

    def __repr__(self) -> str:
        return f"Share({float(self):.4g})"


def length_in_mm(value: float, extent: float, mm: bool) -> float:
    """A setting in mm: a share of the extent (mm), or in mm already."""
    return float(value) if mm and not isinstance(value, Share) else float(value) * extent


def spread_in_mm(spread: tuple[float, ...], extent: float, mm: bool) -> tuple[float, ...]:
    """(rad, length) or three of each, the lengths in mm."""
    half = len(spread) // 2
    lengths = [length_in_mm(value, extent, mm) for value in spread[half:]]
    return (*spread[:half], *lengths)


def extent_mm(scene: Any, camera: Camera, depth: float) -> float:
    """Size in mm of what the image shows of a scene at `depth` mm from the source.

    The smaller of two diagonals: of the field of view at that depth, and of the box of all voxels
    above 5 % of the largest attenuation. A scene that is no Volume supplies the second one as
    `extent_mm`, where it knows it; of several bodies it is the largest.
    """
    return min(field_diagonal(camera, depth), object_diagonal(scene))


def field_diagonal(camera: Camera, depth: float) -> float:
    """Of the field of view at a distance from the source, mm."""
    return pixel_at(camera, depth) * math.hypot(*camera.size)


def object_diagonal(scene: Any) -> float:
    """Of the box of a scene's dense voxels, mm; infinite where nothing is known about it."""
    bodies = getattr(scene, "bodies", (scene,))
    found = []
    for one in bodies:
        if isinstance(one, Volume):
            box = _dense_box(one)
            sides = (
                spacing * (high - low)
                for spacing, (low, high) in zip(one.spacing, box, strict=True)
            )
            found.append(math.hypot(*sides))
        else:
            found.append(getattr(one, "extent_mm", math.inf))
    return max(found)


def object_faces(scene: Any) -> list[Tensor | None]:
    """Of every body the centres [6, 3] (world mm) of the faces of its dense voxels' box.

    None where nothing is known about it.
    """
    bodies = getattr(scene, "bodies", (scene,))
    return [_face_centres(one) if isinstance(one, Volume) else None for one in bodies]


def _face_centres(volume: Volume) -> Tensor | None:
    box = torch.tensor(_dense_box(volume), dtype=torch.float64) - 0.5  # [3, 2]
    if not bool(box.isfinite().all()):
        return None
    middle = box.mean(1).expand(6, 3).clone()
    for axis in range(3):
        middle[2 * axis : 2 * axis + 2, axis] = box[axis]
    return volume.index_to_world(middle)


def _dense_box(volume: Volume) -> list[tuple[float, float]]:
    """First index of dense voxels and the one behind the last, along x, y, z; or infinite."""
    values = volume.values.detach()
    while values.dim() > 3:
        values = values.amax(0)
    filled = values > DENSE * values.max()
    box = []
    for axis in (2, 1, 0):
        others = [other for other in range(3) if other != axis]
        places = filled.amax(others).nonzero()
        if len(places) == 0:
            return [(-math.inf, math.inf)] * 3
        box.append((float(places[0]), float(places[-1]) + 1.0))
    return box


def pixel_at(camera: Camera, depth: float) -> float:
    """Width in mm of a pixel's ray at a distance from the source, the mean of rows and columns."""
    pitch = sum(float(torch.as_tensor(p).mean()) for p in camera.pixel_spacing) / 2
    if camera.beam == "parallel":
        return pitch
    return pitch * depth / float(torch.as_tensor(camera.sdd).mean())


def motion_units(camera: Camera, depth: float, bodies: int = 1) -> Tensor:
    """How much of each component of xi moves the visible patient by about one mm.

    A rotation moves a point by angle times distance, so its unit is one mm over a quarter of the
    field of view's diagonal at the patient. A change of depth moves a point at that distance by the
    change of magnification, depth over distance to the source times as much; its unit is the
    geometric mean of that and one mm, a compromise between reach and stability.

    Args:
        camera: gives the field of view.
        depth: of the patient, mm from the source.
        bodies: how many of them have poses of their own.

    Returns:
        [6 bodies] float64: for each three times rad, then x, y, z in mm.
    """
    lever = 0.25 * field_diagonal(camera, depth)
    along = math.sqrt(max(depth / lever, 1.0))
    one = torch.tensor([1 / lever] * 3 + [1.0, 1.0, along], dtype=torch.float64)
    return one.repeat(bodies)


def mean_depth(world_to_camera: Tensor, center: Tensor) -> float:
    """Mean camera z of the centres under poses [K, 4, 4] or [K, n, 4, 4]; positive."""
    z = (world_to_camera[..., 2, :3] * center).sum(-1) + world_to_camera[..., 2, 3]
    return float(z.mean().clamp_min(_NEAREST))


def positive_lengths(settings: Any, names: Iterable[str]) -> None:
    """Raises ValueError where one of these settings is no positive length."""
    for name in names:
        value = getattr(settings, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and 0 < value < math.inf):
            raise ValueError(f"{name}: expected a positive length, got {value!r}")


def check_spread(name: str, spread: Any, zero: bool = False) -> None:
    """Raises ValueError where it is not (rad, length) or three of each, positive or, if so, 0."""
    least = 0.0 if zero else math.ulp(0.0)
    if (
        not isinstance(spread, (tuple, list))
        or len(spread) not in (2, 6)
        or not all(least <= value < math.inf for value in spread)
    ):
        wanted = ">= 0" if zero else "positive"
        raise ValueError(
            f"{name}: expected (rad, length) or three of each, all {wanted}, got {spread!r}"
        )


def whole_number(settings: Any, name: str, least: int = 1) -> None:
    """Raises ValueError where a setting is no integer of at least this."""
    value = getattr(settings, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        wanted = "a positive integer" if least == 1 else f"an integer >= {least}"
        raise ValueError(f"{name}: expected {wanted}, got {value!r}")
