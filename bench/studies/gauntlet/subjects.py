"""Who is X-rayed: two CTs, cut to three subjects, and three random phantoms; their joints.

Places are world mm (LPS), found by looking at slices of the CTs: a femoral head's centre is known
to about 3 mm.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import drrkit
from bench.studies.gauntlet.projector import Grid, rotation_matrix

SEEDS = {"develop": 0, "choose": 1, "report": 2}
"""Sets of cases that share no draw and no phantom."""

BEYOND_MM = 80.0  # how far the patient goes on beyond the first and last slice


@dataclass(frozen=True)
class Place:
    """A CT's part: file, slices of the moving volume (z, mm), what the view is centred on."""

    file: str
    moving: tuple[float, float]
    focus: tuple[float, float, float]


PLACES = {
    "pelvis": Place("pelvis_2mm.nii.gz", (1055.0, 1415.0), (-6.0, 30.0, 1190.0)),
    "abdomen": Place("pelvis_2mm.nii.gz", (1175.0, 1535.0), (-8.0, 20.0, 1380.0)),
    "chest": Place("chest_2mm.nii.gz", (-267.0, 38.0), (-4.0, -150.0, -112.0)),
}
PHANTOMS = ("random_pelvis", "random_spine", "random_skull")
PHANTOM_MM = 320.0  # edge of a phantom's moving volume, a cube
PHANTOM_SPACING = 2.0
PHANTOM_XRAY_SPACING = 1.87

Point = tuple[float, float, float]
Capsule = tuple[Point, Point, float]

JOINTS: dict[str, tuple[tuple[str, Point, tuple[Capsule, ...]], ...]] = {
    "pelvis": (
        (
            "right femur",
            (-86.0, 10.0, 1110.0),
            (
                ((-86.0, 10.0, 1110.0), (-86.0, 10.0, 1110.0), 25.0),
                ((-86.0, 10.0, 1110.0), (-120.0, 6.0, 1082.0), 20.0),
                ((-132.0, 12.0, 1098.0), (-120.0, 6.0, 1082.0), 16.0),
                ((-120.0, 6.0, 1082.0), (-122.0, 4.0, 980.0), 26.0),
            ),
        ),
        (
            "left femur",
            (83.0, 31.0, 1118.0),
            (
                ((83.0, 31.0, 1118.0), (83.0, 31.0, 1118.0), 25.0),
                ((83.0, 31.0, 1118.0), (117.0, 20.0, 1085.0), 20.0),
                ((130.0, 38.0, 1095.0), (117.0, 20.0, 1085.0), 18.0),
                ((117.0, 20.0, 1085.0), (120.0, 10.0, 980.0), 26.0),
            ),
        ),
    ),
    "chest": (
        (
            "right scapula",
            (-118.0, -95.0, 22.0),
            (
                ((-118.0, -95.0, 22.0), (-105.0, -72.0, 8.0), 20.0),
                ((-118.0, -95.0, 22.0), (-150.0, -122.0, -60.0), 20.0),
                ((-150.0, -122.0, -60.0), (-152.0, -120.0, -108.0), 16.0),
                ((-118.0, -95.0, 22.0), (-165.0, -112.0, 70.0), 30.0),
            ),
        ),
        (
            "left scapula",
            (112.0, -95.0, 22.0),
            (
                ((112.0, -95.0, 22.0), (100.0, -72.0, 8.0), 20.0),
                ((112.0, -95.0, 22.0), (140.0, -128.0, -50.0), 20.0),
                ((140.0, -128.0, -50.0), (152.0, -128.0, -105.0), 16.0),
                ((112.0, -95.0, 22.0), (150.0, -112.0, 70.0), 30.0),
            ),
        ),
    ),
}
"""What turns, about which centre, and capsules (two ends, radius) that hold it."""

VERTEBRAE: dict[str, dict[str, tuple[Point, Point]]] = {
    "pelvis": {
        "L5": ((-62.0, 20.0, 1204.0), (34.0, 125.0, 1243.0)),
        "L4": ((-62.0, 8.0, 1238.0), (34.0, 125.0, 1275.0)),
        "L3": ((-62.0, 8.0, 1268.0), (34.0, 120.0, 1307.0)),
        "L2": ((-62.0, 12.0, 1299.0), (34.0, 118.0, 1338.0)),
        "L1": ((-62.0, 20.0, 1330.0), (34.0, 118.0, 1368.0)),
    }
}
"""Boxes (low, high) that hold a vertebra's body and arch."""

