"""Descent along the gradient of a batch of poses: Adam, or steps of given lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from drrkit.registration.lengths import Share, whole_number
from drrkit.registration.optimisers.optimiser import Optimiser, PoseEngine, PoseProblem

__all__ = ["Descent", "DescentEngine", "Directions", "DirectionsEngine"]

# Adam's memory of squared gradients: about 20 steps, as a stage has tens of them, not thousands.
_KEEP_SQUARE = 0.95


@dataclass(frozen=True)
class Descent(Optimiser):
    """Adam on SE(3), each pose with its own step length: for any smooth similarity.

    Attributes:
        step: first step length.
        patience: steps without a new best loss after which a pose returns to its best position and
            halves its step length.
        momentum: share of the last step's direction kept in the next, 0 to below 1.
        tolerance: a loss is a new best when it is lower by more than this.
    """

    step: float = Share(1 / 300)
    patience: int = 5
    momentum: float = 0.8
    tolerance: float = 1e-6

    name: ClassVar[str] = "gradient"
    lengths: ClassVar[tuple[str, ...]] = ("step", "final_step")

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number(self, "patience")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: expected a number in [0, 1), got {self.momentum!r}")
        if not 0 <= self.tolerance < float("inf"):
            raise ValueError(f"tolerance: expected a number >= 0, got {self.tolerance!r}")

    def begin(self, problem: PoseProblem, world_to_camera: Tensor) -> DescentEngine:
        return DescentEngine(self, problem, world_to_camera)


class GradientEngine(PoseEngine):
    """Poses with the gradients of their losses; resting poses cost nothing."""

    def __init__(self, problem: PoseProblem, world_to_camera: Tensor) -> None:
        super().__init__(problem, world_to_camera)
        self.pose = world_to_camera.clone()

    def evaluate(self, pose: Tensor) -> tuple[Tensor, Tensor]:
        """Losses [B] and their gradients [B, D] per mm of motion."""
        xi = pose.new_zeros(pose.shape[0], self.units.numel(), requires_grad=True)
        with torch.enable_grad():
            loss = self.problem.objective(self.moved(pose, xi))
            (gradient,) = torch.autograd.grad(loss.sum(), xi)
        # A pose that left the image, or met a NaN, must not carry the others away.
        gradient = torch.nan_to_num(gradient * self.units, nan=0.0, posinf=0.0, neginf=0.0)
        return torch.nan_to_num(loss.detach().double(), nan=torch.inf), gradient


class DescentEngine(GradientEngine):
    """xi is taken about the current pose and retracted after every step."""

    def __init__(self, settings: Descent, problem: PoseProblem, world_to_camera: Tensor) -> None:
        super().__init__(problem, world_to_camera)
        count, size = world_to_camera.shape[0], self.units.numel()
        self.settings = settings
        self.best_gradient = world_to_camera.new_zeros(count, size)
        self.step_length = world_to_camera.new_full((count,), settings.step)
        self.first_moment = world_to_camera.new_zeros(count, size)
        self.second_moment = world_to_camera.new_zeros(count, size)
        self.age = world_to_camera.new_zeros(count, dtype=torch.long)  # steps since a restart
        self.stalled = world_to_camera.new_zeros(count, dtype=torch.long)

    def advance(self, index: Tensor) -> Tensor:
        """Evaluate the poses and move them."""
        loss, gradient = self.evaluate(self.pose[index])
        better = self.remember(index, self.pose[index], loss, self.settings.tolerance)
        self.best_gradient[index[better]] = gradient[better]
        self.stalled[index] = torch.where(better, 0, self.stalled[index] + 1)
        stuck = self.stalled[index] >= self.settings.patience
        self._restart(index[stuck])
        # The best position's gradient is known: returning there costs no rendering.
        self._move(index, torch.where(stuck[:, None], self.best_gradient[index], gradient))
        return loss

    def _restart(self, index: Tensor) -> None:
        """Send stalled poses back to their best position with half the step length."""
        self.step_length[index] *= 0.5
        self.pose[index] = self.best_pose[index]
        self.first_moment[index] = 0.0
        self.second_moment[index] = 0.0
        self.age[index] = 0
        self.stalled[index] = 0
        self.resting[index] = self.step_length[index] < self.settings.final_step

    def _move(self, index: Tensor, gradient: Tensor) -> None:
        """One Adam step of every pose."""
        self.age[index] += 1
        age = self.age[index, None]
        keep, keep_square = self.settings.momentum, _KEEP_SQUARE
        first = keep * self.first_moment[index] + (1 - keep) * gradient
        second = keep_square * self.second_moment[index] + (1 - keep_square) * gradient.square()
        self.first_moment[index], self.second_moment[index] = first, second
        scale = (second / (1 - keep_square**age)).sqrt() + torch.finfo(second.dtype).tiny
        direction = first / (1 - keep**age) / scale
        xi = -self.step_length[index, None] * direction * self.units
        self.pose[index] = self.moved(self.pose[index], xi)


@dataclass(frozen=True)
class Directions(Optimiser):
    """Steps of given lengths along the gradient: for learned similarities.

    Only the directions of a learned similarity's gradients mean something, not their lengths nor
    what its values differ by. With a first step of 0.1 rad, halved every 15 steps, this is the
    gradient phase of ProST (Gao et al., IEEE TMI 2024). The pose of lowest loss on the way is kept.

    Attributes:
        step: first step length.
        patience: steps after which it halves.
    """

    step: float = Share(1 / 300)
    patience: int = 5

    name: ClassVar[str] = "directions"
    lengths: ClassVar[tuple[str, ...]] = ("step", "final_step")

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number(self, "patience")

    def begin(self, problem: PoseProblem, world_to_camera: Tensor) -> DirectionsEngine:
        return DirectionsEngine(self, problem, world_to_camera)


class DirectionsEngine(GradientEngine):
    """The gradient's rotation and translation are made units; steps do not wait for the loss."""

    def __init__(self, settings: Directions, problem: PoseProblem, world_to_camera: Tensor) -> None:
        super().__init__(problem, world_to_camera)
        self.settings = settings

    def advance(self, index: Tensor) -> Tensor:
        """Evaluate the poses and move them."""
        pose = self.pose[index]
        loss, gradient = self.evaluate(pose)
        self.remember(index, pose, loss)
        halves = (gradient / self.units).unflatten(-1, (-1, 3))
        length = torch.linalg.vector_norm(halves, dim=-1, keepdim=True)
        direction = halves / length.clamp_min(torch.finfo(length.dtype).tiny)
        # A turn counts by what it moves, a shift by its length, along the beam too.
        scale = self.units.unflatten(0, (-1, 3)).amin(-1, keepdim=True)
        xi = -self._length(self.steps) * direction * scale
        self.pose[index] = self.moved(pose, xi.flatten(-2))
        self.resting[index] = self._length(self.steps + 1) < self.settings.final_step
        return loss

    def _length(self, steps: int) -> float:
        """Of the step after so many steps, mm."""
        return self.settings.step * 0.5 ** (steps // self.settings.patience)
