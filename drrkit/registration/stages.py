"""What one stage of a registration minimises, at which resolution and with which step lengths."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from drrkit import losses
from drrkit.registration.result import TRUSTED
from drrkit.registration.scaling import UnitRange

__all__ = ["OPTIMISERS", "SIMILARITIES", "Search", "Similarity", "Stage"]

Similarity = Callable[..., Tensor]
"""similarity(moving [B, C, rows, cols], fixed, mask) -> [B], to be minimised."""

# Losses of intensities as they are, which need both images on one scale.
_OF_INTENSITIES = ("focal_frequency", "l1", "mse", "soft_dice", "ssim", "ssim_dice_l1")

SIMILARITIES: dict[str, Similarity] = {
    **{name: getattr(losses, name) for name in losses.__all__},
    "mi": losses.mutual_information,
    "mattes_mi": losses.mattes_mutual_information,
    "nmi": losses.normalized_mutual_information,
    **{f"unit_{name}": UnitRange(getattr(losses, name)) for name in _OF_INTENSITIES},
}
"""Names a Stage accepts: every loss of drrkit.losses, three of them by short names too; unit_*
compares images that are each mapped to [0, 1] first, for X-rays on another scale than the volume.
"""

OPTIMISERS = ("gradient", "directions", "levenberg", "cmaes", "trust_region", "regressor")
"""Names a Stage accepts."""


@dataclass(frozen=True)
class Stage:
    """One stage of a coarse-to-fine pose optimisation.

    Step lengths are in mm of motion seen at the patient: a turn counts by what it moves in the
    field of view, a change of depth by the magnification it causes.

    Attributes:
        similarity: a name in SIMILARITIES, or a callable (moving, fixed, mask) -> [B] to minimise.
        optimiser: a name in OPTIMISERS: "gradient", descent with a step length a pose (the
            similarity is differentiated); "directions", steps of given lengths along the gradient,
            for learned similarities; "levenberg", damped Gauss-Newton steps on the pose Jacobian,
            by far the fastest where the similarity is a correlation or mse; "cmaes", CMA-ES, and
            "trust_region", bounded quadratic models, neither of which differentiates; "regressor",
            a network that says where to go (the similarity is only reported).
        downsample: the X-ray is averaged over downsample x downsample pixels and the volume is
            rendered onto these larger pixels.
        pixel_mm: instead of downsample: the width of these larger pixels at the patient, in mm.
            The next whole factor is taken, 1 at least, and not so large that fewer than 24 rows or
            columns remain.
        voxel_mm: the volume is resampled to voxels of this size where its own are smaller; None
            for its own. Voxels about as large as pixels at the patient keep fine structure from
            aliasing, and render faster.
        supersample: rays per larger pixel along each side, averaged.
        blur: standard deviation, in these larger pixels, of a Gaussian blur of both images before
            they are compared; it takes noise out of gradients.
        iterations: most steps: gradient and Gauss-Newton steps render once with derivatives, a
            generation of "cmaes" renders `population` poses, a step of "trust_region" 13.
        step: first step length, mm; "levenberg": the largest step; "trust_region": half the width
            of the first box. "cmaes" has none.
        final_step: the stage ends for a pose when its step length would fall below this, mm.
        patience: "gradient": steps without a new best loss after which a pose returns to its best
            position and halves its step length. "directions": steps after which it halves.
        momentum: "gradient": share of the last step's direction kept in the next, 0 to below 1.
        tolerance: "gradient": a loss is a new best when it is lower by more than this.
        starts: optimisations from the neighbourhood of every pose; the best one goes on. The first
            starts at the pose itself, the others at random turns and shifts from it.
        spread: the largest turn (rad) and shift (mm) of those; six numbers bound the six components
            of xi (rad, mm) one by one. "cmaes": the first standard deviations, or None, to go on
            with the distributions of the "cmaes" stage before, of the same population and without
            `keep` or several `starts`. "trust_region": the bounds, beyond which no pose is
            rendered.
        population: "cmaes": poses a generation and start.
        halve_every: successive halving: every so many steps the worse half of the poses that still
            move comes to rest, until `keep` of them, or one, are left; 0 for never.
        keep: only so many of the poses go on to the next stage: the best that differ, the best one
            first. None: all, in their order.
        apart: poses closer than this, in mm of motion, do not differ.
        regressor: "regressor": what updates the poses, a `drrkit.similarity.PoseRegressor` or
            anything with its `prepare` and `update`, at most `iterations` times and until an update
            is smaller than `final_step`. The last poses go on, not those of lowest loss.
    """

    similarity: str | Similarity = "gradient_ncc"
    downsample: int = 1
    pixel_mm: float | None = None
    supersample: int = 1
    blur: float = 0.0
    iterations: int = 100
    step: float = 1.0
    final_step: float = 0.05
    patience: int = 5
    momentum: float = 0.8
    tolerance: float = 1e-6
    starts: int = 1
    spread: tuple[float, ...] | None = (0.3, 40.0)
    optimiser: str = "gradient"
    voxel_mm: float | None = None
    population: int = 50
    halve_every: int = 0
    keep: int | None = None
    apart: float = 1.0
    regressor: Any = None

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
        if self.optimiser not in OPTIMISERS:
            names = ", ".join(repr(name) for name in OPTIMISERS)
            raise ValueError(f"optimiser: expected one of {names}, got {self.optimiser!r}")
        if (self.optimiser == "regressor") != callable(getattr(self.regressor, "update", None)):
            raise TypeError(
                "regressor: expected one with update() for the optimiser 'regressor' and None for "
                f"others, got {type(self.regressor).__name__} for {self.optimiser!r}"
            )
        self._check_counts()
        self._check_lengths()

    def _check_counts(self) -> None:
        least = {"population": 4, "halve_every": 0}
        names = ("downsample", "supersample", "iterations", "patience", "starts", "keep", *least)
        for name in names:
            value = getattr(self, name)
            if name == "keep" and value is None:
                continue
            lowest = least.get(name, 1)
            if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
                wanted = "a positive integer" if lowest == 1 else f"an integer >= {lowest}"
                raise ValueError(f"{name}: expected {wanted}, got {value!r}")

    def _check_lengths(self) -> None:
        for name in ("step", "final_step", "apart", "pixel_mm", "voxel_mm"):
            value = getattr(self, name)
            if name.endswith("_mm") and value is None:
                continue
            if not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise ValueError(f"{name}: expected a positive length in mm, got {value!r}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: expected a number in [0, 1), got {self.momentum!r}")
        for name in ("blur", "tolerance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a number >= 0, got {getattr(self, name)!r}")
        if self.spread is None:
            if self.optimiser != "cmaes" or self.starts > 1:
                raise ValueError(
                    "spread: only a 'cmaes' stage of one start can go without, got None"
                )
            return
        if len(self.spread) not in (2, 6) or not all(
            0 <= value < math.inf for value in self.spread
        ):
            raise ValueError(f"spread: expected (rad, mm) or six, all >= 0, got {self.spread!r}")
        if self.optimiser in ("cmaes", "trust_region") and min(self.spread) == 0:
            raise ValueError(f"spread: {self.optimiser!r} needs positive ones, got {self.spread!r}")

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

    @property
    def spreads(self) -> Tensor:
        """The spread of each component of xi, [6] float64 (rad, mm).

        Raises:
            ValueError: the stage has none.
        """
        if self.spread is None:
            raise ValueError("spread: expected (rad, mm) or six numbers, got None")
        if len(self.spread) == 6:
            return torch.tensor(self.spread, dtype=torch.float64)
        return torch.tensor(self.spread, dtype=torch.float64).repeat_interleave(3)


@dataclass(frozen=True)
class Search:
    """A stage that finds candidate poses for the next stage instead of improving given ones.

    The range of turns and depths is about the start pose, for every start given; where the volume's
    centre is across the beam, the X-ray says.

    Attributes:
        rotation: the largest turn from the start, rad; pi and more searches all turns.
        depth: the largest change of the distance of the volume's centre from the source, mm.
        shift: the largest distance of the volume's centre from the beam's axis across and along the
            rows, mm; the centre may then be outside the X-ray. None: anywhere inside the X-ray.
        between: nearest and farthest distance of the centre from the source that a search takes
            for possible, as shares of the source-to-detector distance.
        step: angle between neighbouring directions and rolls, rad.
        depth_step: ratio of neighbouring distances.
        pixels: pixels of the search along the X-ray's longer side.
        voxel_mm: the volume is resampled to voxels of this size where its own are smaller; None
            for its own.
        keep: candidates to find.
        apart: least distance between two of them, mm of motion.
        inverted: whether the X-ray is dark where the patient attenuates; it is negated then, for
            this and all later stages. None: find out.
        trusted: confidence of a registration below which its stages begin again with a denser
            search. The default is measured, see `drrkit.registration.TRUSTED`.
        repeats: how often they may; 0 for never.
    """

    rotation: float = math.radians(85.0)
    depth: float = 350.0
    shift: float | None = None
    between: tuple[float, float] = (0.4, 1.0)
    step: float = math.radians(15.0)
    depth_step: float = 1.12
    pixels: int = 32
    voxel_mm: float | None = 4.0
    keep: int = 40
    apart: float = 30.0
    inverted: bool | None = False
    trusted: float = TRUSTED
    repeats: int = 1

    def __post_init__(self) -> None:
        for name in ("rotation", "depth", "step", "apart"):
            _check_positive(name, getattr(self, name))
        for name in ("shift", "voxel_mm"):
            if getattr(self, name) is not None:
                _check_positive(name, getattr(self, name))
        if not self.step < math.pi / 2:
            raise ValueError(f"step: expected less than a right angle (rad), got {self.step!r}")
        if not 1.0 < self.depth_step < math.inf:
            raise ValueError(f"depth_step: expected a ratio above 1, got {self.depth_step!r}")
        for name, least in (("pixels", 8), ("keep", 1), ("repeats", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
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


def _check_positive(name: str, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and 0 < value < math.inf):
        raise ValueError(f"{name}: expected a positive number, got {value!r}")
