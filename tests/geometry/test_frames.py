"""Frames of views, against numbers computed by hand and the projection of points."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jacfwd, jacrev, vmap

from drrkit.geometry import (
    Camera,
    CArm,
    grid_constants,
    perturb,
    project_points,
    view_ap,
    view_carm,
    view_frames,
    volume_center,
)
from tests.support.geometries import (
    DEVICES,
    F64,
    SDD,
    SOD,
    VOLUMES,
    left_handed,
    make_volume,
    oblique,
    random,
    ray_ends,
    skewed_camera,
    some_poses,
    tensor,
    to_world,
)


@pytest.mark.parametrize("beam", ["cone", "parallel"])
def test_the_frame_of_an_ap_view_has_the_numbers_computed_by_hand(beam):
    # 40 x 30 x 20 voxels of 1 x 1.5 x 2 mm; 100 x 100 pixels of 2 mm, centre between four pixels.
    camera = CArm(SDD, (100, 100), 2.0, beam=beam)
    frame = view_frames(make_volume(), camera, view_ap(make_volume(), SOD))[0]
    middle, corner = tensor(19.5, 14.5, 9.5), tensor(-99, 0, 99 / 2)
    source = middle - tensor(0, SOD / 1.5, 0)
    source = source + corner if beam == "parallel" else source
    assert torch.allclose(frame[0], source, atol=1e-10)
    assert torch.allclose(frame[1], middle + corner + tensor(0, (SDD - SOD) / 1.5, 0), atol=1e-10)
    assert torch.allclose(frame[2], tensor(2, 0, 0), atol=1e-12)  # right is left: +x
    assert torch.allclose(frame[3], tensor(0, 0, -1), atol=1e-12)  # down is inferior: -z, 2 mm
    assert frame.dtype == F64


@pytest.mark.parametrize("extend", [False, True])
@pytest.mark.parametrize("beam", ["cone", "parallel"])
@pytest.mark.parametrize("grid", VOLUMES)
def test_a_point_on_a_ray_projects_to_the_pixel_of_the_ray(grid, beam, extend):
    volume, camera = VOLUMES[grid](), skewed_camera(beam)
    poses = some_poses(volume, 4, seed=20)
    poses[1:, :3, 3] += tensor(0, 0, 500)  # beyond the detector, so that extend has work to do
    frames = view_frames(volume, camera, poses, extend=extend)
    for row, col in ((0.0, 0.0), (89.0, 3.0), (12.25, 119.5), (-5.0, 130.0)):
        start, end = ray_ends(frames, row, col, beam)
        for t in (0.1, 0.5, 1.0):
            points = to_world(volume, start + t * (end - start))
            pixel = project_points(camera, poses, points[:, None])
            assert torch.allclose(pixel, tensor(row, col).expand(4, 1, 2), rtol=0, atol=1e-8)


@pytest.mark.parametrize("beam", ["cone", "parallel"])
def test_rays_start_at_the_source_and_end_on_the_detector(beam):
    volume, camera = make_volume(left_handed()), skewed_camera(beam)
    pose = some_poses(volume, 1, seed=21)[0]
    start, end = ray_ends(view_frames(volume, camera, pose)[0], 11.0, 29.0, beam)
    seen = [pose[:3, :3] @ to_world(volume, p) + pose[:3, 3] for p in (start, end)]
    assert abs(float(seen[1][2]) - SDD) < 1e-9
    if beam == "cone":
        assert torch.allclose(seen[0], torch.zeros(3, dtype=F64), atol=1e-9)
    else:
        assert torch.allclose(seen[0], seen[1] - tensor(0, 0, SDD), atol=1e-9)


@pytest.mark.parametrize("beam", ["cone", "parallel"])
@pytest.mark.parametrize("grid", VOLUMES)
def test_extended_rays_leave_the_volume_and_keep_their_pixels(grid, beam):
    volume, camera = VOLUMES[grid](), skewed_camera(beam)
    poses = some_poses(volume, 6, seed=22)
    depth = tensor(-300, 0, 150, 225, 300, 900)
    poses[:, 2, 3] += depth
    plain = view_frames(volume, camera, poses)
    long = view_frames(volume, camera, poses, extend=True)
    corners = torch.cartesian_prod(*(tensor(-1, n) for n in (40.0, 30.0, 20.0)))
    seen = to_world(volume, corners) @ poses[:, :3, :3].mT + poses[:, None, :3, 3]
    factor = (seen[..., 2].amax(1) / SDD).clamp(min=1)
    assert (factor == 1).any() and (factor > 1).any()
    assert torch.equal(long[factor == 1], plain[factor == 1])
    assert torch.allclose(long[:, 0], plain[:, 0], atol=1e-9)
    ratio = factor[:, None]
    assert torch.allclose(long[:, 1] - long[:, 0], ratio * (plain[:, 1] - plain[:, 0]), atol=1e-8)
    step = ratio[..., None] if beam == "cone" else 1.0
    assert torch.allclose(long[:, 2:], step * plain[:, 2:], atol=1e-10)
    for row, col in ((0, 0), (89, 119), (0, 119)):
        end = to_world(volume, ray_ends(long, row, col, beam)[1])
        z = (poses[:, 2, :3] * end).sum(-1) + poses[:, 2, 3]
        assert bool((z >= seen[..., 2].amax(1) - 1e-9).all())  # no voxel is further away


@pytest.mark.parametrize("beam", ["cone", "parallel"])
def test_frames_pass_gradcheck_in_pose_intrinsics_and_distance(beam):
    volume = make_volume(left_handed())
    pose = some_poses(volume, 2, seed=24).requires_grad_()
    entries = tensor(510.0, 7.0, 66.5, 430.0, 41.25).requires_grad_()
    sdd = tensor(SDD, 990.0).requires_grad_()

    def frames(p, k, d):
        zero, one = k.new_zeros(()), k.new_ones(())
        K = torch.stack((k[0], k[1], k[2], zero, k[3], k[4], zero, zero, one)).reshape(3, 3)
        return view_frames(volume, Camera(K, (90, 120), d, beam), p)

    assert gradcheck(frames, (pose, entries, sdd))
    assert gradgradcheck(frames, (pose, entries, sdd), fast_mode=True)
    by_mode = [mode(frames, (0, 1, 2))(pose, entries, sdd) for mode in (jacfwd, jacrev)]
    for forward, reverse in zip(*by_mode, strict=True):
        assert torch.allclose(forward, reverse, rtol=1e-10, atol=1e-10)


def test_frames_come_for_batches_of_poses_cameras_and_both():
    volume, constants = make_volume(), grid_constants(make_volume())
    poses = some_poses(volume, 3, seed=25)
    K = skewed_camera().K
    cameras = Camera(torch.stack((K, K + torch.diag(tensor(9.0, 5.0, 0.0)), K)), (90, 120), SDD)
    together = view_frames(volume, cameras, poses)
    for b in range(3):
        single = view_frames(volume, Camera(cameras.K[b], (90, 120), SDD), poses[b])
        assert torch.allclose(together[b : b + 1], single, rtol=0, atol=1e-10)
        points = random(7, 3, seed=26, scale=50.0)
        pixels = project_points(cameras, poses, points)
        alone = project_points(Camera(cameras.K[b], (90, 120), SDD), poses[b], points)
        assert torch.allclose(pixels[b : b + 1], alone, atol=1e-9)
    assert torch.equal(view_frames(constants, cameras, poses), together)
    mapped = vmap(lambda p: view_frames(constants, skewed_camera(), p)[0])(poses)
    assert torch.allclose(mapped, view_frames(volume, skewed_camera(), poses), atol=1e-10)
    of_cameras = vmap(lambda k: view_frames(volume, Camera(k, (90, 120), SDD), poses[:1])[0])
    one_pose = view_frames(volume, cameras, poses[0])
    assert torch.allclose(of_cameras(cameras.K), one_pose, atol=1e-10)
    single_precision = view_frames(volume, cameras, poses.float())
    assert single_precision.dtype == F64
    assert torch.allclose(single_precision, together, atol=1e-3)
    assert view_frames(volume, skewed_camera(), poses[:0]).shape == (0, 4, 3)
    channels = SimpleNamespace(**vars(volume))
    channels.values = torch.zeros(5, 20, 30, 40)
    assert torch.equal(view_frames(channels, cameras, poses), together)


@pytest.mark.parametrize("device", DEVICES)
def test_poses_frames_and_pixels_live_on_the_device_of_the_volume(device):
    here, there = make_volume(oblique()), make_volume(oblique())
    there.values = there.values.to(device)
    camera = CArm(SDD, (100, 100), 2.0)  # stays on the CPU: it follows the pose
    xi, points = random(3, 6, seed=35, scale=0.1), random(5, 3, seed=36, scale=50.0)
    for make in (view_ap, lambda volume, sod: view_carm(volume, sod, 0.3, -0.2)):
        found = perturb(make(there, SOD), xi.to(device), volume_center(there))
        expected = perturb(make(here, SOD), xi, volume_center(here))
        assert found.device.type == volume_center(there).device.type == device
        assert torch.allclose(found.cpu(), expected, atol=1e-11)
        frames = view_frames(there, camera, found, extend=True)
        assert frames.device.type == device
        assert torch.allclose(frames.cpu(), view_frames(here, camera, expected, extend=True))
        assert torch.equal(view_frames(grid_constants(there), camera, found, extend=True), frames)
        pixels = project_points(camera.to(device), found, points.to(device))
        assert pixels.device.type == device
        assert torch.allclose(pixels.cpu(), project_points(camera, expected, points))
