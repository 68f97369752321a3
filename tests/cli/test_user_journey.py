"""From a DICOM series and a DICOM X-ray to a pose, a page and a transform, in three commands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import drrkit
from drrkit import conversions
from tests.support.commands import run, succeed
from tests.support.xray_files import carm_tags, write_carm_xray, write_dicom

pytestmark = pytest.mark.io

SIZE = (96, 112)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From the hospital: a CT series and an image of a C-arm that is not quite where it says."""
    folder = tmp_path_factory.mktemp("hospital")
    ct = drrkit.phantoms.torso(spacing=5.0)
    drrkit.write_volume(ct, folder / "ct")
    off = [0.06, -0.05, 0.08, 9.0, -7.0, 12.0]
    truth = write_carm_xray(folder / "xray.dcm", ct, SIZE, 3.6, off)
    torch.save(truth, folder / "truth.pt")
    return folder


@pytest.fixture(scope="module")
def answers(hospital: Path) -> Path:
    succeed(
        "register", hospital / "ct", hospital / "xray.dcm", "-o", hospital / "result.json", "-q"
    )
    succeed("report", hospital / "result.json", "-o", hospital / "report.html")
    succeed("convert", hospital / "result.json", "--to", "slicer", "-o", hospital / "pose.tfm")
    return hospital


def test_the_pose_is_found(answers: Path) -> None:
    found = torch.tensor(json.loads((answers / "result.json").read_text())["world_to_camera"])
    truth = torch.load(answers / "truth.pt", weights_only=True)
    ct = drrkit.read_volume(answers / "ct")
    points = drrkit.volume_center(ct) + 80.0 * torch.randn(50, 3, dtype=torch.float64)
    error = drrkit.metrics.mtre(found.double()[None], truth, points)
    assert float(error) < 1.0


def test_a_raw_detector_image_is_preprocessed(hospital: Path, tmp_path: Path) -> None:
    import SimpleITK as sitk

    pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(hospital / "xray.dcm")))[0]
    raw = pixels.astype(np.float32)
    raw[:, :7] = raw[:, -7:] = 3.0  # behind a collimator
    tags = carm_tags(
        DistanceSourceToPatient="780",
        ImagerPixelSpacing=["3.6", "3.6"],
        PositionerPrimaryAngle="20",
        PositionerSecondaryAngle="5",
    )
    write_dicom(tmp_path / "raw.dcm", raw.astype(np.uint16), **tags)
    command = ["register", hospital / "ct", tmp_path / "raw.dcm", "-o", tmp_path / "r.json", "-q"]
    succeed(*command, "--preprocess", "--xray-kind", "intensity")
    found = torch.tensor(json.loads((tmp_path / "r.json").read_text())["world_to_camera"])
    truth = torch.load(hospital / "truth.pt", weights_only=True)
    points = (
        drrkit.volume_center(drrkit.read_volume(hospital / "ct")) + 60.0 * torch.eye(3).double()
    )
    assert float(drrkit.metrics.mtre(found.double()[None], truth, points)) < 1.5
    succeed("report", tmp_path / "r.json", "-o", tmp_path / "r.html")


def test_a_distance_that_the_file_does_not_tell_can_be_given(answers: Path, tmp_path: Path) -> None:
    import pydicom

    data = pydicom.dcmread(answers / "xray.dcm")
    del data.DistanceSourceToPatient
    data.save_as(tmp_path / "bare.dcm")
    command = ["register", answers / "ct", tmp_path / "bare.dcm", "-o", tmp_path / "r.json", "-q"]
    refused = run(*command)
    assert refused.exit_code == 2 and "--sod is needed" in refused.output
    succeed(*command, "--sod", 780)
    poses = [
        json.loads(path.read_text())["world_to_camera"]
        for path in (answers / "result.json", tmp_path / "r.json")
    ]
    assert poses[0] == poses[1]


def test_the_page_stands_alone(answers: Path) -> None:
    page = (answers / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") >= 7
    assert "accepted" in page
    assert "source is" in page
    assert page.count('class="curve"') == 4  # the way, and the stages of auto
    addresses = set(re.findall(r"https?://[^\"'\s<>]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not re.search(r"<(link|script[^>]+src|iframe)", page)


def test_the_transform_is_the_pose(answers: Path) -> None:
    found = torch.tensor(
        json.loads((answers / "result.json").read_text())["world_to_camera"], dtype=torch.float64
    )
    read = conversions.read_itk_transform(answers / "pose.tfm")
    torch.testing.assert_close(read, found, rtol=0, atol=1e-9)


def test_the_report_says_when_an_input_is_gone(answers: Path, tmp_path: Path) -> None:
    content = json.loads((answers / "result.json").read_text())
    content["run"]["options"]["ct"] = "moved_away.nii.gz"
    (tmp_path / "result.json").write_text(json.dumps(content))
    result = run("report", tmp_path / "result.json", "-o", tmp_path / "r.html")
    assert result.exit_code == 2
    assert "--ct says where it is now" in result.output
    assert not (tmp_path / "r.html").exists()
    succeed("report", tmp_path / "result.json", "-o", tmp_path / "r.html", "--ct", answers / "ct")


def test_a_bare_pose_file_has_no_report(tmp_path: Path) -> None:
    (tmp_path / "pose.json").write_text(json.dumps(torch.eye(4).tolist()))
    result = run("report", tmp_path / "pose.json", "-o", tmp_path / "r.html")
    assert result.exit_code == 2
    assert "expected a result of drrkit register" in result.output
