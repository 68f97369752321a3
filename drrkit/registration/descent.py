"""Gradient descent of a batch of poses, each with its own step length."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from drrkit.geometry import perturb
from drrkit.registration.stages import Stage

__all__ = ["PoseDescent"]

Objective = Callable[[Tensor], Tensor]
"""world_to_camera [B, 4, 4] -> loss [B], differentiable."""

# Adam's memory of squared gradients: about 20 steps, as a stage has tens of them, not thousands.
_KEEP_SQUARE = 0.95


class PoseDescent:
    """Adam on SE(3): xi is taken about the current pose and retracted after every step.

    Poses are independent. Each halves its step length, from its best position, after
    `stage.patience` steps without progress, and rests once the step is below `stage.final_step`;
    resting poses cost nothing. The best pose of all visited is kept, so a stage never makes the
    loss worse.

    Args:
        objective: poses [B, 4, 4] -> losses [B].
        world_to_camera: [K, 4, 4] float64 starts.
        center: [3] world mm, the point that rotations turn about.
        units: [6] the change of xi (rad, mm) that counts as one mm of motion.
        stage: step lengths and limits.
    """

    def __init__(
        self,
        objective: Objective,
        world_to_camera: Tensor,
        center: Tensor,
        units: Tensor,
        stage: Stage,
    ) -> None:
        count = world_to_camera.shape[0]
        self.objective = objective
        self.center = center
        self.units = units
        self.stage = stage
        self.pose = world_to_camera.clone()
        self.best_pose = world_to_camera.clone()
        self.best_loss = world_to_camera.new_full((count,), torch.inf)
        self.best_gradient = world_to_camera.new_zeros(count, 6)
        self.step_length = world_to_camera.new_full((count,), stage.step)
        self.first_moment = world_to_camera.new_zeros(count, 6)
        self.second_moment = world_to_camera.new_zeros(count, 6)
        self.age = world_to_camera.new_zeros(count, dtype=torch.long)  # steps since a restart
        self.stalled = world_to_camera.new_zeros(count, dtype=torch.long)
        self.steps = 0
        self.trace: list[Tensor] = []  # [K] losses of every step, NaN for resting poses

    @property
    def active(self) -> Tensor:
        """Indices of the poses that still move."""
        return torch.nonzero(self.step_length >= self.stage.final_step).flatten()

    @property
    def finished(self) -> bool:
        """Whether all poses rest or the stage's iterations are used up."""
        return self.steps >= self.stage.iterations or self.active.numel() == 0

    @property
    def stop_reason(self) -> str:
        """ "converged" when every pose rests, otherwise "iterations"."""
        return "converged" if self.active.numel() == 0 else "iterations"

    def step(self) -> None:
        """Evaluate all active poses once and move them."""
        index = self.active
        loss, gradient = self._evaluate(self.pose[index])
        self._remember(index, loss, gradient)
        self.steps += 1
        stuck = self.stalled[index] >= self.stage.patience
        self._restart(index[stuck])
        # The best position's gradient is known: returning there costs no rendering.
        self._move(index, torch.where(stuck[:, None], self.best_gradient[index], gradient))

    def _evaluate(self, pose: Tensor) -> tuple[Tensor, Tensor]:
        """Losses [B] and their gradients [B, 6] per mm of motion."""
        xi = pose.new_zeros(pose.shape[0], 6, requires_grad=True)
        with torch.enable_grad():
            loss = self.objective(perturb(pose, xi, self.center))
            (gradient,) = torch.autograd.grad(loss.sum(), xi)
        # A pose that left the image, or met a NaN, must not carry the others away.
        gradient = torch.nan_to_num(gradient * self.units, nan=0.0, posinf=0.0, neginf=0.0)
        return torch.nan_to_num(loss.detach().double(), nan=torch.inf), gradient

    def _remember(self, index: Tensor, loss: Tensor, gradient: Tensor) -> None:
        """Note new best poses and count the steps without one."""
        row = torch.full_like(self.best_loss, torch.nan)
        row[index] = loss
        self.trace.append(row)
        better = loss < self.best_loss[index] - self.stage.tolerance
        chosen = index[better]
        self.best_loss[chosen] = loss[better]
        self.best_pose[chosen] = self.pose[chosen]
        self.best_gradient[chosen] = gradient[better]
        self.stalled[index] = torch.where(better, 0, self.stalled[index] + 1)

    def _restart(self, index: Tensor) -> None:
        """Send stalled poses back to their best position with half the step length."""
        self.step_length[index] *= 0.5
        self.pose[index] = self.best_pose[index]
        self.first_moment[index] = 0.0
        self.second_moment[index] = 0.0
        self.age[index] = 0
        self.stalled[index] = 0

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
        self.pose[index] = perturb(self.pose[index], xi, self.center)
