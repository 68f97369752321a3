"""Evaluation: protocols and their seeds, shifted appearance, rows that resume, summaries."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict, replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor

import drrkit
from drrkit import Stage, view_ap
from drrkit.evaluation import (
    PROTOCOLS,
    Case,
    Row,
    Subject,
    auroc,
    capture_range,
    evaluate,
    is_inverted,
    landscape,
    landscapes_of,
    local_minima,
    measure,
    moved_about,
    read_rows,
    recall_at,
    shifted_appearance,
    summarise,
)
from drrkit.evaluation.running import _registered
from drrkit.geometry import so3_log, volume_center
from drrkit.metrics import mtre
from drrkit.phantoms import torso
from drrkit.registration import Levenberg, RegistrationResult
from tests.support.commands import run, small_ct, succeed, write_data

pytestmark = pytest.mark.io  # target points need SimpleITK


@lru_cache
def subject(name: str = "torso") -> Subject:
    return Subject.of(name, torso(6.0))


SMALL = replace(PROTOCOLS["narrow"], size=(32, 32), pixel_mm=8.704)


def untouched(case: Case) -> RegistrationResult:
    """A method that returns its start."""
    return RegistrationResult(
        world_to_camera=case.start,
        loss=1.0,
        accepted=False,
        confidence=0.5,
        agreement=0.5,
        covariance=None,
        history=[],
        seconds=0.0,
        stop_reason="converged",
        all_world_to_camera=case.start[None],
        all_loss=torch.ones(1),
    )


def row(**changes: object) -> Row:
    numbers = dict.fromkeys((f for f in Row.__dataclass_fields__), 0.0)
    words = {"method": "m", "protocol": "p", "subject": "s", "stop_reason": "x", "device": "cpu"}
    return Row(**{**numbers, "number": 0, "stages": 1, **words, **changes})


# ---- protocols


def offsets(name: str, count: int = 60) -> tuple[Tensor, Tensor]:
    """Where the starts of cases are, from the truth or the frontal view: degrees and mm [N, 6]."""
    protocol, patient = replace(PROTOCOLS[name], size=(2, 2), pixel_mm=100.0), subject()
    center, frontal = volume_center(patient.ct), view_ap(patient.ct, 800.0)[0]
    found = []
    for number in range(count):
        case = protocol.case(patient, number)
        pair = []
        for pose, origin in ((case.truth, frontal), (case.start, case.truth)):
            origin = frontal if not protocol.about_truth else origin
            turn = pose[:3, :3] @ origin[:3, :3].mT
            # Angles of R = Rx Ry Rz.
            y = math.asin(float(turn[0, 2]))
            x = math.atan2(-float(turn[1, 2]), float(turn[2, 2]))
            z = math.atan2(-float(turn[0, 1]), float(turn[0, 0]))
            shift = (pose - origin)[:3, :3] @ center + (pose - origin)[:3, 3]
            pair.append(torch.cat((torch.rad2deg(torch.tensor([x, y, z])).double(), shift)))
        found.append(torch.stack(pair))
    targets, starts = torch.stack(found, 1)
    return targets, starts


@pytest.mark.parametrize("name", ["narrow", "prost"])
def test_uniform_protocols_fill_their_ranges_and_stay_inside(name):
    targets, starts = offsets(name)
    widths = torch.tensor(PROTOCOLS[name].start)
    assert (starts.abs() <= widths + 1e-6).all()
    assert (starts.abs().amax(0) > 0.85 * widths).all()
    assert (targets.abs() <= torch.tensor(PROTOCOLS[name].target) + 1e-6).all()
    assert (starts.mean(0).abs() < 0.3 * widths).all()


def test_the_normal_protocol_has_the_standard_deviations_it_states():
    _, starts = offsets("cdreg")
    ratio = starts.std(0) / torch.tensor(PROTOCOLS["cdreg"].start)
    assert (ratio > 0.75).all() and (ratio < 1.3).all()
    assert (starts.abs() > torch.tensor(PROTOCOLS["cdreg"].start)).any()


def test_the_published_numbers_of_the_protocols():
    assert PROTOCOLS["narrow"].start == (10.0, 10.0, 10.0, 20.0, 20.0, 50.0)
    assert PROTOCOLS["prost"].start == (50.0, 50.0, 50.0, 200.0, 200.0, 300.0)
    assert PROTOCOLS["cdreg"].start == (20.0, 20.0, 20.0, 30.0, 30.0, 60.0)
    for protocol in PROTOCOLS.values():
        assert protocol.target == (15.0, 15.0, 15.0, 25.0, 25.0, 25.0)
        assert (protocol.sdd, protocol.sod, protocol.size, protocol.pixel_mm) == (
            1020.0,
            800.0,
            (128, 128),
            2.176,
        )
        assert protocol.photons == 2e4 and protocol.photons_at == "detector"


def test_a_number_is_one_case_everywhere_and_another_number_another():
    first, again, other = (SMALL.case(subject(), n) for n in (3, 3, 4))
    assert torch.equal(first.xray, again.xray) and torch.equal(first.start, again.start)
    assert not torch.equal(first.truth, other.truth) and not torch.equal(first.xray, other.xray)
    # Neither another patient nor another protocol repeats its poses.
    twin = SMALL.case(Subject.of("twin", subject().ct), 3)
    reseeded = replace(SMALL, seed=1).case(subject(), 3)
    for other in (twin, reseeded):
        assert not torch.allclose(other.truth, first.truth, atol=1.0)
    assert len({protocol.seed for protocol in PROTOCOLS.values()}) == len(PROTOCOLS)


def test_a_registration_knows_nothing_of_the_truth():
    case = SMALL.case(subject(), 1)
    stage = Stage("ncc", optimiser=Levenberg(20.0), iterations=5, starts=4, mm=True)
    blind = replace(case, truth=torch.eye(4, dtype=torch.float64))
    ends = [_registered(one, stage) for one in (case, blind)]
    assert torch.equal(ends[0].world_to_camera, ends[1].world_to_camera)
    # Whereas X-ray and start are all it goes by.
    other = replace(case, start=SMALL.case(subject(), 2).start)
    assert not torch.equal(_registered(other, stage).world_to_camera, ends[0].world_to_camera)


def test_the_target_is_no_rendering_of_the_moving_image():
    case = SMALL.case(subject(), 0)
    drr = drrkit.render(subject().attenuation, case.camera, case.truth)
    correlation = 1 - float(drrkit.losses.ncc(drr, case.xray))
    assert 0.9 < correlation < 0.9999
    assert float((drr - case.xray).abs().mean()) > 0.05 * float(drr.mean())
    starved = SMALL.starved().case(subject(), 0)
    assert torch.equal(starved.truth, case.truth)
    clean = replace(SMALL, photons=None).case(subject(), 0)
    noise = [float((image - clean.xray).std()) for image in (starved.xray, case.xray)]
    assert noise[0] > 5 * noise[1] > 0


def test_a_motion_turns_about_the_centre_in_the_named_order_and_shifts_it():
    center = torch.tensor([10.0, -20.0, 30.0], dtype=torch.float64)
    pose = view_ap(subject().ct, 800.0)[0]
    motion = torch.tensor([0.3, -0.2, 0.5, 4.0, 5.0, 6.0], dtype=torch.float64)
    moved = moved_about(pose, motion, center)
    before = pose[:3, :3] @ center + pose[:3, 3]
    after = moved[:3, :3] @ center + moved[:3, 3]
    torch.testing.assert_close(after - before, motion[3:])
    c, s = np.cos([0.3, -0.2, 0.5]), np.sin([0.3, -0.2, 0.5])
    x = np.array([[1, 0, 0], [0, c[0], -s[0]], [0, s[0], c[0]]])
    y = np.array([[c[1], 0, s[1]], [0, 1, 0], [-s[1], 0, c[1]]])
    z = np.array([[c[2], -s[2], 0], [s[2], c[2], 0], [0, 0, 1]])
    expected = torch.from_numpy(x @ y @ z) @ pose[:3, :3]
    torch.testing.assert_close(moved[:3, :3], expected)


# ---- appearance


def test_a_shifted_appearance_is_a_monotone_remapping_under_a_smooth_field():
    image = torch.linspace(2.0, 8.0, 40 * 40).reshape(1, 1, 40, 40)
    for seed in range(6):
        shifted = shifted_appearance(image, seed, inversion=False)
        assert shifted.shape == image.shape and shifted.min() >= 0 and shifted.max() <= 1.3
        unit = (image - 2.0) / 6.0
        inner = unit > 0.2
        # 0.2 to a power between 0.7 and 1.3, times a field between 0.7 and 1.3.
        ratio = (shifted / unit)[inner]
        assert ratio.min() > 0.43 and ratio.max() < 2.11
        inverted = shifted_appearance(image, seed, inversion=True)
        field = shifted + inverted  # the same field times one
        assert field.min() >= 0.7 - 1e-6 and field.max() <= 1.3 + 1e-6
        assert field.diff(dim=-1).abs().max() < 0.1
        drawn = inverted if is_inverted(seed) else shifted
        assert torch.equal(shifted_appearance(image, seed), drawn)


def test_the_parts_of_a_shift_can_be_had_alone():
    image = torch.linspace(2.0, 8.0, 40 * 40).reshape(1, 1, 40, 40)
    unit = (image - 2.0) / 6.0
    nothing = shifted_appearance(image, 3, False, gamma=False, field=False)
    torch.testing.assert_close(nothing, unit)
    inverted = shifted_appearance(image, 3, True, gamma=False, field=False)
    torch.testing.assert_close(inverted, 1 - unit)
    powers = shifted_appearance(image, 3, False, field=False).log() / unit.log()
    power = powers[(unit > 0.1) & (unit < 0.9)]
    assert float(power.min()) >= 0.7 and float(power.max()) <= 1.3
    assert float(power.max() - power.min()) < 1e-4 and abs(float(power[0]) - 1) > 1e-3
    uneven = shifted_appearance(image, 3, False, gamma=False)
    both = shifted_appearance(image, 3, False)
    torch.testing.assert_close(unit ** power[0] * uneven, both * unit, rtol=1e-3, atol=1e-5)


def test_half_of_the_shifted_images_are_inverted():
    image = torch.arange(64.0).reshape(1, 1, 8, 8)
    corner = [float(shifted_appearance(image, seed)[0, 0, 0, 0]) > 0.5 for seed in range(200)]
    assert 75 < sum(corner) < 125
    with pytest.raises(ValueError, match=r"xray: expected an image that is not constant, got 3"):
        shifted_appearance(torch.full((1, 1, 4, 4), 3.0), 0)


# ---- running


def test_a_row_holds_how_far_off_a_case_began_and_ended():
    case = SMALL.case(subject(), 5)
    result = measure("untouched", untouched, case)
    assert (
        result.start_mtre == result.mtre == float(mtre(case.start, case.truth, case.subject.points))
    )
    turn = so3_log(case.start[:3, :3] @ case.truth[:3, :3].mT)
    found = [result.rotation_x, result.rotation_y, result.rotation_z]
    assert found == pytest.approx(torch.rad2deg(turn).tolist())
    assert math.hypot(*found) == pytest.approx(result.rotation)
    assert result.rotation == result.start_rotation
    shift = result.translation_x, result.translation_y, result.translation_z
    assert math.hypot(*shift) == pytest.approx(result.translation)
    assert result.image_difference > 0.02
    perfect = measure("truth", lambda c: replace(untouched(c), world_to_camera=c.truth), case)
    assert perfect.mtre == perfect.rotation == perfect.image_difference == 0.0


def test_an_evaluation_writes_every_case_once_and_resumes(tmp_path):
    seen: list[int] = []

    def method(case: Case) -> RegistrationResult:
        seen.append(case.number)
        if len(seen) == 3:  # as `register` says it
            return replace(untouched(case), stop_reason="interrupted")
        return untouched(case)

    arguments = ({"m": method}, [SMALL], [subject(), Subject.of("twin", torso(6.0))], 2, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        evaluate(*arguments)
    assert len(read_rows(tmp_path)) == 2 and not list(tmp_path.glob("*.tmp"))
    rows = evaluate(*arguments)
    assert len(seen) == 5 and len(rows) == 4
    assert {(r.subject, r.number) for r in rows} == {
        (name, number) for name in ("torso", "twin") for number in (0, 1)
    }
    assert evaluate(*arguments) == rows and len(seen) == 5
    with open(tmp_path / "rows.0.csv", newline="") as stream:
        written = list(csv.DictReader(stream))
    assert len(written) == 4 and list(written[0]) == list(asdict(rows[0]))


def test_processes_share_the_cases_and_see_each_others_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in (2, 0, 1):
        monkeypatch.setenv("RANK", str(rank))
        rows = evaluate({"m": untouched}, [SMALL], [subject()], 5, tmp_path)
    assert sorted(row.number for row in rows) == [0, 1, 2, 3, 4]
    lines = [file.read_text().splitlines() for file in sorted(tmp_path.glob("rows.*.csv"))]
    assert [len(found) - 1 for found in lines] == [2, 2, 1]


def test_a_file_that_is_no_evaluation_is_refused(tmp_path):
    (tmp_path / "rows.0.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"rows.0.csv: expected the columns"):
        read_rows(tmp_path)
    with pytest.raises(ValueError, match=r"cases: expected a positive integer, got 0"):
        evaluate({}, [], [], 0, tmp_path)


# ---- summaries


def test_a_summary_holds_rates_percentiles_and_tops():
    errors = [0.5, 1.0, 1.5, 3.0, 50.0]
    rows = [
        row(number=i, mtre=e, start_mtre=10.0 * (i + 1), confidence=1 - 0.1 * i, translation_z=-e)
        for i, e in enumerate(errors)
    ]
    summary = summarise(rows)
    assert summary["cases"] == 5
    assert summary["success"]["10 mm"]["successes"] == 4
    assert summary["success"]["2 mm"]["rate"] == pytest.approx(0.6)
    low, high = (summary["success"]["2 mm"][k] for k in ("low", "high"))
    assert low == pytest.approx(0.2307, abs=1e-3) and high == pytest.approx(0.8824, abs=1e-3)
    assert summary["mtre"]["50 %"] == 1.5 and summary["mtre"]["max"] == 50.0
    assert summary["translation_z"]["50 %"] == 1.5  # magnitudes
    assert summary["mtre_top"]["50 %"] == {"mean": 0.75, "std": 0.25}  # the first two of five
    assert summary["capture_range"] == 30.0
    assert summary["failures_flagged"]["auroc"] == 1.0
    assert json.loads(json.dumps(summary)) == summary
    assert "failures_flagged" not in summarise(rows[:4])
    with pytest.raises(ValueError, match="rows: expected at least one"):
        summarise([])


def test_the_capture_range_is_the_largest_start_up_to_which_nearly_all_succeed():
    start = torch.arange(1.0, 101.0)
    errors = torch.ones(100)
    errors[[39, 79, 80, 81, 82, 83]] = 9.0
    # Cases 40, 80, 81 and 82 fail: four of 82 are less than 5 %, five of 83 more, six of 100, too.
    assert capture_range(start, errors, 2.0) == 82.0
    assert capture_range(start.flip(0), errors.flip(0), 2.0) == 82.0
    assert capture_range(start, torch.full((100,), 9.0), 2.0) == 0.0
    assert capture_range(start, torch.ones(100), 2.0) == 100.0


def test_auroc_and_recall_by_hand():
    right, wrong = torch.tensor([0.9, 0.8, 0.6]), torch.tensor([0.7, 0.6, 0.1])
    # Pairs won: 0.9 beats three, 0.8 three, 0.6 one and a tie.
    assert auroc(right, wrong) == pytest.approx(7.5 / 9)
    assert recall_at(0.0, right, wrong) == pytest.approx(1 / 3)
    assert recall_at(0.34, right, wrong) == 1.0


def test_stages_are_registered_as_methods(tmp_path):
    stages = Stage("ncc", optimiser=Levenberg(20.0, final_step=0.01), iterations=12, mm=True)
    rows = evaluate({"lm": stages}, [SMALL], [subject()], 2, tmp_path)
    assert all(row.mtre < 0.3 * row.start_mtre for row in rows)
    assert all(row.stages == 1 and row.seconds > 0 for row in rows)


# ---- landscapes


def test_valleys_are_counted_flat_floors_and_rising_ends_included():
    sweeps = {
        1: ([3, 2, 1, 2, 3], [3, 1, 1, 1, 2], [1, 2, 3], [3, 2, 1], [5, 5, 5]),
        2: ([3, 1, 2, 1, 3], [1, 2, 2, 3, 1], [2, 1, 1, 2, 2, 0, 4]),
        3: ([1, 2, 1, 2, 1], [0, 1, 0, 1, 0]),
    }
    for count, examples in sweeps.items():
        for sweep in examples:
            assert local_minima(torch.tensor(sweep, dtype=torch.float64)) == count, sweep


def test_a_landscape_is_lowest_at_the_truth_and_tells_distance():
    case = SMALL.case(subject(), 1)
    found = landscape(case, Stage("ncc", voxel=None), count=21, poses=60)
    assert found.name == "ncc" and found.sweeps.shape == found.offsets.shape == (6, 21)
    assert (found.offsets[:, 10] == 0).all()
    assert math.degrees(float(found.offsets[0, -1])) == pytest.approx(30.0)
    assert float(found.offsets[5, 0]) == -150.0
    # The middle of every sweep is the same pose.
    assert (found.sweeps[:, 10] - found.sweeps[0, 10]).abs().max() < 1e-6
    assert (found.sweeps.argmin(1) - 10).abs().max() <= 1
    near = landscape(case, Stage("ncc"), widths=(5, 5, 5, 30, 30, 5), count=3, poses=60)
    assert near.correlation > 0.5 > found.correlation > 0.0 and len(found.minima) == 6
    alone = drrkit.render(case.subject.attenuation, case.camera, case.truth)
    assert float(drrkit.losses.ncc(alone, case.xray)) == pytest.approx(float(found.sweeps[0, 10]))
    again = landscape(case, Stage("ncc"), count=21, poses=60)
    assert torch.equal(again.losses, found.losses) and torch.equal(again.sweeps, found.sweeps)
    both = landscapes_of(case, ["mi", "ncc"], Stage(), count=21, poses=60)
    assert [one.name for one in both] == ["mi", "ncc"]
    torch.testing.assert_close(both[1].sweeps, found.sweeps, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(both[1].losses, found.losses, rtol=1e-6, atol=1e-7)
    assert torch.equal(both[0].distances, found.distances) and (both[0].sweeps < 0).all()
    with pytest.raises(ValueError, match=r"count: expected an odd number .* got 20"):
        landscape(case, Stage("ncc"), count=20)


# ---- the command line


def test_the_command_line_registers_from_far_away_with_a_search(tmp_path):
    data = write_data(tmp_path)
    stored = json.loads((data / "start.json").read_text())
    pose = torch.tensor(stored["world_to_camera"], dtype=torch.float64)
    far = torch.tensor([0.5, -0.4, 0.6, 60.0, -50.0, 120.0], dtype=torch.float64)
    moved = drrkit.perturb(pose, far, volume_center(small_ct()))[0]
    stored["world_to_camera"] = moved.tolist()
    (data / "far.json").write_text(json.dumps(stored))
    files = [data / "ct.nii.gz", data / "xray.npy", "--init", data / "far.json"]
    output = tmp_path / "result.json"
    told = succeed("register", *files, "-o", output, "--stages", "global", "--quiet")
    result = json.loads(output.read_text())
    found = torch.tensor(result["world_to_camera"], dtype=torch.float64)
    points = subject().points
    assert float(mtre(found, view_ap(small_ct(), 800.0), points)) < 4.0
    assert result["stages"][0]["similarity"] == "search" and "Warning" not in told.output
    refused = run("register", *files, "-o", output, "--stages", "everywhere")
    assert refused.exit_code == 2 and "expected auto, global, part, or" in refused.output
