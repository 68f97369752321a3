"""A start from landmarks: world points, such as beads, whose pixels in the X-ray are known."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from drrkit.conversions import read_landmark_rows
from drrkit.files import FileWarning
from drrkit.geometry import Camera, check_floating, project_points, solve_pnp

__all__ = ["LandmarkPose", "Landmarks"]

COLUMNS = ("x", "y", "z", "row", "col")
HINT = ": add the columns row, col; in 3D Slicer, a description such as 120.5, 64 to each point"

# Points that determine a pose without a start; a sample of them is tried at a time.
_MINIMAL = 6

# Most samples tried; fewer where so many landmarks agree already that, to this probability, a
# sample of right ones has been among them.
_SAMPLES = 200
_SURE = 0.999


class LandmarkPose(NamedTuple):
    """world_to_camera [4, 4] float64, inliers [P] bool, and the inliers' rms error in pixels."""

    world_to_camera: Tensor
    inliers: Tensor
    rms_px: float


@dataclass(frozen=True, eq=False)
class Landmarks:
    """World points and where an X-ray shows them; some of the pairs may be wrong.

    Attributes:
        points: [P, 3] world mm, at least six, or four in a plane.
        pixels: [P, 2] (row, col), fractions allowed.
        tolerance_px: landmarks farther from their projection are outliers; None: 2 % of the
            detector's longer side, about 6 mm on usual detectors.
        seed: of the samples that are drawn where there are too many to try all.

    Raises:
        TypeError, ValueError: shapes that do not fit, numbers that are not finite.
    """

    points: Tensor
    pixels: Tensor
    tolerance_px: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, size in (("points", 3), ("pixels", 2)):
            value = getattr(self, name)
            check_floating(name, value, (size,))
            if value.dim() != 2:
                raise ValueError(f"{name}: expected shape [P, {size}], got {tuple(value.shape)}")
            if not bool(value.isfinite().all()):
                raise ValueError(f"{name}: expected finite numbers, got some that are not")
        if len(self.points) != len(self.pixels):
            raise ValueError(
                f"pixels: expected {len(self.points)}, one a point, got {len(self.pixels)}"
            )
        tolerance = self.tolerance_px
        if tolerance is not None and not 0 < tolerance < math.inf:
            raise ValueError(f"tolerance_px: expected a positive number, got {tolerance!r}")

    @staticmethod
    def read(path: str | Path, **options: Any) -> Landmarks:
        """Landmarks from a table with the columns x, y, z (world mm), row, col, or from JSON.

        Columns are parted by commas, semicolons or tabs; JSON is a list of objects with these keys.
        Further columns and keys, such as names, are ignored; a row whose pixel is empty (or null)
        is a landmark that is not visible. 3D Slicer's .fcsv and .mrk.json have no pixels: write
        them as "row, col" into the descriptions of the points. Landmarks that are there twice are
        used once, with a FileWarning; names of several are one, too.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is neither, lacks a column, has something else than numbers, or no
                landmark that is visible.
        """
        path = Path(path)
        found: dict[tuple[float, ...], str] = {}
        odd: list[str] = []
        for number, row in enumerate(read_landmark_rows(path), 1):
            missing = [name for name in COLUMNS if name not in row]
            if missing:
                raise ValueError(
                    f"{path}: expected {', '.join(COLUMNS)} in every landmark, got no "
                    f"{', '.join(missing)} in number {number}"
                    + (HINT if missing == list(COLUMNS[3:]) else "")
                )
            words = [row[name] for name in COLUMNS]
            if any(word is None or str(word).strip() == "" for word in words[3:]):
                continue
            try:
                landmark = tuple(float(word) for word in words)
            except (TypeError, ValueError, OverflowError):
                landmark = (math.nan,)
            if not all(map(math.isfinite, landmark)):
                raise ValueError(f"{path}: expected numbers in landmark {number}, got {words}")
            if landmark in found:
                odd.append(f"landmark {number} is there twice: one is used")
                continue
            name = str(row.get("name") or row.get("label") or "").strip()
            if name and name in found.values():
                odd.append(f"the name {name!r} stands for several landmarks: all of them are used")
            found[landmark] = name
        for text in dict.fromkeys(odd):
            warnings.warn(f"{path}: {text}", FileWarning, stacklevel=2)
        if not found:
            raise ValueError(f"{path}: expected landmarks with their pixels, got none")
        table = torch.tensor(list(found), dtype=torch.float64)
        return Landmarks(table[:, :3], table[:, 3:], **options)

    def pose(self, camera: Camera) -> Tensor:
        """world_to_camera [4, 4] of a camera, see `fit`."""
        return self.fit(camera).world_to_camera

    def fit(self, camera: Camera) -> LandmarkPose:
        """The pose that most landmarks agree with, and which those are.

        RANSAC (Fischler and Bolles 1981): poses from samples of six landmarks, of all such samples
        where they are few; the sample with the smallest sum of squared errors, each cut off at the
        tolerance (MSAC, Torr and Zisserman 2000), tells the inliers, and all of them the pose.
        Landmarks in a plane, and fewer than seven, are used as they are.

        Raises:
            ValueError: as `solve_pnp`; no pose that six landmarks agree with.
        """
        points, pixels = (part.detach().cpu().double() for part in (self.points, self.pixels))
        limit = self.tolerance_px or 0.02 * max(camera.size)
        every = torch.ones(len(points), dtype=torch.bool)
        if len(points) <= _MINIMAL or _flat(points):
            return self._fitted(camera, points, pixels, every)
        best, lowest, enough = None, math.inf, _SAMPLES
        for number, sample in enumerate(_samples(len(points), self.seed)):
            if number >= enough:
                break
            try:
                pose = solve_pnp(camera, points[sample], pixels[sample])
            except ValueError:  # a degenerate sample
                continue
            error = _errors(camera, pose, points, pixels)
            cost = float(error.clamp_max(limit).square().sum())
            if cost < lowest:
                best, lowest = error <= limit, cost
                enough = _enough(int(best.sum()), len(points))
        if best is None or int(best.sum()) < _MINIMAL:
            raise ValueError(
                f"landmarks: expected {_MINIMAL} that agree within {limit:g} px, found "
                f"{0 if best is None else int(best.sum())} of {len(points)}"
            )
        return self._fitted(camera, points, pixels, best)

    def _fitted(
        self, camera: Camera, points: Tensor, pixels: Tensor, inliers: Tensor
    ) -> LandmarkPose:
        pose = solve_pnp(camera, points[inliers], pixels[inliers])
        error = _errors(camera, pose, points, pixels)[inliers]
        rms = float(error.square().mean().sqrt())
        return LandmarkPose(pose.to(self.points.device), inliers, rms)


