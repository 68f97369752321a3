"""Poses that a network updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from drrkit.registration.optimisers.optimiser import Optimiser, PoseEngine, PoseProblem
from drrkit.registration.problem.motion import motion_between

__all__ = ["Regressor", "RegressorEngine"]


@dataclass(frozen=True)
class Regressor(Optimiser):
    """A network that says where to go; the stage's similarity is only reported.

    Attributes:
        network: a `drrkit.similarity.PoseRegressor`, or anything with its `prepare` and `update`.
        final_step: a pose rests when an update is smaller than this.
    """

    network: Any = None

    name: ClassVar[str] = "regressor"
    many_poses: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(getattr(self.network, "update", None)):
            raise TypeError(
                f"network: expected one with update(), got {type(self.network).__name__}"
            )

    def begin(self, problem: PoseProblem, world_to_camera: Tensor) -> RegressorEngine:
        return RegressorEngine(self, problem, world_to_camera)


class RegressorEngine(PoseEngine):
    """Replaces every pose by what the network makes of it.

    The last poses count, whatever their loss: a regressor is right where the similarity still has
    other minima. An update that is not finite ends its pose before it.
    """

    def __init__(self, settings: Regressor, problem: PoseProblem, world_to_camera: Tensor) -> None:
        super().__init__(problem, world_to_camera)
        self.settings, self.propose = settings, problem.propose(settings.network)

    @torch.no_grad()
    def advance(self, index: Tensor) -> Tensor:
        """Replace the poses by the regressor's; their losses."""
        pose = self.best_pose[index]
        updated = self.propose(pose).to(pose)
        sound = updated.isfinite().all(-1).all(-1)
        updated = torch.where(sound[:, None, None], updated, pose)
        loss = torch.nan_to_num(self.problem.objective(updated).double(), nan=torch.inf)
        self.best_pose[index], self.best_loss[index] = updated, loss
        moved = motion_between(updated, pose, self.center, self.units).diagonal()
        self.resting[index] = (moved < self.settings.final_step) | ~sound
        return loss
