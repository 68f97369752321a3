"""Starts from landmarks: wrong ones are left out, files are read, registrations begin there."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

import drrkit
from drrkit import CArm, perturb, project_points, register, simulate_xray
from drrkit.files import FileWarning
from drrkit.geometry import volume_center
from drrkit.registration import Landmarks
from tests.support.commands import run, small_camera, small_ct, succeed, write_data
from tests.support.registered_torso import box_mtre

CAMERA = CArm(1020.0, (128, 128), 2.176)


def pose(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([0.3, 0.3, 0.3, 25.0, 25.0, 40.0], dtype=torch.float64)
    xi = torch.randn(6, generator=generator, dtype=torch.float64) * size
    return perturb(drrkit.view_ap(small_ct(), 800.0), xi, volume_center(small_ct()))[0]


def beads(count: int, seed: int = 0) -> Tensor:
    """World points [count, 3] within 8 cm of the volume's centre."""
    generator = torch.Generator().manual_seed(100 + seed)
    points = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    return (points - 0.5) * 160.0 + volume_center(small_ct())


def seen(truth: Tensor, points: Tensor, noise_px: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(200 + seed)
    pixels = project_points(CAMERA, truth, points)[0]
    return pixels + noise_px * torch.randn(pixels.shape, generator=generator, dtype=torch.float64)


def error(found: Tensor, truth: Tensor) -> float:
    return float(box_mtre(found[None], truth[None], volume_center(small_ct())))


@pytest.mark.parametrize("count, wrong, seed", [(8, 2, 0), (12, 3, 1), (20, 4, 2)])
def test_wrong_landmarks_are_found_and_left_out(count, wrong, seed):
    truth, points = pose(seed), beads(count, seed)
    pixels = seen(truth, points, 0.3, seed)
    generator = torch.Generator().manual_seed(seed)
    mistaken = torch.randperm(count, generator=generator)[:wrong]
    shift = 15.0 + 40.0 * torch.rand(wrong, 2, generator=generator, dtype=torch.float64)
    pixels[mistaken] += shift
    found = Landmarks(points, pixels).fit(CAMERA)
    expected = torch.ones(count, dtype=torch.bool)
    expected[mistaken] = False
    assert torch.equal(found.inliers, expected)
    assert found.rms_px < 1.0
    clean = drrkit.solve_pnp(CAMERA, points[expected], pixels[expected])
    torch.testing.assert_close(found.world_to_camera, clean, rtol=0, atol=1e-6)
    assert error(drrkit.solve_pnp(CAMERA, points, pixels), truth) > error(clean, truth)


def test_without_wrong_landmarks_all_count_and_the_seed_decides_nothing():
    truth, points = pose(), beads(30)
    pixels = seen(truth, points, 0.5, 0)
    results = [Landmarks(points, pixels, seed=seed).fit(CAMERA) for seed in (0, 0, 1)]
    assert bool(results[0].inliers.all())
    assert torch.equal(results[0].world_to_camera, results[1].world_to_camera)
    torch.testing.assert_close(results[0].world_to_camera, results[2].world_to_camera)
    assert error(results[0].world_to_camera, truth) < 5.0


def test_landmarks_in_a_plane_and_six_of_them_are_used_as_they_are():
    truth, flat = pose(), beads(5)
    flat[:, 2] = flat[0, 2]
    assert error(Landmarks(flat, seen(truth, flat, 0.0, 0)).pose(CAMERA), truth) < 1e-6
    six = beads(6)
    assert error(Landmarks(six, seen(truth, six, 0.0, 0)).pose(CAMERA), truth) < 1e-6


def test_landmarks_that_do_not_agree_raise():
    generator = torch.Generator().manual_seed(3)
    pixels = 128.0 * torch.rand(9, 2, generator=generator, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"landmarks: expected 6 that agree within 2\.56 px"):
        Landmarks(beads(9), pixels).fit(CAMERA)


def test_a_registration_may_start_from_landmarks():
    truth, points = pose(5), beads(10)
    pixels = seen(truth, points, 1.0, 5)  # some mm at the patient
    pixels[3] += 40.0
    xray = simulate_xray(small_ct(), CAMERA, truth)
    result = register(small_ct().to_mu(), CAMERA, xray, Landmarks(points, pixels))
    assert error(Landmarks(points, pixels).pose(CAMERA), truth) > 1.0
    assert error(result.world_to_camera, truth) < 1.5


# ---- files


def test_csv_and_json_files_say_the_same(tmp_path: Path):
    (tmp_path / "beads.csv").write_text(
        "name, X, y, z, row, col\na,1,2,3,4.5,5\nhidden,7,7,7,,\nb,-1,-2,-3,6,7e1\n"
    )
    content = [
        {"x": 1, "y": 2, "z": 3, "row": 4.5, "col": 5, "name": "a"},
        {"x": 7, "y": 7, "z": 7, "row": None, "col": None},
        {"x": -1, "y": -2, "z": -3, "row": 6, "col": 70},
    ]
    (tmp_path / "beads.json").write_text(json.dumps(content))
    for name in ("beads.csv", "beads.json"):
        found = Landmarks.read(tmp_path / name, tolerance_px=3.0)
        assert found.points.tolist() == [[1, 2, 3], [-1, -2, -3]]
        assert found.pixels.tolist() == [[4.5, 5], [6, 70]]
        assert found.tolerance_px == 3.0


def test_names_and_landmarks_that_are_there_twice_are_said(tmp_path: Path):
    file, table = tmp_path / "a.csv", "name,x,y,z,row,col\na,1,2,3,4,5\nb,1,2,4,5,6\n"
    file.write_text(f"{table},7,7,7,8,9\n,8,8,8,9,9\na,9,9,9,,\n")  # no names; one that is not seen
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(Landmarks.read(file).points) == 4
    file.write_text(f"{table}c,1,2,3,4,5\n")
    with pytest.warns(FileWarning, match=r"a\.csv: landmark 3 is there twice: one is used"):
        assert Landmarks.read(file).points.tolist() == [[1, 2, 3], [1, 2, 4]]
    file.write_text(f"{table}a,7,7,7,8,9\na,1,1,1,2,2\n")
    with pytest.warns(FileWarning, match="the name 'a' stands for several landmarks") as told:
        assert len(Landmarks.read(file).points) == 4
    assert len(told) == 1


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", "x,y,z,row\n1,2,3,4\n", "expected x, y, z, row, col .*got no col in number 1"),
        ("a.csv", "x,y,z,row,col\n1,2,3,4,five\n", r"expected numbers in landmark 1, got .*five"),
        ("a.csv", "x,y,z,row,col\n1,2,nan,4,5\n", r"a\.csv: expected numbers in landmark 1"),
        ("a.csv", "x,y,z,row,col\n1,2,3,,\n", r"a\.csv: expected landmarks with their pixels"),
        ("a.csv", "x,y,z,row,col\n1,2," + "3" * 200_000, r"a\.csv: expected a table, but"),
        ("a.fcsv", "x" * 200_000, r"a\.fcsv: expected a table, but it does not parse"),
        ("a.json", "{", "expected JSON, but it does not parse"),
        ("a.json", "[1, 2]", "expected a list of objects with x, y, z, row, col"),
    ],
)
def test_files_that_mean_nothing_are_refused(tmp_path: Path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        Landmarks.read(tmp_path / name)


@pytest.mark.parametrize(
    "points, pixels, options, kind, message",
    [
        (torch.zeros(3), torch.zeros(1, 2), {}, ValueError, r"points: expected shape \[P, 3\]"),
        (torch.zeros(4, 3), torch.zeros(3, 2), {}, ValueError, "pixels: expected 4, one a point"),
        (torch.zeros(4, 3).int(), torch.zeros(4, 2), {}, TypeError, "points: expected"),
        (torch.zeros(4, 3), torch.zeros(4, 2), {"tolerance_px": 0.0}, ValueError, "tolerance_px"),
    ],
)
def test_landmarks_refuse_what_does_not_fit(points, pixels, options, kind, message):
    with pytest.raises(kind, match=message):
        Landmarks(points, pixels, **options)


# ---- the command line


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As of write_data, and landmarks of its X-ray, one of them wrong."""
    folder = write_data(tmp_path_factory.mktemp("landmarks"))
    points, camera = beads(9), small_camera()
    pixels = project_points(camera, drrkit.view_ap(small_ct(), 800.0), points)[0]
    pixels[4] += 20.0
    rows = torch.cat([points, pixels], 1).tolist()
    lines = ["x,y,z,row,col", *(",".join(f"{n:.3f}" for n in row) for row in rows)]
    (folder / "beads.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.io
def test_the_command_starts_from_landmarks_and_names_the_wrong_ones(data: Path, tmp_path: Path):
    output = tmp_path / "found.json"
    shown = succeed(
        "register",
        data / "ct.nii.gz",
        data / "xray.npy",
        *("--landmarks", data / "beads.csv", "--pixel-spacing", "6,5.5", "-q", "-o", output),
    ).output
    assert "landmarks: 8 of 9 agree" in shown and "without number 5" in shown
    stored = json.loads(output.read_text())
    options = stored["run"]["options"]
    assert options["landmarks"].endswith("beads.csv") and options["init"] is None
    found = torch.tensor(stored["world_to_camera"], dtype=torch.float64)
    assert error(found, drrkit.view_ap(small_ct(), 800.0)[0]) < 2.0


@pytest.mark.io
@pytest.mark.parametrize(
    "options, message",
    [
        ([], "--landmarks is another way"),
        (["--init", "ap", "--landmarks", "beads.csv"], "either --init or --landmarks"),
        (["--landmarks", "beads.csv", "--sod", "700"], "no option of the C-arm"),
    ],
)
def test_the_command_wants_one_start(data: Path, tmp_path: Path, options, message):
    options = [data / word if str(word).endswith(".csv") else word for word in options]
    files = ["register", data / "ct.nii.gz", data / "xray.npy", "--pixel-spacing", "6,5.5"]
    result = run(*files, *options, "-q", "-o", tmp_path / "r.json")
    assert result.exit_code == 2 and message in result.output
    assert not (tmp_path / "r.json").exists()
