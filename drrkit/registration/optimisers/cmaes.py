"""CMA-ES through pycma's ask and tell, one render call a generation for all starts together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drrkit.registration.optimisers.optimiser import PoseOptimiser
from drrkit.registration.stages import Stage

__all__ = ["CmaEs"]


class CmaEs(PoseOptimiser):
    """Covariance matrix adaptation (Hansen 2016) of xi about every start, in units of its spread.

    One distribution a start: its mean begins at the start, its standard deviations are
    `stage.spread`. A generation draws `stage.population` poses a start, and all of them, with the
    means of the distributions, are one call of the objective. A start rests when its distribution
    is narrower than `stage.final_step` mm of motion, or when one of pycma's own criteria holds.

    A stage without a spread goes on with the distributions that the CMA-ES before it has reached,
    means, step lengths and covariances, on its own objective.

    Args:
        objective: poses [B, 4, 4] -> losses [B].
        world_to_camera, center, units, stage: as for PoseOptimiser.
        generator: where the seeds of the distributions come from.
        previous: the CMA-ES to go on with where the stage has no spread.

    Raises:
        ImportError: cma is missing.
    """

    def __init__(
        self,
        objective: Callable[[Tensor], Tensor],
        world_to_camera: Tensor,
        center: Tensor,
        units: Tensor,
        stage: Stage,
        generator: torch.Generator,
        previous: CmaEs | None = None,
    ) -> None:
        super().__init__(world_to_camera, center, units, stage)
        self.objective = objective
        if previous is not None and stage.spread is None:
            self.start, self.scale = previous.start, previous.scale
            self.strategies = previous.strategies
            return
        self.start = world_to_camera.clone()
        self.scale = self.spreads
        seeds = torch.randint(2**31, (world_to_camera.shape[0],), generator=generator)
        self.strategies = [_strategy(stage, units.numel(), int(seed)) for seed in seeds]

    def advance(self, index: Tensor) -> Tensor:
        """One generation of every start; the losses of the distributions' means."""
        chosen = [self.strategies[i] for i in index.tolist()]
        drawn = [strategy.ask() for strategy in chosen]
        points = np.stack(
            [[*points, strategy.mean] for points, strategy in zip(drawn, chosen, strict=True)]
        )
        xi = torch.from_numpy(points).to(self.start) * self.scale  # [A, population + 1, D]
        start = self.start[index].repeat_interleave(xi.shape[1], 0)
        pose = self.moved(start, xi.flatten(0, 1))
        with torch.no_grad():
            loss = self.objective(pose).double().unflatten(0, xi.shape[:2])
        loss = torch.nan_to_num(loss, nan=torch.inf)
        best = loss.argmin(1)
        row = torch.arange(len(chosen), device=best.device)
        self.remember(index, pose.unflatten(0, xi.shape[:2])[row, best], loss[row, best])
        # A pose without a loss must rank last, but not with an infinity.
        told = torch.nan_to_num(loss[:, :-1], posinf=1e30).tolist()
        for strategy, points, values in zip(chosen, drawn, told, strict=True):
            strategy.tell(points, values)
        self.resting[index] = torch.tensor([self._done(s) for s in chosen]).to(self.resting)
        return loss[:, -1]

    def _done(self, strategy: Any) -> bool:
        deviation = torch.as_tensor(strategy.sigma * strategy.sm.variances**0.5).to(self.scale)
        narrow = float((deviation * self.scale / self.units).max()) < self.stage.final_step
        return narrow or bool(strategy.stop())


def _strategy(stage: Stage, size: int, seed: int) -> Any:
    """A distribution of `size` numbers about the origin with unit standard deviations."""
    import cma

    random = np.random.default_rng(seed)
    options = {
        "popsize": stage.population,
        "maxiter": np.inf,  # the stage counts its generations
        "seed": np.nan,  # leaves numpy's global generator alone
        "randn": lambda *shape: random.standard_normal(shape),
        "verbose": -9,
    }
    return cma.CMAEvolutionStrategy(size * [0.0], 1.0, options)
