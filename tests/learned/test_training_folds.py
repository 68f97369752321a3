"""Splits of subjects: nobody is trained on and tested on."""

from __future__ import annotations

import pytest

from drrkit.training import Split, k_folds, split

SCANS = [f"patient-{n // 2}" for n in range(40)]  # two scans of each of 20 patients


def parts(one: Split) -> list[set[str]]:
    return [set(one.train), set(one.validation), set(one.test)]


@pytest.mark.parametrize("folds, validation", [(4, 1), (5, 0), (20, 3), (3, 2)])
def test_no_subject_is_in_two_parts_and_everyone_is_tested_once(
    folds: int, validation: int
) -> None:
    found = k_folds(SCANS, folds, validation)
    assert len(found) == folds
    for one in found:
        assert set.union(*parts(one)) == set(SCANS)
        assert sum(len(p) for p in parts(one)) == len(one.train + one.validation + one.test) == 20
        assert len(one.validation) == validation
    tested = [name for one in found for name in one.test]
    assert sorted(tested) == sorted(set(SCANS))
    sizes = [len(one.test) for one in found]
    assert max(sizes) - min(sizes) <= 1


def test_the_published_split_of_twenty_subjects() -> None:
    sizes = [[len(p) for p in parts(one)] for one in k_folds(SCANS, 4, validation=1)]
    assert sizes == [[14, 1, 5]] * 4


def test_folds_depend_on_the_seed_and_on_nothing_else() -> None:
    assert k_folds(SCANS, 4, 1, seed=5) == k_folds(list(reversed(SCANS)), 4, 1, seed=5)
    assert k_folds(SCANS, 4, 1, seed=5) != k_folds(SCANS, 4, 1, seed=6)
    assert split(SCANS, 3, seed=1) == split(SCANS[::-1], 3, seed=1)


def test_one_split_has_so_many_subjects_to_validate_on() -> None:
    found = split(SCANS, 3)
    assert len(found.validation) == 3 and len(found.train) == 17 and not found.test
    assert not set(found.train) & set(found.validation)


def test_a_split_that_leaks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"subject 'b' is in train and in test"):
        Split(("a", "b"), ("c",), ("b",))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: k_folds(["a", "a"], 2), "folds: expected 2 to 1"),
        (lambda: k_folds(["a", "b", "c"], 3, validation=2), "validation: expected less than the 2"),
        (lambda: k_folds(["a", "b", "c"], 1), "folds: expected 2 to 3"),
        (lambda: split(["a"], 1), "validation: expected less than the 1"),
    ],
)
def test_too_few_subjects_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
