"""The command line: what drrkit simulate writes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import drrkit
from drrkit.cli.io import read_pose
from drrkit.xray import simulate_xray
from tests.support.commands import CAMERA, run, small_camera, small_ct, succeed


def simulated(data: Path, output: Path, *options: object) -> np.ndarray:
    succeed("simulate", data / "ct.nii.gz", *CAMERA, "-o", output, *options)
    return np.load(output)


@pytest.mark.io
def test_what_is_written_is_what_the_library_returns(data: Path, tmp_path: Path) -> None:
    options = ["--spectrum", "120kV", "--photons", 0, "--scatter", 0.2, "--blur", 0.7]
    found = simulated(data, tmp_path / "a.npy", *options)
    settings = {"spectrum": "120kV", "photons": None, "scatter": 0.2, "blur_sigma_px": 0.7}
    ct = small_ct()
    expected = simulate_xray(
        ct, small_camera(), drrkit.view_ap(ct, 800.0), supersample=1, **settings
    )
    assert found.dtype == np.float32 and found.shape == (48, 64)
    torch.testing.assert_close(torch.from_numpy(found), expected[0, 0], rtol=1e-4, atol=1e-4)
    assert os.listdir(tmp_path) == ["a.npy"]


@pytest.mark.io
def test_a_seed_repeats_everything_that_is_random(data: Path, tmp_path: Path) -> None:
    everything = ["--tool", "k-wire", "--tool", "screw", "--motion", "0.5,1"]
    everything += ["--electronic-noise", 3, "--randomise", "prost", "--seed"]
    first, again, other = (
        simulated(data, tmp_path / f"{k}.npy", *everything, seed)
        for k, seed in enumerate((3, 3, 4))
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert first.min() == 0.0 and first.max() == 1.0


@pytest.mark.io
def test_tools_noise_and_energies_change_the_image_as_they_should(
    data: Path, tmp_path: Path
) -> None:
    quiet = ["--photons", 0, "--scatter", 0, "--blur", 0]
    plain = simulated(data, tmp_path / "plain.npy", *quiet)
    tool = simulated(data, tmp_path / "tool.npy", *quiet, "--tool", "rod")
    assert (tool >= plain - 1e-5).all() and (tool > plain + 0.1).any()
    soft = simulated(data, tmp_path / "soft.npy", *quiet, "--spectrum", 40)
    inside = plain > 1.0
    assert (soft[inside] > plain[inside]).all()
    noisy = simulated(data, tmp_path / "noisy.npy", "--photons", 500, "--scatter", 0, "--blur", 0)
    assert 0.02 < float(np.abs(noisy - plain)[inside].mean()) < 1.0


@pytest.mark.io
def test_a_picture_a_pose_file_and_its_way_back(data: Path, tmp_path: Path) -> None:
    result = succeed(
        "simulate", data / "ct.nii.gz", *CAMERA, "--view", "left-lateral",
        "-o", tmp_path / "a.png", "--save-pose", tmp_path / "pose.json",
    )  # fmt: skip
    assert "48x64 pixels" in result.output and "patient's" in result.output
    stored = read_pose(tmp_path / "pose.json")
    torch.testing.assert_close(
        stored.world_to_camera, drrkit.view_left_lateral(small_ct(), 800.0)[0].double()
    )
    again = ["--pose", tmp_path / "pose.json", "--photons", 0]
    succeed("simulate", data / "ct.nii.gz", *again, "-o", tmp_path / "b.npy")
    assert np.load(tmp_path / "b.npy").shape == (48, 64)


@pytest.mark.io
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--unit", "mu"], "needs a CT in HU"),
        (["--energy", "70"], "needs a CT in HU"),
        (["--spectrum", "hard"], "60kV, 90kV, 120kV or keV"),
        (["--spectrum", "5"], "10 to 150 keV"),
        (["--tool", "drill"], "k-wire"),
        (["--scatter", "2"], "scatter"),
        (["--invert"], "--invert makes pictures"),
        (["--view", "AP", "--pose", "start.json"], "give one of them"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_written(
    data: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    options = [str(data / o) if o.endswith(".json") else o for o in options]
    result = run("simulate", data / "ct.nii.gz", *CAMERA, "-o", tmp_path / "a.npy", *options)
    assert result.exit_code == 2 and message in result.output
    assert os.listdir(tmp_path) == []
