"""Running the command line in tests, and a folder with something to run it on."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import torch
from click.testing import CliRunner, Result

import drrkit
from drrkit.cli import main
from drrkit.cli.io import write_pose
from drrkit.report import save_image

ROOT = Path(drrkit.__file__).parents[1]  # of drrkit; the tests may be beside it or elsewhere
SUPPORT = Path(__file__).parent
PYTHONPATH = os.pathsep.join((str(ROOT), str(SUPPORT.parents[1])))  # finds drrkit and tests
CAMERA = ["--size", "48x64", "--pixel-spacing", "6,5.5"]


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


def write_data(folder: Path) -> Path:
    """A CT in HU and in mu, its label map, an X-ray of it and the pose of that X-ray, moved."""
    ct, camera = small_ct(), small_camera()
    drrkit.write_volume(ct, folder / "ct.nii.gz", labels=folder / "labels.nii.gz")
    drrkit.write_volume(ct.to_mu(60.0), folder / "mu.nii.gz")
    truth = drrkit.view_ap(ct, 800.0)
    xray = drrkit.simulate_xray(ct, camera, truth, photons=None)
    save_image(xray, folder / "xray.npy")
    xi = torch.tensor([[0.06, -0.05, 0.08, 8.0, -6.0, 10.0]], dtype=torch.float64)
    start = drrkit.perturb(truth, xi, drrkit.volume_center(ct))
    write_pose(folder / "start.json", start, camera)
    return folder
