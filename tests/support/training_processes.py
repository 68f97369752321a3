"""`torchrun training_processes.py FOLDER`: several trainings by the processes that there are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drrkit.training import Processes, train
from tests.support import training_tasks


class Even(training_tasks.Regression):
    """Without dropout and in float64: the processes' mean is the gradient of one large batch."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.model.double()

    def losses(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        torch.manual_seed(step)
        x = torch.randn(16, 4, dtype=torch.float64)[rank::world]
        return {"loss": (self.model(x)[:, 0] - x.prod(1)).square().mean()}

    def validate(self) -> dict[str, float]:
        return {"loss": float(Processes.of_environment().rank)}


class EvenGradients(training_tasks.GradientMatching):
    """A double backward whose last bias no gradient reaches, as Even."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0, batch=8)
        self.model.double()

    def losses(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        torch.manual_seed(step)
        x = torch.randn(16, 4, dtype=torch.float64)[rank::world].requires_grad_()
        (slope,) = torch.autograd.grad(self.model(x).sum(), x, create_graph=True)
        return {"loss": (slope - x.detach().cos()).square().mean()}

    def validate(self) -> dict[str, float]:
        return {"loss": float(Processes.of_environment().rank)}


KINDS: dict[str, Any] = {
    "even": Even,
    "gradients": EvenGradients,
    "dropout": training_tasks.Regression,
}


def run(folder: Path, kind: str, accumulate: int, steps: int = 10) -> Tensor:
    """The weights after a training."""
    task = KINDS[kind]()
    train(
        task,
        folder,
        steps=steps,
        validate_every=4,
        save_every=3,
        clip_norm=5.0,
        accumulate=accumulate,
        progress=False,
    )
    return training_tasks.weights(task)


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    for name in ("even", "gradients"):
        run(target / name, name, 1)
    for count in (1, 2):
        run(target / f"dropout-{count}", "dropout", count)
    run(target / "parts", "dropout", 1, steps=4)
    run(target / "parts", "dropout", 1)
    Processes.of_environment().leave()
