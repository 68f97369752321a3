"""The way of a registration, and the film of it: frames, GIF, MP4, what cannot be filmed."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import drrkit
from drrkit.report import edges, registration_path, save_film
from drrkit.report.film import _ffmpeg, film_frames
from drrkit.report.path import bone_like_points, distances
from drrkit.report.scene import orientation
from drrkit.report.screen import Screen
from tests.support.commands import run, small_camera, small_ct, succeed, write_data

GREEN = np.array((0, 255, 0))


@functools.cache
def registered() -> tuple[Any, ...]:
    """A registration from 5 degrees off: volume, X-ray, truth, result."""
    ct, camera = small_ct(), small_camera()
    truth = drrkit.view_ap(ct, 800.0)
    xray = drrkit.simulate_xray(ct, camera, truth, photons=None)
    xi = torch.tensor([[0.06, -0.05, 0.08, 8.0, -6.0, 10.0]], dtype=torch.float64)
    start = drrkit.perturb(truth, xi, drrkit.volume_center(ct))
    volume = ct.to_mu()
    told: list[torch.Tensor] = []
    found = drrkit.register(volume, camera, xray, start, progress=lambda p, _: told.append(p))
    result = {**found.as_dict(), "initial_world_to_camera": start[0].tolist()}
    return volume, xray, truth, result, told


# ---- the way


def test_the_way_is_what_a_watcher_was_told_after_the_start() -> None:
    *_, result, told = registered()
    path = registration_path(result)
    assert path[0].stage == 0 and path[0].loss is None
    assert path[0].world_to_camera.tolist() == result["initial_world_to_camera"]
    assert torch.equal(torch.stack([step.world_to_camera for step in path[1:]]), torch.stack(told))
    assert [step.stage for step in path] == sorted(step.stage for step in path)
    for stage in {step.stage for step in path} - {0}:
        losses = [step.loss for step in path if step.stage == stage]
        assert losses == sorted(losses, reverse=True)  # the best so far
    assert path[-1].world_to_camera.tolist() == result["world_to_camera"]


def test_the_way_ends_nearer_to_the_truth_and_at_the_result() -> None:
    volume, _, truth, result, _ = registered()
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
    *_, result, _ = registered()
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
    volume, xray, truth, _, _ = registered()
    screen = Screen.of(small_camera(), 40.0 - 0.0 * xray + 3.0 * xray)
    drr = screen.rendered(volume, truth)
    off = (screen.matched(drr).double() - screen.picture.double()).abs()
    assert float(off.mean()) < 6.0
    assert torch.equal(screen.matched(-drr), drrkit.report.to_display(-drr))
    assert torch.equal(screen.edges(drr), edges(drr, sigma_px=1.2 * screen.factor))


def test_the_letters_at_the_edges_are_the_patients_directions() -> None:
    ct = small_ct()
    assert orientation(drrkit.view_ap(ct, 800.0)[0]) == ("R", "H", "L", "F")
    assert orientation(drrkit.view_pa(ct, 800.0)[0]) == ("L", "H", "R", "F")
    left, top, right, bottom = orientation(drrkit.view_left_lateral(ct, 800.0)[0])
    assert {left, right} == {"A", "P"} and (top, bottom) == ("H", "F")


# ---- the film


@pytest.mark.io
def test_frames_show_every_new_pose_with_edges_that_move() -> None:
    pytest.importorskip("matplotlib")
    volume, xray, truth, result, _ = registered()
    frames = list(film_frames(volume, small_camera(), xray, result, truth=truth))
    poses = [tuple(map(tuple, s.world_to_camera.tolist())) for s in registration_path(result)]
    assert len(set(poses)) <= len(frames) <= len(set(poses)) + 1
    assert len({frame.shape for frame in frames}) == 1 and frames[0].dtype == np.uint8
    assert frames[0].shape[0] % 2 == frames[0].shape[1] % 2 == 0
    green = [(frame == GREEN).all(-1) for frame in frames]
    assert all(marked.sum() > 200 for marked in green)
    assert (green[0] ^ green[-1]).sum() > 100
    half = frames[0].shape[1] // 2
    assert not green[0][:, half:].any()  # the rendered CT has none
    few = list(film_frames(volume, small_camera(), xray, result, truth=truth, most_frames=3))
    assert len(few) == 3
    assert np.array_equal(few[0], frames[0]) and np.array_equal(few[-1], frames[-1])


@pytest.mark.io
def test_a_gif_holds_the_frames_and_stands_still_at_the_end(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    volume, xray, _, result, _ = registered()
    frames = list(film_frames(volume, small_camera(), xray, result, most_frames=4))
    options = {"frames_per_second": 10, "most_frames": 4}
    save_film(volume, small_camera(), xray, result, tmp_path / "a.gif", **options)
    with image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == len(frames)
        durations = []
        for number, frame in enumerate(frames):
            film.seek(number)
            durations.append(film.info["duration"])
            off = np.abs(np.asarray(film.convert("RGB")).astype(int) - frame)
            assert off.mean() < 6.0  # the palette
        assert durations == [1000, *[100] * (len(frames) - 2), 2500]
    assert os.listdir(tmp_path) == ["a.gif"]


@pytest.mark.io
def test_an_mp4_plays_in_ffmpeg_with_the_frames_it_was_given(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    volume, xray, _, result, _ = registered()
    frames = list(film_frames(volume, small_camera(), xray, result, most_frames=4))
    options = {"frames_per_second": 10, "most_frames": 4}
    save_film(volume, small_camera(), xray, result, tmp_path / "a.mp4", **options)
    command = [_ffmpeg(), "-loglevel", "error", "-i", tmp_path / "a.mp4", "-f", "rawvideo"]
    played = subprocess.run([*command, "-pix_fmt", "rgb24", "-"], capture_output=True, check=True)
    shown = np.frombuffer(played.stdout, np.uint8).reshape(-1, *frames[0].shape)
    assert len(shown) == 10 + (len(frames) - 2) + 25
    for frame, found in ((frames[0], shown[5]), (frames[-1], shown[-1])):
        assert np.abs(found.astype(int) - frame).mean() < 8.0


def test_without_ffmpeg_an_mp4_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    volume, xray, _, result, _ = registered()
    with pytest.raises(OSError, match=r"needs the program ffmpeg.*a \.gif needs neither"):
        save_film(volume, small_camera(), xray, result, tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"a\.avi: expected one of \.gif, \.mp4"):
        save_film(volume, small_camera(), xray, result, tmp_path / "a.avi")
    with pytest.raises(ValueError, match="frames_per_second: expected > 0"):
        save_film(volume, small_camera(), xray, result, tmp_path / "a.gif", frames_per_second=0)
    with pytest.raises(ValueError, match="most_frames: expected at least 2, got 1"):
        save_film(volume, small_camera(), xray, result, tmp_path / "a.gif", most_frames=1)
    assert os.listdir(tmp_path) == []


@pytest.mark.io
def test_an_ffmpeg_that_fails_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    broken = tmp_path / "ffmpeg"
    broken.write_text("#!/bin/sh\necho no such codec >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda name: str(broken))
    volume, xray, _, result, _ = registered()
    with pytest.raises(OSError, match="ffmpeg could not write the film: no such codec"):
        save_film(volume, small_camera(), xray, result, tmp_path / "a.mp4", most_frames=2)
    assert os.listdir(tmp_path) == ["ffmpeg"]


@pytest.mark.io
def test_the_command_line_films_what_it_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = pytest.importorskip("PIL.Image")
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    start = ["--init", "start.json", "-q"]
    succeed("register", "ct.nii.gz", "xray.npy", *start, "-o", "result.json")
    succeed("report", "result.json", "--film", "film.gif", "--truth", "start.json")
    with image.open("film.gif") as film:
        assert film.n_frames > 2
    succeed("report", "result.json", "-o", "report.html", "--landscape")
    page = Path("report.html").read_text()
    assert "The loss about the pose" in page and "is not the file" not in page
    assert hashlib.sha256(Path("ct.nii.gz").read_bytes()).hexdigest() in page
    Path("xray.npy").rename("moved.npy")
    drrkit.report.save_image(torch.rand(48, 64), "xray.npy")
    succeed("report", "result.json", "-o", "report.html")
    assert "xray.npy is not the file that was registered" in Path("report.html").read_text()
    succeed("report", "result.json", "-o", "report.html", "--xray", "moved.npy")
    assert "is not the file that was registered" not in Path("report.html").read_text()
    for arguments, words in (
        ((), "--output or --film is missing"),
        (("-o", "a.html", "--truth", "start.json"), "--truth belongs to --film"),
        (("--film", "a.avi"), "expected a file name ending in .gif, .mp4"),
    ):
        result = run("report", "result.json", *arguments)
        assert result.exit_code == 2 and words in result.output
