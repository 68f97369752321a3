"""drrkit bench and python -m drrkit.bench."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drrkit.bench import record as records
from drrkit.bench.command import main
from tests.support.bench_records import example
from tests.support.commands import python, run, succeed

TINY = ["--voxels", "24", "--threads", "1", "--rounds", "1", "--peers", "drrkit"]


def test_help_names_options_and_tools_through_either_entrance() -> None:
    shown = succeed("bench", "--help").output
    for word in ("--quick", "--out", "--volume", "--peers", "nanodrr", "LEAP".lower(), "chest CT"):
        assert word in shown
    done = python("-m", "drrkit.bench", "--help")
    assert done.returncode == 0 and "usage: python -m drrkit.bench" in done.stdout
    assert "bench" in succeed("--help").output


def test_a_quick_run_writes_what_it_prints(tmp_path: Path) -> None:
    done = python(
        "-m", "drrkit", "bench", "--quick", *TINY, "--sections", "main,views", "--out", tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = records.read(tmp_path / "cpu.json")
    assert found["quick"] and found["volume"]["xyz"] == [24, 24, 6]
    assert {row["section"] for row in found["rows"]} == {"main", "views"}
    assert str(tmp_path) not in json.dumps(found)
    assert (tmp_path / "cpu.txt").read_text().strip() in done.stdout
    assert (tmp_path / "cpu_scaling.png").is_file()
    assert str(tmp_path / "cpu.json") in done.stdout


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
        (["--rounds", "-1"], "--rounds: expected a positive number"),
        (["--device", "tpu"], "--device: expected auto, cpu or cuda, got tpu"),
        (["--sections", "main,rest"], "--sections: expected some of main,views"),
        (["--peers", "drrkit,nobody"], "expected some of drrkit, nanodrr"),
        (["--peers", "no_such_module:Peer"], "No module named 'no_such_module'"),
        (["--peers", "drrkit.bench.peers.own:Nobody"], "Nobody"),
        (["--volume", "a.nii", "--voxels", "32"], "exclude each other"),
        (["--minutes", "soon"], "invalid float value"),
        (["--speed"], "unrecognized arguments: --speed"),
    ],
)
def test_wrong_usage_is_refused_with_a_sentence(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(options)
    assert ended.value.code == 2 and sentence in capsys.readouterr().err
    assert run("bench", *options).exit_code == 2


@pytest.mark.parametrize("option", ["--volume", "--draw"])
def test_files_that_are_not_there_end_with_code_2(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([option, str(tmp_path / "nothing.nii.gz"), "--out", str(tmp_path)])
    assert ended.value.code == 2 and "nothing.nii.gz" in capsys.readouterr().err
