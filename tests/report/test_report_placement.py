"""What a geometry looks like: numbers and the sentence of drrkit info."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import drrkit
from drrkit.report.facts import placement
from tests.support.commands import run, succeed
from tests.support.xray_files import carm_tags, write_dicom

CT = drrkit.phantoms.torso(spacing=20.0)
CAMERA = drrkit.CArm(1020.0, (140, 140), 2.0)


def carm(primary: float, secondary: float, base: str = "AP") -> torch.Tensor:
    angles = math.radians(primary), math.radians(secondary)
    return drrkit.view_carm(CT, 800.0, *angles, base=base)


def test_a_frontal_view_is_told_as_a_surgeon_would() -> None:
    told = placement(CT, CAMERA, carm(0.0, 3.0)).sentence()
    assert told.startswith(
        "The source is 1020 mm from the detector and 800 mm from the CT's centre, looking from "
        "front to back (AP), 3 degrees cranial: magnification 1.27. The detector covers 280 x 280 "
        "mm (width x height); the CT fills 100 % of its width"
    )
    assert "Right in the image is the patient's left, down is inferior" in told
    assert told.endswith("the CT's centre lies 0.0 degrees off the central ray.")


@pytest.mark.parametrize(
    ("pose", "view", "turned", "towards", "cranial"),
    [
        (carm(0, 0), "AP", 0, None, 0),
        (carm(0, 0, "PA"), "PA", 0, None, 0),
        # The PA view's detector is anterior: LAO turns it to the left. That of AP is posterior.
        (carm(20, 0, "PA"), "PA", 20, "left", 0),
        (carm(-20, 0, "PA"), "PA", 20, "right", 0),
        (carm(20, 0), "AP", 20, "right", 0),
        (carm(0, 12, "PA"), "PA", 0, None, 12),
        (carm(0, -12, "PA"), "PA", 0, None, -12),
        (carm(30, 10, "PA"), "PA", 30, "left", 10),
        (drrkit.view_left_lateral(CT, 800.0), "left lateral", 0, None, 0),
        (drrkit.view_right_lateral(CT, 800.0), "right lateral", 0, None, 0),
        (carm(80, 0, "PA"), "left lateral", 10, "anterior", 0),
        (carm(0, 80, "PA"), "axial", 0, None, 0),
    ],
)
def test_views_and_angles(
    pose: torch.Tensor, view: str, turned: float, towards: str | None, cranial: float
) -> None:
    found = placement(CT, CAMERA, pose)
    assert found.view == view
    assert found.turned == pytest.approx(turned, abs=1e-6)
    assert found.cranial == pytest.approx(cranial, abs=1e-6)
    assert towards is None or found.turned_towards == towards


def test_cranial_is_where_the_detector_is_nearer_to_the_head() -> None:
    # The detector's centre in world coordinates, straight from the pose.
    pose = carm(0.0, 15.0)[0]
    detector = pose[:3, :3].mT @ (torch.tensor((0, 0, 1020.0)).double() - pose[:3, 3])
    assert float(detector[2]) > float(drrkit.volume_center(CT)[2])
    assert placement(CT, CAMERA, pose).cranial == pytest.approx(15.0)


def test_the_share_of_the_detector_is_that_of_the_projected_box() -> None:
    ct = drrkit.Volume(torch.ones(100, 20, 60), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))  # z, y, x
    camera = drrkit.CArm(1000.0, (300, 200), (2.0, 1.0))  # 600 mm high, 200 mm wide
    found = placement(ct, camera, drrkit.view_ap(ct, 510.0))
    # The face next to the source is 500 mm away: magnification 2.
    assert found.filled == pytest.approx((200.0 / 600.0, 120.0 / 200.0))
    assert not found.cut_off and found.magnification == pytest.approx(1000.0 / 510.0)
    nearer = placement(ct, camera, drrkit.view_ap(ct, 110.0))
    assert nearer.filled == (1.0, 1.0) and nearer.cut_off and "beyond it" in nearer.sentence()
    inside = placement(ct, camera, drrkit.view_ap(ct, 5.0))
    assert inside.filled is None and "not in front of the source" in inside.sentence()
    aside = drrkit.view_ap(ct, 510.0).clone()
    aside[:, 0, 3] += 400.0
    assert "not in the picture" in placement(ct, camera, aside).sentence()
    flat = drrkit.CArm(1000.0, (300, 200), (2.0, 1.0), beam="parallel")
    parallel = placement(ct, flat, drrkit.view_ap(ct, 510.0))
    assert parallel.filled == pytest.approx((100.0 / 600.0, 60.0 / 200.0))
    assert parallel.sentence().startswith("The rays are parallel") and parallel.magnification == 1


@pytest.mark.io
def test_info_tells_where_the_c_arm_of_a_dicom_image_stood(tmp_path: Path) -> None:
    drrkit.write_volume(CT, tmp_path / "ct.nii.gz")
    tags = carm_tags(
        DistanceSourceToPatient="780",
        ImagerPixelSpacing=["2", "2"],
        PositionerPrimaryAngle="20",
        PositionerSecondaryAngle="5",
    )
    write_dicom(tmp_path / "xray.dcm", np.full((50, 60), 1000, dtype=np.uint16), **tags)
    words = ["info", tmp_path / "xray.dcm", "--ct", tmp_path / "ct.nii.gz"]
    told = succeed(*words, "--scene", tmp_path / "scene.svg", "--json")
    content = json.loads(told.stdout)
    assert "780 mm from the CT's centre, looking from back to front (PA)" in content["sentence"]
    assert "turned 20 degrees towards the patient's left, 5 degrees cranial" in content["sentence"]
    assert "covers 120 x 100 mm" in content["sentence"]
    assert content["geometry"]["turned"] == pytest.approx(20.0)
    assert (tmp_path / "scene.svg").read_text().startswith("<svg")


@pytest.mark.io
def test_info_says_what_a_file_does_not_know(tmp_path: Path) -> None:
    drrkit.write_volume(CT, tmp_path / "ct.nii.gz")
    np.save(tmp_path / "xray.npy", np.eye(8))
    refused = run("info", tmp_path / "xray.npy", "--ct", tmp_path / "ct.nii.gz")
    assert refused.exit_code == 2 and "expected a pose file (.json) or an X-ray" in refused.output
    (tmp_path / "bare.json").write_text(json.dumps(torch.eye(4).tolist()))
    refused = run("info", tmp_path / "bare.json", "--ct", tmp_path / "ct.nii.gz")
    assert refused.exit_code == 2 and "with its camera" in refused.output
    assert "go with a VIEW" in run("info", "--ct", tmp_path / "ct.nii.gz").output
