"""JointTrack's files: conventions by formula, both ways, and an expert's poses on real X-rays."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import drrkit
from drrkit.conversions import (
    read_jointtrack,
    read_jointtrack_calibration,
    write_jointtrack,
    write_jointtrack_calibration,
)


def test_a_point_falls_where_jointtrack_s_formula_says(tmp_path: Path) -> None:
    """x, y from the principal point, y up: distance * X / -Z, in mm on the detector."""
    calibration, track = tmp_path / "calibration.txt", tmp_path / "one.jts"
    calibration.write_text("JT_INTCALIB\n1000\n5.0\n-2.0\n0.5\n")
    track.write_text("JT_EULER_312\nx,y,z,z_rot,x_rot,y_rot\n10, 20, -800, 30, 40, 50\n")
    camera = read_jointtrack_calibration(calibration, (301, 401))
    pose = read_jointtrack(track)
    a, b, c = (math.radians(angle) for angle in (30, 40, 50))
    rz = torch.tensor([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]])
    rx = torch.tensor([[1, 0, 0], [0, math.cos(b), -math.sin(b)], [0, math.sin(b), math.cos(b)]])
    ry = torch.tensor([[math.cos(c), 0, math.sin(c)], [0, 1, 0], [-math.sin(c), 0, math.cos(c)]])
    point = torch.tensor([3.0, -7.0, 11.0])
    x, y, z = (rz @ rx @ ry @ point + torch.tensor([10.0, 20.0, -800.0])).tolist()
    col = 200 + (5.0 + 1000 * x / -z) / 0.5
    row = 150 - (-2.0 + 1000 * y / -z) / 0.5
    found = drrkit.project_points(camera, pose, point[None].double())[0, 0]
    assert found.tolist() == pytest.approx([row, col], abs=1e-3)


@pytest.mark.parametrize("suffix", [".jts", ".jtak"])
def test_tracks_come_back_with_their_gaps(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(1)
    xi = torch.randn(5, 6, dtype=torch.float64) * torch.tensor([0.4] * 3 + [30.0] * 3)
    poses = drrkit.se3_exp(xi)
    poses[2] = math.nan
    path = tmp_path / f"track{suffix}"
    write_jointtrack(path, poses)
    assert torch.allclose(read_jointtrack(path), poses, atol=1e-12, equal_nan=True)


def test_calibrations_come_back(tmp_path: Path) -> None:
    camera = drrkit.CArm(1198.0, (1024, 768), 0.373, principal_point=(380.0, 520.0))
    write_jointtrack_calibration(tmp_path / "c.txt", camera)
    back = read_jointtrack_calibration(tmp_path / "c.txt", (1024, 768))
    assert back.sdd == camera.sdd
    assert torch.allclose(back.K.double(), camera.K.double(), rtol=1e-6)


@pytest.mark.parametrize(
    "text, message",
    [
        ("JT_BIPLANE\n1 2 3 4", "begins with JT_INTCALIB"),
        ("JT_INTCALIB\n1198\n0\n0", "principal distance"),
        ("JT_INTCALIB\n1198\n0\nzero\n0.3", "principal distance"),
        ("JT_INTCALIB\n1198\n0\n0\n0", "positive"),
        ("JT_INTCALIB\nnan\n0\n0\n0.3", "positive"),
    ],
)
def test_bad_calibrations_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "calibration.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_jointtrack_calibration(path, (8, 8))


def test_bad_tracks_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jts"
    for text, message in (
        ("1,2,3,4,5,6", "begins with"),
        ("JT_EULER_312\nx_tran\n", "at least one pose"),
        ("JT_EULER_312\nx_tran\n1,2,3,4,5", "line 3: expected six numbers"),
        ("JT_EULER_312\nx_tran\n1,2,3,4,5,six", "line 3"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_jointtrack(path)
    pose = torch.eye(4, dtype=torch.float64).expand(2, 4, 4)
    with pytest.raises(ValueError, match=r"\.jts, \.jtak, \.jtp"):
        write_jointtrack(tmp_path / "a.csv", pose)
    with pytest.raises(ValueError, match="holds one pose"):
        write_jointtrack(tmp_path / "a.jtp", pose)
    camera = drrkit.Camera(torch.tensor([[900.0, 0, 4], [0, 800.0, 4], [0, 0, 1]]), (8, 8), 1000.0)
    with pytest.raises(ValueError, match="square pixels"):
        write_jointtrack_calibration(tmp_path / "c.txt", camera)


@pytest.mark.data
@pytest.mark.io
@pytest.mark.parametrize("side, femur", [("left", "KR_left_8_fem"), ("right", "KR_right_7_fem")])
def test_an_expert_s_poses_lie_on_the_silhouettes(data_folder: Path, side: str, femur: str) -> None:
    """Intersection over union of the rendered implant and a silhouette drawn by hand."""
    pytest.importorskip("trimesh", reason="trimesh is not installed")
    from drrkit.volume import read_mesh

    folder = data_folder / "real" / "knee" / side
    implant = read_mesh(folder / f"{femur}.stl", 1.0)
    camera = read_jointtrack_calibration(folder / "calibration.txt", (1024, 1024))
    import SimpleITK as sitk

    labels = sorted(folder.glob("*_label_fem.tif"))
    poses = read_jointtrack(folder / "fem.jts")[: len(labels)]
    assert len(labels) == len(poses) >= 3
    for path, pose in zip(labels, poses, strict=True):
        drawn = torch.from_numpy(sitk.GetArrayFromImage(sitk.ReadImage(str(path)))) > 0
        seen = drrkit.render(implant, camera, pose)[0, 0] > 0.5
        assert float((seen & drawn).sum() / (seen | drawn).sum()) > 0.92
