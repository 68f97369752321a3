"""The studies prost_ablations and learned_landscapes measure what they say."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from bench.studies import learned_landscapes
from bench.studies import prost_ablations as ablations
from bench.studies import prost_ablations_report as tables
from bench.studies import prost_small as small
from bench.studies.__main__ import main
from bench.studies.study import read_rows
from drrkit import Volume
from drrkit.evaluation import Landscape
from drrkit.similarity import TrainingPatient, build


@pytest.fixture(scope="module")
def patient() -> TrainingPatient:
    axis = torch.arange(16) - 7.5
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    ball = x**2 + y**2 + (z - 2) ** 2 < 16
    hu = torch.where(ball, 800.0, -1000.0)
    ct = Volume(hu, (8.0, 8.0, 8.0), unit="HU", labels=2 * ball.to(torch.uint8))
    return TrainingPatient.of("pelvis 2000", ct, build(small.NETWORK), bones=small.BONE)


def test_plain_targets_are_those_of_the_small_experiment(patient: TrainingPatient) -> None:
    for found, wanted in zip(
        ablations.views("plain", patient, 2, 5), small.pairs(patient, 2, 5), strict=True
    ):
        assert torch.equal(found, wanted)


def test_partial_views_are_70_mm_aside_and_their_starts_with_them(patient: TrainingPatient) -> None:
    moved, plain = (ablations.views(kind, patient, 3, 5) for kind in ("partial", "plain"))
    shifts = [moved[k] - plain[k] for k in (0, 2)]
    torch.testing.assert_close(*shifts)
    assert (shifts[0][:, [0, 1, 2, 5]] == 0).all()
    distance = shifts[0][:, 3:5].norm(dim=1) * patient.chart.unit
    torch.testing.assert_close(distance, torch.full_like(distance, 70.0))


def test_polarity_is_righted_and_nothing_else(patient: TrainingPatient) -> None:
    plain = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    both = torch.cat((1.0 - plain[:1], plain[1:]))
    found = ablations.righted(both, plain)
    torch.testing.assert_close(found[0], plain[0] - plain[0].min())
    assert torch.equal(found[1], plain[1])


def test_the_visible_share_is_that_of_points_in_the_x_ray() -> None:
    pose = torch.eye(4, dtype=torch.float64)
    pose[2, 3] = 800.0
    # Half the detector, 64 pixels of 4.352 mm, is 109.2 mm at the patient.
    points = torch.tensor([[0, 0, 0], [109, 0, 0], [110, 0, 0], [0, -110, 0]], dtype=torch.float64)
    assert ablations.visible_share(pose, points) == 0.5


@pytest.mark.parametrize(
    ("wins", "losses", "expected"),
    [(0, 0, 1.0), (5, 0, 2 / 32), (0, 5, 2 / 32), (3, 3, 1.0), (8, 1, 2 * 10 / 512)],
)
def test_the_sign_test_counts_the_tails_of_the_binomial(
    wins: int, losses: int, expected: float
) -> None:
    assert math.isclose(tables.sign_test(wins, losses), expected)


def test_orders_say_what_is_chance() -> None:
    good = {"mtre_mm": 1.0, "alone_mm": 20.0}
    bad = {"mtre_mm": 50.0, "alone_mm": 10.0}
    rows = {"direction:plain": [good] * 10, "no-3d:plain": [bad] * 9, "mse:plain": [good] * 10}
    found = {order["order"]: order for order in tables.orders(rows)}
    network = found["3D network above none"]
    assert network["cases"] == 9 and network["points"] == 100.0
    assert network["p"] == network["p_alone"] == 2 / 512
    assert network["closer_alone"] == 0.0
    assert tables.order_cells(network)[4:] == ["the same", "0 %", "0.004", "the opposite"]
    objective = found["gradient objective above MSE"]
    assert objective["p"] == 1.0 and objective["published_points"] == [37.7, 44.4]
    cells = ["37.7 / 44.4", "+0.0", "1.000", "undecided", "0 %", "1.000", "undecided"]
    assert tables.order_cells(objective)[1:] == cells


def test_no_subject_is_trained_on_and_tested() -> None:
    groups = [set(group) for group in (small.TRAINED, small.HELD_OUT, small.TESTED)]
    assert sum(map(len, groups)) == len(set.union(*groups))


def test_a_similarity_that_is_the_distance_correlates_with_one_minimum() -> None:
    offsets = torch.linspace(-1.0, 1.0, 5, dtype=torch.float64).expand(6, 5)
    distances = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64)
    perfect = Landscape("S", offsets, offsets.abs(), distances, distances / 7)
    # Another subject's scale: each is right by itself, together they are not.
    scaled = Landscape("S", offsets, (offsets - 0.5).abs(), distances, 9 - distances / 100)
    found = learned_landscapes.numbers([perfect, scaled])
    assert found["correlations"] == pytest.approx([1.0, -1.0])
    assert found["correlation"] == pytest.approx(0.0)
    assert -1.0 < found["correlation_together"] < 1.0
    assert found["minima_mean"] == 1.0
    assert found["lowest_off_deg_mm"] == pytest.approx([45 / math.pi] * 3 + [0.25] * 3)


@pytest.mark.slow
@pytest.mark.io
def test_the_bench_trains_registers_goes_on_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cma")
    monkeypatch.setattr(small, "TRAINED", range(2))
    monkeypatch.setattr(small, "HELD_OUT", range(2, 3))
    monkeypatch.setattr(small, "TESTED", range(3, 5))
    small.save_similarity(build(small.NETWORK), tmp_path / "direction.pt")
    shared = ["--work", str(tmp_path), "--output", str(tmp_path / "out"), "--steps", "2"]
    assert main(["prost_ablations", "train", "--run", "no-3d", "dmw", *shared]) == 0
    rows = ["none:plain", "no-3d:plain", "dmw:plain"]
    for cases in ("1", "2"):
        words = ["register", "--row", *rows, "--cases", cases, *shared]
        assert main(["prost_ablations", *words]) == 0
    main(["prost_ablations", "report", "--cases", "2", *shared])
    record = json.loads((tmp_path / "out" / "prost_ablations.json").read_text())
    assert set(record["rows"]) == set(rows)
    folder = tmp_path / "ablations"
    assert [row["case"] for row in read_rows(folder / "dmw_plain.jsonl")] == [0, 1]
    assert read_rows(folder / "none_plain.jsonl")[0]["subject"] == "pelvis 3"
    assert record["networks"]["no-3d"]["steps"] == 2
    assert record["networks"]["dmw"]["steps"] == 6
    none = record["rows"]["none:plain"]
    assert none["alone"]["median_mtre_mm"] == none["median_start_mm"]
    assert "no 3D network" in (tmp_path / "out" / "README.md").read_text()
