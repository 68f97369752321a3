"""python -m bench.projectors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.projectors import record as records
from bench.projectors.__main__ import main
from tests.bench.records import example
from tests.support.commands import ROOT, python

TINY = ["--voxels", "24", "--threads", "1", "--rounds", "1", "--peers", "drrkit"]


def test_a_quick_run_writes_what_it_prints_and_measures_another_checkout(tmp_path: Path) -> None:
    """The other checkout is this one under another name."""
    other = tmp_path / "before"
    other.symlink_to(ROOT)
    words = ["--quick", *TINY, "--sections", "main,views", "--against", other, "--out", tmp_path]
    done = python("-m", "bench.projectors", *words)
    assert done.returncode == 0, done.stderr
    found = records.read(tmp_path / "cpu.json")
    assert found["quick"] and found["volume"]["xyz"] == [24, 24, 6]
    assert {row["section"] for row in found["rows"]} == {"main", "views"}
    assert str(tmp_path) not in json.dumps(found)
    assert (tmp_path / "cpu.txt").read_text().strip() in done.stdout
    assert (tmp_path / "cpu_scaling.png").is_file()
    assert str(tmp_path / "cpu.json") in done.stdout
    rows = records.rows_of(found, case="drrkit@before joseph packed", operation="pose")
    assert rows and all(row["difference"] == {"rotation": 0, "translation": 0} for row in rows)
    assert all(row["ratio_same_integral"] > 0 for row in rows)


def test_a_result_can_be_drawn_again_without_measuring(tmp_path: Path) -> None:
    records.write(example("cuda"), tmp_path / "old.json")
    out = tmp_path / "out"
    assert main(["--draw", str(tmp_path / "old.json"), "--out", str(out)]) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {"old.json", "old.txt", "old_ratios.png", "old_scaling.png"}
    assert records.read(out / "old.json") == records.read(tmp_path / "old.json")


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--threads", "0"], "--threads: expected a positive number, got 0"),
        (["--minutes", "nan"], "--minutes: expected a positive number"),
        (["--device", "tpu"], "choose from"),
        (["--sections", "main,rest"], "--sections: expected some of main,views"),
        (["--peers", "drrkit,nobody"], "expected some of drrkit, nanodrr"),
        (["--peers", "no_such_module:Peer"], "No module named 'no_such_module'"),
        (["--peers", "bench.projectors.peers.own:Nobody"], "Nobody"),
        (["--volume", "a.nii", "--voxels", "32"], "exclude each other"),
        (["--against", "nowhere"], "expected a checkout with drrkit/_C built"),
    ],
)
def test_wrong_usage_is_refused_with_a_sentence(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(options)
    assert ended.value.code == 2 and sentence in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--volume", "--draw"])
def test_files_that_are_not_there_end_with_code_2(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([option, str(tmp_path / "nothing.nii.gz"), "--out", str(tmp_path)])
    assert ended.value.code == 2 and "nothing.nii.gz" in capsys.readouterr().err
