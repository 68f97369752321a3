"""PnP on exact, noisy, flat and degenerate point sets."""

from __future__ import annotations

import math

import pytest
import torch

from drrkit.geometry import (
    Camera,
    CArm,
    perturb,
    project_points,
    reprojection_rms,
    se3_log,
    solve_pnp,
    volume_center,
)
from drrkit.geometry.pnp import _direct_linear_transform
from tests.support.geometries import (
    F64,
    SDD,
    SOD,
    make_volume,
    oblique,
    random,
    skewed_camera,
    some_poses,
    tensor,
)


def pnp_case(count=12, thickness=1.0, noise=0.0, seed=31):
    volume, camera = make_volume(), CArm(SDD, (512, 512), 0.6)
    pose = some_poses(volume, 1, seed=seed)[0]
    local = random(count, 3, seed=seed + 2, scale=60.0) * tensor(1, 1, thickness)
    points = volume_center(volume) + local @ oblique().mT
    pixels = project_points(camera, pose, points)[0] + random(count, 2, seed=seed + 3, scale=noise)
    return camera, points, pixels, pose


def pose_error(found, pose):
    twist = se3_log(found @ torch.linalg.inv(pose))
    return float(twist[:3].norm()), float(twist[3:].norm())


@pytest.mark.parametrize("seed", range(40, 46))
@pytest.mark.parametrize(
    "count, thickness", [(6, 1.0), (12, 1.0), (12, 0.05), (4, 0.0), (6, 0.0), (20, 0.0)]
)
def test_pnp_recovers_the_pose_from_exact_pixels(count, thickness, seed):
    camera, points, pixels, pose = pnp_case(count, thickness, seed=seed)
    found = solve_pnp(camera, points, pixels)
    assert found.shape == (4, 4) and found.dtype == F64
    assert float(reprojection_rms(camera, found, points, pixels)) < 1e-7
    angle, shift = pose_error(found, pose)
    assert angle < 1e-7 and shift < 1e-4
    assert abs(float(torch.linalg.det(found[:3, :3])) - 1) < 1e-12


@pytest.mark.parametrize("thickness", [1.0, 0.1, 0.0])
def test_pnp_from_noisy_pixels_is_a_minimum_near_the_true_pose(thickness):
    camera, points, pixels, pose = pnp_case(40, thickness, noise=0.3)
    found = solve_pnp(camera, points, pixels)
    rms = reprojection_rms(camera, found[None], points, pixels)
    assert rms.shape == (1,)
    assert 0.3 < float(rms) <= float(reprojection_rms(camera, pose, points, pixels))
    angle, shift = pose_error(found, pose)
    assert angle < math.radians(1.0) and shift < 25.0
    xi = torch.zeros(6, dtype=F64, requires_grad=True)
    moved = perturb(found, xi, points.mean(0))
    error = (project_points(camera, moved, points)[0] - pixels).square().sum()
    gradient = torch.autograd.grad(error, xi)[0]
    assert gradient[:3].norm() < 1e-3 and gradient[3:].norm() < 1e-4


@pytest.mark.parametrize("count, thickness, noise, seed", [(8, 0.0, 0.02, 60), (5, 0.0, 2.0, 135)])
def test_pnp_takes_the_better_of_a_plane_and_its_mirror_image(count, thickness, noise, seed):
    # In the second case the linear start leads to the mirror image, an error three times larger.
    camera, points, pixels, pose = pnp_case(count, thickness, noise, seed)
    found = solve_pnp(camera, points, pixels)
    assert pose_error(found, pose)[0] < math.radians(2.0)
    assert reprojection_rms(camera, found, points, pixels) < reprojection_rms(
        camera, pose, points, pixels
    )


@pytest.mark.parametrize(
    "count, thickness, seed",
    [(20, 0.02, 200), (6, 0.5, 226), (6, 0.5, 251), (6, 1.0, 223), (6, 1.0, 255), (8, 0.3, 224)],
)
def test_pnp_finds_a_start_where_noise_hides_the_depth(count, thickness, seed):
    # Five pixels of noise: in all but the first the linear equations put points behind the source.
    camera, points, pixels, pose = pnp_case(count, thickness, 5.0, seed)
    found = solve_pnp(camera, points, pixels)
    assert reprojection_rms(camera, found, points, pixels) < reprojection_rms(
        camera, pose, points, pixels
    )