def _errors(camera: Camera, pose: Tensor, points: Tensor, pixels: Tensor) -> Tensor:
    """Distances [P] in pixels between landmarks and their projections; inf behind the source."""
    single = Camera(camera.K.detach().cpu().double(), camera.size, float(camera.sdd))
    error = (project_points(single, pose.cpu(), points)[0] - pixels).norm(dim=-1)
    return torch.nan_to_num(error, nan=math.inf)


def _flat(points: Tensor) -> bool:
    extent = torch.linalg.svdvals(points - points.mean(0))
    return bool(extent[-1] < 1e-3 * extent[0])


def _samples(count: int, seed: int) -> list[list[int]]:
    """Sets of indices: all of them where they are few, otherwise drawn."""
    if math.comb(count, _MINIMAL) <= _SAMPLES:
        return [list(sample) for sample in itertools.combinations(range(count), _MINIMAL)]
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(count, generator=generator)[:_MINIMAL] for _ in range(_SAMPLES)]
    return [sample.tolist() for sample in drawn]


def _enough(inliers: int, count: int) -> float:
    """How many samples are to be tried when so many landmarks are right."""
    clean = math.comb(inliers, _MINIMAL) / math.comb(count, _MINIMAL)
    if clean in (0.0, 1.0):
        return math.inf if clean == 0.0 else 1
    return math.ceil(math.log(1.0 - _SURE) / math.log(1.0 - clean))
