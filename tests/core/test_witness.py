"""Real CT volumes rendered by drrkit and by two projectors that share no code with it.

The witnesses are RTK's Joseph projector (itk-rtk) and plastimatch's exact Siddon tracer. They get
the volume as ITK describes it, and the view as a source, a detector and its axes in world mm,
worked out here from what K, sdd and world_to_camera mean: drrkit's frames play no part in it.
Detector, pixels and principal point are asymmetric, so that a flip, a transposition or half a
pixel shows as an error of percents.

The volume stands in a border of air. Without it the witnesses differ from drrkit, and from each
other, in how they weight the outermost half voxel: a convention, worth 1e-3 where the edge of a
scan cuts the body.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import drrkit
from bench.projectors.peers.plastimatch import program, read_pfm
from tests.support.rtk import rtk_joseph, rtk_module

pytestmark = [
    pytest.mark.io,
    pytest.mark.data,
    pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning"),  # of itk's bindings
]

Array = NDArray[np.float64]

BORDER = 2  # voxels of air on every side
SDD, SOD = 1300.0, 750.0  # mm: source and detector stay outside the volumes in every view
PROMISED = 1e-3  # relative L2 norm that the project promises
EXPECTED = 1e-5  # what float32 leaves when both sides compute the same thing


@dataclass(frozen=True)
class Geometry:
    """A view in world mm: where the source is, and a detector plane with its axes and pixels."""

    source: Array  # [3]
    foot: Array  # [3] foot of the source on the detector plane
    right: Array  # [3] unit vector of growing columns
    down: Array  # [3] unit vector of growing rows
    towards: Array  # [3] unit vector from the source to the detector
    sdd: float
    pitch: tuple[float, float]  # (row, col) mm
    principal_point: tuple[float, float]  # (row, col) pixels
    size: tuple[int, int]  # (rows, cols)


def geometry_of(camera: drrkit.Camera, world_to_camera: torch.Tensor) -> Geometry:
    """x = K (R X + t): the source is where R X + t = 0, the camera's axes are the rows of R."""
    pose = world_to_camera.reshape(4, 4).to(torch.float64).numpy()
    intrinsics, sdd = camera.K.to(torch.float64).numpy(), float(camera.sdd)
    right, down, towards = pose[:3, :3]
    source = -pose[:3, :3].T @ pose[:3, 3]
    return Geometry(
        source=source,
        foot=source + sdd * towards,
        right=right,
        down=down,
        towards=towards,
        sdd=sdd,
        pitch=(sdd / float(intrinsics[1, 1]), sdd / float(intrinsics[0, 0])),
        principal_point=(float(intrinsics[1, 2]), float(intrinsics[0, 2])),
        size=camera.size,
    )


def data_folder() -> Path:
    folder = os.environ.get("DRRKIT_DATA")
    if not folder:
        pytest.skip("DRRKIT_DATA is not set: the real CT volumes are not there to be rendered")
    return Path(folder)


def in_air(volume: drrkit.Volume) -> drrkit.Volume:
    """The volume with BORDER voxels of mu = 0 around it; no voxel moves in the world."""
    shift = volume.direction.numpy() @ (BORDER * np.asarray(volume.spacing))
    x, y, z = (np.asarray(volume.origin) - shift).tolist()
    values = torch.nn.functional.pad(volume.values, (BORDER,) * 6)
    return replace(volume, values=values, origin=(x, y, z))


def tilted_and_mirrored(volume: drrkit.Volume) -> drrkit.Volume:
    """The same voxels on an oblique, left-handed grid around the same centre."""
    centre = drrkit.volume_center(volume).numpy()
    turn = drrkit.so3_exp(torch.tensor([0.21, -0.34, 0.47], dtype=torch.float64)).numpy()
    direction = turn @ np.diag([1.0, -1.0, 1.0])
    to_centre = np.asarray(volume.spacing) * (np.asarray(volume.shape_xyz) - 1) / 2
    x, y, z = (centre - direction @ to_centre).tolist()
    return replace(volume, direction=torch.from_numpy(direction), origin=(x, y, z))


@pytest.fixture(scope="module", params=["chest_2mm", "pelvis_2mm"])
def volume(request: pytest.FixtureRequest) -> drrkit.Volume:
    """A real CT in mu, in its border of air."""
    return in_air(drrkit.read_volume(data_folder() / f"{request.param}.nii.gz").to_mu())


@pytest.fixture(scope="module")
def camera() -> drrkit.Camera:
    return drrkit.CArm(SDD, (80, 96), pixel_spacing=(4.1, 3.9), principal_point=(50.3, 38.2))


VIEWS: dict[str, Callable[[drrkit.Volume], torch.Tensor]] = {
    "AP": lambda volume: drrkit.view_ap(volume, SOD),
    "left lateral": lambda volume: drrkit.view_left_lateral(volume, SOD),
    "oblique": lambda volume: drrkit.view_carm(volume, SOD, primary=0.5, secondary=-0.3),
}


