"""Running work step by step: a progress bar, and Ctrl-C that ends it but loses nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from drrkit.registration.stages import Search, Stage

__all__ = ["count_steps", "progress_bar", "run"]


class Steps(Protocol):
    """Work that is done in steps: an optimiser's, a search's."""

    @property
    def finished(self) -> bool: ...
    @property
    def stop_reason(self) -> str: ...
    @property
    def best_loss(self) -> Tensor: ...
    def step(self) -> None: ...


def run(work: Steps, bar: Any) -> str:
    """Step until the stage is finished or the user interrupts; the reason why it ended."""
    try:
        while not work.finished:
            work.step()
            bar.update(1)
            bar.set_postfix(loss=f"{float(work.best_loss.min()):.4f}", refresh=False)
    except KeyboardInterrupt:
        return "interrupted"
    return work.stop_reason


class _NoBar:
    """Stands in for a progress bar."""

    def set_description(self, text: str) -> None: ...
    def set_postfix(self, **values: Any) -> None: ...
    def update(self, steps: int) -> None: ...
    def add(self, steps: int) -> None: ...
    def close(self) -> None: ...


def progress_bar(stages: Sequence[Stage | Search], wanted: bool) -> Any:
    """A bar over the steps of the stages; those of a search are added when it begins."""
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

    return Bar(total=count_steps(stages), unit="step")


def count_steps(stages: Sequence[Stage | Search]) -> int:
    return sum(stage.iterations for stage in stages if isinstance(stage, Stage))
