"""render() and Projector: volumes in the world seen by cameras."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import drrkit
from tests.support import oracle
from tests.support.launches import Launches
from tests.support.scenes import (
    METHODS,
    SHAPE,
    SPACING,
    every_beam,
    every_method,
    options_of,
    rand,
    randn,
    relative,
    rotation,
)

SIZE = (5, 6)
SDD, SOD = 40.0, 21.0


def scene(
    device: torch.device | str = "cpu",
    beam: str = "cone",
    *,
    channels: int = 2,
    dtype: torch.dtype = torch.float64,
    sdd: float = SDD,
    seed: int = 0,
) -> tuple[drrkit.Volume, drrkit.Camera, Tensor]:
    """An oblique volume in mu, a camera off its principal point and two poses."""
    values = rand(channels, *SHAPE, seed=seed).to(device, dtype)
    volume = drrkit.Volume(values, SPACING, (11.0, -7.0, 3.0), rotation(seed + 1), unit="mu")
    K = torch.tensor([[31.0, 0.7, 2.2], [0.0, 27.0, 2.4], [0.0, 0.0, 1.0]], dtype=torch.float64)
    if beam == "parallel":  # the pixel pitch is sdd / f whatever the sdd
        K[:2, :2] *= sdd / SDD
    camera = drrkit.Camera(K.to(device), SIZE, sdd, beam)
    xi = randn(2, 6, seed=seed + 2) * torch.tensor([0.5] * 3 + [1.5] * 3)
    center = drrkit.volume_center(volume)
    poses = drrkit.perturb(drrkit.view_ap(volume, SOD), xi.to(device), center)
    return volume, camera, poses


def difference(a: Tensor, b: Tensor) -> float:
    return relative(a.detach().cpu(), b.detach().cpu())


@every_beam
@every_method
def test_render_is_the_oracle_of_the_views_frames(method, beam, device) -> None:
    volume, camera, poses = scene(device, beam)
    for extend in (True, False):
        pose = poses.detach().clone().requires_grad_()
        image = drrkit.render(volume, camera, pose, extend=extend, **METHODS[method])
        assert image.shape == (2, 2, *SIZE) and image.dtype == torch.float64
        weights = randn(*image.shape, seed=3)
        (found,) = torch.autograd.grad(image, pose, weights.to(device))

        at = poses.detach().cpu().requires_grad_()
        frames = drrkit.view_frames(scene("cpu", beam)[0], scene("cpu", beam)[1], at, extend=extend)
        expected = oracle.project(volume.values.cpu(), frames, SIZE, **options_of(method, beam))
        (gradient,) = torch.autograd.grad(expected, at, weights)
        assert expected.detach().max() > 1
        assert difference(image, expected) <= 1e-12
        assert relative(found.cpu(), gradient) <= 1e-10


@every_beam
def test_gradcheck_passes_in_pose_intrinsics_and_distance(beam, device) -> None:
    volume, camera, poses = scene(device, beam, channels=1)
    distance = torch.tensor(SDD, dtype=torch.float64, device=device)
    inputs = [t.detach().requires_grad_() for t in (camera.K, distance, poses)]

    def image(K: Tensor, sdd: Tensor, pose: Tensor) -> Tensor:
        # Finite differences would make K invalid in the entries that are constants.
        K = torch.cat([K[:2].triu(), K.new_tensor([[0.0, 0.0, 1.0]])])
        return drrkit.render(volume, drrkit.Camera(K, (2, 2), sdd, beam), pose, extend=False)

    assert torch.autograd.gradcheck(image, inputs, eps=1e-7, atol=1e-5)


@every_method
def test_reordered_and_reversed_axes_show_the_same_patient(method, device) -> None:
    volume, camera, poses = scene(device, channels=1)
    image = drrkit.render(volume, camera, poses, **METHODS[method])
    hands = set()
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            reverse = [2 - axis for axis in range(3) if signs[axis] < 0]
            permutation = [2 - order[2 - dim] for dim in range(3)]
            corner = [n - 1.0 if s < 0 else 0.0 for n, s in zip(SHAPE[::-1], signs, strict=True)]
            origin = volume.index_to_world(
                torch.tensor(corner, dtype=torch.float64, device=device)
            ).tolist()
            direction = (volume.direction * torch.tensor(signs))[:, list(order)]
            other = drrkit.Volume(
                volume.values[0].flip(reverse).permute(permutation),
                tuple(SPACING[axis] for axis in order),
                tuple(origin),
                direction,
                unit="mu",
            )
            hands.add(round(float(torch.linalg.det(direction))))
            assert relative(drrkit.render(other, camera, poses, **METHODS[method]), image) <= 1e-11
    assert hands == {-1, 1}


@every_beam
@every_method
def test_supersampling_is_the_mean_of_rays_within_the_pixel(method, beam, device) -> None:
    volume, camera, poses = scene(device, beam)
    frames = drrkit.view_frames(volume, camera, poses, extend=True)
    options = options_of(method, beam)
    rows, cols = torch.meshgrid(*(torch.arange(n).double() for n in SIZE), indexing="ij")
    centres = torch.stack([rows, cols], -1).reshape(-1, 2).to(device)
    for n in (2, 3):
        total = torch.zeros(2, 2, SIZE[0] * SIZE[1], dtype=torch.float64, device=device)
        for i, j in itertools.product(range(n), repeat=2):
            shift = (torch.tensor([i, j], device=device).double() + 0.5) / n - 0.5
            total += drrkit.project(volume.values, frames, SIZE, pixels=centres + shift, **options)
        found = drrkit.render(volume, camera, poses, supersample=n, **METHODS[method])
        assert relative(found, (total / n**2).unflatten(2, SIZE)) <= 1e-12


def test_supersampled_pose_gradients_equal_those_of_a_finer_camera(device) -> None:
    volume, camera, poses = scene(device)
    gradients = []
    for fine in (False, True):
        pose = poses.detach().clone().requires_grad_()
        if fine:
            image = drrkit.render(volume, camera.rescale(1 / 3), pose)
            image = nn.functional.avg_pool2d(image, 3)
        else:
            image = drrkit.render(volume, camera, pose, supersample=3)
        weights = randn(*image.shape, seed=4).to(device)
        gradients.append(torch.autograd.grad(image, pose, weights)[0])
    assert relative(*gradients) <= 1e-10


@every_beam
@every_method
def test_extended_rays_end_behind_the_volume_and_no_ray_that_has_left_changes(
    method, beam, device
) -> None:
    options = METHODS[method]
    far, near = scene(device, beam, sdd=3 * SDD), scene(device, beam, sdd=0.5 * SDD)
    if beam == "cone":  # the same rays, ended elsewhere
        near = (near[0], drrkit.Camera(far[1].K, SIZE, 0.5 * SDD, beam), near[2])
    left = drrkit.render(*far, extend=False, **options)
    assert relative(drrkit.render(*far, extend=True, **options), left) <= 1e-12
    cut = drrkit.render(*near, extend=False, **options)
    assert relative(cut, left) > 0.05  # the detector stands in the volume
    assert relative(drrkit.render(*near, extend=True, **options), left) <= 1e-12


@every_method
def test_pose_gradients_of_extended_rays_are_those_of_a_farther_detector(method, device) -> None:
    gradients = []
    for sdd in (3 * SDD, 0.5 * SDD):
        volume, camera, poses = scene(device)
        camera = drrkit.Camera(camera.K, SIZE, sdd)
        pose = poses.detach().requires_grad_()
        image = drrkit.render(volume, camera, pose, **METHODS[method])
        weights = randn(*image.shape, seed=5).to(device)
        gradients.append(torch.autograd.grad(image, pose, weights)[0])
    assert relative(*gradients) <= 1e-10


@every_beam
def test_a_batch_of_cameras_is_each_of_them(beam, device) -> None:
    volume, camera, poses = scene(device, beam)
    K = torch.stack([camera.K, camera.K])
    K[1, 0, 0] *= 1.2
    distances = torch.tensor([SDD, 0.8 * SDD], dtype=torch.float64, device=device)
    together = drrkit.render(volume, drrkit.Camera(K, SIZE, distances, beam), poses)
    for view in range(2):
        single = drrkit.Camera(K[view], SIZE, float(distances[view]), beam)
        alone = drrkit.render(volume, single, poses[view])
        assert relative(together[view], alone[0]) <= 1e-13


def test_no_poses_give_no_images(device) -> None:
    volume, camera, poses = scene(device)
    none = poses[:0].detach().requires_grad_()
    for n in (1, 2):
        image = drrkit.render(volume, camera, none, supersample=n)
        assert image.shape == (0, 2, *SIZE)
        assert torch.autograd.grad(image.sum(), none)[0].shape == (0, 4, 4)
        projector = drrkit.Projector(volume, camera, supersample=n)
        assert projector.with_jacobian(none)[1].shape == (0, 2, 6, *SIZE)


@every_beam
@every_method
def test_a_pose_that_is_no_number_makes_its_view_nan_and_no_other(method, beam, device) -> None:
    volume, camera, poses = scene(device, beam)
    for entry in ((0, 3), (2, 2)):
        broken = poses.clone()
        broken[0, entry[0], entry[1]] = torch.nan
        image = drrkit.render(volume, camera, broken, **METHODS[method])
        assert bool(image[0].isnan().all()) and bool(image[1].isfinite().all())


@every_beam
@pytest.mark.parametrize("supersample", [1, 2])
@pytest.mark.parametrize("handed", [1.0, -1.0])
@every_method
def test_the_jacobian_is_the_derivative_of_render_in_the_twist(
    method, handed, supersample, beam, device
) -> None:
    volume, camera, poses = scene(device, beam, seed=6)
    direction = volume.direction * torch.tensor([1.0, handed, 1.0])
    volume, options = replace(volume, direction=direction), dict(METHODS[method])
    options["supersample"] = supersample
    image, jacobian = drrkit.project_with_jacobian(volume, camera, poses, **options)
    assert not image.requires_grad and jacobian.shape == (2, 2, 6, *SIZE)
    center = drrkit.volume_center(volume)

    def moved(xi: Tensor) -> Tensor:
        return drrkit.render(volume, camera, drrkit.perturb(poses, xi, center), **options)

    still = torch.zeros(2, 6, dtype=torch.float64, device=device)
    assert relative(image, moved(still)) <= 1e-12
    full = torch.autograd.functional.jacobian(moved, still)  # [2, 2, rows, cols, 2, 6]
    for view in range(2):
        expected = full[view, ..., view, :].permute(0, 3, 1, 2)
        assert relative(jacobian[view], expected) <= 1e-10


@every_beam
@pytest.mark.parametrize("supersample", [1, 2])
@every_method
def test_a_projector_gives_the_jacobian_of_the_function_to_the_bit(
    method, supersample, beam, device
) -> None:
    volume, camera, poses = scene(device, beam, seed=6)
    values = torch.zeros_like(volume.values)
    values[..., 1:3, 2:4, 1:4] = volume.values[..., 1:3, 2:4, 1:4]
    volume = replace(volume, values=values).to(torch.float32)
    options = {**METHODS[method], "supersample": supersample}
    projector = drrkit.Projector(volume, camera, **options)
    found = projector.with_jacobian(poses.requires_grad_())
    expected = drrkit.project_with_jacobian(volume, camera, poses, **options)
    assert not found[0].requires_grad and not found[1].requires_grad
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other) if device.type == "cpu" else relative(one, other) <= 1e-5
    handled = device.type == "cpu" or method == "joseph"
    assert projector._pack.prepared is None or projector._pack.prepared.uses == handled
    projector.values.mul_(2)  # what was prepared is followed
    assert relative(projector.with_jacobian(poses)[1], 2 * expected[1]) <= 1e-5
    doubled = replace(volume, values=projector.values.double())
    expected = drrkit.project_with_jacobian(doubled, camera, poses[0], **options)
    found = projector.to(torch.float64).with_jacobian(poses[0])
    assert relative(found[1], expected[1]) <= 1e-12


def test_float32_poses_and_volumes_give_float32_images_and_gradients(device) -> None:
    volume, camera, poses = scene(device)
    pose = poses.float().requires_grad_()
    image = drrkit.render(volume.to(torch.float32), camera, pose)
    assert image.dtype == torch.float32
    (gradient,) = torch.autograd.grad(image.sum(), pose)
    assert gradient.dtype == torch.float32
    assert difference(image, drrkit.render(volume, camera, poses)) <= 1e-5


def test_image_and_pose_gradient_of_render_take_one_march(device) -> None:
    volume, camera, poses = scene(device)
    pose = poses.detach().requires_grad_()
    with Launches() as ran:
        drrkit.render(volume, camera, pose, supersample=2).sum().backward()
    assert ran.counts == {"project+six": 1, "reduce": 1}
    with Launches() as ran:
        drrkit.render(volume, camera, poses)
    assert ran.counts == {"project": 1}


# ---- Projector

OPTIONS: list[dict[str, Any]] = [
    {},
    {"supersample": 2, "extend": False, "method": "siddon"},
    {"method": "trilinear", "step": 0.4, "anchor": "foot"},
    {"method": "trilinear", "step": 0.4, "derivative": "line"},
]


@every_beam
@pytest.mark.parametrize("options", OPTIONS, ids=["joseph", "siddon", "foot", "line"])
def test_a_projector_is_render_with_everything_prepared(options, beam, device) -> None:
    volume, camera, poses = scene(device, beam)
    projector = drrkit.Projector(volume, camera, **options)
    results = []
    for function in (projector, lambda pose: drrkit.render(volume, camera, pose, **options)):
        pose = poses.detach().requires_grad_()
        image = function(pose)
        results.append((image, torch.autograd.grad(image.square().sum(), pose)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(projector(poses[0]), results[0][0][:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_projector_changes_dtype_as_its_volume_does(dtype, device) -> None:
    # The geometry stays float64 whatever the voxels are. Textures would hide it: pack=None.
    volume, camera, poses = scene(device)
    expected = drrkit.render(volume.to(dtype), camera, poses)
    moved = {
        "to": drrkit.Projector(volume, camera, pack=None).to(dtype),
        "to with device": drrkit.Projector(volume, camera, pack=None).to(device, dtype),
        "type": drrkit.Projector(volume, camera, pack=None).type(dtype),
    }
    if dtype == torch.float32:
        moved["float"] = drrkit.Projector(volume, camera, pack=None).float()
    if dtype == torch.float16:
        moved["half"] = drrkit.Projector(volume, camera, pack=None).half()
    for how, projector in moved.items():
        assert projector.values.dtype == dtype, how
        assert difference(projector(poses), expected) <= 1e-6, how


def test_a_projector_back_from_half_precision_has_its_geometry(device) -> None:
    volume, camera, poses = scene(device)
    projector = drrkit.Projector(volume, camera).half().double()
    expected = drrkit.render(volume.to(torch.float16).to(torch.float64), camera, poses)
    assert difference(projector(poses), expected) <= 1e-12


def test_a_projector_moves_to_every_device(device) -> None:
    volume, camera, poses = scene("cpu")
    projector = drrkit.Projector(volume, camera).to(device)
    image = projector(poses.to(device))
    assert image.device.type == device.type
    assert difference(image, drrkit.render(volume, camera, poses)) <= 1e-12


def test_voxels_that_are_a_parameter_train(device) -> None:
    volume, camera, poses = scene(device)
    target = drrkit.render(volume, camera, poses)
    start = nn.Parameter(torch.zeros_like(volume.values))
    projector = drrkit.Projector(replace(volume, values=start), camera)
    assert [name for name, _ in projector.named_parameters()] == ["values"]
    optimizer = torch.optim.Adam(projector.parameters(), lr=0.1)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = (projector(poses) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_the_default_device_is_left_alone(device) -> None:
    volume, camera, poses = scene(device)
    expected = drrkit.render(volume, camera, poses)
    with torch.device("meta"):  # stands for any device that the inputs are not on
        found = {
            "render": drrkit.render(volume, camera, poses),
            "project_with_jacobian": drrkit.project_with_jacobian(volume, camera, poses)[0],
            "Projector": drrkit.Projector(volume, camera)(poses),
        }
    for name, image in found.items():
        assert torch.equal(image, expected), name