@pytest.mark.parametrize("dimension", [2, 3])
def test_the_direct_linear_transform_recovers_a_projective_map(dimension):
    projection = torch.cat((random(3, dimension, seed=70), tensor(9.0, -5.0, 20.0)[:, None]), 1)
    source = random(8, dimension, seed=71)
    target = source @ projection[:, :-1].mT + projection[:, -1]
    found = _direct_linear_transform(source, target[:, :2] / target[:, 2:])
    found = found * (projection[2, -1] / found[2, -1])
    assert torch.allclose(found, projection, rtol=0, atol=1e-9)


def test_pnp_refuses_three_points_on_the_dangerous_cylinder_with_the_source():
    # The source on the cylinder that stands on the points' circle: one motion moves no pixel.
    angle = tensor(0.3, 2.0, 4.0, 4.0)
    points = torch.stack((100 + 100 * angle.cos(), 100 * angle.sin(), angle * 0 + SOD), 1)
    points[3, 0] += 1e-9
    camera, pose = CArm(SDD, (512, 512), 0.6), torch.eye(4, dtype=F64)
    pixels = project_points(camera, pose, points)[0]
    with pytest.raises(ValueError, match="points: expected a set that determines the pose"):
        solve_pnp(camera, points, pixels, init=pose)


def test_pnp_with_a_start_needs_four_points_only():
    camera, points, pixels, pose = pnp_case(4)
    xi = tensor(0.1, -0.08, 0.05, 5, -4, 20)
    found = solve_pnp(camera, points, pixels, init=perturb(pose, xi, points.mean(0)))
    angle, shift = pose_error(found, pose)
    assert angle < 1e-7 and shift < 1e-4
    with pytest.raises(ValueError, match=r"points: expected at least 6 .* got 4"):
        solve_pnp(camera, points, pixels)


def test_pnp_works_with_skewed_intrinsics_and_float32_input():
    camera, points, _, pose = pnp_case(10)
    camera = Camera(skewed_camera().K, (90, 120), SDD)
    pixels = project_points(camera, pose, points)[0]
    assert pose_error(solve_pnp(camera, points, pixels), pose)[0] < 1e-8
    found = solve_pnp(camera.to(dtype=torch.float32), points.float(), pixels.float())
    assert found.dtype == F64 and pose_error(found, pose)[0] < 1e-3


def test_pnp_refuses_degenerate_input_and_says_why():
    camera, points, pixels, pose = pnp_case(8)
    line = points[:1] + torch.arange(8, dtype=F64)[:, None] * tensor(1, 2, 3)
    cases = [
        ((camera, line, pixels), {}, "points: expected .* collinear"),
        ((camera, line, pixels), {"init": pose}, "points: expected .* collinear"),
        ((camera, points[:3], pixels[:3]), {"init": pose}, "at least 4 distinct points, got 3"),
        ((camera, points[:1].expand(8, 3), pixels), {}, "at least 4 distinct points, got 1"),
        ((camera, points, pixels[:5]), {}, "pixels: expected 8, one per point, got 5"),
        ((camera, points * math.nan, pixels), {}, "points: expected finite"),
        ((camera, points, pixels / 0), {}, "pixels: expected finite"),
        ((camera, points, pixels[0]), {}, r"pixels: expected shape \[P, 2\], got \[2\]"),
        ((skewed_camera("parallel"), points, pixels), {}, "camera: expected a cone beam"),
        ((Camera(camera.K[None], (9, 9), SDD), points, pixels), {}, "camera: expected a single"),
        ((camera, points, pixels), {"init": torch.diag(tensor(1, -1, -1, 1)) @ pose}, "8 behind"),
        ((camera, points, pixels), {"init": pose * math.inf}, "init: expected finite"),
        ((camera, points, pixels), {"init": pose.repeat(2, 1, 1)}, r"init: .* got \[2, 4, 4\]"),
        (
            (camera, points, torch.full_like(pixels, 100.0)),
            {},
            "pixels: expected at least 3 distinct .* got 1",
        ),
    ]
    for arguments, options, message in cases:
        with pytest.raises(ValueError, match=message):
            solve_pnp(*arguments, **options)
    with pytest.raises(TypeError, match=r"points: .* got torch\.int64"):
        solve_pnp(camera, points.long(), pixels)
