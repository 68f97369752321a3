"""A scan's fans: images, derivatives and registrations against a cone per row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from drrkit import Camera, CArm, perturb, register, render, view_left_lateral
from drrkit.geometry import volume_center
from drrkit.phantoms import torso
from drrkit.registration import ScanScene, Stage, extent_mm, mean_depth
from drrkit.registration.optimisers import Levenberg
from drrkit.registration.problem.rendering import renderer
from drrkit.volume import Volume
from drrkit.xray import read_localizer, read_xray

CAMERA = CArm(1040.0, (20, 24), (14.0, 28.0), (11.0, 8.5))


def attenuation() -> Volume:
    return torso(12.0).to_mu().to(torch.float64)


def pose() -> Tensor:
    return view_left_lateral(attenuation(), 570.0)


def test_every_row_is_that_of_a_cone_whose_source_stands_in_its_plane() -> None:
    """The middle row, 8.5, lies between two pixels: no row is the resting source's."""
    found = ScanScene(attenuation()).render(CAMERA, torch.cat((pose(), pose())))
    assert found.shape == (2, 1, 20, 24) and float(found.max()) > 1.0
    for row in (0, 7, 19):
        source = pose().clone()
        source[:, 1, 3] -= (row - 8.5) * 14.0
        K = CAMERA.K.clone()
        K[1, 2] = row  # the row's plane holds the source: it is the axis's
        cone = render(attenuation(), Camera(K, CAMERA.size, 1040.0), source)
        torch.testing.assert_close(found[1, :, row], cone[0, :, row])


def test_rows_do_not_magnify_and_columns_do() -> None:
    """A slab moved towards the source: as many rows, more columns."""
    values = torch.zeros(40, 40, 40, dtype=torch.float64)
    values[10:30, 16:24, 10:30] = 0.05
    slab = Volume(values, (5.0, 5.0, 5.0), (-97.5, -97.5, -97.5), unit="mu")
    camera = CArm(1000.0, (60, 60), (4.0, 5.0))
    sizes = []
    for depth in (500.0, 800.0):
        seen = ScanScene(slab).render(camera, view_left_lateral(slab, depth))[0, 0] > 0.1
        sizes.append((int(seen.any(1).sum()), int(seen.any(0).sum())))
    assert sizes[0][0] == sizes[1][0] == 26  # 100 mm and a soft edge, in steps of 4
    assert sizes[0][1] == pytest.approx(1.6 * sizes[1][1], abs=1.5)


def test_the_pose_jacobian_is_that_of_central_differences() -> None:
    scene = ScanScene(attenuation())
    turn = torch.tensor([0.1, -0.2, 0.15, 3.0, 2.0, -5.0], dtype=torch.float64)
    turned = perturb(pose(), turn, scene.center)  # no ray runs along voxels' faces
    draw = renderer(scene, CAMERA, 1, "siddon")
    image, jacobian = draw.with_jacobian(turned, None, scene.center)
    torch.testing.assert_close(image, scene.render(CAMERA, turned, method="siddon"))
    for unknown, step in enumerate((1e-6,) * 3 + (1e-5,) * 3):
        xi = torch.zeros(6, dtype=torch.float64)
        xi[unknown] = step
        ends = [draw(perturb(turned, sign * xi, scene.center)) for sign in (1.0, -1.0)]
        slope = (ends[0] - ends[1]) / (2 * step)
        wrong = (jacobian[:, :, unknown] - slope).abs() > 1e-4 * slope.abs().max()
        assert float(wrong.double().mean()) < 0.01


def test_a_scan_is_registered_and_a_cone_in_its_place_ends_elsewhere() -> None:
    volume = attenuation().to(torch.float32)
    scene, center = ScanScene(volume), volume_center(volume)
    camera = CArm(1040.0, (40, 48), (7.0, 14.0))
    xray = scene.render(camera, pose())
    xi = torch.tensor([0.03, -0.02, 0.04, 5.0, -4.0, 10.0], dtype=torch.float64)
    start = perturb(pose(), xi, center)
    stage = Stage("ncc", optimiser=Levenberg(0.05, final_step=1e-6), iterations=25)
    found = register(scene, camera, xray, start, stages=stage)
    assert float((found.world_to_camera - pose()[0]).abs().max()) < 0.05
    assert found.extent_mm == extent_mm(volume, camera, mean_depth(start, center))
    cone = register(volume, camera, xray, start, stages=stage)
    assert float((cone.world_to_camera - pose()[0])[:3, 3].norm()) > 5.0


@pytest.mark.data
def test_a_real_localizer_says_where_its_fans_were(data_folder: Path) -> None:
    file = data_folder / "real" / "scout" / "localizer.dcm"
    scan = read_localizer(file)
    assert scan.image.shape == (1, 1, 256, 512) and scan.camera.sdd == 1040.0
    source = torch.linalg.inv(scan.world_to_camera)[:3, 3]
    expected = torch.tensor([570.0, -124.8 + 511 / 2 * 0.9765625, 916.5 - 255 / 2 * 0.9765625])
    torch.testing.assert_close(source, expected.double())
    other = read_localizer(file, mirrored=True)
    assert torch.equal(other.image, scan.image.flip(-1))
    source = torch.linalg.inv(other.world_to_camera)[:3, 3]
    torch.testing.assert_close(source, (expected * torch.tensor([-1.0, 1.0, 1.0])).double())
    with pytest.raises(ValueError, match="read_localizer reads it"):
        read_xray(file)


@pytest.mark.io
def test_files_that_are_no_localizers_are_refused(tmp_path: Path) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    data.Modality, data.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.save_as(tmp_path / "a.dcm", enforce_file_format=False)
    with pytest.raises(ValueError, match=r"a\.dcm: expected a CT localizer"):
        read_localizer(tmp_path / "a.dcm")
    data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    data.DistanceSourceToDetector, data.DistanceSourceToPatient = "1040", "570"
    data.ImagePositionPatient, data.PixelSpacing = ["0", "0", "0"], ["1", "1"]
    data.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]  # a slice's
    data.save_as(tmp_path / "a.dcm", enforce_file_format=False)
    with pytest.raises(ValueError, match=r"a\.dcm: expected rows along the table"):
        read_localizer(tmp_path / "a.dcm")
    del data.DistanceSourceToPatient
    data.save_as(tmp_path / "a.dcm", enforce_file_format=False)
    with pytest.raises(ValueError, match=r"a\.dcm.*Distance Source to Patient"):
        read_localizer(tmp_path / "a.dcm")
