"""Damaged headers: ten thousand files, none of which may crash, hang or be read as nonsense."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support import damaged_files
from tests.support.commands import PYTHONPATH
from tests.support.damaged_files import FORMATS, damage

pytestmark = [pytest.mark.io, pytest.mark.slow]

COUNT = 10_000


def answers_to(folder: Path, names: list[str]) -> list[str]:
    """What a process of its own says of these files; it must not die."""
    done = subprocess.run(
        [sys.executable, damaged_files.__file__, str(folder)],
        input="\n".join(names),
        capture_output=True,
        text=True,
        timeout=3600,  # where one of them hangs
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH},
    )
    answers = done.stdout.splitlines()
    assert done.returncode == 0, (
        f"the reader died after {len(answers)} files, at {names[len(answers)]}:\n"
        f"{done.stderr[-1000:]}"
    )
    return answers


def test_whole_files_of_every_format_are_read(tmp_path: Path) -> None:
    names = [f"0-{name}" for name in FORMATS]
    for name, format in FORMATS.items():
        format.write(tmp_path / f"0-{name}")
    verdicts = [line.split(maxsplit=1)[1] for line in answers_to(tmp_path, names)]
    assert verdicts == ["read"] * len(FORMATS)


def test_ten_thousand_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    chance = random.Random(20)
    for name, format in FORMATS.items():
        format.write(tmp_path / name)
    names = [f"{number}-{chance.choice(list(FORMATS))}" for number in range(COUNT)]
    for name in names:
        kind = name.split("-", 1)[1]
        damage(tmp_path / kind, tmp_path / name, FORMATS[kind].header, chance)
    answers = answers_to(tmp_path, names)
    wrong = [line for line in answers if line.split()[1] not in ("read", "named")]
    assert wrong == []
    assert len(answers) == COUNT
    # The damage is neither nothing nor everything, to any format.
    refused = Counter(
        line.split()[0].split("-", 1)[1] for line in answers if line.endswith("named")
    )
    assert all(refused[name] > 0 for name in FORMATS)
    assert 0.1 * COUNT < refused.total() < 0.95 * COUNT
