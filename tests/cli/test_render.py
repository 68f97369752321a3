"""The command line: what drrkit render writes."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import drrkit
from drrkit.cli.io import read_pose, write_pose
from drrkit.cli.render import orientation
from drrkit.report import line_to_absorption, line_to_transmission, to_display
from drrkit.xray import read_xray
from tests.support.commands import CAMERA, succeed


@pytest.mark.io
@pytest.mark.parametrize("suffix", ["npy", "tif", "nii.gz", "nii", "nrrd", "mha"])
def test_float_formats_hold_the_line_integrals_that_render_returns(
    data: Path, tmp_path: Path, ct: drrkit.Volume, camera: drrkit.Camera, suffix: str
) -> None:
    succeed("render", data / "ct.nii.gz", *CAMERA, "--energy", 60, "-o", tmp_path / f"a.{suffix}")
    expected = drrkit.render(ct.to_mu(60.0), camera, drrkit.view_ap(ct, 800.0))
    image = read_xray(tmp_path / f"a.{suffix}")
    torch.testing.assert_close(image.image, expected, rtol=1e-5, atol=1e-5)
    if suffix in ("nii.gz", "nii", "nrrd", "mha"):
        assert image.pixel_spacing == pytest.approx((6.0, 5.5))
    assert os.listdir(tmp_path) == [f"a.{suffix}"]


@pytest.mark.io
@pytest.mark.parametrize("name", ["AP", "PA", "LEFT-LATERAL", "right-lateral"])
def test_named_views_are_the_library_s(
    data: Path, tmp_path: Path, ct: drrkit.Volume, camera: drrkit.Camera, name: str
) -> None:
    output = tmp_path / "a.npy"
    succeed("render", data / "ct.nii.gz", *CAMERA, "--view", name, "--sod", 700, "-o", output)
    view = getattr(drrkit, "view_" + name.lower().replace("-", "_"))
    expected = drrkit.render(ct.to_mu(), camera, view(ct, 700.0))
    torch.testing.assert_close(read_xray(output).image, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.io
def test_angles_are_degrees_and_xi_moves_the_patient_on_top(
    data: Path, tmp_path: Path, ct: drrkit.Volume, camera: drrkit.Camera
) -> None:
    angles = ["--view", "PA", "--primary", 30, "--secondary", -15]
    output = tmp_path / "a.npy"
    options = [*CAMERA, *angles, "--xi", "-5,10,2,3,-4,20", "--supersample", 2]
    succeed("render", data / "ct.nii.gz", *options, "-o", output)
    pose = drrkit.view_carm(ct, 800.0, math.radians(30), math.radians(-15), base="PA")
    xi = [math.radians(-5), math.radians(10), math.radians(2), 3.0, -4.0, 20.0]
    pose = drrkit.perturb(pose, torch.tensor(xi, dtype=torch.float64), drrkit.volume_center(ct))
    expected = drrkit.render(ct.to_mu(), camera, pose, supersample=2)
    torch.testing.assert_close(read_xray(output).image, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.io
@pytest.mark.parametrize("beam", [[], ["--parallel"]])
def test_a_saved_pose_renders_the_same_image_again(
    data: Path, tmp_path: Path, beam: list[str]
) -> None:
    first, second, pose = tmp_path / "1.npy", tmp_path / "2.npy", tmp_path / "pose.json"
    options = [*CAMERA, *beam, "--sdd", 990, "--principal-point", "30,20", "--primary", 12]
    succeed("render", data / "ct.nii.gz", *options, "-o", first, "--save-pose", pose)
    succeed("render", data / "ct.nii.gz", "--pose", pose, "-o", second)
    assert first.read_bytes() == second.read_bytes()
    assert np.load(first).max() > 1


@pytest.mark.io
def test_geometry_options_override_a_pose_file_and_keep_its_principal_point(
    data: Path, tmp_path: Path, ct: drrkit.Volume
) -> None:
    pose, output, again = tmp_path / "p.json", tmp_path / "a.npy", tmp_path / "again.json"
    stored = drrkit.CArm(1020.0, (40, 50), 6.0, (30.0, 15.0))
    write_pose(pose, drrkit.view_ap(ct, 800.0), stored)
    options = ["--pose", pose, "--size", "60x70", "--sdd", 900, "--save-pose", again]
    succeed("render", data / "ct.nii.gz", *options, "-o", output)
    camera = read_pose(again).camera
    assert camera is not None and camera.size == (60, 70) and camera.sdd == 900.0
    assert camera.pixel_spacing == pytest.approx((6.0, 6.0))
    # The foot was 5.5 columns right of the centre and 4.5 rows above it.
    assert camera.K[:2, 2].tolist() == pytest.approx([34.5 + 5.5, 29.5 - 4.5])


@pytest.mark.io
def test_a_bare_matrix_is_a_pose(data: Path, tmp_path: Path, ct: drrkit.Volume) -> None:
    pose, output, named = tmp_path / "m.json", tmp_path / "a.npy", tmp_path / "b.npy"
    pose.write_text(json.dumps(drrkit.view_pa(ct, 750.0)[0].tolist()))
    succeed("render", data / "ct.nii.gz", *CAMERA, "--pose", pose, "-o", output)
    succeed("render", data / "ct.nii.gz", *CAMERA, "--view", "PA", "--sod", 750, "-o", named)
    np.testing.assert_allclose(np.load(output), np.load(named), rtol=1e-5, atol=1e-5)


@pytest.mark.io
def test_selected_labels_alone_are_rendered(
    data: Path, tmp_path: Path, ct: drrkit.Volume, camera: drrkit.Camera
) -> None:
    output = tmp_path / "a.npy"
    labels = ["--labels", data / "labels.nii.gz", "--select", "15,16"]
    succeed("render", data / "ct.nii.gz", *CAMERA, *labels, "-o", output)
    expected = drrkit.render(ct.select([15, 16]).to_mu(), camera, drrkit.view_ap(ct, 800.0))
    torch.testing.assert_close(read_xray(output).image, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.io
def test_a_ct_in_mu_renders_as_its_hu_do(data: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "hu.npy", tmp_path / "mu.npy"
    succeed("render", data / "ct.nii.gz", *CAMERA, "--energy", 60, "-o", first)
    succeed("render", data / "mu.nii.gz", *CAMERA, "--unit", "mu", "-o", second)
    np.testing.assert_allclose(np.load(first), np.load(second), rtol=1e-5, atol=1e-6)


@pytest.mark.io
@pytest.mark.parametrize(
    ("options", "conversion", "window", "invert"),
    [
        ([], lambda line: line, (0.5, 99.5), False),
        (["--display", "absorption", "--window", "0,100"], line_to_absorption, (0, 100), False),
        (["--display", "transmission"], line_to_transmission, (0.5, 99.5), False),
        (["--invert"], lambda line: line, (0.5, 99.5), True),
    ],
)
def test_a_png_is_a_named_conversion_of_the_line_integrals(
    data: Path, tmp_path: Path, ct: drrkit.Volume, camera: drrkit.Camera, options, conversion,
    window, invert,
) -> None:  # fmt: skip
    output = tmp_path / "a.png"
    succeed("render", data / "ct.nii.gz", *CAMERA, *options, "-o", output)
    line = drrkit.render(ct.to_mu(), camera, drrkit.view_ap(ct, 800.0))
    expected = to_display(conversion(line), window=window, invert=invert)
    difference = read_xray(output).image[0, 0] - expected
    assert float(difference.abs().max()) <= 1  # the file's CT is int16-rounded


@pytest.mark.io
def test_a_view_that_misses_the_ct_is_warned_about(data: Path, tmp_path: Path) -> None:
    result = succeed(
        "render", data / "ct.nii.gz", "--xi", "0,0,0,5000,0,0", "-o", tmp_path / "a.npy"
    )
    assert "no ray meets the CT" in result.output


def test_an_image_s_orientation_is_told_in_words(ct: drrkit.Volume) -> None:
    assert orientation(drrkit.view_ap(ct, 800.0)) == (
        "image right = patient's left, down = inferior, source anterior"
    )
    assert orientation(drrkit.view_left_lateral(ct, 800.0)) == (
        "image right = patient's anterior, down = inferior, source right"
    )
