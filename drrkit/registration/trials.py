"""What `register` tries, one way to a pose after the other, and what came of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from drrkit.registration.certainty import Agreement
from drrkit.registration.presets import AUTO, FOLLOW, GLOBAL, PART, resolve_stages
from drrkit.registration.problem.loss import StageLoss
from drrkit.registration.problem.motion import Candidates
from drrkit.registration.problem.views import View
from drrkit.registration.result import TRUSTED, StageRecord
from drrkit.registration.stages import Search, Stage

__all__ = ["Attempt", "Searched", "Trial", "trials_of"]

_QUICK: tuple[Stage, ...] = (
    replace(AUTO[0], similarity="ncc", iterations=15, starts=1, halve_every=0, keep=None),
    FOLLOW[0],
    AUTO[-1],
)

# Of a search's candidates.
_PATCHES = (replace(AUTO[0], starts=3), *AUTO[1:])


@dataclass(frozen=True)
class Trial:
    """One way to a pose that `register` tries.

    Attributes:
        stages: in order.
        field: look for the X-ray's open field where no mask is given.
        negative: take the X-ray for a negative.
        named: one of a pipeline that is known by name, whose use and reach are known, too.
        trusted: agreement from which on no further trial is made.
    """

    stages: tuple[Stage | Search, ...]
    field: bool = True
    negative: bool = False
    named: bool = False
    trusted: float = TRUSTED

    def in_mm(self, extent: float) -> Trial:
        """The same trial with all lengths in mm."""
        return replace(self, stages=tuple(stage.in_mm(extent) for stage in self.stages))


def trials_of(stages: Any) -> list[Trial]:
    """What `register` tries, in order, until one is trusted.

    "auto" begins with whole images, which is quick and right for most X-rays that show what the CT
    shows. The named pipelines also try the negative. A search is made again, denser, as often as it
    says. Raises as `resolve_stages`.
    """
    given = resolve_stages(stages)
    first, named = given[0], isinstance(stages, str) and given is not PART
    trusted = first.trusted if isinstance(first, Search) else TRUSTED
    usual = Trial(given, named=named, trusted=trusted)
    trials = [usual]
    if named and given is AUTO:
        trials.insert(0, replace(usual, stages=_QUICK, field=False))
    if named and given is GLOBAL:
        trials.append(replace(usual, stages=(first, *_PATCHES)))
    if named:
        trials.append(replace(usual, negative=True))
    elif isinstance(first, Search):
        for _ in range(first.repeats):
            first = first.denser()
            trials.append(replace(usual, stages=(first, *given[1:])))
    return trials


@dataclass(frozen=True)
class Searched:
    """What a search came to, and the views that it leaves."""

    found: Candidates
    record: StageRecord
    views: Sequence[View]
    inverted: bool


@dataclass(frozen=True)
class Attempt:
    """What one run through the stages came to."""

    found: Candidates
    agreed: Agreement
    views: Sequence[View]  # negated where the X-ray was taken for a negative
    inferred: tuple[str, ...]
    history: list[StageRecord]
    loss: StageLoss | None  # the last stage's
    apart: float  # of the last stage

    @property
    def agreement(self) -> float:
        return self.agreed.value

    @property
    def best(self) -> Tensor:
        """The pose of lowest loss, [1, 4, 4]."""
        return self.found.pose[int(self.found.loss.argmin())][None]

    @property
    def interrupted(self) -> bool:
        return self.history[-1].stop_reason == "interrupted"