SPINE_BENDS = {"pelvis": ((-16.0, 60.0, 1238.0), 1238.0, 1330.0)}
"""Centre of the bend, z where it begins and where the upper part is turned by all of it."""

BREATHING = {"chest": (-128.0, -270.0), "abdomen": (25.0, -190.0)}
"""y (mm) up to which the patient stays, and where the front moves by the whole stroke."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A patient: what the X-ray sees, what the user has, and where errors are measured.

    Attributes:
        grid: for the X-ray, see projector.Grid.
        moving: the user's CT, HU.
        points: [P, 3] bone points of the moving CT, world mm.
        focus: [3] world mm, what views are centred on.
        low, high: [3] the box of the moving CT's body.
    """

    name: str
    grid: Grid
    moving: drrkit.Volume
    points: np.ndarray
    focus: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def kind(self) -> str:
        """The name without a phantom's seed."""
        return self.name.rstrip("0123456789-")

    @property
    def back(self) -> float:
        """y (mm) of the patient's back, where the table begins: 99 % of all tissue is before it."""
        tissue = (self.moving.values > -300.0).float().mean((0, 2)).cumsum(0)
        row = int((tissue < 0.99 * tissue[-1]).sum())
        return float(self.moving.origin[1] + row * self.moving.spacing[1])

    @property
    def center(self) -> np.ndarray:
        """Centre of the moving volume, world mm."""
        return drrkit.volume_center(self.moving).double().numpy()


def data_folder() -> Path:
    """The folder DRRKIT_DATA, or an error that says what it must hold."""
    files = sorted({place.file for place in PLACES.values()})
    folder = Path(os.environ.get("DRRKIT_DATA", ""))
    if not all((folder / file).is_file() for file in files):
        raise FileNotFoundError(
            f"DRRKIT_DATA: expected a folder with {' and '.join(files)}, got {str(folder)!r}"
        )
    return folder


@lru_cache(maxsize=8)
def subject(name: str, cache: Path) -> Subject:
    """A subject by name: one of PLACES, or a phantom's kind with a seed, as "random_spine-3"."""
    whole, moving, focus = _volumes(name)
    low, high = _box(moving)
    first, last = low.copy(), high.copy()
    first[2], last[2] = low[2] - BEYOND_MM, high[2] + BEYOND_MM
    points_file, grid_file = cache / f"{name}.points.npy", cache / f"{name}.grid.npz"
    if not points_file.exists():
        _write(points_file, lambda file: np.save(file, drrkit.metrics.bone_points(moving).numpy()))
    if not grid_file.exists():
        hu = whole.values.squeeze().numpy()
        grid = Grid.of(hu, whole.affine.double().numpy(), first, last)
        stored = grid.hu.round().clamp(-1024, 3071).to(torch.int16).numpy()
        _write(
            grid_file,
            lambda file: np.savez(file, hu=stored, world_to_index=grid.world_to_index),
        )
    with np.load(grid_file) as stored:
        hu = torch.from_numpy(stored["hu"].astype(np.float32))
        grid = Grid(hu, stored["world_to_index"])
    points = np.load(points_file)
    return Subject(name, grid, moving, points, focus, low, high)


def names_of(kinds: Sequence[str], seeds: str) -> list[str]:
    """Subjects of these kinds in a set of seeds: CTs are the same in all, phantoms differ."""
    return [kind if kind in PLACES else f"{kind}-{100 + SEEDS[seeds]}" for kind in kinds]


def _volumes(name: str) -> tuple[drrkit.Volume, drrkit.Volume, np.ndarray]:
    """What is X-rayed, what is moved, what views are centred on."""
    if name in PLACES:
        place = PLACES[name]
        whole = drrkit.read_volume(str(data_folder() / place.file))
        return whole, slab(whole, *place.moving), np.array(place.focus)
    kind, seed = name.removeprefix("random_").split("-")
    moving = phantom(kind, int(seed), PHANTOM_MM, PHANTOM_SPACING)
    whole = phantom(kind, int(seed), PHANTOM_MM + BEYOND_MM, PHANTOM_XRAY_SPACING)
    return whole, moving, np.zeros(3)


def phantom(kind: str, seed: int, edge: float, spacing: float) -> drrkit.Volume:
    """A random anatomy in a cube of this edge (mm)."""
    shape = round(edge / spacing)
    return drrkit.phantoms.random_anatomy(kind, seed, shape=shape, spacing=spacing)


