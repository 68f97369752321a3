"""python -m bench.studies: the list, the options, what studies share, and two that are quick."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.studies import study
from bench.studies.__main__ import main, parse, studies

STUDIES = studies()
OWN = [name for name in STUDIES if (Path(study.__file__).parent / f"{name}.py").exists()]


def test_the_list_has_a_line_for_every_study(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(STUDIES) > 14 and all(len(summary) > 20 for summary in STUDIES.values())
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n{name} " in shown for name in STUDIES)
    assert main(["no_such_study"]) == 2


@pytest.mark.parametrize("name", OWN)
def test_every_study_has_a_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and "--threads" in shown and STUDIES[name] in shown


def test_a_record_names_the_command_without_folders_of_this_machine(tmp_path: Path) -> None:
    options = parse("losses", ["--rounds", "2", "--output", str(tmp_path / "x.json")])
    record = study.recorded(options, rows=[1])
    assert record["command"] == "python -m bench.studies losses --rounds 2 --output x.json"
    assert record["rows"] == [1] and record["versions"]["torch"] and record["machine"]["cpu"]
    assert study.json_file(options) == tmp_path / "x.json"
    assert study.json_file(parse("losses", [])) == study.RESULTS / "losses.json"
    with pytest.raises(SystemExit):
        parse("losses", ["--rounds", "0"])


def test_rows_are_kept_at_once_and_a_cut_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    with study.appended(path) as add:
        add({"case": 0})
        assert study.read_rows(path) == [{"case": 0}]
    with path.open("a") as stream:
        stream.write('{"case": 1, "mtr')
    assert study.read_rows(path) == [{"case": 0}]


def test_shares_and_tables() -> None:
    found = study.wilson([1.0, 1.5, 9.0, float("nan")], 2.0)
    assert found["rate"] == 0.5 and found["count"] == 2 and found["low"] < 0.5 < found["high"]
    assert study.percent(found, 1).startswith("50.0 % (15 to 85)")
    assert study.markdown(["a", "b"], [[1, "x"]]) == ["| a | b |", "| --- | --- |", "| 1 | x |"]


def test_a_study_runs_and_records_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "overhead.json"
    assert main(["overhead", "--rounds", "1", "--device", "cpu", "--output", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert rows["raw op project"]["ops_by_name"] == {"drrkit::project": 1}
    assert all(name in capsys.readouterr().out for name in list(rows)[:1])
    out = tmp_path / "losses.json"
    words = ["--sizes", "16", "--batch", "3", "--rounds", "1", "--losses", "ncc", "mse"]
    assert main(["losses", *words, "--output", str(out)]) == 0
    assert [row["loss"] for row in json.loads(out.read_text())["rows"]] == ["ncc", "mse"]


def test_the_committed_tables_of_registrations_follow_from_the_committed_rows(
    tmp_path: Path,
) -> None:
    folder = study.RESULTS / "registration"
    for name in ("cases.csv", "starved.csv", "ends.csv", "summary.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    words = ["report", "--work", str(tmp_path / "none"), "--output", str(tmp_path)]
    assert main(["registration", *words]) == 0
    assert (tmp_path / "table.md").read_text() == (folder / "table.md").read_text()
