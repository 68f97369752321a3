"""Gradient descent of a batch of poses, each with its own step length."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from drrkit.registration.optimisers.optimiser import PoseOptimiser
from drrkit.registration.stages import Stage

__all__ = ["PoseDescent"]

Objective = Callable[[Tensor], Tensor]
"""world_to_camera [B, 4, 4] -> loss [B], differentiable."""

# Adam's memory of squared gradients: about 20 steps, as a stage has tens of them, not thousands.
_KEEP_SQUARE = 0.95


class PoseDescent(PoseOptimiser):
    """Adam on SE(3): xi is taken about the current pose and retracted after every step.

    Poses are independent. Each halves its step length, from its best position, after
    `stage.patience` steps without progress, and rests once the step is below `stage.final_step`;
    resting poses cost nothing.

    Args:
        objective: poses [B, 4, 4] -> losses [B], differentiable.
        world_to_camera, center, units, stage: as for PoseOptimiser.
    """

    def __init__(
        self,
        objective: Objective,
        world_to_camera: Tensor,
        center: Tensor,
        units: Tensor,
        stage: Stage,
    ) -> None:
        super().__init__(world_to_camera, center, units, stage)
        count = world_to_camera.shape[0]
        self.objective = objective
        self.pose = world_to_camera.clone()
        self.best_gradient = world_to_camera.new_zeros(count, units.numel())
        self.step_length = world_to_camera.new_full((count,), stage.step)
        self.first_moment = world_to_camera.new_zeros(count, units.numel())
        self.second_moment = world_to_camera.new_zeros(count, units.numel())
        self.age = world_to_camera.new_zeros(count, dtype=torch.long)  # steps since a restart
        self.stalled = world_to_camera.new_zeros(count, dtype=torch.long)

    def advance(self, index: Tensor) -> Tensor:
        """Evaluate the poses and move them."""
        loss, gradient = self._evaluate(self.pose[index])
        better = self.remember(index, self.pose[index], loss, self.stage.tolerance)
        self.best_gradient[index[better]] = gradient[better]
        self.stalled[index] = torch.where(better, 0, self.stalled[index] + 1)
        stuck = self.stalled[index] >= self.stage.patience
        self._restart(index[stuck])
        # The best position's gradient is known: returning there costs no rendering.
        self._move(index, torch.where(stuck[:, None], self.best_gradient[index], gradient))
        return loss

    def _evaluate(self, pose: Tensor) -> tuple[Tensor, Tensor]:
        """Losses [B] and their gradients [B, D] per mm of motion."""
        xi = pose.new_zeros(pose.shape[0], self.units.numel(), requires_grad=True)
        with torch.enable_grad():
            loss = self.objective(self.moved(pose, xi))
            (gradient,) = torch.autograd.grad(loss.sum(), xi)
        # A pose that left the image, or met a NaN, must not carry the others away.
        gradient = torch.nan_to_num(gradient * self.units, nan=0.0, posinf=0.0, neginf=0.0)
        return torch.nan_to_num(loss.detach().double(), nan=torch.inf), gradient

    def _restart(self, index: Tensor) -> None:
        """Send stalled poses back to their best position with half the step length."""
        self.step_length[index] *= 0.5
        self.pose[index] = self.best_pose[index]
        self.first_moment[index] = 0.0
        self.second_moment[index] = 0.0
        self.age[index] = 0
        self.stalled[index] = 0
        self.resting[index] = self.step_length[index] < self.stage.final_step

    def _move(self, index: Tensor, gradient: Tensor) -> None:
        """One Adam step of every pose."""
        self.age[index] += 1
        age = self.age[index, None]
        keep, keep_square = self.stage.momentum, _KEEP_SQUARE
        first = keep * self.first_moment[index] + (1 - keep) * gradient
        second = keep_square * self.second_moment[index] + (1 - keep_square) * gradient.square()
        self.first_moment[index], self.second_moment[index] = first, second
        scale = (second / (1 - keep_square**age)).sqrt() + torch.finfo(second.dtype).tiny
        direction = first / (1 - keep**age) / scale
        xi = -self.step_length[index, None] * direction * self.units
        self.pose[index] = self.moved(self.pose[index], xi)
