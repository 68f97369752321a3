"""The training engine: what it writes, what it resumes, what it refuses."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler

from drrkit.training import load_checkpoint, train
from tests.support.commands import SUPPORT, python
from tests.support.training_processes import Even
from tests.support.training_tasks import GradientMatching, Regression, weights

SOON: dict[str, Any] = {"validate_every": 4, "save_every": 3, "progress": False}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def trained(
    folder: Path, steps: int, kind: type[Regression] = Regression, **options: Any
) -> Tensor:
    task = kind()
    train(task, folder, steps=steps, **{**SOON, **options})
    return weights(task)


# ---- what it does and writes


def test_training_lowers_the_loss_and_writes_what_it_says(tmp_path: Path) -> None:
    task = Regression(dropout=0.0)
    before = task.validate()["loss"]
    result = train(task, tmp_path, steps=60, config={"network": "small"}, **SOON)
    assert result.step == 60 and not result.interrupted and result.skipped == 0
    assert result.best_value < 0.7 * before
    last, best = load_checkpoint(tmp_path / "last.pt"), load_checkpoint(tmp_path)
    assert last.step == 60 and best.step == result.best_step
    assert best.metrics["loss"] == result.best_value
    assert torch.equal(last.model["0.weight"], task.model[0].weight)
    assert last.config == {"network": "small"}
    assert json.loads((tmp_path / "config.json").read_text())["config"] == {"network": "small"}
    logged = rows(tmp_path / "log.csv")
    assert [int(row["step"]) for row in logged] == list(range(1, 61))
    assert list(logged[0]) == ["step", "loss", "largest", "gradient_norm", "rate", "seconds"]
    validated = rows(tmp_path / "validation.csv")
    assert [int(row["step"]) for row in validated] == list(range(4, 61, 4))
    assert min(float(row["loss"]) for row in validated) == pytest.approx(result.best_value)


def test_the_best_is_what_is_watched(tmp_path: Path) -> None:
    class Rising(Regression):
        calls = 0

        def validate(self) -> dict[str, float]:
            self.calls += 1
            return {"loss": self.calls, "cosine": float(self.calls % 3)}

    result = train(Rising(), tmp_path, steps=16, watch="cosine", mode="max", **SOON)
    assert (result.best_step, result.best_value) == (8, 2.0)
    with pytest.raises(ValueError, match=r"watch: expected one of \['loss', 'cosine'\]"):
        train(Rising(), tmp_path / "other", steps=4, watch="dice", **SOON)


def test_the_gradient_is_clipped_to_a_norm(tmp_path: Path) -> None:
    class Descent(Regression):
        def optimiser(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.model.parameters(), 1.0)

        def schedule(self, optimiser: Any) -> None:
            return None

    task = Descent()
    before = weights(task)
    train(task, tmp_path, steps=1, clip_norm=0.01, **SOON)
    assert float((weights(task) - before).norm()) == pytest.approx(0.01, rel=1e-4)
    assert float(rows(tmp_path / "log.csv")[0]["gradient_norm"]) > 0.01


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    one = trained(tmp_path / "one", 20, Even)
    four = trained(tmp_path / "four", 20, Even, accumulate=4)
    assert torch.allclose(one, four, rtol=1e-8, atol=1e-10)


def test_training_leaves_the_callers_randomness_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    task = Regression()
    before = torch.get_rng_state()
    train(task, tmp_path, steps=3, **SOON)
    assert torch.equal(before, torch.get_rng_state())


def test_another_seed_is_another_training(tmp_path: Path) -> None:
    first, second = (trained(tmp_path / str(seed), 5, seed=seed) for seed in (0, 1))
    assert not torch.equal(first, second)  # by the dropout: the data have the task's own seed


def test_tensorboard_gets_the_curves_where_it_is_installed(tmp_path: Path, monkeypatch) -> None:
    written: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert (folder, purge_step) == (str(tmp_path / "tensorboard"), 1)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None: ...

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    result = train(Regression(), tmp_path, steps=4, **SOON)
    assert ("validation/loss", result.metrics["loss"], 4) in written
    assert [step for name, _, step in written if name == "training/loss"] == [1, 2, 3, 4]


# ---- resuming


@pytest.mark.parametrize("kind", [Regression, GradientMatching])
@pytest.mark.parametrize("stop", [1, 3, 7])
def test_a_run_in_two_parts_ends_with_the_same_weights(
    kind: type[Regression], stop: int, tmp_path: Path
) -> None:
    whole = trained(tmp_path / "whole", 10, kind)
    first = trained(tmp_path / "parts", stop, kind)
    second = trained(tmp_path / "parts", 10, kind)
    assert torch.equal(whole, second) and not torch.equal(first, second)


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "none": lambda o: None,
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 1e-6, 1e-2, step_size_up=4),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 1e-2, total_steps=20),
    "multi-step": lambda o: lr_scheduler.MultiStepLR(o, [3, 3, 9]),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "warm-up": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 5), lr_scheduler.CosineAnnealingLR(o, 15)], [5]
    ),
}


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_every_schedule_resumes(name: str, tmp_path: Path) -> None:
    class Scheduled(Regression):
        def optimiser(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.model.parameters(), 1e-2, momentum=0.9)

        def schedule(self, optimiser: torch.optim.Optimizer) -> Any:
            return SCHEDULES[name](optimiser)

    whole = trained(tmp_path / "whole", 12, Scheduled)
    trained(tmp_path / "parts", 5, Scheduled)
    assert torch.equal(whole, trained(tmp_path / "parts", 12, Scheduled))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_trains_and_resumes(precision: str, tmp_path: Path) -> None:
    options = {"precision": precision, "max_skips": 30}
    whole = trained(tmp_path / "whole", 30, **options)
    trained(tmp_path / "parts", 11, **options)
    assert torch.equal(whole, trained(tmp_path / "parts", 30, **options))
    assert not torch.equal(whole, trained(tmp_path / "float32", 30))
    losses = [float(row["loss"]) for row in rows(tmp_path / "whole" / "log.csv")]
    assert sum(losses[-8:]) < sum(losses[:8])


@pytest.mark.parametrize(
    "how, least", [("kill", 3), pytest.param("calls", 15, marks=pytest.mark.slow)]
)
def test_a_run_killed_at_any_moment_resumes_to_the_same_weights(
    how: str, least: int, tmp_path: Path
) -> None:
    done = python(SUPPORT / "training_crashes.py", tmp_path / how, how)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-1]) >= least
    steps = 40 if how == "kill" else 6
    options = {"save_every": 2, "clip_norm": 1.0}
    whole = trained(tmp_path / "whole", steps, GradientMatching, **options)
    runs = list((tmp_path / how).glob("run*"))
    assert runs
    for folder in runs:
        found = load_checkpoint(folder / "last.pt")
        assert found.step == steps
        assert torch.equal(whole, torch.cat([v.flatten() for v in found.model.values()]))
        steps_logged = [int(row["step"]) for row in rows(folder / "log.csv")]
        assert steps_logged == list(range(1, steps + 1))
        assert not list(folder.glob("*.partial"))


def test_rows_behind_the_checkpoint_and_torn_lines_go(tmp_path: Path) -> None:
    trained(tmp_path, 6)
    with open(tmp_path / "log.csv", "a") as stream:
        stream.write("7,1,1,1,1,1\n8,0.5,1")
    trained(tmp_path, 9)
    assert [int(row["step"]) for row in rows(tmp_path / "log.csv")] == list(range(1, 10))
    assert float(rows(tmp_path / "log.csv")[6]["largest"]) != 1


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    first = trained(tmp_path, 6)
    written = (tmp_path / "last.pt").stat().st_mtime_ns
    task = Regression()
    result = train(task, tmp_path, steps=6, **SOON)
    assert result.step == 6 and result.losses == {} and result.best_step > 0
    assert torch.equal(first, weights(task))
    assert (tmp_path / "last.pt").stat().st_mtime_ns == written


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_writes_a_checkpoint_and_resumes(number: int, tmp_path: Path) -> None:
    class Interrupted(Regression):
        def losses(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
            if step == 4:
                os.kill(os.getpid(), number)
            return super().losses(step, rank, world)

    before = signal.getsignal(number)
    result = train(Interrupted(), tmp_path / "it", steps=20, validate_every=50, save_every=50)
    assert result.interrupted and result.step == 5 == load_checkpoint(result.last).step
    assert signal.getsignal(number) is before
    rest = trained(tmp_path / "it", 12)
    assert torch.equal(rest, trained(tmp_path / "whole", 12))


def test_training_in_another_thread_works_without_signals(tmp_path: Path) -> None:
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(trained(tmp_path / "a", 5)))
    thread.start()
    thread.join()
    assert torch.equal(found[0], trained(tmp_path / "b", 5))


# ---- damage


def damaged(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut off":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = bytearray()
    elif how == "a flipped bit":
        tensors = load_checkpoint(path).model["0.weight"].numpy().tobytes()
        content[content.index(tensors[:16]) + 3] ^= 1
    elif how == "text":
        content = bytearray(b"step,loss\n")
    elif how == "members before its start":
        end = content.rindex(b"PK\x06\x06")  # the archive's record of where its directory is
        content[end + 48 : end + 56] = (2**31).to_bytes(8, "little")
    path.write_bytes(content)


@pytest.mark.parametrize(
    "how", ["cut off", "empty", "a flipped bit", "text", "members before its start"]
)
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_resumed(
    how: str, tmp_path: Path
) -> None:
    whole = trained(tmp_path / "whole", 12)
    trained(tmp_path / "it", 7)
    damaged(tmp_path / "it" / "last.pt", how)
    with pytest.raises(ValueError, match=r"last\.pt: damaged"):
        load_checkpoint(tmp_path / "it" / "last.pt")
    with pytest.warns(UserWarning, match=r"last\.pt: damaged.*going on from previous\.pt"):
        found = trained(tmp_path / "it", 12)
    assert torch.equal(whole, found)
    assert (tmp_path / "it" / "last.pt.damaged").exists()


def test_without_any_sound_checkpoint_training_stops(tmp_path: Path) -> None:
    trained(tmp_path, 7)
    for name in ("last.pt", "previous.pt"):
        damaged(tmp_path / name, "cut off")
    with pytest.raises(ValueError, match=r"last\.pt: damaged.*previous\.pt: damaged"):
        trained(tmp_path, 12)


# ---- gradients that are not finite


class Faulty(Regression):
    """Regression whose loss is not a number at some steps."""

    bad: tuple[int, ...] = ()

    def losses(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        found = super().losses(step, rank, world)
        return {**found, "loss": found["loss"] * (torch.nan if step in self.bad else 1.0)}


def test_steps_that_are_not_finite_are_left_out_and_counted(tmp_path: Path) -> None:
    task = Faulty()
    task.bad = (2, 3, 6)
    result = train(task, tmp_path, steps=10, **SOON)
    assert result.skipped == 3 and bool(weights(task).isfinite().all())
    assert load_checkpoint(result.last).skipped == 3
    assert rows(tmp_path / "log.csv")[2]["loss"] == "nan"


def test_too_many_of_them_in_a_row_end_the_training(tmp_path: Path) -> None:
    task = Faulty()
    task.bad = tuple(range(4, 20))
    with pytest.raises(RuntimeError, match=r"step 6: .* not finite 3 times in a row"):
        train(task, tmp_path, steps=20, max_skips=2, **SOON)
    found = load_checkpoint(tmp_path / "last.pt")
    assert found.step == 6 and all(bool(v.isfinite().all()) for v in found.model.values())


def test_a_buffer_that_was_spoilt_ends_the_training(tmp_path: Path) -> None:
    class Normed(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.model = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))

        def losses(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
            x = torch.randn(8, 4) * (torch.nan if step == 5 else 1.0)
            return {"loss": self.model(x).square().mean()}

    with pytest.raises(RuntimeError, match=r"buffer '0.running_mean' any more"):
        train(Normed(), tmp_path, steps=9, **SOON)


# ---- wrong use


@pytest.mark.parametrize(
    "options, message",
    [
        ({"seed": 1}, "other settings .seed was 0, now 1"),
        ({"clip_norm": 2.0}, "clip_norm was None, now 2.0"),
        ({"accumulate": 2}, "shares was 1, now 2"),
        ({"config": {"network": "large"}}, "other config .network was None, now 'large'"),
    ],
)
def test_a_run_is_not_resumed_as_another_one(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    trained(tmp_path, 3)
    with pytest.raises(ValueError, match=message):
        trained(tmp_path, 6, **options)


def test_another_network_does_not_take_the_weights(tmp_path: Path) -> None:
    class Wider(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.model = torch.nn.Linear(4, 1)

    trained(tmp_path, 3)
    with pytest.raises(ValueError, match="the checkpoint is of another model or optimiser"):
        trained(tmp_path, 6, Wider)


def test_two_trainings_do_not_share_a_folder(tmp_path: Path) -> None:
    class Twice(Regression):
        def validate(self) -> dict[str, float]:
            with pytest.raises(ValueError, match="another process is training in this folder"):
                trained(tmp_path, 3)
            return {"loss": 0.0}

    trained(tmp_path, 4, Twice)
    trained(tmp_path, 6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 0}, "steps: expected a positive integer, got 0"),
        ({"accumulate": True}, "accumulate: expected a positive integer, got True"),
        ({"precision": "half"}, "precision: expected one of"),
        ({"mode": "best"}, "mode: expected 'min' or 'max', got 'best'"),
        ({"clip_norm": -1.0}, "clip_norm: expected a positive number, got -1.0"),
        ({"config": {"path": Path()}}, "config: expected plain values as in JSON"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        train(Regression(), tmp_path, **{"steps": 3, **SOON, **options})


@pytest.mark.parametrize(
    "losses, message",
    [
        ({"error": torch.ones(())}, "losses: expected a dict with a tensor 'loss'"),
        ({"loss": torch.ones(2)}, r"losses: expected scalars, 'loss' is \(2,\)"),
        ({"loss": torch.ones(())}, "losses: expected a 'loss' that depends on the model"),
    ],
)
def test_losses_that_cannot_be_minimised_are_named(
    losses: dict[str, Tensor], message: str, tmp_path: Path
) -> None:
    task = Regression()
    task.losses = lambda step, rank, world: losses  # type: ignore[method-assign]
    with pytest.raises((ValueError, TypeError), match=message):
        train(task, tmp_path, steps=3, **SOON)


def test_something_else_than_a_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"task: expected a drrkit\.training\.Task, got Linear"):
        train(torch.nn.Linear(2, 2), tmp_path, steps=3, **SOON)  # type: ignore[arg-type]


def test_a_schedule_that_needs_a_metric_is_refused(tmp_path: Path) -> None:
    task = Regression()
    task.schedule = lr_scheduler.ReduceLROnPlateau  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="schedule: expected one by steps alone"):
        train(task, tmp_path, steps=3, **SOON)
