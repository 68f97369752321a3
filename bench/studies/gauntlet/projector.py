"""The gauntlet's camera and projector: rays jittered in pixels and depth through a turned grid.

A CT is interpolated once by cubic splines onto a turned grid with voxels of another size.
Every ray takes samples at equal steps from a depth of its own, materials are told apart sample by
sample, and their densities are added up. What a ray passes beyond a CT's first and last slice is
what that slice shows: the patient goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.ndimage import affine_transform
from torch import Tensor

from bench.studies.gauntlet.physics import tissue_and_mineral

VOXEL_MM = 1.7 * 0.9772  # an irrational share of no CT's voxels
TURN_RAD = (0.113, 0.071, 0.193)
STEP_MM = 2.09
OVERSAMPLING = 2  # rays per pixel and direction
COARSE = 4  # samples between two of which a deformation is taken for linear
CHUNK = 4096  # rays


@dataclass(frozen=True)
class Pinhole:
    """A camera as the detector has it: distances in mm, principal point (col, row) in pixels."""

    sdd: float
    size: tuple[int, int]
    pixel_mm: float
    principal: tuple[float, float]

    @staticmethod
    def centred(sdd: float, size: tuple[int, int], pixel_mm: float) -> Pinhole:
        """The principal point in the middle of the detector."""
        return Pinhole(sdd, size, pixel_mm, ((size[1] - 1) / 2, (size[0] - 1) / 2))

    def scaled(self, factor: float) -> Pinhole:
        """The same camera with all lengths multiplied."""
        return replace(self, sdd=self.sdd * factor, pixel_mm=self.pixel_mm * factor)

    def pixels(self, points: np.ndarray, world_to_camera: np.ndarray) -> np.ndarray:
        """(col, row) of world points [N, 3]."""
        seen = points @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
        focal = self.sdd / self.pixel_mm
        return focal * seen[:, :2] / seen[:, 2:] + np.array(self.principal)

    def rays(
        self, world_to_camera: np.ndarray, columns: np.ndarray, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Source [3] and unit directions [N, 3] in the world, through detector positions."""
        seen = np.stack(
            [
                (columns - self.principal[0]) * self.pixel_mm,
                (rows - self.principal[1]) * self.pixel_mm,
                np.full(columns.shape, self.sdd),
            ],
            -1,
        )
        seen /= np.linalg.norm(seen, axis=-1, keepdims=True)
        rotation, shift = world_to_camera[:3, :3], world_to_camera[:3, 3]
        return -rotation.T @ shift, seen @ rotation


