"""Running the command line in tests, and a folder with something to run it on."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from click.testing import CliRunner, Result
from torch import Tensor

import drrkit
from drrkit.cli import main
from drrkit.cli.io import write_pose
from drrkit.registration import Levenberg
from drrkit.report import save_image

ROOT = Path(drrkit.__file__).parents[1]  # of drrkit; the tests may be beside it or elsewhere
SUPPORT = Path(__file__).parent
PYTHONPATH = os.pathsep.join((str(ROOT), str(SUPPORT.parents[1])))  # finds drrkit and tests
CAMERA = ["--size", "48x64", "--pixel-spacing", "6,5.5"]
QUICK = tuple(
    drrkit.Stage("ncc", pixel=pixel, optimiser=Levenberg(20.0), iterations=5, mm=True)
    for pixel in (14.0, 7.0)
)
"""Stages that take little time."""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def succeed(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result


def python(*arguments: object) -> subprocess.CompletedProcess:
    """A fresh Python that sees this drrkit."""
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@functools.cache  # nobody writes into it
def small_ct() -> drrkit.Volume:
    return drrkit.phantoms.torso(8.0)


def small_camera() -> drrkit.Camera:
    """What CAMERA says."""
    return drrkit.CArm(1020.0, (48, 64), (6.0, 5.5))


class SmallScene(NamedTuple):
    """The CT in mu, its camera and X-ray, the true pose (AP) and one 6 degrees and 14 mm off."""

    volume: drrkit.Volume
    camera: drrkit.Camera
    xray: Tensor
    truth: Tensor
    start: Tensor


@functools.cache
def small_scene() -> SmallScene:
    ct, camera = small_ct(), small_camera()
    truth = drrkit.view_ap(ct, 800.0)
    xray = drrkit.simulate_xray(ct, camera, truth, photons=None)
    xi = torch.tensor([[0.06, -0.05, 0.08, 8.0, -6.0, 10.0]], dtype=torch.float64)
    start = drrkit.perturb(truth, xi, drrkit.volume_center(ct))
    return SmallScene(ct.to_mu(), camera, xray, truth, start)


@functools.cache
def small_result() -> tuple[dict[str, Any], list[Tensor]]:
    """The result of registering the scene, as a file holds it, and the poses that were told."""
    told: list[Tensor] = []
    volume, camera, xray, _, start = small_scene()
    found = drrkit.register(volume, camera, xray, start, progress=lambda p, _: told.append(p))
    return {**found.as_dict(), "initial_world_to_camera": start[0].tolist()}, told


def write_data(folder: Path) -> Path:
    """A CT in HU and in mu, its label map, an X-ray of it and the pose of that X-ray, moved."""
    scene, ct = small_scene(), small_ct()
    drrkit.write_volume(ct, folder / "ct.nii.gz", labels=folder / "labels.nii.gz")
    drrkit.write_volume(ct.to_mu(60.0), folder / "mu.nii.gz")
    save_image(scene.xray, folder / "xray.npy")
    write_pose(folder / "start.json", scene.start, scene.camera)
    return folder
