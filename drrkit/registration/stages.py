"""What one stage of a registration minimises, at which resolution and with which step lengths."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from drrkit import losses

__all__ = ["AUTO", "SIMILARITIES", "Similarity", "Stage", "resolve_stages"]

Similarity = Callable[..., Tensor]
"""similarity(moving [B, C, rows, cols], fixed, mask) -> [B], to be minimised."""

SIMILARITIES: dict[str, Similarity] = {
    "mse": losses.mse,
    "ncc": losses.ncc,
    "gradient_ncc": losses.gradient_ncc,
    "local_ncc": losses.local_ncc,
    "mi": losses.mutual_information,
}
"""Names a Stage accepts."""


@dataclass(frozen=True)
class Stage:
    """One stage of a coarse-to-fine pose optimisation.

    Step lengths are in mm of motion seen at the patient: a turn counts by what it moves in the
    field of view, a change of depth by the magnification it causes.

    Attributes:
        similarity: a name in SIMILARITIES, or a callable (moving, fixed, mask) -> [B] to minimise.
        downsample: the X-ray is averaged over downsample x downsample pixels and the volume is
            rendered onto these larger pixels.
        pixel_mm: instead of downsample: the width of these larger pixels at the patient, in mm.
            The next whole factor is taken, 1 at least, and not so large that fewer than 24 rows or
            columns remain.
        supersample: rays per larger pixel along each side, averaged.
        blur: standard deviation, in these larger pixels, of a Gaussian blur of both images before
            they are compared; it takes noise out of gradients.
        iterations: most gradient steps; one rendering with gradient each.
        step: first step length, mm.
        final_step: the stage ends for a pose when its step length would fall below this, mm.
        patience: steps without a new best loss after which a pose returns to its best position and
            halves its step length.
        momentum: share of the last step's direction kept in the next, 0 to below 1.
        tolerance: a loss is a new best when it is lower by more than this.
        starts: descents from the neighbourhood of every pose; the best one goes on. The first
            starts at the pose itself, the others at random turns and shifts from it.
        spread: the largest turn (rad) and shift (mm) of those.
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
    spread: tuple[float, float] = (0.3, 40.0)

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
        for name in ("downsample", "supersample", "iterations", "patience", "starts"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected a positive integer, got {value!r}")
        for name in ("step", "final_step", "pixel_mm"):
            value = getattr(self, name)
            if name == "pixel_mm" and value is None:
                continue
            if not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise ValueError(f"{name}: expected a positive length in mm, got {value!r}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: expected a number in [0, 1), got {self.momentum!r}")
        for name in ("blur", "tolerance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a number >= 0, got {getattr(self, name)!r}")
        if len(self.spread) != 2 or not all(0 <= value < math.inf for value in self.spread):
            raise ValueError(f"spread: expected (rad, mm), both >= 0, got {self.spread!r}")

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


AUTO: tuple[Stage, ...] = (
    Stage("ncc", pixel_mm=7.0, iterations=80, step=4.0, final_step=0.5, starts=16),
    Stage("gradient_ncc", pixel_mm=3.5, iterations=60, step=1.0, final_step=0.2, momentum=0.5),
    Stage("gradient_ncc", pixel_mm=1.75, blur=1.5, step=0.5, final_step=0.05, momentum=0.5),
)
"""Coarse to fine. NCC on pixels of 7 mm has by far the widest basin of the similarities here, from
sixteen starts wide enough for lateral views too; gradient NCC then ignores most of what the beam's
energy changes, and gains nothing from pixels much smaller than the voxels. The blur of the last
stage is a trade: on a pelvis CT it leaves about 0.3 mm in good images where 0.1 mm could be had,
and halves the error in very noisy ones."""


def resolve_stages(stages: str | Stage | Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages of an argument: "auto", one Stage or several in order.

    Raises:
        TypeError, ValueError: it is none of these, or empty.
    """
    if isinstance(stages, str):
        if stages != "auto":
            raise ValueError(f"stages: expected 'auto' or Stage objects, got {stages!r}")
        return AUTO
    if isinstance(stages, Stage):
        return (stages,)
    try:
        found = tuple(stages)
    except TypeError:
        raise TypeError(
            f"stages: expected 'auto' or Stage objects, got {type(stages).__name__}"
        ) from None
    if not found:
        raise ValueError("stages: expected at least one Stage, got none")
    for stage in found:
        if not isinstance(stage, Stage):
            raise TypeError(f"stages: expected Stage objects, got {type(stage).__name__}")
    return found
