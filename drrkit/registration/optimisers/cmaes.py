"""CMA-ES through pycma's ask and tell, one render call a generation for all starts together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from drrkit.registration.lengths import Share, check_spread, spread_in_mm, whole_number
from drrkit.registration.optimisers.optimiser import Optimiser, PoseEngine, PoseProblem

__all__ = ["CmaEs", "CmaEsEngine"]


@dataclass(frozen=True)
class CmaEs(Optimiser):
    """CMA-ES (Hansen 2016), without derivatives: for rough landscapes.

    Attributes:
        sigma: first standard deviations of xi about every start, (rad, length) or three of each;
            None: go on with the distributions that the CmaEs stage before has reached, which had
            the same population, one start and no `keep`.
        population: poses drawn per generation and start.
        final_step: a start rests when its distribution is narrower than this.
    """

    sigma: tuple[float, ...] | None = (0.3, Share(2 / 15))
    population: int = 50

    name: ClassVar[str] = "cmaes"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number(self, "population", 4)
        if self.sigma is not None:
            check_spread("sigma", self.sigma)

    def begin(self, problem: PoseProblem, world_to_camera: Tensor) -> CmaEsEngine:
        return CmaEsEngine(self, problem, world_to_camera)

    def in_mm(self, extent: float, mm: bool) -> CmaEs:
        found = super().in_mm(extent, mm)
        assert isinstance(found, CmaEs)
        if self.sigma is None:
            return found
        return replace(found, sigma=spread_in_mm(self.sigma, extent, mm))


class CmaEsEngine(PoseEngine):
    """One distribution per start: its mean begins at the start.

    A generation draws `population` poses for every start, and all of them, with the means of the
    distributions, are one call of the objective. A start rests too when one of pycma's own criteria
    holds.

    Raises:
        ImportError: cma is missing.
    """

    def __init__(self, settings: CmaEs, problem: PoseProblem, world_to_camera: Tensor) -> None:
        super().__init__(problem, world_to_camera)
        self.settings = settings
        if settings.sigma is None:
            previous = problem.previous
            assert isinstance(previous, CmaEsEngine)  # resolve_stages has checked the pipeline
            self.start, self.scale = previous.start, previous.scale
            self.strategies = previous.strategies
            return
        self.start = world_to_camera.clone()
        self.scale = self.per_component(settings.sigma)
        seeds = torch.randint(2**31, (world_to_camera.shape[0],), generator=problem.generator)
        self.strategies = [
            _strategy(settings.population, self.units.numel(), int(seed)) for seed in seeds
        ]

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
            loss = self.problem.objective(pose).double().unflatten(0, xi.shape[:2])
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
        narrow = float((deviation * self.scale / self.units).max()) < self.settings.final_step
        return narrow or bool(strategy.stop())


def _strategy(population: int, size: int, seed: int) -> Any:
    """A distribution of `size` numbers about the origin with unit standard deviations."""
    import cma

    random = np.random.default_rng(seed)
    options = {
        "popsize": population,
        "maxiter": np.inf,  # the stage counts its generations
        "seed": np.nan,  # leaves numpy's global generator alone
        "randn": lambda *shape: random.standard_normal(shape),
        "verbose": -9,
    }
    return cma.CMAEvolutionStrategy(size * [0.0], 1.0, options)
