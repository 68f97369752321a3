"""Descent by directions alone: for a learned similarity, whose gradients are trained to point."""

from __future__ import annotations

import torch
from torch import Tensor

from drrkit.registration.optimisers.descent import PoseDescent

__all__ = ["DirectionDescent"]


class DirectionDescent(PoseDescent):
    """Steps of a given length along the gradient's rotation and translation, each made a unit.

    Every `stage.patience` steps the length halves; a pose rests once it is below
    `stage.final_step`. With a first step of 0.1 rad, halved every 15 steps, this is the gradient
    phase of ProST (Gao et al., IEEE TMI 2024). Unlike its parent it does not wait for the loss to
    fall: only the directions of a learned similarity's gradients mean something, not their lengths
    nor what its values differ by. The pose of lowest loss on the way is kept.

    Args: as for PoseDescent.
    """

    def advance(self, index: Tensor) -> Tensor:
        """Evaluate the poses and move them."""
        pose = self.pose[index]
        loss, gradient = self._evaluate(pose)
        self.remember(index, pose, loss)
        halves = (gradient / self.units).unflatten(-1, (-1, 3))
        length = torch.linalg.vector_norm(halves, dim=-1, keepdim=True)
        direction = halves / length.clamp_min(torch.finfo(length.dtype).tiny)
        # A turn counts by what it moves, a shift by its length, along the beam too.
        scale = self.units.unflatten(0, (-1, 3)).amin(-1, keepdim=True)
        xi = -self._length(self.steps) * direction * scale
        self.pose[index] = self.moved(pose, xi.flatten(-2))
        self.resting[index] = self._length(self.steps + 1) < self.stage.final_step
        return loss

    def _length(self, steps: int) -> float:
        """Of the step after so many steps, mm."""
        return self.stage.step * 0.5 ** (steps // self.stage.patience)