def detector_positions(
    size: tuple[int, int], rng: np.random.Generator, distortion: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """(columns, rows), one ray at a random place in each of OVERSAMPLING^2 cells of every pixel.

    distortion: how far a pincushion moves the middle of the image's edge, as a share of half the
    image's width; the ray of a pixel is that of the place the distorted image shows there.
    """
    fine = [n * OVERSAMPLING for n in size]
    row, col = np.meshgrid(np.arange(fine[0]), np.arange(fine[1]), indexing="ij")
    rows = (row.ravel() + rng.random(row.size)) / OVERSAMPLING - 0.5
    cols = (col.ravel() + rng.random(row.size)) / OVERSAMPLING - 0.5
    if distortion:
        middle = ((size[1] - 1) / 2, (size[0] - 1) / 2)
        x, y = cols - middle[0], rows - middle[1]
        factor = 1.0 - distortion * (x * x + y * y) / (size[1] / 2) ** 2
        cols, rows = middle[0] + factor * x, middle[1] + factor * y
    return cols, rows


@dataclass(frozen=True, eq=False)
class Grid:
    """Hounsfield units [z, y, x] on a turned grid; world_to_index gives (x, y, z)."""

    hu: Tensor
    world_to_index: np.ndarray

    @staticmethod
    def of(hu: np.ndarray, index_to_world: np.ndarray, low: np.ndarray, high: np.ndarray) -> Grid:
        """A CT [z, y, x] with its affine (x, y, z) on the turned grid that covers a world box."""
        turn = rotation_matrix(np.array(TURN_RAD))
        corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
        local = (low + corners * (high - low)) @ turn
        first, last = local.min(0), local.max(0)
        shape = np.ceil((last - first) / VOXEL_MM).astype(int) + 1
        own = np.eye(4)
        own[:3, :3] = turn * VOXEL_MM
        own[:3, 3] = turn @ first
        to_ct = np.linalg.inv(index_to_world) @ own
        flip = np.ix_([2, 1, 0], [2, 1, 0])  # scipy counts (z, y, x)
        values = affine_transform(
            hu, to_ct[:3, :3][flip], to_ct[:3, 3][::-1], tuple(shape[::-1]), order=3, mode="nearest"
        )
        return Grid(torch.from_numpy(values.astype(np.float32)), np.linalg.inv(own))


Deformation = Callable[[Tensor], Tensor]
"""Where in the CT [N, 3] lies what the X-ray shows at world points [N, 3]."""


def area_densities(
    grid: Grid,
    source: np.ndarray,
    directions: np.ndarray,
    rng: np.random.Generator,
    deformation: Deformation | None = None,
) -> dict[str, np.ndarray]:
    """Area densities (g/cm^2, [N]) of soft tissue ("muscle") and bone mineral along rays."""
    to_index = torch.from_numpy(grid.world_to_index).float()
    counts = torch.tensor(grid.hu.shape[::-1]).float()
    inverse = grid.world_to_index
    start = inverse[:3, :3] @ source + inverse[:3, 3]
    along = directions @ inverse[:3, :3].T
    with np.errstate(divide="ignore"):
        faces = np.stack([-start / along, (np.array(grid.hu.shape[::-1]) - 1 - start) / along])
    near = np.maximum(faces.min(0).max(1), 0.0)
    far = faces.max(0).min(1)
    tissue, mineral = np.zeros(len(directions)), np.zeros(len(directions))
    phase = rng.random(len(directions))
    volume = grid.hu[None, None]
    for i in range(0, len(directions), CHUNK):
        part = slice(i, i + CHUNK)
        first, last = float(near[part].min()), float(far[part].max())
        if last <= first:
            continue
        count = math.ceil((last - first) / STEP_MM / COARSE) * COARSE + 1
        steps = first + STEP_MM * torch.arange(count)
        depth = steps[None] + STEP_MM * torch.from_numpy(phase[part, None]).float()
        ray = torch.from_numpy(directions[part]).float()
        points = torch.from_numpy(source).float() + depth[..., None] * ray[:, None]
        if deformation is not None:
            points += _moves(deformation, points[:, ::COARSE])
        index = points @ to_index[:3, :3].T + to_index[:3, 3]
        where = 2.0 * index / (counts - 1.0) - 1.0
        hu = torch.nn.functional.grid_sample(
            volume,
            where[None, None],
            align_corners=True,
            padding_mode="border",
        )[0, 0, 0]
        outside = (where.abs() > 1.0).any(-1)
        soft, bone = tissue_and_mineral(hu.masked_fill_(outside, -1000.0))
        tissue[part] = 0.1 * STEP_MM * soft.sum(-1).numpy()
        mineral[part] = 0.1 * STEP_MM * bone.sum(-1).numpy()
    return {"muscle": tissue, "bone mineral": mineral}


def _moves(deformation: Deformation, points: Tensor) -> Tensor:
    """How far points [rays, steps, 3] are moved, linear between them to [rays, all steps, 3]."""
    moves = (deformation(points.reshape(-1, 3)).reshape(points.shape) - points).movedim(1, 2)
    size = (points.shape[1] - 1) * COARSE + 1
    between = torch.nn.functional.interpolate(moves, size, mode="linear", align_corners=True)
    return between.movedim(2, 1)


def rotation_matrix(vector: np.ndarray) -> np.ndarray:
    """The rotation about a vector [3] by its length in radians (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    if angle == 0.0:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
