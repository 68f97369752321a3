"""The same CT rendered by drrkit and, through the converters, by the tools they convert for.

A view, asymmetric in everything, goes out through `to_X`; what the tool renders is flipped as the
converter says and must be drrkit's image. A flip, a transposition or half a pixel would show as
percents.
"""

from __future__ import annotations

import subprocess
from ast import literal_eval
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import drrkit
from bench.projectors.peers.diffdrr import UNUSED as UNUSED_BY_DIFFDRR
from bench.projectors.peers.nanodrr import UNUSED as UNUSED_BY_NANODRR
from bench.projectors.peers.plastimatch import program, read_pfm
from bench.projectors.peers.stubs import stubbed
from drrkit import conversions
from tests.support.rtk import rtk_joseph, rtk_module

pytestmark = [
    pytest.mark.io,
    pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning"),  # of itk's bindings
]

SDD, SOD = 1300.0, 750.0
SAME = 2e-5  # both compute the same integral in float32
SAMPLED = 2e-3  # the other's samples along the ray are its own


@pytest.fixture(scope="module")
def upright() -> drrkit.Volume:
    """A torso in mu, its axes along the world's, in a border of air, away from the origin."""
    ct = drrkit.phantoms.torso(spacing=6.0).to_mu()
    values = torch.nn.functional.pad(ct.values, (2,) * 6)
    return drrkit.Volume(values, ct.spacing, (-150.0, 80.0, -320.0), unit="mu")


@pytest.fixture(scope="module")
def oblique(upright: drrkit.Volume) -> drrkit.Volume:
    """The same on a turned grid."""
    turn = drrkit.so3_exp(torch.tensor([0.21, -0.34, 0.47], dtype=torch.float64))
    return drrkit.Volume(upright.values, upright.spacing, upright.origin, turn, "mu")


@pytest.fixture(scope="module")
def camera() -> drrkit.Camera:
    return drrkit.CArm(SDD, (60, 72), pixel_spacing=(5.4, 5.1), principal_point=(38.3, 27.2))


def pose_of(volume: drrkit.Volume) -> Tensor:
    shift = torch.tensor([0.05, -0.1, 0.2, 23.3, -12.1, 31.7], dtype=torch.float64)
    start = drrkit.view_carm(volume, SOD, 0.5, -0.3)
    return drrkit.perturb(start, shift, drrkit.volume_center(volume))


def difference(image: Tensor, witness: Any) -> float:
    witness = torch.as_tensor(np.ascontiguousarray(witness), dtype=torch.float64)
    image = image.double().reshape(witness.shape)
    assert float(image.max()) > 2.0  # a body stands in the beam
    return float((image - witness).norm() / image.norm())


def rtk_corner(camera: drrkit.Camera) -> tuple[float, float]:
    """Where RTK's pixel (0, 0), whose rows run upwards, lies from the foot of the source, mm."""
    row, col = camera.pixel_spacing
    return (-float(camera.K[0, 2]) * col, -(camera.size[0] - 1 - float(camera.K[1, 2])) * row)


def test_rtk_renders_the_view_of_its_nine_numbers(
    oblique: drrkit.Volume, camera: drrkit.Camera
) -> None:
    geometry = rtk_module().ThreeDCircularProjectionGeometry.New()
    pose = pose_of(oblique)
    center = drrkit.volume_center(oblique)
    geometry.AddProjection(*(float(n) for n in conversions.to_rtk(camera, pose, center)))
    origin = (torch.tensor(oblique.origin, dtype=torch.float64) - center).tolist()
    corner = rtk_corner(camera)
    witness = rtk_joseph(oblique, geometry, camera.size, camera.pixel_spacing, corner, origin)[::-1]
    assert difference(drrkit.render(oblique, camera, pose), witness) < SAME


def test_rtk_reads_the_geometry_files_and_they_read_its(
    oblique: drrkit.Volume, camera: drrkit.Camera, tmp_path: Path
) -> None:
    rtk = rtk_module()
    xi = torch.zeros(3, 6, dtype=torch.float64)
    xi[:, 1] = torch.tensor([0.0, 0.4, 0.8])
    xi[:, 0], xi[:, 3] = 0.1, 5.0
    poses = drrkit.perturb(pose_of(oblique), xi, drrkit.volume_center(oblique))
    view = conversions.to_rtk(camera, poses, drrkit.volume_center(oblique))
    file = tmp_path / "geometry.xml"
    conversions.write_rtk_geometry(file, view)
    reader = rtk.ThreeDCircularProjectionGeometryXMLFileReader.New()
    reader.SetFilename(str(file))
    reader.GenerateOutputInformation()
    geometry = reader.GetOutputObject()
    getters = {
        "SourceToIsocenterDistances": view.source_to_isocenter,
        "SourceToDetectorDistances": view.source_to_detector,
        "ProjectionOffsetsX": view.projection_offset_x,
        "ProjectionOffsetsY": view.projection_offset_y,
        "SourceOffsetsX": view.source_offset_x,
        "SourceOffsetsY": view.source_offset_y,
    }
    for name, expected in getters.items():
        assert list(getattr(geometry, f"Get{name}")()) == pytest.approx(expected.tolist())
    angles = {
        "GantryAngles": view.gantry_angle,
        "OutOfPlaneAngles": view.out_of_plane_angle,
        "InPlaneAngles": view.in_plane_angle,
    }
    for name, expected in angles.items():  # RTK counts them from zero to a full turn
        found = torch.tensor(list(getattr(geometry, f"Get{name}")())).rad2deg()
        apart = torch.remainder(found - expected + 180.0, 360.0) - 180.0
        assert float(apart.abs().max()) < 1e-4
    writer = rtk.ThreeDCircularProjectionGeometryXMLFileWriter.New()
    writer.SetObject(geometry)
    writer.SetFilename(str(tmp_path / "its.xml"))
    writer.WriteFile()
    again = conversions.read_rtk_geometry(tmp_path / "its.xml")
    row, col = camera.pixel_spacing
    center = drrkit.volume_center(oblique)
    found = conversions.from_rtk(again, camera.size, (col, row), rtk_corner(camera), center)
    torch.testing.assert_close(found.world_to_camera, poses, rtol=0, atol=1e-8)


