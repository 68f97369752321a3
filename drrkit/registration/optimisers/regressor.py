"""Poses that a network updates: what a stage with the optimiser "regressor" does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from drrkit.registration.optimisers.optimiser import PoseOptimiser
from drrkit.registration.problem.views import View, downsampling, renderer
from drrkit.registration.search.candidates import motion_between
from drrkit.registration.stages import Stage

__all__ = ["PoseRegression", "proposals"]

Proposal = Callable[[Tensor], Tensor]
"""world_to_camera [B, 4, 4] -> better ones [B, 4, 4]."""


class PoseRegression(PoseOptimiser):
    """Updates every pose until an update is smaller than `stage.final_step` mm of motion.

    The last poses count, whatever their loss: a regressor is right where the similarity still has
    other minima. An update that is not finite ends its pose before it.

    Args:
        objective: poses [B, 4, 4] -> losses [B], for the history and to compare starts.
        propose: the regressor's updates.
        world_to_camera, center, units, stage: as for PoseOptimiser.
    """

    def __init__(
        self,
        objective: Callable[[Tensor], Tensor],
        propose: Proposal,
        world_to_camera: Tensor,
        center: Tensor,
        units: Tensor,
        stage: Stage,
    ) -> None:
        super().__init__(world_to_camera, center, units, stage)
        self.objective, self.propose = objective, propose

    @torch.no_grad()
    def advance(self, index: Tensor) -> Tensor:
        """Replace the poses by the regressor's; their losses."""
        pose = self.best_pose[index]
        updated = self.propose(pose).to(pose)
        sound = updated.isfinite().all(-1).all(-1)
        updated = torch.where(sound[:, None, None], updated, pose)
        loss = torch.nan_to_num(self.objective(updated).double(), nan=torch.inf)
        self.best_pose[index], self.best_loss[index] = updated, loss
        moved = motion_between(updated, pose, self.center, self.units).diagonal()
        self.resting[index] = (moved < self.stage.final_step) | ~sound
        return loss


def proposals(
    scene: Any,
    views: Sequence[View],
    stage: Stage,
    world_to_camera: Tensor,
    center: Tensor,
    method: str,
) -> Proposal:
    """What `stage.regressor` makes of poses, from renderings of the volume that it prepares.

    Args:
        scene: a Volume in mu.
        views: one view.
        stage: gives the regressor and the resolution.
        world_to_camera: [K, 4, 4] starts; with `center` they say how far the patient stands.
        center: [3] world mm.
        method: projector method.

    Raises:
        ValueError: there are several views.
        TypeError: what the regressor's `prepare` raises for a scene that is no Volume.
    """
    if len(views) != 1:
        raise ValueError(f"camera: expected one for the optimiser 'regressor', got {len(views)}")
    depth = world_to_camera[:, 2, :3] @ center + world_to_camera[:, 2, 3]
    factor = downsampling(stage, views[0].camera, float(depth.mean().clamp_min(1.0)))
    view = views[0].downsampled(factor).blurred(stage.blur)
    volume = stage.regressor.prepare(scene)
    draw = renderer(volume, view.camera, stage.supersample, method)

    @torch.no_grad()
    def propose(pose: Tensor) -> Tensor:
        return stage.regressor.update(draw(pose), view.xray, pose, volume)

    return propose
