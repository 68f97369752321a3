"""What all optimisers share: their settings, what they are given, and a batch of poses at work.

An Optimiser is a few frozen settings; `begin` makes the running engine of a PoseProblem.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from drrkit.registration.lengths import Share, length_in_mm, positive_lengths
from drrkit.registration.problem.motion import moved_by

__all__ = ["Expansion", "Optimiser", "PoseEngine", "PoseProblem"]


class Expansion(NamedTuple):
    """A loss about poses: value [B], gradient [B, D] and Gauss-Newton matrix [B, D, D], float64.

    D is 6, or 6 n for n bodies.
    """

    loss: Tensor
    gradient: Tensor
    matrix: Tensor


def _missing(*_: Any) -> Any:
    raise NotImplementedError("this problem has no such function")


@dataclass(frozen=True, eq=False, kw_only=True)
class PoseProblem:
    """What is minimised, how poses move, and when to stop.

    Attributes:
        center: [3] world mm, the point that rotations turn about; [n, 3] for n bodies.
        units: [6] or [6 n] the change of xi (rad, mm) that counts as one mm of motion.
        objective: poses [B, 4, 4] (or [B, n, 4, 4]) -> losses [B], differentiable.
        expand: poses -> Expansion, its xi about `center`.
        propose: a network -> its function from poses to better ones.
        iterations: most steps.
        halve_every: so many steps after which the worse half of the poses comes to rest, down to
            `keep` of them; 0 for never.
        generator: of everything random.
        previous: the engine of the stage before, for one that goes on with it.
    """

    center: Tensor
    units: Tensor
    objective: Callable[[Tensor], Tensor] = _missing
    expand: Callable[[Tensor], Expansion] = _missing
    propose: Callable[[Any], Callable[[Tensor], Tensor]] = _missing
    iterations: int = 100
    halve_every: int = 0
    keep: int = 1
    generator: torch.Generator = field(default_factory=torch.Generator)
    previous: PoseEngine | None = None


@dataclass(frozen=True)
class Optimiser:
    """Settings of an optimiser. Lengths are shares of the object's extent, or mm as the Stage says.

    Attributes:
        final_step: a pose rests when its step length would fall below this.
    """

    final_step: float = field(default=Share(1 / 6000), kw_only=True)

    name: ClassVar[str] = ""
    """For histories and the command line."""
    lengths: ClassVar[tuple[str, ...]] = ("final_step",)
    has_jacobian: ClassVar[bool] = False
    """Whether it expands the loss, so that the pose's covariance can be told."""
    many_poses: ClassVar[bool] = True
    """Whether it works with several bodies."""

    def __post_init__(self) -> None:
        positive_lengths(self, self.lengths)

    def begin(self, problem: PoseProblem, world_to_camera: Tensor) -> PoseEngine:
        """The engine that improves poses [K, 4, 4] float64; [K, n, 4, 4] of n bodies."""
        raise NotImplementedError

    def in_mm(self, extent: float, mm: bool) -> Optimiser:
        """The same with all lengths in mm, for an object of this extent in mm."""
        found = {n: length_in_mm(getattr(self, n), extent, mm) for n in self.lengths}
        return replace(self, **found)


class PoseEngine:
    """A batch of poses that are improved independently, some of which may rest already.

    A subclass defines `advance`, one step of the poses that still move. It reports what it visits
    to `remember` and ends a pose by setting `resting`. The best pose of all visited is kept, so a
    stage never makes a loss worse.
    """

    def __init__(self, problem: PoseProblem, world_to_camera: Tensor) -> None:
        count = world_to_camera.shape[0]
        self.problem, self.center, self.units = problem, problem.center, problem.units
        self.best_pose = world_to_camera.clone()
        self.best_loss = world_to_camera.new_full((count,), torch.inf)
        self.resting = torch.zeros(count, dtype=torch.bool, device=world_to_camera.device)
        self.steps = 0
        self.trace: list[Tensor] = []  # [K] losses of every step, NaN for resting poses

    def advance(self, index: Tensor) -> Tensor:
        """Move the poses `index` [A] by one step; the losses [A] float64 met on the way."""
        raise NotImplementedError

    def moved(self, pose: Tensor, xi: Tensor) -> Tensor:
        """Poses [B, ...] moved by xi [B, D], differentiable; overridden where more than poses
        moves."""
        return moved_by(pose, xi, self.center)

    @property
    def active(self) -> Tensor:
        """Indices of the poses that still move."""
        return torch.nonzero(~self.resting).flatten()

    @property
    def finished(self) -> bool:
        """Whether all poses rest or the iterations are used up."""
        return self.steps >= self.problem.iterations or self.active.numel() == 0

    @property
    def stop_reason(self) -> str:
        """ "converged" when every pose rests, otherwise "iterations"."""
        return "converged" if self.active.numel() == 0 else "iterations"

    def step(self) -> None:
        """Advance all active poses once."""
        index = self.active
        loss = self.advance(index)
        row = torch.full_like(self.best_loss, torch.nan)
        row[index] = loss
        self.trace.append(row)
        self.steps += 1
        self._halve()

    def remember(self, index: Tensor, pose: Tensor, loss: Tensor, tolerance: float = 0.0) -> Tensor:
        """Note the poses [A, ...] that are new bests of `index` [A]; which ones are, [A] bool."""
        better = loss < self.best_loss[index] - tolerance
        chosen = index[better]
        self.best_loss[chosen] = loss[better]
        self.best_pose[chosen] = pose[better]
        return better

    def per_component(self, bounds: tuple[float, ...]) -> Tensor:
        """(rad, mm) or six numbers as one for every component of xi, [D]."""
        spread = torch.tensor(bounds, dtype=torch.float64)
        if len(spread) == 2:
            spread = spread.repeat_interleave(3)
        return spread.to(self.units).repeat(self.units.numel() // 6)

    def _halve(self) -> None:
        every, keep = self.problem.halve_every, self.problem.keep
        index = self.active
        if every == 0 or self.steps % every or index.numel() <= keep:
            return
        stay = max(keep, (index.numel() + 1) // 2)
        order = self.best_loss[index].argsort(stable=True)
        self.resting[index[order[stay:]]] = True
