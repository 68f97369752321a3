"""Small tasks to train in tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from drrkit.training import generator


class Regression:
    """A small network with dropout that learns a fixed function of noise.

    The samples of a step are the same however many shares they are in.
    """

    def __init__(self, seed: int = 3, batch: int = 8, dropout: float = 0.3) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(
            nn.Linear(4, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1)
        )
        self.seed, self.batch = seed, batch

    def optimiser(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), 1e-2)

    def schedule(self, optimiser: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.CyclicLR(
            optimiser, 1e-4, 1e-2, step_size_up=7, cycle_momentum=False
        )

    def losses(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        x = torch.randn(world * self.batch, 4, generator=generator(self.seed, step))[rank::world]
        error = self.model(x)[:, 0] - x.prod(1).sin()
        return {"loss": error.square().mean(), "largest": error.abs().max()}

    def validate(self) -> dict[str, float]:
        x = torch.randn(64, 4)
        with torch.no_grad():
            return {"loss": float((self.model(x)[:, 0] - x.prod(1).sin()).square().mean())}


def weights(task: Regression) -> Tensor:
    """All parameters and buffers in one vector."""
    return torch.cat([v.flatten() for v in task.model.state_dict().values()])


class GradientMatching(Regression):
    """Learns a function by its gradient: a double backward, which a last bias does not reach."""

    def losses(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        x = torch.randn(world * self.batch, 4, generator=generator(self.seed, step))[rank::world]
        x.requires_grad_()
        value = self.model(x).sum()
        (slope,) = torch.autograd.grad(value, x, create_graph=True)
        return {"loss": functional.mse_loss(slope, x.detach().cos()), "value": value}
