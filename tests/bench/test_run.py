"""A whole run of the benchmark with projectors that behave, misbehave and crash."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.projectors import contest
from bench.projectors import record as records
from bench.projectors.isolation import Declined, Failed, Worker
from bench.projectors.plan import Effort, Workload
from bench.projectors.run import Settings, run
from bench.projectors.scene import synthetic
from tests.bench.fakes import SLEEP
from tests.bench.records import example

FAKES = ("Honest", "Crashing", "Missing")


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    """A run in which every fake takes part."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
    works = [
        Workload("main", "AP", 1, 24, "forward", inputs=2),
        Workload("main", "AP", 1, 24, "pose", inputs=2),
        Workload("main", "AP", 2, 24, "volume", inputs=1),
        Workload("main", "AP", 1, 24, "double", inputs=1),
        Workload("main", "orbit", 3, 24, "adjoint", inputs=1),
        Workload("volume", "AP", 1, 24, "forward", edge=24, inputs=1),
    ]
    settings = Settings(
        "cpu",
        1,
        tuple(f"tests.bench.fakes:{name}" for name in FAKES),
        tuple(works),
        Effort(rounds=2, turn=0.01, cell=1.0, limit=5.0, minutes=5.0),
        command="a test",
    )
    scene = synthetic((16, 24, 24), spacing=10.0)
    before = scene.volume.values.clone()
    found = run(scene, settings)
    assert (scene.volume.values == before).all()
    patch.undo()
    return found


def reasons(record: dict[str, Any], case: str) -> list[str]:
    return [entry["reason"] for entry in record["left_out"] if entry["case"] == case]


def test_the_record_is_one_of_its_schema_and_survives_json(
    record: dict[str, Any], tmp_path: Path
) -> None:
    records.write(record, tmp_path / "result.json")
    assert records.read(tmp_path / "result.json") == json.loads(json.dumps(record))
    assert record["command"] == "a test" and record["headline"].startswith("drrkit joseph")
    assert record["volume"]["xyz"] == [24, 24, 16]


def test_drrkit_runs_every_operation_whatever_the_others_do(record: dict[str, Any]) -> None:
    for case in ("drrkit joseph", "drrkit trilinear", "drrkit siddon"):
        rows = records.rows_of(record, case=case)
        assert {row["operation"] for row in rows} == {
            "forward",
            "pose",
            "volume",
            "double",
            "adjoint",
        }
        assert len(rows) == 6 and all(row["seconds"]["samples"] >= 2 for row in rows)
        assert all(row["peak_bytes"] is not None for row in rows)
        assert not reasons(record, case)


def test_a_tool_that_works_is_timed_set_against_drrkit_and_its_scale_taken_out(
    record: dict[str, Any],
) -> None:
    rows = records.rows_of(record, case="honest chords", section="main")
    assert [row["operation"] for row in rows] == ["forward"]
    (row,) = rows
    assert row["seconds"]["median"] > SLEEP
    assert row["difference"]["image"] < 1e-6  # seven times drrkit's siddon
    siddon = records.rows_of(record, case="drrkit siddon", section="main", operation="forward")[0]
    ratio = row["seconds"]["median"] / siddon["seconds"]["median"]
    assert row["ratio_same_integral"] == pytest.approx(ratio)
    assert row["floors"] is None and siddon["floors"]["bytes"] > 0


def test_a_tool_that_raises_is_left_out_with_its_error(record: dict[str, Any]) -> None:
    assert not records.rows_of(record, case="honest raising")
    assert "ZeroDivisionError: of all things" in reasons(record, "honest raising")[0]


def test_a_tool_that_crashes_is_left_out_and_tried_again_next_time(record: dict[str, Any]) -> None:
    assert not records.rows_of(record, case="crashing chords")
    assert len(reasons(record, "crashing chords")) == 2
    assert all("SIGABRT" in reason for reason in reasons(record, "crashing chords"))


def test_a_tool_that_is_not_there_or_declines_says_why(record: dict[str, Any]) -> None:
    assert record["absent"] == {"tests.bench.fakes:Missing": "it was never written"}
    assert set(reasons(record, "honest samples")) == {"it takes no samples"}


def test_a_tools_own_clock_is_believed(record: dict[str, Any]) -> None:
    row = records.rows_of(record, case="honest clock", section="main")[0]
    assert row["seconds"]["median"] == row["seconds"]["least"] == 0.25
    assert row["peak_bytes"] is None


def test_gradients_are_compared_among_methods_of_one_integral_only(record: dict[str, Any]) -> None:
    for row in record["rows"]:
        if row["case"].startswith("drrkit") and "packed" not in row["case"]:
            assert not set(row["difference"]) - {"image_to_fine"}
    fine = records.rows_of(record, case="drrkit joseph", section="main", operation="forward")[0]
    assert fine["difference"]["image_to_fine"] < 1e-3


def test_a_run_out_of_time_says_what_it_dropped() -> None:
    work = Workload("main", "AP", 1, 16, "forward")
    settings = Settings("cpu", 1, (), (work,), Effort(1, 0.01, 1.0, 1.0, 0.0))
    found = run(synthetic((8, 12, 12), spacing=20.0), settings)
    assert found["rows"] == [] and found["left_out"][0]["reason"] == "out of time"


# ---- one worker at a time