def test_plastimatch_renders_the_view_of_its_options(
    upright: drrkit.Volume, camera: drrkit.Camera, tmp_path: Path
) -> None:
    executable = program()
    if executable is None:
        pytest.skip("the witness plastimatch is not installed")
    pose = pose_of(upright)
    view = conversions.to_plastimatch(camera, pose, upright)[0]
    drrkit.write_volume(upright, tmp_path / "volume.mha")
    command = [executable, "drr", "-A", "cpu", "-i", "exact", "-P", "none", "-t", "pfm", "-a", "1"]
    command += [*view.arguments(), "-O", str(tmp_path / "drr_"), str(tmp_path / "volume.mha")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    witness = 10.0 * read_pfm(tmp_path / "drr_0000.pfm")
    assert difference(drrkit.render(upright, camera, pose, method="siddon"), witness) < SAME


def imported(package: str, unused: tuple[str, ...], *modules: str) -> list[Any]:
    pytest.importorskip("jaxtyping")
    with stubbed(unused):
        try:
            return [import_module(module) for module in modules]
        except ImportError:
            pytest.skip(f"the witness {package} is not installed")


def test_nanodrr_renders_the_view_of_its_matrices(
    oblique: drrkit.Volume, camera: drrkit.Camera
) -> None:
    data, drr = imported("nanodrr", UNUSED_BY_NANODRR, "nanodrr.data", "nanodrr.drr")
    pose = pose_of(oblique)
    view = conversions.to_nanodrr(camera, pose)
    voxels = oblique.values[None, None].contiguous()
    affine = conversions.lps_from_ras(oblique.affine)
    center = conversions.lps_from_ras()[:3, :3] @ drrkit.volume_center(oblique)
    subject = data.Subject(
        voxels,
        torch.zeros_like(voxels),
        affine.float(),
        torch.linalg.inv(affine).float(),
        data.Subject._make_voxel_to_grid(voxels.shape),
        center.float(),
        max_label=0,
        convert_to_mu=False,
    )
    witness = drr.render(
        subject,
        view.k_inv.float(),
        view.rt_inv.float(),
        view.sdd.float(),
        view.height,
        view.width,
        n_samples=2000,
        backend="torch",
    )
    ours = drrkit.render(oblique, camera, pose, method="trilinear", step=0.7)
    assert difference(ours, witness.detach()) < SAMPLED


@pytest.mark.parametrize("orientation", ["AP", "PA", None])
def test_diffdrr_renders_the_view_of_its_arguments(
    oblique: drrkit.Volume, camera: drrkit.Camera, orientation: str | None
) -> None:
    drr, poses = imported("diffdrr", UNUSED_BY_DIFFDRR, "diffdrr.drr", "diffdrr.pose")
    pose = pose_of(oblique)
    view = conversions.to_diffdrr(camera, pose, oblique, orientation)
    values = oblique.values.permute(2, 1, 0).contiguous()
    # What its read() does: RAS, the volume's centre moved to the origin.
    affine = conversions.lps_from_ras(oblique.affine).clone()
    affine[:3, 3] -= conversions.lps_from_ras()[:3, :3] @ drrkit.volume_center(oblique)
    reorient = torch.eye(4)
    reorient[:3, :3] = torch.tensor(conversions.pinhole.REORIENT[orientation])
    subject = SimpleNamespace(
        volume=SimpleNamespace(affine=affine.numpy()),
        density=SimpleNamespace(data=values[None]),
        reorient=reorient,
        mask=None,
    )
    module = drr.DRR(
        subject,
        sdd=view.sdd,
        height=view.height,
        width=view.width,
        delx=view.delx,
        dely=view.dely,
        x0=view.x0,
        y0=view.y0,
        renderer="siddon",
        reverse_x_axis=view.reverse_x_axis,
    )
    module.density = values
    witness = module(poses.RigidTransform(view.pose.float()))
    ours = drrkit.render(oblique, camera, pose, method="siddon")
    assert difference(ours, witness.detach()) < SAMPLED


def test_the_orientations_are_those_that_diffdrr_reads() -> None:
    """Its source, since reading a subject needs packages that it alone uses."""
    spec = import_module("importlib.util").find_spec("diffdrr")
    if spec is None:
        pytest.skip("the witness diffdrr is not installed")
    source = (Path(spec.submodule_search_locations[0]) / "data.py").read_text()
    for name, rows in conversions.pinhole.REORIENT.items():
        after = source.split(f'orientation == "{name}"' if name else "orientation is None")[1]
        block = after.split("torch.tensor(")[1].split("dtype")[0]
        found = torch.tensor(literal_eval(block.strip().rstrip(",")))[:3, :3]
        assert torch.equal(found.float(), torch.tensor(rows))