def view(name: str, volume: drrkit.Volume) -> torch.Tensor:
    """The named view, shifted a little: rays along voxel faces would test rounding instead."""
    shift = torch.tensor([0.0, 0.0, 0.0, 3.3, -2.1, 1.7], dtype=torch.float64)
    center = drrkit.volume_center(volume)
    return drrkit.perturb(VIEWS[name](volume).to(torch.float64), shift, center)


def relative_difference(image: Array, witness: Array) -> float:
    return float(np.linalg.norm(image - witness) / np.linalg.norm(witness))


def rendered(
    volume: drrkit.Volume, camera: drrkit.Camera, pose: torch.Tensor, method: str
) -> Array:
    return drrkit.render(volume, camera, pose, method=method)[0, 0].to(torch.float64).numpy()


# --------------------------------------------------------------------------------------------------
# RTK


def by_rtk(volume: drrkit.Volume, geometry: Geometry) -> Array:
    """RTK's Joseph projection, line integrals [rows, cols]."""
    projections = rtk_module().ThreeDCircularProjectionGeometry.New()
    import itk

    point, vector = itk.Point[itk.D, 3], itk.Vector[itk.D, 3]
    assert projections.AddProjection(
        point(geometry.source.tolist()),
        point(geometry.foot.tolist()),
        vector(geometry.right.tolist()),
        vector(geometry.down.tolist()),
    )
    # RTK's detector has its own millimetres: (0, 0) at the point given, axes as given.
    (row_pitch, col_pitch), (row, col) = geometry.pitch, geometry.principal_point
    corner = (-col * col_pitch, -row * row_pitch)
    return rtk_joseph(volume, projections, geometry.size, geometry.pitch, corner)


@pytest.mark.parametrize("oblique", [False, True], ids=["as stored", "oblique, left-handed"])
@pytest.mark.parametrize("name", VIEWS)
def test_joseph_agrees_with_rtk(
    volume: drrkit.Volume, camera: drrkit.Camera, name: str, oblique: bool
) -> None:
    volume = tilted_and_mirrored(volume) if oblique else volume
    pose = view(name, volume)
    witness = by_rtk(volume, geometry_of(camera, pose))
    assert witness.max() > 5.0  # a body stands in the beam
    difference = relative_difference(rendered(volume, camera, pose, "joseph"), witness)
    assert difference <= EXPECTED <= PROMISED


def test_the_witness_sees_a_shift_of_a_quarter_of_a_pixel(
    volume: drrkit.Volume, camera: drrkit.Camera
) -> None:
    pose = view("AP", volume)
    geometry = geometry_of(camera, pose)
    row, col = geometry.principal_point
    moved = replace(geometry, principal_point=(row, col + 0.25))
    witness = by_rtk(volume, moved)
    assert relative_difference(rendered(volume, camera, pose, "joseph"), witness) > PROMISED


# --------------------------------------------------------------------------------------------------
# plastimatch


def plastimatch_exact(volume: drrkit.Volume, geometry: Geometry, folder: Path) -> Array:
    """plastimatch's exact (Siddon) projection, line integrals [rows, cols]."""
    executable = program()
    if executable is None:
        pytest.skip("the witness plastimatch is not installed")

    def numbers(*values: float) -> str:
        return " ".join(repr(float(v)) for v in values)

    drrkit.write_volume(volume, folder / "volume.mha")
    rows, cols = geometry.size
    isocenter = geometry.source + SOD * geometry.towards
    # In spite of its help text every pair is (col, row); nrm points back to the source.
    command = [executable, "drr", "-A", "cpu", "-i", "exact", "-P", "none", "-t", "pfm"]
    command += ["-a", "1", "--nrm", numbers(*-geometry.towards), "--vup", numbers(*-geometry.down)]
    command += ["--sad", numbers(SOD), "--sid", numbers(geometry.sdd), "-o", numbers(*isocenter)]
    command += ["-r", f"{cols} {rows}", "-c", numbers(*geometry.principal_point[::-1])]
    command += ["-z", numbers(cols * geometry.pitch[1], rows * geometry.pitch[0])]
    command += ["-O", str(folder / "drr_"), str(folder / "volume.mha")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return 10.0 * read_pfm(folder / "drr_0000.pfm")  # it divides by 10 on the way out


@pytest.mark.parametrize("name", VIEWS)
def test_siddon_agrees_with_plastimatch(
    volume: drrkit.Volume, camera: drrkit.Camera, name: str, tmp_path: Path
) -> None:
    pose = view(name, volume)
    witness = plastimatch_exact(volume, geometry_of(camera, pose), tmp_path)
    assert witness.max() > 5.0
    difference = relative_difference(rendered(volume, camera, pose, "siddon"), witness)
    assert difference <= EXPECTED <= PROMISED
