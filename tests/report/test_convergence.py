"""The path of a registration, and the screen on which X-ray and rendered CT are compared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import drrkit
from drrkit.report import edge_letters, edges, registration_path
from drrkit.report.convergence import bone_like_points, distances
from drrkit.report.pictures import Screen
from tests.support.commands import run, small_ct, small_result, small_scene

# ---- the path


def test_the_path_is_what_a_watcher_was_told_after_the_start() -> None:
    result, told = small_result()
    path = registration_path(result)
    assert path[0].stage == 0 and path[0].loss is None
    assert path[0].world_to_camera.tolist() == result["initial_world_to_camera"]
    assert torch.equal(torch.stack([step.world_to_camera for step in path[1:]]), torch.stack(told))
    assert [step.stage for step in path] == sorted(step.stage for step in path)
    for stage in {step.stage for step in path} - {0}:
        losses = [step.loss for step in path if step.stage == stage]
        assert losses == sorted(losses, reverse=True)  # the best so far
    assert path[-1].world_to_camera.tolist() == result["world_to_camera"]


def test_the_path_ends_nearer_to_the_truth_and_at_the_result() -> None:
    (volume, _, _, truth, _), (result, _) = small_scene(), small_result()
    path, points = registration_path(result), bone_like_points(volume)
    errors = distances(path, truth, points)
    expected = drrkit.metrics.mtre(path[0].world_to_camera, truth[0], points)
    assert errors[0] == pytest.approx(float(expected)) and errors[-1] < 0.1 * errors[0]
    assert distances(path, path[-1].world_to_camera, points)[-1] == 0.0


def test_targets_lie_where_the_volume_attenuates_most() -> None:
    values = torch.zeros(20, 20, 20)
    values[4:6] = torch.arange(400.0).reshape(20, 20) + 1.0  # a tenth of all voxels
    volume = drrkit.Volume(values, (2.0, 3.0, 4.0), unit="mu")
    index = volume.world_to_index(bone_like_points(volume, count=10_000)).round()
    assert len(index) == pytest.approx(400, abs=4)  # the upper half of them
    assert set(index[:, 2].tolist()) == {4.0, 5.0} and float(index[:, 1].min()) == 10.0
    assert len(bone_like_points(volume, count=7)) == 7


def test_a_result_without_its_steps_says_so() -> None:
    result, _ = small_result()
    old = {**result, "stages": [{"similarity": "ncc", "best_loss": [0.1]}]}
    with pytest.raises(ValueError, match="expected the poses of its steps"):
        registration_path(old)
    bodies = [[result["world_to_camera"]] * 2]
    with pytest.raises(ValueError, match=r"expected poses \[4, 4\] of one body, got \(2, 4, 4\)"):
        registration_path({"stages": [{"best_world_to_camera": bodies}]})


# ---- the screen


@pytest.mark.parametrize(("rows", "factor"), [(30, 14), (500, 1), (1000, 0.5)])
def test_a_screen_shows_the_same_detector_in_other_pixels(rows: int, factor: float) -> None:
    camera = drrkit.CArm(1020.0, (rows, 24), 0.5)
    screen = Screen.of(camera, torch.rand(rows, 24), most=800)
    assert screen.factor == factor and tuple(screen.camera.size) == tuple(screen.line.shape)
    # The detector's corner stays where it was.
    for one, shape in ((camera, camera.size), (screen.camera, screen.line.shape)):
        pitch = float(one.pixel_spacing[0])
        assert (float(one.K[1, 2]) + 0.5) * pitch == pytest.approx(rows * 0.25)
        assert shape[0] * pitch == pytest.approx(rows * 0.5)


def test_what_is_rendered_takes_the_grey_scale_of_the_x_ray() -> None:
    volume, camera, xray, truth, _ = small_scene()
    screen = Screen.of(camera, 40.0 - 0.0 * xray + 3.0 * xray)
    drr = screen.rendered(volume, truth)
    off = (screen.matched(drr).double() - screen.picture.double()).abs()
    assert float(off.mean()) < 6.0
    assert torch.equal(screen.matched(-drr), drrkit.report.to_display(-drr))
    assert torch.equal(screen.edges(drr), edges(drr, sigma_px=1.2 * screen.factor))


def test_the_letters_at_the_edges_are_the_patients_directions() -> None:
    ct = small_ct()
    assert edge_letters(drrkit.view_ap(ct, 800.0)[0]) == ("R", "H", "L", "F")
    assert edge_letters(drrkit.view_pa(ct, 800.0)[0]) == ("L", "H", "R", "F")
    left, top, right, bottom = edge_letters(drrkit.view_left_lateral(ct, 800.0)[0])
    assert {left, right} == {"A", "P"} and (top, bottom) == ("H", "F")


def test_films_are_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{}")
    told = run("report", tmp_path / "result.json", "--film", tmp_path / "film.gif")
    assert told.exit_code == 2 and "films are no longer made" in told.output
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
