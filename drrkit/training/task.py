"""What can be trained."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["Task"]


@runtime_checkable
class Task(Protocol):
    """What `train` trains; it knows no more.

    A task keeps no state of its own between steps: what has to survive is a parameter or a buffer
    of `model`, and all randomness of a step comes from (seed, step, rank): from torch's, NumPy's
    or Python's global generators, which `train` seeds before every call, or from
    `generator(seed, step, rank)` with a seed of the task's own.

    Attributes:
        model: all trained parameters and all buffers, on one device.
    """

    model: nn.Module

    def optimiser(self) -> Optimizer:
        """A new optimiser of the model's parameters."""
        ...

    def schedule(self, optimiser: Optimizer) -> LRScheduler | None:
        """A new schedule of its learning rate, stepped after every step; None for a constant."""
        ...

    def losses(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """Scalars of one batch: "loss" is minimised, the others are logged beside it.

        The names are the same at every step.

        Args:
            step: from 0.
            rank, world: this is the batch of share `rank` of `world`: shares are averaged, whether
                processes compute them side by side or one after the other (`accumulate`).
        """
        ...

    def validate(self) -> dict[str, float]:
        """Numbers on data that is not trained on, the same for the same weights.

        The model is in evaluation mode and gradients are on. Every process calls it; the mean over
        the processes counts, so that a task may share the work out.
        """
        ...
