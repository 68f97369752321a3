"""Levenberg-Marquardt on the pose Jacobian, for a batch of poses, each with its own damping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from drrkit.registration.lengths import Share
from drrkit.registration.optimisers.optimiser import Optimiser, PoseEngine, PoseProblem

__all__ = ["Levenberg", "LevenbergEngine"]

# Share of the mean diagonal that damping adds to every element of it: directions that the image
# hardly shows, such as depth, stay bounded.
_SHARED_DAMPING = 0.1

_FIRST_DAMPING = 1e-2
_DAMPING = (1e-7, 1e5)


@dataclass(frozen=True)
class Levenberg(Optimiser):
    """Damped Gauss-Newton steps: by far the fastest for correlations and mse.

    Attributes:
        step: the longest step.
        final_step: a pose rests when the step that it would take is shorter than this.
    """

    step: float = Share(1 / 300)

    name: ClassVar[str] = "levenberg"
    lengths: ClassVar[tuple[str, ...]] = ("step", "final_step")
    has_jacobian: ClassVar[bool] = True

    def begin(self, problem: PoseProblem, world_to_camera: Tensor) -> LevenbergEngine:
        return LevenbergEngine(self, problem, world_to_camera)


class LevenbergEngine(PoseEngine):
    """Steps on SE(3), accepted where they lower the loss.

    Every step expands the loss at every moving pose once, image and Jacobian together. Damping
    follows the ratio of actual to predicted decrease (Nielsen 1999) and adds to the diagonal in
    proportion to it (Marquardt 1963).
    """

    def __init__(self, settings: Levenberg, problem: PoseProblem, world_to_camera: Tensor) -> None:
        super().__init__(problem, world_to_camera)
        count, size = world_to_camera.shape[0], self.units.numel()
        self.settings = settings
        self.gradient = world_to_camera.new_zeros(count, size)
        self.matrix = torch.eye(size).to(world_to_camera).repeat(count, 1, 1)
        self.damping = world_to_camera.new_full((count,), _FIRST_DAMPING)
        self.growth = world_to_camera.new_full((count,), 2.0)
        self.shift = world_to_camera.new_zeros(count, size)  # the next step, in mm of motion

    def advance(self, index: Tensor) -> Tensor:
        """Try the step of every pose, keep it where the loss falls, and plan the next."""
        step = self.shift[index]
        trial = self.best_pose[index]
        if self.steps > 0:
            trial = self.moved(trial, step * self.units)
        found = self.problem.expand(trial)
        loss = torch.nan_to_num(found.loss, nan=torch.inf)
        gradient = found.gradient * self.units
        matrix = found.matrix * self.units * self.units[:, None]
        before = self.best_loss[index]
        finite = gradient.isfinite().all(-1) & matrix.isfinite().all(-1).all(-1)
        loss = torch.where(finite, loss, torch.inf)
        accepted = self.remember(index, trial, loss)
        if self.steps > 0:
            self._adapt(index, accepted, (before - loss) / self._predicted(index, step))
        chosen = index[accepted]
        self.gradient[chosen], self.matrix[chosen] = gradient[accepted], matrix[accepted]
        self._plan(index)
        return loss

    def _predicted(self, index: Tensor, step: Tensor) -> Tensor:
        """Decrease of the quadratic model along the steps, [A], positive."""
        linear = (self.gradient[index] * step).sum(-1)
        curved = (step[:, None] @ self.matrix[index] @ step[..., None])[:, 0, 0]
        return (-linear - 0.5 * curved).clamp_min(torch.finfo(step.dtype).tiny)

    def _adapt(self, index: Tensor, accepted: Tensor, ratio: Tensor) -> None:
        """Less damping after good steps, more and more after bad ones."""
        ratio = torch.nan_to_num(ratio, nan=0.0, neginf=0.0).clamp(0.0, 1.0)
        shrink = (1.0 - (2.0 * ratio - 1.0) ** 3).clamp_min(0.2)
        growth = self.growth[index]
        self.damping[index] *= torch.where(accepted, shrink, growth)
        self.growth[index] = torch.where(accepted, torch.full_like(growth, 2.0), 2.0 * growth)
        self.damping[index] = self.damping[index].clamp(*_DAMPING)

    def _plan(self, index: Tensor) -> None:
        """The next step of every pose; poses whose step would be too short rest."""
        matrix, damping = self.matrix[index], self.damping[index, None]
        diagonal = matrix.diagonal(dim1=-2, dim2=-1)
        diagonal = diagonal + _SHARED_DAMPING * diagonal.mean(-1, keepdim=True)
        diagonal = diagonal.clamp_min(torch.finfo(diagonal.dtype).tiny ** 0.5)
        damped = matrix + torch.diag_embed(damping * diagonal)
        step = -torch.linalg.solve_ex(damped, self.gradient[index])[0]
        step = torch.nan_to_num(step, nan=0.0, posinf=0.0, neginf=0.0)
        length = step.norm(dim=-1, keepdim=True)
        self.shift[index] = step * (self.settings.step / length.clamp_min(1e-12)).clamp_max(1.0)
        self.resting[index] = length[:, 0] < self.settings.final_step
