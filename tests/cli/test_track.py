"""The command line: several X-rays in one registration, and films of one or several views."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import drrkit
from drrkit.cli.io import write_pose
from drrkit.conversions import read_autoscoper, read_jointtrack
from drrkit.registration import rig_of
from drrkit.report import save_image
from tests.support.commands import run, small_ct, small_scene, succeed, write_data
from tests.support.registered_torso import box_mtre
from tests.support.xray_files import write_carm_xray

pytestmark = pytest.mark.io

CENTER = drrkit.volume_center(small_ct())
STEP = torch.tensor([0.0, 0.03, 0.01, 2.0, 4.0, 0.0], dtype=torch.float64)  # from frame to frame


def poses(frames: int) -> Tensor:
    """[2, T, 4, 4]: the true poses of two cameras, 60 degrees apart."""
    truth = small_scene().truth
    film = drrkit.perturb(truth, torch.arange(frames)[:, None] * STEP, CENTER)
    side = drrkit.perturb(truth, torch.tensor([[0.0, 1.05, 0.0, 0.0, 0.0, 0.0]]), CENTER)
    return torch.stack((film, rig_of(torch.cat((truth, side)))[1] @ film))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films of three frames: film.tif, film.npy from the side, frames/1.npy to 3.npy; a.json and
    b.json are calibrations that place the CT as in `start.json`, not as in the films."""
    import SimpleITK as sitk

    folder = write_data(tmp_path_factory.mktemp("films"))
    scene = small_scene()
    films = [
        torch.cat(
            [
                drrkit.simulate_xray(small_ct(), scene.camera, one[None], photons=None)
                for one in view
            ]
        )
        for view in poses(3)
    ]
    sitk.WriteImage(sitk.GetImageFromArray(films[0][:, 0].numpy()), str(folder / "film.tif"))
    np.save(folder / "film.npy", films[1][:, 0].numpy())
    (folder / "frames").mkdir()
    for number, frame in enumerate(films[0]):
        save_image(frame, folder / "frames" / f"{9 + number}.npy")
    save_image(films[0][0], folder / "first.npy")
    save_image(films[1][0], folder / "second.npy")
    for name, rig in zip("ab", rig_of(poses(1)[:, 0]), strict=True):
        write_pose(folder / f"{name}.json", rig @ scene.start[0], scene.camera)
    return folder


def calibrated(folder: Path) -> list[object]:
    return ["--calibration", folder / "a.json", "--calibration", folder / "b.json", "--quiet"]


def test_several_x_rays_are_one_registration(folder: Path, tmp_path: Path) -> None:
    found, page, overlay = (tmp_path / n for n in ("found.json", "page.html", "overlay.png"))
    files = (folder / "ct.nii.gz", folder / "first.npy", folder / "second.npy")
    run("register", *files, *calibrated(folder), "-o", found, "--overlay", overlay)
    content = json.loads(found.read_text())
    truth = poses(1)[:, 0]
    pose = torch.tensor(content["world_to_camera"], dtype=torch.float64)
    assert box_mtre(pose[None], truth[:1], CENTER)[0] < 1.0  # in depth, too
    rig = torch.tensor(content["views"][1]["rig_to_camera"], dtype=torch.float64)
    torch.testing.assert_close(rig @ truth[0], truth[1])
    assert [Path(view["xray"]).name for view in content["views"]] == ["first.npy", "second.npy"]
    assert drrkit.read_xray(overlay).image.shape[-2] > 2 * 512  # a row per X-ray

    succeed("report", found, "-o", page)
    assert "Images of X-ray 2" in page.read_text()
    again = tmp_path / "again.json"
    run("register", "--config", found, "-o", again)
    assert json.loads(again.read_text())["world_to_camera"] == content["world_to_camera"]
    short = ("--stages", "ncc:2:3", "--init", found, "--rig", found)
    run("register", *files, *short, "-q", "-o", again)
    rigged = torch.tensor(json.loads(again.read_text())["world_to_camera"], dtype=torch.float64)
    assert box_mtre(rigged[None], truth[:1], CENTER)[0] < 1.0


