"""`drrkit info FILE`: what was understood of any file, in words, JSON and a picture."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import drrkit
from drrkit import conversions
from drrkit.xray import read_xray
from tests.support.commands import run
from tests.support.ct_files import write_series
from tests.support.xray_files import carm_tags, write_dicom

pytestmark = pytest.mark.io

PIXELS = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32)


def told(*words: object) -> dict:
    result = run("info", *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_ct_folder_says_what_it_is_and_what_was_left_out(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct", PixelPaddingValue=0)
    localizer = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write_series(folder, pixels=PIXELS[None], ImageType=localizer, prefix="scout")
    found = told(folder, "--picture", tmp_path / "ct.png")
    facts = found["facts"]
    assert (facts["kind"], facts["modality"], facts["slices"]) == ("volume", "CT", "5")
    assert facts["voxel size"] == "0.7 x 0.8 x 2.5 mm" and facts["orientation"] == "L P S"
    assert facts["first voxel (LPS)"] == "-20, 30, -100 mm"
    assert "localizer images of the series are left out" in found["remarks"][0]
    assert read_xray(tmp_path / "ct.png").image.shape[-2:] == (36, 40 + 40 + 36 + 3 * 4)
    text = run("info", folder).output
    assert "rescale" in text and "remark" in text


def test_a_single_slice_is_shown_and_said_to_be_one(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct", SliceThickness="2.5")
    found = told(folder / "002.dcm", "--picture", tmp_path / "slice.png")
    assert found["facts"]["voxels x, y, z"] == "40 x 36 x 1"
    assert found["facts"]["first voxel (LPS)"] == "-20, 30, -95 mm"
    assert found["remarks"] == ["one slice of a series: give the folder that holds them all"]


def test_an_xray_says_its_geometry_and_what_was_ignored(tmp_path: Path) -> None:
    tags = carm_tags(PositionerPrimaryAngle=b"LAO 10", ShutterShape="RECTANGULAR")
    file = write_dicom(tmp_path / "x.dcm", PIXELS, **tags, ShutterLeftVerticalEdge=8)
    found = told(file, "--picture", tmp_path / "x.png")
    facts = found["facts"]
    assert (facts["kind"], facts["modality"], facts["format"]) == ("X-ray", "XA", "DICOM")
    assert facts["pixel spacing"] == "2.5 x 2.25 mm" and facts["angles"] == "not known"
    assert facts["source to detector"] == "1020 mm" and facts["masked"] == "25.0%"
    assert "(0018,1510): expected a number, got 'LAO 10'" in found["remarks"][0]
    assert read_xray(tmp_path / "x.png").image.shape[-2:] == (24, 32)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_images_of_two_dimensions_are_x_rays_and_of_three_volumes(
    tmp_path: Path, suffix: str
) -> None:
    import SimpleITK as sitk

    sitk.WriteImage(sitk.GetImageFromArray(PIXELS), str(tmp_path / f"x{suffix}"))
    assert told(tmp_path / f"x{suffix}")["facts"]["kind"] == "X-ray"
    drrkit.write_volume(drrkit.phantoms.torso(spacing=20.0), tmp_path / f"ct{suffix}")
    assert told(tmp_path / f"ct{suffix}")["facts"]["kind"] == "volume"


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "mr", Modality="MR")
    result = run("info", folder)
    assert (
        result.exit_code != 0 and "expected a CT (Modality (0008,0060) CT), got MR" in result.output
    )


OTHERS = {
    "beads.fcsv": {
        "kind": "landmarks",
        "points": "3, 2 of them with pixels",
        "from (LPS)": "-7, -8, 3 mm",
        "to (LPS)": "-1, -2, 9 mm",
    },
    "beads.csv": {"kind": "landmarks", "points": "2, 2 of them with pixels"},
    "track.tra": {
        "kind": "poses",
        "poses": "3, 2 of them known",
        "first and last shift": "1, 2, 800; 1, 2, 900 mm",
    },
    "track.jts": {"kind": "poses", "poses": "3, 2 of them known"},
    "pose.tfm": {"kind": "poses", "first and last shift": "1, 2, 800; 1, 2, 800 mm"},
    "rtk.xml": {
        "kind": "RTK geometry",
        "projections": "1",
        "source to isocentre": "800 mm",
        "source to detector": "1020 mm",
    },
    "mayacam.txt": {
        "kind": "calibration",
        "rows, cols": "24 x 32",
        "focal length": "408, 408 pixels",
        "foot of the source": "column 14, row 11",
        "source (LPS)": "-1, -2, -800 mm",
        "source to detector": "not in the file: --sdd says it",
    },
    "opencv.yml": {"kind": "calibration", "source to detector": "1020 mm"},
}


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of each kind: a pose at (1, 2, 800) mm along the world's axes, and what goes along."""
    folder = tmp_path_factory.mktemp("others")
    camera = drrkit.CArm(1020.0, (24, 32), 2.5, (14.0, 11.0))
    poses = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    poses[:, :3, 3] = torch.tensor([[1.0, 2, 800], [0, 0, 0], [1, 2, 900]])
    poses[1] = math.nan
    points = ['1,1,2,3,a,"4, 5"', '2,7,8,9,a,"6 7"', "3,4,4,4,b,"]
    header = ["# CoordinateSystem = RAS", "# columns = id,x,y,z,label,desc"]
    (folder / "beads.fcsv").write_text("\n".join([*header, *points]))
    (folder / "beads.csv").write_text("x;y;z;row;col\n1;2;3;4;5\n2;3;4;5;6\n")
    conversions.write_autoscoper(folder / "track.tra", poses)
    conversions.write_jointtrack(folder / "track.jts", poses)
    conversions.write_itk_transform(folder / "pose.tfm", poses[0])
    centred = drrkit.CArm(1020.0, (24, 32), 2.5)
    view = torch.eye(4, dtype=torch.float64)
    view[2, 3] = 800.0
    conversions.write_rtk_geometry(folder / "rtk.xml", conversions.to_rtk(centred, view))
    conversions.write_mayacam(folder / "mayacam.txt", camera, poses[0])
    rows = [[408, 0, 14], [0, 408, 11], [0, 0, 1]]
    text = f"K: {rows}\nR: {[[1, 0, 0], [0, 1, 0], [0, 0, 1]]}\nt: [1, 2, 800]\nsdd: 1020.\n"
    (folder / "opencv.yml").write_text(f"{text}image_width: 32\nimage_height: 24\n")
    return folder


@pytest.mark.parametrize("name", OTHERS)
def test_points_poses_and_cameras_are_described(others: Path, name: str) -> None:
    found = told(others / name)
    assert OTHERS[name].items() <= found["facts"].items()
    twice = "the name 'a' stands for several landmarks: all of them are used"
    assert found["remarks"] == ([twice] if name == "beads.fcsv" else [])
    result = run("info", others / name, "--picture", others / "never.png")
    assert result.exit_code == 2 and "holds no image" in result.output
