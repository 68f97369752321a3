"""bench/gpu_check.sh, which will run where a GPU is lent for minutes, must not rot meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu_check.__main__ import summary

ROOT = Path(__file__).resolve().parents[2]
STAGES = ["import", "smoke", "sanitizer", "streams", "speed", "counters", "tests"]
NOT_THERE = ["SimpleITK", "cma", "pydicom", "nibabel", "nrrd", "h5py", "click", "tqdm"]
NOT_THERE += ["hypothesis", "roma", "matplotlib", "selenium", "httpx2", "starlette", "trimesh"]


@pytest.mark.slow
def test_a_dry_run_passes_every_stage_on_the_emulator(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "bench" / "gpu_check.sh", "--dry-run", tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    stages = json.loads((tmp_path / "summary.json").read_text())["stages"]
    assert list(stages) == STAGES and len(list(tmp_path.iterdir())) == 8
    for name in ("smoke", "streams", "speed"):
        assert stages[name]["result"]["failed"] == {} and stages[name]["result"]["passed"] > 6
    assert all(len(row["graph"]) == 3 for row in stages["speed"]["result"]["microseconds"])


def test_the_summary_tells_apart_what_failed_what_was_skipped_and_what_took_too_long(
    tmp_path: Path,
) -> None:
    logs = {"a": 'RESULT {"passed": 3}', "b": "no tool", "c": "half way", "d": "Error: broken"}
    for name, text in logs.items():
        (tmp_path / f"{name}.log").write_text(f"begins\n{text}\n")
    assert summary(tmp_path, ["a:0:1", "b:77:2"]) == 0
    assert summary(tmp_path, ["a:0:1", "b:77:2", "c:124:3", "d:1:4"]) == 1
    stages = json.loads((tmp_path / "summary.json").read_text())["stages"]
    ended = {name: stage["ended"] for name, stage in stages.items()}
    assert ended == {"a": "passed", "b": "skipped", "c": "out of time", "d": "failed (1)"}
    assert stages["a"]["result"] == {"passed": 3}
    assert stages["d"] == {"ended": "failed (1)", "seconds": 4, "last_line": "Error: broken"}


@pytest.mark.slow
def test_the_core_tests_can_be_collected_where_only_torch_numpy_and_pytest_are() -> None:
    script = (ROOT / "bench" / "gpu_check.sh").read_text()
    names = script.partition("CORE=(tests/core/test_{")[2].partition("}")[0].split(",")
    files = [f"tests/core/test_{name}.py" for name in names]
    options = ["-q", "--collect-only", "-p", "no:cacheprovider"]
    code = f"""import sys; sys.modules.update(dict.fromkeys({NOT_THERE}))
import pytest; sys.exit(pytest.main({options + files}))"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    assert len(files) > 5 and done.returncode == 0, done.stdout[-2000:] + done.stderr
