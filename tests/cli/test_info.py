"""`drrkit info FILE`: what was understood of a CT or an X-ray, in words, JSON and a picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import drrkit
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
