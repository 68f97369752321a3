"""Running work step by step: a progress bar, and Ctrl-C that ends it but loses nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from drrkit.registration.optimisers.optimiser import PoseEngine
from drrkit.registration.result import StageRecord
from drrkit.registration.stages import Search, Stage

__all__ = ["Watcher", "count_steps", "run", "stacked", "stage_record", "step_bar"]

Watcher = Callable[[Tensor, float], None]
"""Is told the best pose so far ([4, 4], or [n, 4, 4] for n bodies) and its loss after every step.
Raising KeyboardInterrupt ends the work as Ctrl-C does."""


class Steps(Protocol):
    """Work that is done in steps: an optimiser's, a search's."""

    @property
    def finished(self) -> bool: ...
    @property
    def stop_reason(self) -> str: ...
    @property
    def best_loss(self) -> Tensor: ...
    @property
    def best_pose(self) -> Tensor: ...
    def step(self) -> None: ...


def run(work: Steps, bar: Any, path: list[Tensor] | None = None) -> str:
    """Step until the stage is finished or the user interrupts; the reason why it ended.

    The best pose so far, [4, 4] or [n, 4, 4], is added to the path after every step.
    """
    try:
        while not work.finished:
            work.step()
            if path is not None:
                best = work.best_loss.argmin().reshape(1)  # no number: a GPU is not waited for
                path.append(work.best_pose.index_select(0, best)[0])
            bar.update(1)
            bar.show(work)
    except KeyboardInterrupt:
        return "interrupted"
    return work.stop_reason


class _NoBar:
    """Stands in for a progress bar."""

    def set_description(self, text: str) -> None: ...
    def show(self, work: Steps) -> None: ...
    def update(self, steps: int) -> None: ...
    def add(self, steps: int) -> None: ...
    def close(self) -> None: ...


class _Told(_NoBar):
    """Tells a watcher instead of drawing a bar."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher

    def show(self, work: Steps) -> None:
        best = int(work.best_loss.argmin())
        self.watcher(work.best_pose[best].detach().clone(), float(work.best_loss[best]))


def step_bar(stages: Sequence[Stage | Search], wanted: bool | Watcher) -> Any:
    """A bar over the steps of the stages; those of a search are added when it begins.

    Where a watcher is given, what tells it of every step.
    """
    if callable(wanted):
        return _Told(wanted)
    if not wanted:
        return _NoBar()
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _NoBar()

    # tqdm.auto chooses the class by where it runs.
    class Bar(tqdm):  # ty: ignore[unsupported-base]
        def add(self, steps: int) -> None:
            self.total += steps
            self.refresh()

        def show(self, work: Steps) -> None:
            self.set_postfix(loss=f"{float(work.best_loss.min()):.4f}", refresh=False)

    return Bar(total=count_steps(stages), unit="step")


def count_steps(stages: Sequence[Stage | Search]) -> int:
    return sum(stage.iterations for stage in stages if isinstance(stage, Stage))


def stacked(path: Sequence[Tensor], like: Tensor) -> Tensor:
    """Poses as one tensor [steps, ...] on the CPU; `like` [K, ...] says their shape."""
    return torch.stack(list(path)).cpu() if path else like[:0].cpu()


def stage_record(
    engine: PoseEngine,
    stage: Stage,
    factor: int,
    reason: str,
    seconds: float,
    path: Sequence[Tensor],
) -> StageRecord:
    """What a stage's engine has done; `path` as from `run`."""
    trace = engine.best_loss.new_empty(0, engine.best_loss.shape[0])
    if engine.trace:
        trace = torch.stack(engine.trace)
    visited = stacked(path, engine.best_pose)
    name = stage.optimiser.name
    return StageRecord(stage.name, factor, trace.cpu(), seconds, reason, name, path=visited)
