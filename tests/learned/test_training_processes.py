"""Several processes train one model, as one process would on the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from drrkit.training import Processes, load_checkpoint
from tests.support.commands import PYTHONPATH, SUPPORT
from tests.support.training_processes import run

SCRIPT = SUPPORT / "training_processes.py"


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what two processes of torchrun trained on this machine."""
    folder = tmp_path_factory.mktemp("by_two")
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *start, str(SCRIPT), str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def weights(folder: Path) -> Tensor:
    return torch.cat([v.flatten() for v in load_checkpoint(folder / "last.pt").model.values()])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["even", "gradients"])
def test_two_processes_train_as_one_with_the_doubled_batch(
    kind: str, by_two: Path, tmp_path: Path
) -> None:
    one = run(tmp_path, kind, 1)
    assert torch.allclose(weights(by_two / kind), one, rtol=1e-9, atol=1e-11)
    # The mean of both processes' validations, which are 0 and 1.
    assert load_checkpoint(by_two / kind / "last.pt").metrics == {"loss": 0.5}


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_have_the_randomness_of_one_that_accumulates(
    accumulate: int, by_two: Path, tmp_path: Path
) -> None:
    one = run(tmp_path, "dropout", 2 * accumulate)
    two = weights(by_two / f"dropout-{accumulate}")
    assert torch.allclose(two, one, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(two, run(tmp_path / "less", "dropout", accumulate))


@pytest.mark.slow
def test_two_processes_resume_bit_for_bit(by_two: Path) -> None:
    assert torch.equal(weights(by_two / "dropout-1"), weights(by_two / "parts"))


@pytest.mark.slow
def test_one_process_writes(by_two: Path) -> None:
    lines = (by_two / "parts" / "log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", *map(str, range(1, 11))]


def test_processes_are_what_torchrun_says(monkeypatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert Processes.of_environment() == Processes(0, 1, 0)
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    found = Processes.of_environment()
    assert found == Processes(5, 8, 1) and not found.writes
    monkeypatch.setenv("RANK", "8")
    with pytest.raises(ValueError, match="RANK, WORLD_SIZE: expected numbers as torchrun"):
        Processes.of_environment()
