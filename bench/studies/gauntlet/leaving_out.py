"""What each part of `register`'s defaults is worth: the same cases registered without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from drrkit.registration import pipeline
from drrkit.registration.presets import FOLLOW
from drrkit.registration.problem import rendering
from drrkit.registration.problem.truncation import CutFaces
from drrkit.registration.stages import Search, Stage
from drrkit.registration.trials import Trial, trials_of

__all__ = ["PARTS", "without"]


def _trials(change: Callable[[list[Trial]], list[Trial]]) -> Any:
    return patch.object(pipeline, "trials_of", lambda stages: change(trials_of(stages)))


def _whole_images(stage: Stage | Search) -> Stage | Search:
    if isinstance(stage, Search) or "patch" not in str(stage.similarity):
        return stage
    return replace(stage, similarity="gradient_ncc")


def _field_ignored(trials: list[Trial]) -> list[Trial]:
    return [replace(trial, field=False) for trial in trials]


def _without_patches(trials: list[Trial]) -> list[Trial]:
    return [replace(trial, stages=tuple(map(_whole_images, trial.stages))) for trial in trials]


def _last_stage_before(trials: list[Trial]) -> list[Trial]:
    def before(stage: Stage | Search) -> Stage | Search:
        if isinstance(stage, Search) or stage.similarity != "robust_patch_gradient_ncc":
            return stage
        return replace(stage, similarity="weighted_patch_gradient_ncc", blur=1.0)

    return [replace(trial, stages=tuple(map(before, trial.stages))) for trial in trials]


PARTS: dict[str, tuple[str, Callable[[], list[Any]]]] = {
    "patches": (
        "patches: gradient NCC over the whole image in their place",
        lambda: [_trials(_without_patches)],
    ),
    "tolerance": (
        "the last stage's tolerance: patches weighed by the rendering's structure, after a blur",
        lambda: [_trials(_last_stage_before)],
    ),
    "quick": (
        "the quick first trial of `auto`: patches from 32 starts at once",
        lambda: [_trials(lambda all: all[1:] if all[0].stages[1] == FOLLOW[0] else all)],
    ),
    "later": (
        "further trials: the first one's end, whatever it is",
        lambda: [_trials(lambda all: all[:1])],
    ),
    "field": (
        "the open field: the whole image counts where no mask is given",
        lambda: [_trials(_field_ignored)],
    ),
    "negative": (
        "the trial of the negative",
        lambda: [_trials(lambda all: [trial for trial in all if not trial.negative])],
    ),
    "cut_faces": (
        "cut faces: rays through them count",
        lambda: [patch.object(rendering, "CutFaces", lambda scene: CutFaces(None))],
    ),
    "doubts": (
        "reasons: range, room and handedness are not looked at",
        lambda: [patch.object(pipeline.Registration, "doubt", lambda *_: None)],
    ),
}
"""Name, what is left out in words, and the patches that leave it out."""


@contextmanager
def without(part: str | None) -> Iterator[None]:
    """Within it `register` goes without a part of PARTS (None: with all)."""
    with ExitStack() as stack:
        for change in PARTS[part][1]() if part else ():
            stack.enter_context(change)
        yield
