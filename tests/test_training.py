"""The training engine: what it writes, what it resumes, what it refuses."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from training_tasks import GradientMatching, Regression

from drrkit.training import load_checkpoint, train

SOON = {"validate_every": 4, "save_every": 3, "progress": False}


def weights(task: Regression) -> torch.Tensor:
    return torch.cat([v.flatten() for v in task.model.state_dict().values()])


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def test_training_lowers_the_loss_and_writes_what_it_says(tmp_path: Path) -> None:
    task = Regression(dropout=0.0)
    before = task.validate()["loss"]
    result = train(task, tmp_path, steps=60, **SOON)
    assert result.step == 60 and not result.interrupted and result.skipped == 0
    assert result.best_value < 0.7 * before
    last, best = load_checkpoint(tmp_path / "last.pt"), load_checkpoint(tmp_path)
    assert last.step == 60 and best.step == result.best_step
    assert torch.equal(last.model["0.weight"], task.model[0].weight)
    logged = rows(tmp_path / "log.csv")
    assert [int(row["step"]) for row in logged] == list(range(1, 61))
    assert list(logged[0]) == ["step", "loss", "largest", "gradient_norm", "rate", "seconds"]
    assert [int(row["step"]) for row in rows(tmp_path / "validation.csv")] == list(range(4, 61, 4))


@pytest.mark.parametrize("kind", [Regression, GradientMatching])
@pytest.mark.parametrize("stop", [1, 3, 7])
def test_a_run_in_two_parts_ends_with_the_same_weights(
    kind: type[Regression], stop: int, tmp_path: Path
) -> None:
    whole, first, second = kind(), kind(), kind()
    train(whole, tmp_path / "whole", steps=10, **SOON)
    train(first, tmp_path / "parts", steps=stop, **SOON)
    train(second, tmp_path / "parts", steps=10, **SOON)
    assert torch.equal(weights(whole), weights(second))
    assert not torch.equal(weights(first), weights(second))
