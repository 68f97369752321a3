"""Splits of subjects that cannot leak: every scan of a subject is on one side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Split:
    """Names of the subjects to train on, to validate on and to test on; no name is in two.

    Raises:
        ValueError: a subject is in more than one part.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        seen: dict[str, str] = {}
        for part, names in parts.items():
            for name in names:
                if seen.setdefault(name, part) != part:
                    raise ValueError(f"split: subject {name!r} is in {seen[name]} and in {part}")


def split(subjects: Sequence[str], validation: int, seed: int = 0) -> Split:
    """Some subjects, drawn at random, for validation, the others for training.

    Args:
        subjects: their names; one that comes several times (several scans) is one subject.
        validation: how many subjects to validate on.

    Raises:
        ValueError: no subject would remain to train on.
    """
    names = _shuffled(subjects, seed)
    if not 0 <= validation < len(names):
        raise ValueError(
            f"validation: expected less than the {len(names)} different subjects, got {validation}"
        )
    return Split(tuple(sorted(names[validation:])), tuple(sorted(names[:validation])))


def k_folds(
    subjects: Sequence[str], folds: int, validation: int = 0, seed: int = 0
) -> tuple[Split, ...]:
    """K splits: every subject is tested exactly once, by a model that never saw it.

    Args:
        subjects: their names; one that comes several times (several scans) is one subject.
        folds: K; test parts differ by at most one subject in size.
        validation: how many of the other subjects of each fold to validate on.

    Raises:
        ValueError: there are too few subjects.
    """
    names = _shuffled(subjects, seed)
    if not 2 <= folds <= len(names):
        raise ValueError(
            f"folds: expected 2 to {len(names)}, the number of different subjects, got {folds}"
        )
    found = []
    for number in range(folds):
        test = names[number::folds]
        others = [name for name in names if name not in test]
        if not 0 <= validation < len(others):
            raise ValueError(
                f"validation: expected less than the {len(others)} subjects that a fold does not "
                f"test on, got {validation}"
            )
        # Another start in every fold: no subject validates all of them.
        turn = number * validation % len(others)
        others = others[turn:] + others[:turn]
        parts = others[validation:], others[:validation], test
        found.append(Split(*(tuple(sorted(part)) for part in parts)))
    return tuple(found)


def _shuffled(subjects: Sequence[str], seed: int) -> list[str]:
    names = sorted(set(subjects))
    order = np.random.default_rng((seed, len(names))).permutation(len(names))
    return [names[i] for i in order]
