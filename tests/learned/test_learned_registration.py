"""The study learned_registration: what it compares, its table, its guard against leaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.studies import learned_registration as study
from bench.studies.__main__ import parse
from drrkit.evaluation import Row
from drrkit.training import Split


def row(method: str, subject: str, number: int, start: float, end: float) -> Row:
    text = {"method": method, "protocol": "cdreg", "subject": subject, "device": "cpu"}
    values: dict[str, Any] = dict.fromkeys(Row.__dataclass_fields__, 0.0)
    values |= {**text, "number": number, "stages": 1, "stop_reason": "converged"}
    return Row(**(values | {"start_mtre": start, "mtre": end}))


def test_the_table_has_the_posters_numbers_of_every_method() -> None:
    rows = []
    for number in range(20):
        start = 100.0 + number
        rows += [
            row("initial + cmaes", "spine-001", number, start, 50.0),
            row("prost + cmaes", "spine-001", number, start, 2.0 if number < 10 else 40.0),
            row("cdreg + cmaes", "spine-001", number, start, 1.0),
        ]
    found = {name: study.numbers(errors) for name, errors in study.by_method(rows).items()}
    assert list(found) == ["initial", "initial + cmaes", "prost + cmaes", "cdreg + cmaes"]
    assert found["initial"]["top"][2]["mean"] == pytest.approx(104.5)
    assert found["prost + cmaes"]["success"]["rate"] == 0.5
    assert found["prost + cmaes"]["top"][2] == {"mean": 2.0, "std": 0.0}
    # 0.75 * 20 = 15 lowest: ten of 2 mm and five of 40.
    assert found["prost + cmaes"]["top"][1]["mean"] == pytest.approx((20 + 200) / 15)
    said = study.findings(found)
    assert any("of prost + cmaes over initial + cmaes +50.0, as published" in s for s in said)
    assert any("of cdreg + cmaes over prost + cmaes +50.0, as published" in s for s in said)
    table = study.markdown(found, "python bench")
    assert "| cdreg + cmaes | 1.0±0.0 |" in table and "32.0 / 7.9 / 2.2; 61.0 %" in table


def test_the_report_is_written_as_json_and_as_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row("initial + cmaes", "a", n, 90.0, 1.0) for n in range(4)]
    words = [str(tmp_path), "--steps", "3", "--output", str(tmp_path / "results")]
    study.write_report(rows, parse("learned_registration", words))
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["options"]["steps"] == 3 and str(tmp_path) not in json.dumps(record)
    assert record["methods"]["initial + cmaes"]["success"]["rate"] == 1.0
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out and str(tmp_path) not in text


def test_an_ordering_that_is_not_the_published_one_is_called_so() -> None:
    rows = [row("initial + cmaes", "a", n, 90.0, 1.0) for n in range(4)]
    rows += [row("prost + cmaes", "a", n, 90.0, 90.0) for n in range(4)]
    found = {name: study.numbers(errors) for name, errors in study.by_method(rows).items()}
    assert any("-100.0, not as published" in said for said in study.findings(found))


def test_networks_that_were_trained_on_test_subjects_are_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds = (Split(("a", "b"), test=("c",)), Split(("c",), test=("a", "b")))
    rows = [row("prost", "c", 0, 1.0, 1.0), row("prost", "a", 0, 1.0, 1.0)]
    for fold in range(2):
        path = tmp_path / f"fold-{fold}" / "prost"
        path.mkdir(parents=True)
        (path / "last.pt").touch()
    seen = {0: ["a", "b"], 1: ["c"]}

    class Stored:
        def __init__(self, path: Path) -> None:
            self.config = {"subjects": seen[int(path.parts[-3].removeprefix("fold-"))]}

    monkeypatch.setattr(study, "load_checkpoint", Stored)
    study.check_no_leak(rows, folds, tmp_path)
    seen[1] = ["c", "a"]
    with pytest.raises(ValueError, match="trained on test subjects"):
        study.check_no_leak(rows, folds, tmp_path)


def test_all_methods_end_with_the_same_cmaes() -> None:
    options = parse("learned_registration", ["folder"])
    trained = {name: study.fresh(name).eval() for name in (*study.SIMILARITIES, *study.REGRESSORS)}
    cmaes = study.evolution(options)
    found = study.methods(trained, cmaes)
    assert {"initial + cmaes", "prost", "sopi", "sopi + cmaes", "cdreg + cmaes", "dmw"} <= set(
        found
    )
    staged = {name: s for name, s in found.items() if isinstance(s, tuple)}
    assert all((cmaes in s) == name.endswith("cmaes") for name, s in staged.items())
    widths = torch.tensor(study.POSTER.target, dtype=torch.float64)
    widths[:3] = widths[:3].deg2rad()
    torch.testing.assert_close(trained["initialiser"].span, widths)
