"""drrkit evaluate as a user meets it: outputs, similarities, mistakes, interruption, torchrun."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import drrkit
from drrkit.evaluation import METHODS, PROTOCOLS, Row, read_rows, with_similarity
from drrkit.evaluation.protocols import Subject
from drrkit.phantoms import torso
from drrkit.registration import GLOBAL, Search
from tests.support.commands import QUICK, run, succeed

pytestmark = pytest.mark.io  # target points need SimpleITK


def patient(folder: Path, name: str = "patient.nii.gz") -> Path:
    folder.mkdir(exist_ok=True)
    drrkit.write_volume(torso(10.0), folder / name)
    return folder / name


@pytest.fixture(scope="module")
def cts(tmp_path_factory) -> Path:
    """A folder of CTs, two of one name, one in 1/mm, one without bone."""
    folder = tmp_path_factory.mktemp("cts")
    patient(folder / "a", "ct.nii.gz")
    patient(folder / "b", "ct.nii.gz")
    ct = torso(20.0)
    drrkit.write_volume(ct.to_mu(), folder / "mu.nii.gz")
    drrkit.write_volume(replace(ct, values=ct.values.clamp_max(60.0)), folder / "soft.nii.gz")
    return folder


def untimed(rows: list[Row]) -> list[dict]:
    """The rows in the order of their keys, without what no two runs share."""
    found = [asdict(row) for row in sorted(rows, key=lambda row: row.key)]
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in found]


# ---- outputs


def test_an_evaluation_leaves_rows_a_summary_and_what_was_run(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "auto", QUICK)
    ct, out = patient(tmp_path), tmp_path / "out"
    how = ["--registration", "auto", "--starved", "--shifted"]
    told = succeed("evaluate", ct, "--out", out, "--cases", 2, *how).output
    with open(out / "rows.0.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["number"] for row in rows] == ["0", "1"]
    assert {"mtre", "start_mtre", "rotation_x", "translation_z", "seconds"} <= set(rows[0])
    summary = json.loads((out / "summary.json").read_text())
    name = "auto narrow-starved-shifted"
    assert set(summary) == {f"{name} all", f"{name} patient"}
    found = summary[f"{name} all"]
    assert set(found["mtre_top"]) == {"50 %", "75 %", "95 %"}
    for name in ("10 mm", "2 mm"):
        rate = found["success"][name]
        assert 0.0 <= rate["low"] <= rate["rate"] <= rate["high"] <= 1.0 and rate["total"] == 2
    for name in ("rotation", "translation", "translation_z", "seconds"):
        assert {"50 %", "95 %", "max"} <= set(found[name])
    assert found["capture_range"] >= 0.0
    for words in ("mTRE of the best, mm: 50 % ", "rotation, degrees: 25 % ", "capture range: "):
        assert words in told
    described = json.loads((out / "evaluation.json").read_text())
    assert described["protocols"][0]["start"] == list(PROTOCOLS["narrow"].start)
    assert [stage["similarity"] for stage in described["methods"]["auto"]] == ["ncc", "ncc"]
    assert described["machine"]["cores"] >= 1 and described["cases"] == 2
    targets = torch.tensor(described["subjects"]["patient"]["targets_world_mm"])
    points = Subject.of("p", drrkit.read_volume(ct)).points
    torch.testing.assert_close(targets.double(), points, rtol=0, atol=1e-4)


# ---- another similarity


def test_another_similarity_is_that_of_the_last_stage_or_of_all_but_the_search():
    last = with_similarity(GLOBAL, "mi")
    assert isinstance(last[0], Search) and last[:-1] == GLOBAL[:-1] and last[-1].name == "mi"
    assert last[-1].optimiser == GLOBAL[-1].optimiser
    everywhere = with_similarity(GLOBAL, "unit_mse", all_stages=True)
    assert everywhere[0] == GLOBAL[0] and {s.name for s in everywhere[1:]} == {"unit_mse"}
    with pytest.raises(ValueError, match="similarity: expected a callable or one of 'focal_"):
        with_similarity(GLOBAL, "likeness")


def test_a_similarity_is_evaluated_beside_the_pipelines_own(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "auto", QUICK)
    out = tmp_path / "out"
    arguments = ["evaluate", patient(tmp_path), "--out", out, "--cases", 1, "-q"]
    arguments += ["--registration", "auto"]
    succeed(*arguments)
    succeed(*arguments, "--similarity", "mi")
    succeed(*arguments, "--similarity", "mi", "--all-stages")
    losses = {row.method: row.loss for row in read_rows(out)}
    assert set(losses) == {"auto", "auto-mi", "auto-all-mi"}
    assert losses["auto"] > 0 > max(losses["auto-mi"], losses["auto-all-mi"])  # 1 - NCC, minus MI
    assert losses["auto-mi"] != losses["auto-all-mi"]
    assert "auto-mi narrow patient" in json.loads((out / "summary.json").read_text())


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--out'"),
        (["none.nii.gz", "--out", "out"], "Path 'none.nii.gz' does not exist"),
        (["--out", "out", "--cases", "0"], "0 is not in the range x>=1"),
        (["--out", "out", "--protocol", "wide"], "'wide' is not one of 'narrow'"),
        (["--out", "out", "--similarity", "likeness"], "there is no likeness"),
        (["--out", "out", "--all-stages"], "--all-stages belongs to --similarity"),
        (["a/ct.nii.gz", "b/ct.nii.gz", "--out", "out"], "of different names, got several 'ct'"),
        (["mu.nii.gz", "--out", "out"], "mu.nii.gz: expected Hounsfield units"),
        (["soft.nii.gz", "--out", "out"], "soft.nii.gz: volume: expected voxels above 250"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, message, cts, monkeypatch):
    monkeypatch.chdir(cts)
    refused = run("evaluate", *arguments)
    assert refused.exit_code == 2 and message in " ".join(refused.output.split())
    assert "Traceback" not in refused.output and not Path("out").exists()


def test_the_help_names_every_output():
    told = " ".join(succeed("evaluate", "--help").output.split())
    for words in ("rows.N.csv", "summary.json", "Wilson", "capture range", "--similarity NAME"):
        assert words in told


# ---- interruption, several processes


@pytest.mark.slow
def test_torchrun_finishes_an_interrupted_evaluation_with_the_rows_of_a_single_process(tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(drrkit.__file__).parents[1]), *sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    command = ["-m", "drrkit", "evaluate", str(patient(tmp_path)), "--cases", "5"]
    command += ["--registration", "auto", "--similarity", "mi", "--device", "cpu", "--out"]
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    single = [sys.executable, *command]
    subprocess.run([*single, str(whole)], check=True, env=environment, capture_output=True)

    # Interrupts itself when it prints its first row.
    interrupting = (
        "import os, signal, sys\n"
        "from drrkit.cli import evaluate, main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # not in background jobs\n"
        "evaluate._tell = lambda row: os.kill(os.getpid(), signal.SIGINT)\n"
        "main(sys.argv[1:], prog_name='drrkit')\n"
    )
    stopped = subprocess.run(
        [sys.executable, "-c", interrupting, *command[2:], str(shared)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert stopped.returncode == 130, stopped.stderr
    before = read_rows(shared)
    assert len(before) == 1 and "Interrupted: 1 of 5 cases" in stopped.stderr
    assert not list(shared.glob("*.tmp"))

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *command]
    done = subprocess.run(
        [*torchrun, str(shared)], check=True, env=environment, capture_output=True, text=True
    )
    assert len(list(shared.glob("rows.*.csv"))) == 2
    after = read_rows(shared)
    assert all(row in after for row in before)  # their times, too: not run again
    assert untimed(after) == untimed(read_rows(whole)) and len(after) == 5
    summaries = [json.loads((f / "summary.json").read_text()) for f in (whole, shared)]
    assert summaries[0].keys() == summaries[1].keys()
    for name, first in summaries[0].items():
        kept = [
            {k: v for k, v in s.items() if "seconds" not in k} for s in (first, summaries[1][name])
        ]
        assert kept[0] == kept[1]
    assert "auto-mi narrow all: 5 cases" in done.stdout
