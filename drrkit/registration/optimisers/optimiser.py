"""What every optimiser of a batch of poses keeps: the best poses, the losses, who still moves."""

from __future__ import annotations

import torch
from torch import Tensor

from drrkit.registration.problem.motion import moved
from drrkit.registration.stages import Stage

__all__ = ["PoseOptimiser"]


class PoseOptimiser:
    """A batch of poses that are improved independently, some of which may rest already.

    A subclass defines `advance`, one step of the poses that still move. It reports what it visits
    to `remember` and ends a pose by setting `resting`. The best pose of all visited is kept, so a
    stage never makes a loss worse.

    With `stage.halve_every` the batch is halved: every so many steps the worse half of the poses
    that still move comes to rest, down to `stage.keep` of them.

    Args:
        world_to_camera: [K, 4, 4] float64 starts; [K, n, 4, 4] where n bodies move on their own.
        center: [3] world mm, the point that rotations turn about; [n, 3] for n bodies.
        units: [6] or [6 n] the change of xi (rad, mm) that counts as one mm of motion.
        stage: step lengths and limits.
    """

    def __init__(
        self, world_to_camera: Tensor, center: Tensor, units: Tensor, stage: Stage
    ) -> None:
        count = world_to_camera.shape[0]
        self.center = center
        self.units = units
        self.stage = stage
        self.best_pose = world_to_camera.clone()
        self.best_loss = world_to_camera.new_full((count,), torch.inf)
        self.resting = torch.zeros(count, dtype=torch.bool, device=world_to_camera.device)
        self.steps = 0
        self.trace: list[Tensor] = []  # [K] losses of every step, NaN for resting poses

    def advance(self, index: Tensor) -> Tensor:
        """Move the poses `index` [A] by one step; the losses [A] float64 met on the way."""
        raise NotImplementedError

    def moved(self, pose: Tensor, xi: Tensor) -> Tensor:
        """Poses [B, ...] moved by xi [B, D], differentiable. What else than poses moves, overrides
        this."""
        return moved(pose, xi, self.center)

    @property
    def spreads(self) -> Tensor:
        """The stage's spread of every component of xi, [D]."""
        return self.stage.spreads.to(self.units).repeat(self.units.numel() // 6)

    @property
    def active(self) -> Tensor:
        """Indices of the poses that still move."""
        return torch.nonzero(~self.resting).flatten()

    @property
    def finished(self) -> bool:
        """Whether all poses rest or the stage's iterations are used up."""
        return self.steps >= self.stage.iterations or self.active.numel() == 0

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

    def _halve(self) -> None:
        every, keep = self.stage.halve_every, self.stage.keep or 1
        index = self.active
        if every == 0 or self.steps % every or index.numel() <= keep:
            return
        stay = max(keep, (index.numel() + 1) // 2)
        order = self.best_loss[index].argsort(stable=True)
        self.resting[index[order[stay:]]] = True