def test_a_worker_of_a_tool_that_does_not_exist_fails_with_a_sentence() -> None:
    worker = Worker("no_module_of_this_name:Peer", "cpu", 1)
    with pytest.raises(Failed, match="no_module_of_this_name"):
        worker.ask(300.0, "describe")
    worker.close()


def test_a_worker_that_hangs_is_ended_and_can_be_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
    scene = synthetic((8, 12, 12), spacing=20.0)
    scene.save(tmp_path)
    work = Workload("main", "AP", 1, 8, "forward").as_dict()
    worker = Worker("tests.bench.fakes:Hanging", "cpu", 1)
    try:
        assert worker.ask(300.0, "describe")["methods"] == ["chords"]
        where = {"folder": str(tmp_path), "save": str(tmp_path / "answer.npy")}
        with pytest.raises(Failed, match="no answer within 1 s"):
            worker.ask(1.0, "start", method="chords", workload=work, **where)
        assert worker.process is None
        assert worker.ask(300.0, "describe")["name"] == "hanging"
    finally:
        worker.close()


def test_a_worker_declines_what_it_was_not_asked_to_prepare() -> None:
    worker = Worker("drrkit", "cpu", 1)
    try:
        assert worker.ask(300.0, "describe")["name"] == "drrkit"
        with pytest.raises(Declined, match="its process ended"):
            worker.ask(300.0, "time", method="joseph", count=1)
    finally:
        worker.close()


# ---- on a GPU, with workers that only say what one would


class Told:
    """Answers as a worker on a GPU would; `graphs`: whether it can be captured."""

    def __init__(self, pace: float, graphs: bool) -> None:
        self.pace, self.graphs, self.process = pace, graphs, True
        self.asked: list[str] = []

    def ask(self, timeout: float, do: str, **arguments: Any) -> dict[str, Any]:
        self.asked.append(do)
        if do == "start":
            np.save(arguments["save"], np.full((1, 8, 8), 2.0, np.float32))
            return {"pace": self.pace, "peak_bytes": 1000, "seconds": []}
        if do == "capture" and not self.graphs:
            raise Declined("RuntimeError: operation not permitted when stream is capturing")
        if do == "time":
            return {"seconds": [self.pace / (4 if arguments["graphs"] else 1)] * arguments["count"]}
        return {}


def test_a_workload_on_a_gpu_is_timed_eagerly_and_in_graphs_where_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contest, "available_bytes", lambda device: 10**9)
    workers = {"drrkit": Told(1e-3, True), "rival": Told(8e-3, False)}
    entered = [
        contest.Contender(worker, name, "joseph", ("forward",), "joseph", True, "")  # type: ignore[arg-type]
        for name, worker in workers.items()
    ]
    limits = {"copy_bytes_per_s": 4e12, "fetches_per_s": 8e12, "lookups_per_s": 1e12}
    effort = Effort(rounds=3, turn=0.01, cell=1.0, limit=5.0, minutes=5.0)
    held = contest.Contest("cuda", effort, contest.Floors(limits), tmp_path)
    work = Workload("main", "AP", 1, 8, "forward", inputs=4)
    for _ in range(2):
        held.run(work, synthetic((8, 12, 12), spacing=20.0), tmp_path, entered)
    contest.with_ratios(held.rows, "drrkit joseph", {c.case: c.compared_with for c in entered})
    found = {(row["case"], row["mode"]): row for row in held.rows}
    assert set(found) == {
        ("drrkit joseph", "eager"),
        ("drrkit joseph", "graph"),
        ("rival joseph", "eager"),
    }
    graph = found["drrkit joseph", "graph"]
    assert graph["seconds"]["median"] == 2.5e-4 and graph["seconds"]["samples"] == 3 * 2
    assert found["rival joseph", "eager"]["ratio"] == pytest.approx(8.0)
    assert [e["reason"] for e in held.left_out if e["case"] == "rival joseph"] == [
        "RuntimeError: operation not permitted when stream is capturing"
    ]
    assert workers["rival"].asked.count("capture") == 1  # not asked for what it cannot again
    assert workers["drrkit"].asked[-1] == "clear"


# ---- records


@pytest.mark.parametrize(
    "change, error",
    [
        ({"schema": 1}, "schema 2"),
        ({"kind": "else"}, "drrkit bench"),
        ({"rows": [{}]}, r"rows\[0\].section is missing"),
    ],
)
def test_a_record_with_a_wrong_entry_is_refused_by_its_name(
    change: dict, error: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(example() | change))
    with pytest.raises(ValueError, match=rf"x\.json: .*{error}"):
        records.read(path)


def test_a_large_tool_is_left_out_when_it_would_take_too_long(tmp_path: Path) -> None:
    entered = contest.Contender(
        Worker("nobody", "cpu", 1), "slow", "way", ("forward", "pose"), "siddon", True, ""
    )
    small, large = (Workload("main", "AP", 1, n, "forward") for n in (10, 100))
    entered.remember(small, 0.5, 1000)
    assert entered.estimate(large) == pytest.approx((50.0, 100_000))
    pose = Workload("main", "AP", 1, 10, "pose")
    assert entered.estimate(pose)[0] == pytest.approx(0.5 * contest.COSTLIER["pose"][0])
    effort = Effort(1, 0.1, 1.0, 5.0, 1.0)
    held = contest.Contest("cpu", effort, contest.Floors({}), tmp_path)
    assert held._begin(large, tmp_path, entered, tmp_path / "a.npy") is None
    assert "about 50 s per call" in held.left_out[0]["reason"]