def slab(volume: drrkit.Volume, low: float, high: float) -> drrkit.Volume:
    """The slices whose centres lie between two z (mm) of a volume with axes along the world's."""
    return cut(volume, 2, low, high)


def cut(volume: drrkit.Volume, axis: int, low: float, high: float) -> drrkit.Volume:
    """The voxels whose centres lie between two places along x, y or z (0, 1, 2)."""
    shape = volume.shape_xyz
    start, stop = [0, 0, 0], list(shape)
    origin, spacing = volume.origin[axis], volume.spacing[axis]
    start[axis] = int(np.clip(np.ceil((low - origin) / spacing - 1e-6), 0, shape[axis] - 2))
    stop[axis] = int(np.clip(np.floor((high - origin) / spacing + 1e-6) + 1, 2, shape[axis]))
    return volume.crop(start, stop)


def _box(volume: drrkit.Volume) -> tuple[np.ndarray, np.ndarray]:
    """World box of the voxel centres."""
    low = np.array(volume.origin)
    return low, low + np.array(volume.spacing) * (np.array(volume.shape_xyz) - 1)


def _write(path: Path, save) -> None:
    """A file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with draft.open("wb") as file:
        save(file)
    draft.replace(path)


@dataclass(frozen=True, eq=False)
class Turn:
    """A bone that turns about a joint: pulls points back to the CT.

    What lies in the turned capsules comes from the capsules, rigidly; around them the angle falls
    to zero within 3 mm and 0.4 of the distance from the joint, which keeps the map one-to-one for
    angles below 15 degrees.
    """

    center: Tensor
    axis: Tensor
    angle: float
    capsules: tuple[Capsule, ...]

    def __call__(self, points: Tensor) -> Tensor:
        """[N, 3] world points of the X-ray, to where the CT has them."""
        offset = points - self.center
        reach = offset.norm(dim=-1)
        near = reach < 220.0
        offset, reach = offset[near], reach[near]
        turn = rotation_matrix(-self.angle * self.axis.double().numpy())
        back = offset @ torch.from_numpy(turn.T).float()
        gap = torch.full((len(offset),), float("inf"))
        for first, second, radius in self.capsules:
            a = torch.tensor(first) - self.center
            span = torch.tensor(second) - self.center - a
            length2 = float(span @ span)
            relative = back - a
            t = (relative @ span / length2).clamp(0.0, 1.0) if length2 > 0 else 0.0 * back[:, 0]
            gap = torch.minimum(gap, (relative - t[:, None] * span).norm(dim=-1) - radius)
        weight = 1.0 - smoothstep(gap / (3.0 + 0.4 * reach))
        moved = points.clone()
        moved[near] = self.center + _rotated(offset, self.axis, -self.angle * weight)
        return moved


@dataclass(frozen=True, eq=False)
class Bend:
    """The spine above z0 turns about a centre, by the whole angle from z1 on."""

    center: Tensor
    axis: Tensor
    angle: float
    z0: float
    z1: float

    def __call__(self, points: Tensor) -> Tensor:
        """As Turn.__call__."""
        weight = smoothstep((points[:, 2] - self.z0) / (self.z1 - self.z0))
        return self.center + _rotated(points - self.center, self.axis, -self.angle * weight)


@dataclass(frozen=True, eq=False)
class Breath:
    """The front of the trunk moves by `stroke` [3] mm, what lies behind `still` (y) stays."""

    still: float
    front: float
    stroke: Tensor

    def __call__(self, points: Tensor) -> Tensor:
        """As Turn.__call__."""
        weight = smoothstep((points[:, 1] - self.still) / (self.front - self.still))
        return points - weight[:, None] * self.stroke


@dataclass(frozen=True, eq=False)
class Chain:
    """Several deformations, one after the other."""

    parts: tuple

    def __call__(self, points: Tensor) -> Tensor:
        """As Turn.__call__."""
        for part in self.parts:
            points = part(points)
        return points


def smoothstep(x: Tensor) -> Tensor:
    """0 below 0, 1 above 1, 3 x^2 - 2 x^3 between."""
    x = x.clamp(0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)


def _rotated(offset: Tensor, axis: Tensor, angle: Tensor) -> Tensor:
    """Vectors [N, 3] turned about one axis by angles [N] (Rodrigues)."""
    sine, cosine = angle.sin()[:, None], angle.cos()[:, None]
    cross = torch.linalg.cross(axis.expand_as(offset), offset)
    return cosine * offset + sine * cross + (1 - cosine) * (offset @ axis)[:, None] * axis
