"""What can be trained (Task), and one step of it: losses, gradients, their check, the optimiser.

The random numbers of a step are a function of (seed, step, rank), so that no checkpoint keeps any.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from drrkit.training.checkpoints import Checkpoint
from drrkit.training.distributed import Processes

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
TRAINING, VALIDATION = 0, 1  # follow the seed, so that the two streams have nothing in common


def _derived_seed(*numbers: int) -> int:
    """A seed of 63 bits from whole numbers >= 0; other numbers give an unrelated one."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def generator(*numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A new generator seeded from whole numbers >= 0, such as (seed, step, rank)."""
    return torch.Generator(device).manual_seed(_derived_seed(*numbers))


def drawn_integer(draw: torch.Generator, below: int = 2**31 - 1) -> int:
    """A whole number from 0 to below - 1; the default range makes seeds."""
    return int(torch.randint(below, (), generator=draw))


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seeds the global generators of torch (all devices), NumPy and Python; restores them after."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    seed = _derived_seed(*numbers)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)


@runtime_checkable
class Task(Protocol):
    """What `train` trains.

    A task keeps no state of its own between steps: what has to survive is a parameter or a buffer
    of `model`. All randomness of a step comes from (seed, step, rank): from the global generators
    of torch, NumPy and Python, which `train` seeds before every call, or from
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
        """Scalars of one batch: "loss" is minimised, the others are logged. The names never change.

        Args:
            step: from 0.
            rank, world: this is the batch of share `rank` of `world`. Shares are averaged, whether
                processes compute them side by side or one after the other (`accumulate`).
        """
        ...

    def validate(self) -> dict[str, float]:
        """Numbers on data that is not trained on, the same for the same weights.

        The model is in evaluation mode and gradients are on. Every process calls it and the mean
        over the processes counts, so that a task may share the work out.
        """
        ...


class _Losses(nn.Module):
    """A task's losses as a module's forward, for DistributedDataParallel.

    Gradients that a task takes inside its losses are of inputs, not of parameters: they stay in
    this process. Losses that are only logged are detached: processes would wait for their gradient.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self.task = task

    def forward(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        found = self.task.losses(step, rank, world)
        if not isinstance(found, dict) or not isinstance(found.get("loss"), Tensor):
            raise TypeError(f"losses: expected a dict with a tensor 'loss', got {found!r:.80}")
        for name, value in found.items():
            if torch.as_tensor(value).numel() != 1:
                raise ValueError(f"losses: expected scalars, {name!r} is {tuple(value.shape)}")
        if not found["loss"].requires_grad:
            raise ValueError("losses: expected a 'loss' that depends on the model, got a constant")
        others = {k: torch.as_tensor(v).detach() for k, v in found.items() if k != "loss"}
        return {"loss": found["loss"].reshape(()), **others}


class Stepper:
    """A task with its optimiser and schedule, in step with the other processes."""

    def __init__(
        self,
        task: Task,
        processes: Processes,
        accumulate: int,
        precision: str,
        clip_norm: float | None,
        max_skips: int,
    ) -> None:
        self.task, self.processes = task, processes
        self.accumulate, self.max_skips = accumulate, max_skips
        self.dtype = PRECISIONS[precision]
        self.clip_norm = clip_norm
        self.skipped = self.skipped_in_a_row = 0
        self.parameters = [p for p in task.model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.optimiser = task.optimiser()
        self.schedule = task.schedule(self.optimiser)
        if isinstance(self.schedule, ReduceLROnPlateau):
            raise ValueError("schedule: expected one by steps alone, got ReduceLROnPlateau")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "float16")
        self.losses: nn.Module = _Losses(task)
        if processes.world > 1:
            # A parameter need not reach the loss: the last bias of a network does not reach the
            # gradient that a learned similarity is trained by.
            self.losses = DistributedDataParallel(self.losses, find_unused_parameters=True)

    def advance(self, step: int, seed: int, stop: bool) -> tuple[dict[str, float], bool]:
        """One step: the mean losses and the gradient's norm, and whether any process says stop."""
        self.task.model.train()
        self.optimiser.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        for micro in range(self.accumulate):
            for name, value in self._backward(step, seed, micro).items():
                totals[name] = totals.get(name, 0) + value.double() / self.accumulate
        self.scaler.unscale_(self.optimiser)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = get_total_norm(gradients)
        numbers = torch.stack([*totals.values()]).tolist()
        *numbers, stopping = self.processes.mean([*numbers, float(stop)], self.device)
        losses = {**dict(zip(totals, numbers, strict=True)), "gradient_norm": float(norm)}
        if math.isfinite(losses["loss"]) and math.isfinite(losses["gradient_norm"]):
            if self.clip_norm is not None:
                clip_grads_with_norm_(self.parameters, self.clip_norm, norm)
            self.scaler.step(self.optimiser)
            self.skipped_in_a_row = 0
        else:
            self._skip(step)
        self.scaler.update()
        if self.schedule is not None:
            self.schedule.step()
        return losses, stopping > 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores of it."""
        return {
            "model": self.task.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "scaler": self.scaler.state_dict() or None,
            "skipped": self.skipped,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continues from a checkpoint; ValueError if it is of another model or optimiser."""
        try:
            self.task.model.load_state_dict(checkpoint.model)
            self.optimiser.load_state_dict(checkpoint.optimiser or {})
            if self.schedule is not None:
                self.schedule.load_state_dict(checkpoint.schedule or {})
            if checkpoint.scaler is not None:
                self.scaler.load_state_dict(checkpoint.scaler)
        except (RuntimeError, KeyError, ValueError) as error:
            raise ValueError(f"the checkpoint is of another model or optimiser: {error}") from error
        self.skipped = checkpoint.skipped

    def _backward(self, step: int, seed: int, micro: int) -> dict[str, Tensor]:
        """Adds the gradient of one batch; its losses."""
        share = self.processes.rank * self.accumulate + micro
        shares = self.processes.world * self.accumulate
        with self._quiet(micro), seeded(seed, TRAINING, step, share):
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                found = self.losses(step, share, shares)
            self.scaler.scale(found["loss"] / self.accumulate).backward()
        return {name: value.detach() for name, value in found.items()}

    def _quiet(self, micro: int) -> AbstractContextManager:
        """Processes exchange gradients with the last batch of a step only."""
        if micro + 1 < self.accumulate and isinstance(self.losses, DistributedDataParallel):
            return self.losses.no_sync()
        return nullcontext()

    def _skip(self, step: int) -> None:
        """Leaves a step out; RuntimeError after too many in a row or if a buffer is spoilt."""
        self.skipped += 1
        self.skipped_in_a_row += 1
        for name, buffer in self.task.model.named_buffers():
            if buffer.is_floating_point() and not bool(buffer.isfinite().all()):
                raise RuntimeError(
                    f"step {step}: the loss or its gradient is not finite, and neither is the "
                    f"model's buffer {name!r} any more; resume from the last checkpoint"
                )
        if self.skipped_in_a_row > self.max_skips:
            raise RuntimeError(
                f"step {step}: the loss or its gradient was not finite {self.skipped_in_a_row} "
                "times in a row; a lower learning rate or clip_norm may help"
            )
