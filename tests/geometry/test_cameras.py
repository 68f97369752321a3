"""Cameras and the projection of points, against numbers computed by hand; bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck

from drrkit.geometry import (
    Camera,
    CArm,
    perturb,
    project_points,
    se3_exp,
    se3_log,
    so3_exp,
    so3_log,
    view_ap,
    view_carm,
    view_frames,
    volume_center,
)
from tests.support.geometries import (
    F64,
    SDD,
    SOD,
    make_volume,
    oblique,
    random,
    ray_ends,
    skewed_camera,
    some_poses,
    tensor,
    to_world,
)


def test_a_carm_camera_has_the_intrinsics_of_its_words():
    camera = CArm(1000.0, (100, 200), (0.5, 0.25))
    expected = tensor([4000.0, 0, 99.5], [0, 2000.0, 49.5], [0, 0, 1])
    assert torch.equal(camera.K, expected) and camera.K.dtype == F64
    assert camera.size == (100, 200) and camera.sdd == 1000.0 and camera.beam == "cone"
    assert camera.pixel_spacing == (0.5, 0.25)
    shifted = CArm(1000.0, (100, 200), 2.0, principal_point=(10.0, 20.5))
    assert torch.equal(shifted.K[:2, 2], tensor(10.0, 20.5))
    assert torch.equal(
        CArm(1000.0, (4, 4), torch.tensor((0.5, 0.25))).K, CArm(1000.0, (4, 4), (0.5, 0.25)).K
    )


def test_a_carm_camera_is_differentiable_in_its_words_and_batched_by_them():
    words = [
        tensor(1000.0, 900.0),
        tensor(0.5)[0],
        tensor(0.25, 0.3),
        tensor(9.0)[0],
        tensor(7.0)[0],
    ]
    words = [word.requires_grad_() for word in words]

    def frames(sdd, row, col, cx, cy):
        camera = CArm(sdd, (100, 200), (row, col), (cx, cy))
        return view_frames(make_volume(), camera, view_ap(make_volume(), SOD))

    assert frames(*words).shape == (2, 4, 3)
    assert gradcheck(frames, words)
    assert CArm(words[0], (4, 4), 0.5).pixel_spacing[0].tolist() == [0.5, 0.5]


def test_a_camera_moves_to_another_dtype():
    camera = CArm(1000.0, (10, 20), 0.5).to(dtype=torch.float32)
    assert camera.K.dtype == torch.float32
    assert camera.pixel_rays().dtype == F64
    moved = Camera(camera.K, (10, 20), tensor(1000.0)[0]).to("cpu", torch.float32)
    assert moved.sdd.dtype == torch.float32


@pytest.mark.parametrize("beam", ["cone", "parallel"])
@pytest.mark.parametrize("factor", [2, 4, 3.0, 0.5, 1 / 3])
def test_a_coarse_pixel_lies_at_the_mean_of_its_fine_pixels(factor, beam):
    volume, fine = make_volume(oblique()), skewed_camera(beam)
    coarse, pose = fine.rescale(factor), some_poses(volume, 1)
    assert coarse.size == tuple(round(n / factor) for n in fine.size)
    n = round(max(factor, 1 / factor))
    big, small = (coarse, fine) if factor > 1 else (fine, coarse)
    big_frame, small_frame = (view_frames(volume, c, pose) for c in (big, small))
    for row, col in ((0, 0), (2, 5)):
        block = [(n * row + i, n * col + j) for i in range(n) for j in range(n)]
        for end in (0, 1):
            mean = torch.stack([ray_ends(small_frame, *p, beam)[end] for p in block]).mean(0)
            center = ray_ends(big_frame, row, col, beam)[end]
            assert torch.allclose(center, mean, rtol=0, atol=1e-9)
    pitch = tensor(*coarse.pixel_spacing) / tensor(*fine.pixel_spacing)
    assert torch.allclose(pitch, tensor(factor, factor))


def test_rescaling_drops_the_rest_that_fills_no_pixel():
    camera = CArm(1000.0, (101, 67), 1.0).rescale(4)
    assert camera.size == (25, 16)
    assert CArm(1000.0, (200, 200), 1.0).rescale(1 / 3).size == (600, 600)
    with pytest.raises(ValueError, match=r"factor: expected <= 67 .* got 68"):
        CArm(1000.0, (101, 67), 1.0).rescale(68)


@pytest.mark.parametrize("beam", ["cone", "parallel"])
def test_a_cropped_camera_sees_the_same_rays(beam):
    volume, camera = make_volume(), skewed_camera(beam)
    pose = some_poses(volume, 2)
    window = camera.crop(3, -7, 40, 200)
    assert window.size == (40, 200) and window.beam == beam
    full, part = view_frames(volume, camera, pose), view_frames(volume, window, pose)
    for a, b in zip(ray_ends(full, 3, -7, beam), ray_ends(part, 0, 0, beam), strict=True):
        assert torch.allclose(a, b, atol=1e-10)
    point = volume_center(volume)[None]
    shift = project_points(camera, pose, point) - project_points(window, pose, point)
    assert torch.allclose(shift, tensor(3, -7).expand_as(shift))


def test_gradients_reach_k_and_sdd_through_rescale_and_crop():
    K = skewed_camera().K.requires_grad_()
    sdd = tensor(SDD)[0].requires_grad_()
    camera = Camera(K, (90, 120), sdd).rescale(2).crop(1, 2, 10, 10)
    view_frames(make_volume(), camera, view_ap(make_volume(), SOD)).square().sum().backward()
    assert K.grad[0, 0] != 0 and K.grad[0, 1] != 0 and K.grad[1, 2] != 0 and sdd.grad != 0
    late = skewed_camera()  # the frame prepared on creation must not hide a later requires_grad_
    late.K.requires_grad_()
    assert view_frames(make_volume(), late, view_ap(make_volume(), SOD)).requires_grad


def test_projection_is_k_times_the_camera_point():
    volume, camera = make_volume(), skewed_camera()
    poses, points = some_poses(volume, 3, seed=27), to_world(volume, random(11, 3, seed=28))
    for pose, pixels in zip(poses, project_points(camera, poses, points), strict=True):
        seen = camera.K @ (pose[:3, :3] @ points.mT + pose[:3, 3:])
        assert torch.allclose(pixels, (seen[:2] / seen[2]).flip(0).mT, atol=1e-9)


def test_a_point_behind_the_source_has_no_pixel_and_no_gradient():
    pose = torch.eye(4, dtype=F64)
    points = tensor([0, 0, 100.0], [0, 0, 0], [1, 1, -5]).requires_grad_()
    pixels = project_points(skewed_camera(), pose, points)
    assert torch.isnan(pixels[0, 1:]).all() and pixels[0, 0].isfinite().all()
    pixels[0, 0].sum().backward()
    assert points.grad.isfinite().all()
    flat = project_points(skewed_camera("parallel"), pose, points)
    assert flat.isfinite().all()


@pytest.mark.parametrize("beam", ["cone", "parallel"])
def test_projection_passes_gradcheck(beam):
    volume = make_volume()
    pose = some_poses(volume, 2, seed=29).requires_grad_()
    points = to_world(volume, random(3, 3, seed=30)).requires_grad_()
    K, sdd = skewed_camera().K, tensor(SDD)[0].requires_grad_()

    def project(p, x, d):
        return project_points(Camera(K, (90, 120), d, beam), p, x)

    assert gradcheck(project, (pose, points, sdd))
    assert project_points(Camera(K, (90, 120), SDD, beam), pose.float(), points.float()).dtype == (
        torch.float32
    )


GOOD_K = tensor([500.0, 0, 50], [0, 500.0, 50], [0, 0, 1])


def changed(row, col, value):
    K = GOOD_K.clone()
    K[row, col] = value
    return K


@pytest.mark.parametrize(
    "K, size, sdd, beam, error, message",
    [
        ([[1.0]], (4, 4), 1.0, "cone", TypeError, "K: expected a torch.Tensor, got list"),
        (GOOD_K.long(), (4, 4), 1.0, "cone", TypeError, "K: expected a floating .* torch.int64"),
        (GOOD_K[:2], (4, 4), 1.0, "cone", ValueError, r"K: expected shape .* got \[2, 3\]"),
        (GOOD_K[None, None], (4, 4), 1.0, "cone", ValueError, r"K: .* got \[1, 1, 3, 3\]"),
        (changed(0, 0, math.nan), (4, 4), 1.0, "cone", ValueError, "K: expected finite"),
        (changed(0, 0, -500.0), (4, 4), 1.0, "cone", ValueError, "K: expected fx > 0"),
        (changed(1, 1, 0.0), (4, 4), 1.0, "cone", ValueError, "K: expected fx > 0 and fy > 0"),
        (changed(1, 0, 2.0), (4, 4), 1.0, "cone", ValueError, r"K: expected \[\[fx, skew"),
        (changed(2, 2, 2.0), (4, 4), 1.0, "cone", ValueError, r"K: expected \[\[fx, skew"),
        (changed(2, 0, 1e-9), (4, 4), 1.0, "cone", ValueError, r"K: expected \[\[fx, skew"),
        (GOOD_K, 4, 1.0, "cone", TypeError, r"size: expected \(rows, cols\), got 4"),
        (GOOD_K, (4, 4, 4), 1.0, "cone", TypeError, r"size: expected \(rows, cols\)"),
        (GOOD_K, (4, 4.0), 1.0, "cone", TypeError, "size: expected an integer, got 4.0"),
        (GOOD_K, (4, 0), 1.0, "cone", ValueError, r"size: expected positive .* got \(4, 0\)"),
        (GOOD_K, (4, 4), 0.0, "cone", ValueError, "sdd: expected a finite number > 0, got 0.0"),
        (GOOD_K, (4, 4), math.inf, "cone", ValueError, "sdd: expected a finite number"),
        (GOOD_K, (4, 4), "far", "cone", TypeError, "sdd: expected a number, got 'far'"),
        (GOOD_K, (4, 4), tensor(1.0, -1.0), "cone", ValueError, "sdd: expected finite numbers"),
        (GOOD_K, (4, 4), torch.ones(2, 2), "cone", ValueError, r"sdd: .* got \[2, 2\]"),
        (GOOD_K.repeat(3, 1, 1), (4, 4), tensor(1.0, 1.0), "cone", ValueError, "one batch size"),
        (GOOD_K, (4, 4), 1.0, "fan", ValueError, "beam: expected one of .* got 'fan'"),
    ],
)
def test_a_camera_refuses_what_does_not_fit_and_names_it(K, size, sdd, beam, error, message):
    with pytest.raises(error, match=message):
        Camera(K, size, sdd, beam)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: so3_exp(torch.zeros(4)),
            ValueError,
            r"omega: expected shape \[..., 3\], got \[4\]",
        ),
        (lambda: se3_exp(torch.zeros(3)), ValueError, r"xi: expected shape \[..., 6\], got \[3\]"),
        (lambda: se3_exp([0.0] * 6), TypeError, "xi: expected a torch.Tensor, got list"),
        (lambda: so3_log(torch.eye(4)), ValueError, r"rotation: .* got \[4, 4\]"),
        (lambda: se3_log(torch.eye(3)), ValueError, r"motion: .* got \[3, 3\]"),
        (lambda: se3_log(torch.eye(4, dtype=torch.int32)), TypeError, "motion: .* torch.int32"),
        (
            lambda: perturb(torch.eye(4), torch.zeros(6), torch.zeros(2)),
            ValueError,
            r"center: expected shape \[..., 3\], got \[2\]",
        ),
        (
            lambda: view_frames(make_volume(), skewed_camera(), torch.eye(3)),
            ValueError,
            r"world_to_camera: expected shape \[..., 4, 4\], got \[3, 3\]",
        ),
        (
            lambda: view_frames(make_volume(), skewed_camera(), torch.zeros(2, 2, 4, 4)),
            ValueError,
            r"world_to_camera: expected shape \[4, 4\] or \[B, 4, 4\], got \[2, 2, 4, 4\]",
        ),
        (
            lambda: view_frames(
                make_volume(), Camera(GOOD_K.repeat(2, 1, 1), (4, 4), 1.0), torch.zeros(3, 4, 4)
            ),
            ValueError,
            "world_to_camera: expected one pose or 2, one per camera, got 3",
        ),
        (
            lambda: project_points(skewed_camera(), torch.eye(4), torch.zeros(5, 2)),
            ValueError,
            r"points: expected shape \[..., 3\], got \[5, 2\]",
        ),
        (
            lambda: project_points(skewed_camera(), torch.eye(4), torch.zeros(3)),
            ValueError,
            r"points: expected \[P, 3\] or \[B, P, 3\], got \[3\]",
        ),
        (lambda: view_ap(make_volume(), 0.0), ValueError, "sod: expected .* > 0, got 0.0"),
        (lambda: view_carm(make_volume(), -1.0), ValueError, "sod: expected .* > 0, got -1.0"),
        (lambda: view_carm(make_volume(), 1.0, base="LL"), ValueError, "base: .* got 'LL'"),
        (lambda: CArm(1000.0, (4, 4), 0.0), ValueError, "row spacing: expected .* got 0.0"),
        (lambda: CArm(1000.0, (4, 4), (1, 2, 3)), ValueError, "pixel_spacing: expected .* a pair"),
        (
            lambda: CArm(1000.0, (4, 4), "fine"),
            TypeError,
            "pixel_spacing: expected a number or a pair",
        ),
        (lambda: CArm(-1.0, (4, 4), 1.0), ValueError, "sdd: expected .* got -1.0"),
        (lambda: CArm(1000.0, (4, 4), 1.0, (math.nan, 0)), ValueError, "K: expected finite"),
        (lambda: skewed_camera().rescale(0), ValueError, "factor: expected a finite number > 0"),
        (lambda: skewed_camera().crop(0, 0, 0, 5), ValueError, "size: expected positive"),
        (lambda: skewed_camera().crop(0.5, 0, 5, 5), TypeError, "row0: expected an integer"),
    ],
)
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()
