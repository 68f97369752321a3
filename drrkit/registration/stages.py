"""Stages: what a registration minimises, at which resolution, from where, with which optimiser."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from drrkit.registration.lengths import (
    Share,
    check_spread,
    length_in_mm,
    positive_lengths,
    spread_in_mm,
    whole_number,
)
from drrkit.registration.optimisers import Descent, Optimiser
from drrkit.registration.result import TRUSTED
from drrkit.registration.similarities import SIMILARITIES, Similarity

__all__ = ["Search", "Stage"]


_DESCENT = Descent()


@dataclass(frozen=True)
class Stage:
    """One stage of a coarse-to-fine pose optimisation.

    Lengths are shares of the object's extent in the image (see `extent_mm`), or mm where `mm` is
    True; those of motion are seen at the patient: a turn counts by what it moves in the field of
    view, a change of depth by the magnification it causes.

    Attributes:
        similarity: a name in SIMILARITIES, or a callable (moving, fixed, mask) -> [B] to minimise.
        pixel: width of the stage's pixels at the patient. The next whole multiple of the X-ray's
            own is taken, 1 at least, and not so large that fewer than 24 rows or columns remain.
            None: as `downsample` says.
        optimiser: Levenberg, Descent, Directions, CmaEs, TrustRegion or Regressor with what it
            alone understands.
        downsample: instead of pixel: average downsample x downsample of the X-ray's pixels; the
            volume is rendered onto these larger pixels.
        supersample: rays per larger pixel along each side, averaged.
        blur: standard deviation, in these larger pixels, of a Gaussian blur of both images before
            they are compared; it takes noise out of gradients.
        voxel: the volume is resampled to voxels of this size where its own are smaller; None for
            its own. Voxels about as large as pixels at the patient keep fine structure from
            aliasing, and render faster.
        iterations: most steps of the optimiser.
        starts: optimisations from the neighbourhood of every pose; the best one goes on. The first
            starts at the pose itself, the others at random turns and shifts from it.
        spread: the largest turn (rad) and shift (a length) of those; six numbers bound the six
            components of xi one by one.
        halve_every: successive halving: every so many steps the worse half of the poses that still
            move comes to rest, until `keep` of them, or one, are left; 0 for never.
        keep: only so many of the poses go on to the next stage: the best that differ, the best one
            first. None: all, in their order.
        apart: poses closer than this do not differ.
        mm: lengths are mm, and not shares of the object's extent.
    """

    similarity: str | Similarity = "gradient_ncc"
    pixel: float | None = None
    optimiser: Optimiser = _DESCENT
    downsample: int = 1
    supersample: int = 1
    blur: float = 0.0
    voxel: float | None = None
    iterations: int = 100
    starts: int = 1
    spread: tuple[float, ...] = (0.3, Share(2 / 15))
    halve_every: int = 0
    keep: int | None = None
    apart: float = Share(1 / 300)
    mm: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.similarity, str):
            if self.similarity not in SIMILARITIES:
                names = ", ".join(repr(name) for name in SIMILARITIES)
                raise ValueError(
                    f"similarity: expected a callable or one of {names}, got {self.similarity!r}"
                )
        elif not callable(self.similarity):
            raise TypeError(
                f"similarity: expected a name or a callable, got {type(self.similarity).__name__}"
            )
        if not isinstance(self.optimiser, Optimiser):
            raise TypeError(
                "optimiser: expected Levenberg(...) or another of drrkit.registration's, got "
                f"{self.optimiser!r}"
            )
        for name in ("downsample", "supersample", "iterations", "starts"):
            whole_number(self, name)
        whole_number(self, "halve_every", 0)
        if self.keep is not None:
            whole_number(self, "keep")
        given = [name for name in ("pixel", "voxel") if getattr(self, name) is not None]
        positive_lengths(self, ("apart", *given))
        if not 0 <= self.blur < math.inf:
            raise ValueError(f"blur: expected a number >= 0, got {self.blur!r}")
        check_spread("spread", self.spread, zero=True)

    @property
    def measure(self) -> Similarity:
        """The similarity as a callable."""
        if isinstance(self.similarity, str):
            return SIMILARITIES[self.similarity]
        return self.similarity

    @property
    def name(self) -> str:
        """The similarity's name, for histories and progress bars."""
        if isinstance(self.similarity, str):
            return self.similarity
        return getattr(self.similarity, "__name__", type(self.similarity).__name__)

    def in_mm(self, extent: float) -> Stage:
        """The same stage with all lengths in mm, for an object of this extent in mm."""
        return replace(
            self,
            **_lengths_in_mm(self, ("pixel", "voxel", "apart"), extent),
            optimiser=self.optimiser.in_mm(extent, self.mm),
            spread=spread_in_mm(self.spread, extent, self.mm),
            mm=True,
        )