def test_two_planes_of_a_c_arm_stand_as_their_files_say(folder: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.dcm" for name in "ab"]
    truth = [
        write_carm_xray(file, small_ct(), (50, 56), 5.6, [0.0] * 6, primary)[0]
        for file, primary in zip(files, (-20.0, 30.0), strict=True)
    ]
    output = tmp_path / "found.json"
    run("register", folder / "ct.nii.gz", *files, "--xi", "2,-2,3,4,-5,8", "-q", "-o", output)
    content = json.loads(output.read_text())
    found = torch.tensor(content["world_to_camera"], dtype=torch.float64)
    assert box_mtre(found[None], truth[0][None], CENTER)[0] < 1.5
    rig = torch.tensor(content["views"][1]["rig_to_camera"], dtype=torch.float64)
    torch.testing.assert_close(rig @ truth[0], truth[1])


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def check_table(path: Path, limit_mm: float) -> None:
    rows = table(path)
    assert [row["frame"] for row in rows] == ["0", "1", "2"]
    assert all(row["lost"] == "0" and float(row["confidence"]) > 0.5 for row in rows)
    names = [f"p{row}{col}" for row in range(3) for col in range(4)]
    found = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    found[:, :3] = torch.tensor([[float(row[n]) for n in names] for row in rows]).reshape(3, 3, 4)
    assert max(box_mtre(found, poses(3)[0], CENTER).tolist()) < limit_mm
    assert abs(float(rows[2]["ry_deg"]) - 3.44) < 0.3 and abs(float(rows[2]["y_mm"]) - 8.0) < 0.5
    assert abs(float(rows[0]["rx_deg"])) < 1e-9 and float(rows[1]["sigma_x_mm"]) > 0.0


def test_a_multi_page_tiff_is_tracked(folder: Path, tmp_path: Path) -> None:
    names = ("track.csv", "track.jts", "sheet.png", "track.html")
    output, track, sheet, page = (tmp_path / name for name in names)
    done = succeed(
        *("track", folder / "ct.nii.gz", folder / "film.tif", "--init", folder / "start.json"),
        *("-o", output, "--poses", track, "--sheet", sheet, "--page", page, "--quiet", "--json"),
    )
    check_table(output, 3.0)
    answer = json.loads(done.stdout)
    assert answer["lost"] == [] and answer["written"] == [str(tmp_path / name) for name in names]
    torch.testing.assert_close(
        read_jointtrack(track), torch.tensor(answer["world_to_camera"], dtype=torch.float64)
    )
    assert drrkit.read_xray(sheet).image.shape[-1] > 3 * 300
    assert "<svg" in page.read_text() or "drrkit[plots]" in page.read_text()


def test_a_lost_frame_is_marked_and_has_no_pose(folder: Path, tmp_path: Path) -> None:
    noise = torch.rand(48, 64, generator=torch.manual_seed(0))
    save_image(noise, tmp_path / "noise.npy")
    output, track, page = (tmp_path / name for name in ("track.csv", "track.jts", "track.html"))
    done = run(
        *("track", folder / "ct.nii.gz", folder / "first.npy", tmp_path / "noise.npy"),
        *("--init", folder / "start.json", "-q", "-o", output, "--poses", track, "--page", page),
    )
    assert done.exit_code == 1 and "Lost: 1." in done.stderr
    assert [row["lost"] for row in table(output)] == ["0", "1"]
    assert read_jointtrack(track).isnan().flatten(1).any(1).tolist() == [False, True]
    assert "1 lost" in page.read_text()


def test_films_of_two_views_are_tracked(folder: Path, tmp_path: Path) -> None:
    """One is a folder, the other a run; .tra has where the CT lies in the calibration's world."""
    films = ("track", folder / "ct.nii.gz", folder / "frames", folder / "film.npy")
    output, track = tmp_path / "track.csv", tmp_path / "track.tra"
    run(*films, *calibrated(folder), "-o", output, "--poses", track, "--smooth", 0.01)
    check_table(output, 1.0)
    placed = torch.linalg.inv(small_scene().start[0]) @ poses(3)[0]
    assert float((read_autoscoper(track) - placed)[:, :3].abs().max()) < 2.0


def test_films_that_do_not_fit_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "short.npy", np.eye(48, 64)[None].repeat(2, 0))
    np.save(tmp_path / "small.npy", np.eye(40, 64)[None].repeat(2, 0))
    (tmp_path / "list.txt").write_text(f"{folder / 'first.npy'}\nmissing.npy\n")
    ct, film, start = folder / "ct.nii.gz", folder / "film.tif", ("--init", folder / "start.json")
    two = calibrated(folder)
    for words, arguments in {
        "empty: expected the files of frames, got none": ("track", ct, tmp_path / "empty", *start),
        "missing.npy": ("track", ct, tmp_path / "list.txt", *start),
        "small.npy: expected 48x64 pixels as": ("track", ct, film, tmp_path / "small.npy", *start),
        "short.npy: expected 3 frames as": ("track", ct, film, tmp_path / "short.npy", *two),
        "FRAMES: expected a film for each of 2 cameras, got 1": ("track", ct, film, *two),
        "how do their cameras stand to each other": (
            *("register", ct, folder / "first.npy", folder / "second.npy", *start),
        ),
        "--calibration: expected one for each of 1 X-rays, got 2": (
            *("register", ct, folder / "first.npy", *two),
        ),
        "got a run of 3": ("register", ct, film, *start),
    }.items():
        suffix = "json" if arguments[0] == "register" else "csv"
        done = run(*arguments, "-o", tmp_path / f"out.{suffix}")
        assert done.exit_code == 2 and words in " ".join(done.stderr.split()), done.stderr
    assert not list(tmp_path.glob("out.*"))
