"""The command line: info, register, demo, and the README's example."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import drrkit
from drrkit.cli.demo import random_offset
from drrkit.cli.io import read_mask, read_pose, to_line
from drrkit.registration.optimisers.optimiser import PoseEngine
from tests.support.commands import CAMERA, python, run, small_ct, succeed

# ---- info


def test_info_names_versions_kernels_and_devices_through_python_m() -> None:
    process = python("-m", "drrkit", "info", "--json")
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert found["versions"]["drrkit"] == drrkit.__version__
    assert found["versions"]["torch"] == torch.__version__
    assert found["built_for"]["torch"] is not None
    assert found["devices"][0]["device"] == "cpu"
    assert len(found["devices"]) == 1 + torch.cuda.device_count()
    for word in (drrkit.__version__, torch.__version__, "kernels", "device       cpu"):
        assert word in succeed("info").output


# ---- register


@pytest.mark.io
def test_register_finds_the_pose_and_writes_a_result_that_render_takes(
    data: Path, tmp_path: Path, ct: drrkit.Volume
) -> None:
    output, overlay = tmp_path / "result.json", tmp_path / "overlay.png"
    start = data / "start.json"
    files = [data / "ct.nii.gz", data / "xray.npy", "--init", start]
    shown = succeed("register", *files, "-o", output, "--overlay", overlay).output
    assert "stage 1/" in shown  # the progress bar
    found = json.loads(output.read_text())
    truth, moved = drrkit.view_ap(ct, 800.0), torch.tensor(found["world_to_camera"]).double()
    points = drrkit.metrics.bone_points(ct, count=200)
    before = drrkit.metrics.mtre(read_pose(start).world_to_camera, truth, points)
    after = drrkit.metrics.mtre(moved, truth, points)
    assert float(before) > 10 and float(after) < 2
    assert found["schema_version"] == 1 and found["accepted"] is True
    assert found["initial_world_to_camera"] == read_pose(start).world_to_camera.tolist()
    assert found["run"]["versions"]["torch"] == torch.__version__
    assert found["stop_reason"] in ("converged", "iterations")
    assert [stage["steps"] > 0 for stage in found["stages"]] == [True] * len(found["stages"])
    assert found["seconds"] <= found["total_seconds"]
    assert found["motion"]["rotation_deg"] == pytest.approx(
        math.degrees(math.hypot(0.06, 0.05, 0.08)), abs=0.5
    )
    assert tuple(read_image_shape(overlay)) == (48 * 11, 2 * 64 * 11 + 8, 3)
    assert sorted(os.listdir(tmp_path)) == ["overlay.png", "result.json"]
    succeed("render", data / "ct.nii.gz", "--pose", output, "-o", tmp_path / "again.npy")
    assert np.load(tmp_path / "again.npy").shape == (48, 64)


def read_image_shape(path: Path) -> tuple[int, ...]:
    import SimpleITK

    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).shape


@pytest.mark.io
def test_a_named_view_with_an_offset_starts_where_the_library_would(
    data: Path, tmp_path: Path, ct: drrkit.Volume
) -> None:
    output = tmp_path / "r.json"
    options = [
        *CAMERA[2:],
        "--xi",
        "3,0,0,0,5,0",
        "--stages",
        "ncc:4:1",
        "-q",
        "--min-confidence",
        0,
    ]
    succeed(
        "register", data / "ct.nii.gz", data / "xray.npy", "--init", "ap", *options, "-o", output
    )
    xi = torch.tensor([[math.radians(3), 0, 0, 0, 5, 0]], dtype=torch.float64)
    expected = drrkit.perturb(drrkit.view_ap(ct, 800.0), xi, drrkit.volume_center(ct))[0]
    found = torch.tensor(json.loads(output.read_text())["initial_world_to_camera"]).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.io
def test_a_similarity_replaces_that_of_all_stages_and_stages_are_recorded(
    data: Path, tmp_path: Path
) -> None:
    files = ["register", data / "ct.nii.gz", data / "xray.npy", "--init", data / "start.json", "-q"]
    succeed(*files, "--stages", "mi:4:2,gradient_ncc:2:3", "-o", tmp_path / "a.json")
    stages = json.loads((tmp_path / "a.json").read_text())["stages"]
    assert [(s["similarity"], s["downsample"], s["steps"]) for s in stages] == [
        ("mi", 4, 2),
        ("gradient_ncc", 2, 3),
    ]
    succeed(*files, "--similarity", "ncc", "-o", tmp_path / "b.json")
    settings = json.loads((tmp_path / "b.json").read_text())["settings"]["stages"]
    assert {stage["similarity"] for stage in settings} == {"ncc"}
    assert [s["downsample"] for s in settings] == [s.downsample for s in drrkit.registration.AUTO]


@pytest.mark.io
def test_a_result_below_the_confidence_asked_for_is_written_but_fails(
    data: Path, tmp_path: Path
) -> None:
    files = [data / "ct.nii.gz", data / "xray.npy", "--init", data / "start.json"]
    options = ["--min-confidence", 1, "--stages", "ncc:4:1", "-q", "-o", tmp_path / "r.json"]
    result = run("register", *files, *options)
    assert result.exit_code == 1
    assert "Not accepted" in result.output
    assert json.loads((tmp_path / "r.json").read_text())["accepted"] is False


@pytest.mark.io
def test_ctrl_c_writes_the_best_pose_so_far(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, count = PoseEngine.step, [0]

    def interrupted(self: PoseEngine) -> None:
        count[0] += 1
        if count[0] == 5:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(PoseEngine, "step", interrupted)
    files = [data / "ct.nii.gz", data / "xray.npy", "--init", data / "start.json"]
    result = run("register", *files, "-q", "-o", tmp_path / "r.json")
    assert result.exit_code == 130
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["stop_reason"] == "interrupted" and found["stages"][0]["steps"] == 4
    assert found["world_to_camera"] != found["initial_world_to_camera"]


def test_kinds_of_x_rays_differ_from_line_integrals_by_gain_and_offset_only() -> None:
    line = torch.rand(1, 1, 20, 30, generator=torch.Generator().manual_seed(0)) * 5
    intensity = 3000.0 * torch.exp(-line)
    path = Path("x.npy")
    for pixels, kind, gain in (
        (line, "line", 1.0),
        (50.0 * line, "display", 50.0),
        (255 - 40.0 * line, "inverted", 40.0),
        (intensity, "intensity", 1.0),
    ):
        found = to_line(path, pixels, kind, None) / gain
        torch.testing.assert_close(found - found.min(), line - line.min(), rtol=1e-4, atol=1e-4)
    known = to_line(path, intensity, "intensity", 3000.0)
    torch.testing.assert_close(known, line, rtol=1e-4, atol=1e-4)


def test_a_pixel_without_photons_counts_as_the_darkest_with_some() -> None:
    intensity = torch.tensor([[[[1000.0, 10.0, 0.0]]]])
    line = to_line(Path("x.npy"), intensity, "intensity", None)
    assert line.flatten().tolist() == pytest.approx([0.0, math.log(100), math.log(100)], rel=1e-5)


@pytest.mark.io
def test_masked_pixels_do_not_count(data: Path, tmp_path: Path) -> None:
    xray = np.load(data / "xray.npy")
    weights = np.ones(xray.shape, dtype=np.float32) * 255
    weights[:12, :12] = 0
    np.save(tmp_path / "mask.npy", weights)
    results = []
    for number, spoilt in enumerate((xray, np.where(weights > 0, xray, 100.0))):
        path, output = tmp_path / f"{number}.npy", tmp_path / f"{number}.json"
        np.save(path, spoilt)
        files = [data / "ct.nii.gz", path, "--init", data / "start.json", "--mask", "mask.npy"]
        files[-1] = tmp_path / "mask.npy"
        succeed("register", *files, "--stages", "ncc:1:10", "-q", "-o", output)
        results.append(json.loads(output.read_text())["world_to_camera"])
    assert results[0] == results[1]
    assert float(read_mask(tmp_path / "mask.npy", torch.from_numpy(xray)[None, None]).max()) == 1.0


# ---- demo and README


def test_the_demo_starts_ten_to_fifteen_degrees_and_twenty_to_thirty_mm_away() -> None:
    offsets = torch.cat([random_offset(seed) for seed in range(200)])
    angles, distances = offsets[:, :3].norm(dim=1).rad2deg(), offsets[:, 3:].norm(dim=1)
    assert 10 <= float(angles.min()) < 10.5 and 14.5 < float(angles.max()) <= 15
    assert 20 <= float(distances.min()) < 21 and 29 < float(distances.max()) <= 30
    assert torch.equal(random_offset(3), random_offset(3))


@pytest.mark.io
def test_a_demo_that_misses_the_truth_says_so_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stay = (drrkit.Stage("ncc", downsample=8, iterations=1),)
    register = drrkit.register
    monkeypatch.setattr(
        "drrkit.cli.register.register", lambda *a, **k: register(*a, **{**k, "stages": stay})
    )
    monkeypatch.setattr("drrkit.cli.demo.torso", lambda _: small_ct())
    result = run("demo", "--out", tmp_path / "new" / "out", "-q")
    assert result.exit_code == 1 and "failed" in result.output
    names = {path.name for path in (tmp_path / "new" / "out").iterdir()}
    assert {"overlay.png", "ct.nii.gz", "xray.nii.gz", "start.json", "found.json"} <= names


@pytest.mark.io
def test_what_the_demo_writes_can_be_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("drrkit.cli.demo.torso", lambda _: small_ct())
    told = json.loads(run("demo", "-q", "--json").stdout)
    assert json.loads((tmp_path / "demo_out" / "found.json").read_text())["stages"]
    succeed(*told["report"].split()[1:])
    assert "<svg" in (tmp_path / "demo_out" / "report.html").read_text()


@pytest.mark.io
@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_demo_registers_to_under_a_millimetre(tmp_path: Path, seed: int) -> None:
    process = python("-m", "drrkit", "demo", "--out", tmp_path, "--seed", seed)
    assert process.returncode == 0, process.stderr
    rows = dict(re.findall(r"^(before|after) +([\d.]+)", process.stdout, re.MULTILINE))
    assert float(rows["before"]) > 15 and float(rows["after"]) < 1.0
    # The same by hand, from the files it left, an output away from its own.
    command = re.search(r"by hand: \S*drrkit (.*)", process.stdout)
    assert command is not None
    assert python("-m", "drrkit", *command[1].split(), "-q").returncode == 0
    truth = drrkit.view_ap(drrkit.read_volume(tmp_path / "ct.nii.gz"), 800.0)
    found = read_pose(tmp_path / "result.json").world_to_camera
    targets = drrkit.metrics.bone_points(drrkit.read_volume(tmp_path / "ct.nii.gz"))
    assert float(drrkit.metrics.mtre(found, truth, targets)) < 1.0


def test_the_python_in_the_readme_runs() -> None:
    readme = Path(__file__).resolve().parents[2] / "README.md"
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        names: dict[str, object] = {}
        exec(compile(block, str(readme), "exec"), names)
        error = drrkit.metrics.translation_error(
            names["result"].world_to_camera, names["truth"], drrkit.volume_center(names["ct"])
        )
        assert float(error) < 1.0
        assert names["pose"].grad is not None and bool(names["pose"].grad.isfinite().all())