@dataclass(frozen=True)
class Search:
    """A stage that finds candidate poses for the next stage instead of improving given ones.

    Lengths are as in Stage. The range of turns and depths is about every start pose given; where
    the volume's centre is across the beam is read from the X-ray.

    Attributes:
        rotation: the largest turn from the start, rad; pi and more searches all turns.
        depth: the largest change of the distance of the volume's centre from the source.
        shift: the largest distance of the volume's centre from the beam's axis across and along the
            rows; the centre may then be outside the X-ray. None: anywhere inside the X-ray.
        between: nearest and farthest distance of the centre from the source that a search takes
            for possible, as shares of the source-to-detector distance.
        step: angle between neighbouring directions and rolls, rad.
        depth_step: ratio of neighbouring distances.
        pixels: pixels of the search along the X-ray's longer side.
        voxel: the volume is resampled to voxels of this size where its own are smaller; None
            for its own.
        keep: candidates to find.
        apart: least distance between two of them.
        inverted: whether the X-ray is dark where the patient attenuates; it is negated then, for
            this and all later stages. None: find out.
        trusted: confidence of a registration below which its stages begin again with a denser
            search. The default is measured, see `drrkit.registration.TRUSTED`.
        repeats: how often they may; 0 for never.
        mm: lengths are mm, and not shares of the object's extent.
    """

    rotation: float = math.radians(85.0)
    depth: float = Share(7 / 6)
    shift: float | None = None
    between: tuple[float, float] = (0.4, 1.0)
    step: float = math.radians(15.0)
    depth_step: float = 1.12
    pixels: int = 32
    voxel: float | None = Share(1 / 75)
    keep: int = 40
    apart: float = Share(1 / 10)
    inverted: bool | None = False
    trusted: float = TRUSTED
    repeats: int = 1
    mm: bool = False

    def __post_init__(self) -> None:
        given = [name for name in ("shift", "voxel") if getattr(self, name) is not None]
        positive_lengths(self, ("rotation", "depth", "step", "apart", *given))
        if not self.step < math.pi / 2:
            raise ValueError(f"step: expected less than a right angle (rad), got {self.step!r}")
        if not 1.0 < self.depth_step < math.inf:
            raise ValueError(f"depth_step: expected a ratio above 1, got {self.depth_step!r}")
        for name, least in (("pixels", 8), ("keep", 1), ("repeats", 0)):
            whole_number(self, name, least)
        if self.inverted not in (True, False, None):
            raise ValueError(f"inverted: expected True, False or None, got {self.inverted!r}")
        if not 0 <= self.trusted <= 1:
            raise ValueError(f"trusted: expected a number in [0, 1], got {self.trusted!r}")
        if len(self.between) != 2 or not 0 < self.between[0] < self.between[1] < math.inf:
            raise ValueError(f"between: expected (nearest, farthest) > 0, got {self.between!r}")

    @property
    def name(self) -> str:
        """For histories and progress bars."""
        return "search"

    def denser(self) -> Search:
        """A search of a wider range on a finer grid, with more candidates: about ten times as long.

        For when a search has failed.
        """
        return replace(
            self,
            rotation=self.rotation * 1.5,
            step=self.step / 1.6,
            depth_step=self.depth_step**0.6,
            keep=2 * self.keep,
            apart=self.apart / 1.5,
        )

    def in_mm(self, extent: float) -> Search:
        """The same search with all lengths in mm, for an object of this extent in mm."""
        names = ("depth", "shift", "voxel", "apart")
        return replace(self, **_lengths_in_mm(self, names, extent), mm=True)


def _lengths_in_mm(stage: Stage | Search, names: tuple[str, ...], extent: float) -> dict[str, Any]:
    given = {name: getattr(stage, name) for name in names}
    return {
        name: None if value is None else length_in_mm(value, extent, stage.mm)
        for name, value in given.items()
    }
