"""The command line: a surface in the place of the CT."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import drrkit
from drrkit.cli.io import write_pose
from drrkit.report import save_image
from drrkit.volume import read_mesh
from tests.support.commands import run, succeed

pytestmark = pytest.mark.io
trimesh = pytest.importorskip("trimesh", reason="trimesh is not installed")

CAMERA = drrkit.CArm(1000.0, (120, 130), 1.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bracket of two boxes in mm and in cm, its inverted picture, the true pose and a start."""
    folder = tmp_path_factory.mktemp("mesh")
    parts = [trimesh.creation.box((40, 12, 9)), trimesh.creation.box((9, 10, 30))]
    parts[1].apply_translation((20.0, 3.0, 21.0))
    bracket = trimesh.util.concatenate(parts)
    bracket.export(folder / "bracket.stl")
    bracket.apply_scale(0.1)
    bracket.export(folder / "bracket_cm.stl")
    volume = read_mesh(folder / "bracket.stl", 0.5)
    center = drrkit.volume_center(volume)
    truth = drrkit.perturb(
        drrkit.view_ap(volume, 800.0), torch.tensor([[0.3, 0.5, -0.2, 4.0, 3.0, 0.0]]), center
    )
    line = drrkit.render(volume, CAMERA, truth, supersample=2)
    save_image(200.0 * torch.exp(-line) + 20.0, folder / "xray.npy")
    xi = torch.tensor([[0.05, -0.04, 0.06, 2.0, -1.5, 8.0]])
    write_pose(folder / "start.json", drrkit.perturb(truth, xi, center), CAMERA)
    write_pose(folder / "truth.json", truth, CAMERA)
    return folder


def test_an_implant_is_registered_from_its_surface(folder: Path, tmp_path: Path) -> None:
    files = ("register", folder / "bracket.stl", folder / "xray.npy")
    given = ("--init", folder / "start.json", "--mu", 0.5, "--quiet")
    output = tmp_path / "found.json"
    done = run(*files, *given, "--xray-kind", "inverted", "-o", output)
    assert "bracket.stl: a surface of 44.5 x" in done.stderr
    found = json.loads(output.read_text())
    assert found["stages"][0]["similarity"] == "gradient_ncc"
    truth = torch.tensor(json.loads((folder / "truth.json").read_text())["world_to_camera"])
    moved = torch.tensor(found["world_to_camera"]) - truth
    corners = torch.tensor([[-20.0, -6.0, -4.0, 1.0], [24.0, 8.0, 36.0, 1.0]])
    assert float((corners @ moved.T)[:, :2].abs().max()) < 0.3
    refused = run(*files, *given, "-o", tmp_path / "other.json")
    assert refused.exit_code != 0 and "xray: expected line integrals" in refused.stderr


def test_a_surface_renders_at_its_attenuation_and_unit(folder: Path, tmp_path: Path) -> None:
    pose = ("--pose", folder / "truth.json")
    for name, more in (("bracket.stl", ()), ("bracket_cm.stl", ("--mesh-unit", "cm"))):
        succeed("render", folder / name, *pose, "--mu", 0.25, *more, "-o", tmp_path / "a.npy")
        image = np.load(tmp_path / "a.npy")
        volume = read_mesh(folder / "bracket.stl", 0.25)
        pose_matrix = torch.tensor(json.loads(pose[1].read_text())["world_to_camera"])
        wanted = drrkit.render(volume, CAMERA, pose_matrix.double())
        np.testing.assert_allclose(image.reshape(wanted.shape), wanted, atol=1e-3)
