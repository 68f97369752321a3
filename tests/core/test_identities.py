"""What the projector must satisfy whatever it computes: adjoints, invariances, exact answers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import drrkit
from tests.support.scenes import (
    FRAMES,
    SHAPE,
    SPACING,
    endpoints,
    every_beam,
    every_method,
    oblique,
    options_of,
    rand,
    randn,
    relative,
    rotation,
    six_views,
)

SIZE = (4, 5)


def one_ray_views(ends: Tensor) -> Tensor:
    """Frames [P, 4, 3] whose pixel (0, 0) is the ray of `ends` [P, 2, 3]."""
    return torch.cat([ends, torch.zeros_like(ends)], dim=1)


def rays_of(kind: str) -> Tensor:
    """End points [P, 2, 3] of all rays of a kind of scenes.FRAMES."""
    return endpoints(FRAMES[kind](), SIZE, "cone").flatten(0, 1)


def ray_image(values: Tensor, ends: Tensor, **options: Any) -> Tensor:
    """Line integrals [P] along `ends` [P, 2, 3]."""
    return drrkit.project(values, one_ray_views(ends), (1, 1), **options).reshape(-1)


def ray_derivatives(values: Tensor, ends: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Image [P] and its derivatives [P, 3] in the source and in the target."""
    ends = ends.detach().requires_grad_()
    image = ray_image(values, ends, **options)
    (gradient,) = torch.autograd.grad(image.sum(), ends)
    return image.detach(), gradient[:, 0], gradient[:, 1]


# ---- adjoint and linear


@every_beam
@pytest.mark.parametrize("kind", FRAMES)
@every_method
def test_backproject_is_the_adjoint_of_project(method, kind, beam, device) -> None:
    values, images = randn(3, 2, *SHAPE, seed=1).to(device), randn(6, 2, *SIZE, seed=2).to(device)
    frames, options = FRAMES[kind]().to(device), options_of(method, beam)
    projected = drrkit.project(values, frames, SIZE, **options)
    smeared = drrkit.backproject(images, frames, values.shape, **options)
    left, right = float((projected * images).sum()), float((values * smeared).sum())
    scale = float((projected * images).abs().sum())
    assert abs(left - right) <= 1e-12 * scale
    assert (scale == 0) == (not smeared.any())


@every_beam
@every_method
def test_backproject_is_the_adjoint_for_fractional_pixels(method, beam, device) -> None:
    values, images = randn(2, *SHAPE, seed=3).to(device), randn(6, 2, 30, seed=4).to(device)
    frames, pixels = oblique(6, seed=5).to(device), (rand(6, 30, 2, seed=6) * 9 - 2).to(device)
    options = options_of(method, beam, pixels=pixels)
    projected = drrkit.project(values, frames, SIZE, **options)
    smeared = drrkit.backproject(images, frames, values.shape, **options)
    difference = float((projected * images).sum() - (values * smeared).sum())
    assert abs(difference) <= 1e-12 * float((projected * images).abs().sum())


@every_beam
@every_method
def test_backproject_is_exactly_zero_where_no_ray_passes(method, beam, device) -> None:
    frames = six_views(seed=7, pitch=0.05).to(device)  # a pencil through the middle
    images = torch.ones(6, 1, *SIZE, device=device).double()
    volume = drrkit.backproject(images, frames, SHAPE, **options_of(method, beam))
    assert volume[2, 2:4, 3].abs().min() > 0 and not volume[0, 0, 0].any()
    assert bool((volume >= 0).all())


@every_beam
@every_method
def test_images_are_linear_in_the_values(method, beam, device) -> None:
    first, second = (randn(2, *SHAPE, seed=s).to(device) for s in (8, 9))
    frames, options = oblique(4).to(device), options_of(method, beam)
    images = [drrkit.project(v, frames, SIZE, **options) for v in (first, second)]
    mixed = drrkit.project(2.5 * first - 0.3 * second, frames, SIZE, **options)
    assert relative(mixed, 2.5 * images[0] - 0.3 * images[1]) <= 1e-13


@every_beam
@every_method
def test_channels_views_pixels_and_volumes_equal_single_calls(method, beam, device) -> None:
    values, frames = rand(3, 2, *SHAPE, seed=10).to(device), oblique(6, seed=11).to(device)
    options = options_of(method, beam)
    weights = randn(6, 2, *SIZE, seed=12).to(device)
    where = frames.detach().requires_grad_()
    image = drrkit.project(values, where, SIZE, **options)
    (gradient,) = torch.autograd.grad(image, where, weights)
    smeared = drrkit.backproject(weights, frames, values.shape, **options)
    for view in range(6):
        here = frames[view : view + 1].detach().requires_grad_()
        alone = drrkit.project(values[view // 2], here, SIZE, **options)
        (of_view,) = torch.autograd.grad(alone, here, weights[view : view + 1])
        assert relative(image[view], alone[0]) <= 1e-13
        assert relative(gradient[view], of_view[0]) <= 1e-12
        pixels = torch.tensor([[3.0, 1.0], [0.0, 4.0]], dtype=torch.float64, device=device)
        chosen = drrkit.project(values[view // 2, :1], here, SIZE, pixels=pixels, **options)
        assert relative(chosen[0, 0], image[view, 0, [3, 0], [1, 4]]) <= 1e-13
    for volume, channel in itertools.product(range(3), range(2)):
        views = slice(2 * volume, 2 * volume + 2)
        chosen = weights[views, channel : channel + 1]
        alone = drrkit.backproject(chosen, frames[views], SHAPE, **options)
        assert relative(smeared[volume, channel], alone) <= 1e-13


# ---- exact answers


def cube_rays(count: int, n: int) -> Tensor:
    """Rays [P, 2, 3] through a cube of n voxels whose lateral coordinates stay in [0, n - 1]."""
    ends = rand(count, 2, 3, seed=13) * (n - 1.2) + 0.1
    for index in range(count):
        axis = index % 3
        ends[index, 0, axis], ends[index, 1, axis] = -1.5 * n, 2.5 * n
        middle = ends[index].mean(0).clamp(0.3 * n, 0.6 * n)
        slope = (ends[index, 1] - ends[index, 0]) * 0.25
        slope[axis] = 4.0 * n
        ends[index, 0], ends[index, 1] = middle - slope / 2, middle + slope / 2
        ends[index, 0, axis], ends[index, 1, axis] = -1.5 * n, 2.5 * n
    return ends.flip(1) if count % 2 else ends


def test_joseph_gives_the_planes_of_a_cube_of_ones_between_its_sides(device) -> None:
    n = 9
    ends = cube_rays(301, n)
    cube = torch.ones(n, n, n).double().to(device)
    found = ray_image(cube, ends.to(device), **options_of("joseph", spacing=(1.0, 1.0, 1.0)))
    direction = ends[:, 1] - ends[:, 0]
    expected = n * direction.norm(dim=-1) / direction.abs().amax(-1)
    assert relative(found.cpu(), expected) <= 1e-12


@pytest.mark.parametrize("step, bound", [(1.0, 0.12), (0.5, 0.045), (0.25, 0.013)])
@pytest.mark.parametrize("anchor", ["source", "foot"])
def test_trilinear_gives_the_planes_of_a_cube_of_ones_to_its_step(
    step, bound, anchor, device
) -> None:
    n = 9
    ends = cube_rays(900, n)
    options = {"method": "trilinear", "step": step, "anchor": anchor}
    found = ray_image(torch.ones(n, n, n).double().to(device), ends.to(device), **options)
    direction = ends[:, 1] - ends[:, 0]
    expected = n * direction.norm(dim=-1) / direction.abs().amax(-1)
    assert float((found.cpu() - expected).abs().max()) <= bound


# ---- rays that are the same line


@every_method
def test_the_image_does_not_change_along_the_ray(method, device) -> None:
    for kind in ("along-axes", "oblique", "wide", "converging"):
        ends = rays_of(kind).to(device)
        values = rand(*SHAPE, seed=15).to(device)
        _, ds, dp = ray_derivatives(values, ends, **options_of(method))
        along, size = ends[:, 1] - ends[:, 0], float(torch.cat([ds, dp]).abs().max())
        assert size > 0.1
        assert float((along * dp).sum(-1).abs().max()) <= 1e-11 * size
        if method != "trilinear":
            assert float((along * ds).sum(-1).abs().max()) <= 1e-11 * size


def test_joseph_does_not_change_along_the_ray_wherever_its_ends_are(device) -> None:
    for kind in ("source-inside", "detector-inside", "both-inside"):
        ends, values = rays_of(kind).to(device), rand(*SHAPE, seed=16).to(device)
        _, ds, dp = ray_derivatives(values, ends, **options_of("joseph"))
        along = ends[:, 1] - ends[:, 0]
        assert float((along * ds).sum(-1).abs().max()) <= 1e-11
        assert float((along * dp).sum(-1).abs().max()) <= 1e-11


@every_method
def test_ends_outside_may_move_along_the_ray(method, device) -> None:
    ends, values = rays_of("oblique").to(device), rand(*SHAPE, seed=17).to(device)
    direction = ends[:, 1] - ends[:, 0]
    image = ray_image(values, ends, **options_of(method))
    further = torch.stack([ends[:, 0], ends[:, 1] + 1.7 * direction], 1)
    assert relative(ray_image(values, further, **options_of(method)), image) <= 1e-12
    if method != "trilinear":
        earlier = torch.stack([ends[:, 0] - 0.83 * direction, ends[:, 1]], 1)
        assert relative(ray_image(values, earlier, **options_of(method)), image) <= 1e-12
        backwards = ray_image(values, ends.flip(1), **options_of(method))
        assert relative(backwards, image) <= 1e-12


@pytest.mark.parametrize("method", ["joseph", "siddon"])
def test_the_parts_of_a_ray_add_up(method, device) -> None:
    ends, values = rays_of("along-axes").to(device), rand(*SHAPE, seed=18).to(device)
    whole = ray_image(values, ends, **options_of(method))
    for share in (0.31, 0.5, 0.67):
        middle = ends[:, 0] + share * (ends[:, 1] - ends[:, 0])
        first = ray_image(values, torch.stack([ends[:, 0], middle], 1), **options_of(method))
        second = ray_image(values, torch.stack([middle, ends[:, 1]], 1), **options_of(method))
        assert relative(first + second, whole) <= 1e-12
        assert bool((first != 0).any()) and bool((second != 0).any())


# ---- other coordinates


@every_beam
@every_method
def test_reordered_and_reversed_axes_give_the_same_image_and_derivatives(
    method, beam, device
) -> None:
    values, frames = rand(*SHAPE, seed=19).to(device), oblique(3, seed=20).to(device)
    weights = randn(3, 1, *SIZE, seed=21).to(device)
    last = torch.tensor(SHAPE[::-1], dtype=torch.float64, device=device) - 1

    def results(values: Tensor, frames: Tensor, spacing: Any) -> tuple[Tensor, Tensor, Tensor]:
        inputs = [t.detach().requires_grad_() for t in (values, frames)]
        image = drrkit.project(*inputs, SIZE, **options_of(method, beam, spacing=spacing))
        return image.detach(), *torch.autograd.grad(image, inputs, weights)

    image, of_values, of_frames = results(values, frames, SPACING)
    for order in itertools.permutations(range(3)):  # new axis k is old axis order[k]
        for signs in itertools.product((1, -1), repeat=3):
            reverse = [2 - axis for axis in range(3) if signs[axis] < 0]  # dimensions of z, y, x
            permutation = [2 - order[2 - dim] for dim in range(3)]
            moved = frames.clone()
            for axis in (a for a in range(3) if signs[a] < 0):
                moved[:, :2, axis] = last[axis] - moved[:, :2, axis]
                moved[:, 2:, axis] = -moved[:, 2:, axis]
            other = results(
                values.flip(reverse).permute(permutation),
                moved[..., list(order)],
                tuple(SPACING[axis] for axis in order),
            )
            assert relative(other[0], image) <= 1e-12
            expected = of_values.flip(reverse).permute(permutation)
            assert relative(other[1], expected) <= 1e-11
            expected = of_frames * torch.tensor(signs, device=device)
            assert relative(other[2], expected[..., list(order)]) <= 1e-11


@every_method
def test_lengths_scale_with_the_spacing(method, device) -> None:
    values, frames = rand(*SHAPE, seed=22).to(device), oblique(2).to(device)
    options = options_of(method)
    doubled = dict(options, spacing=tuple(2 * s for s in SPACING))
    if "step" in options:
        doubled["step"] = 2 * options["step"]
    image = drrkit.project(values, frames, SIZE, **options)
    assert relative(drrkit.project(values, frames, SIZE, **doubled), 2 * image) <= 1e-14


@every_beam
@every_method
def test_the_frames_gradient_is_the_reduction_of_the_rays_derivatives(method, beam, device) -> None:
    values, frames = rand(*SHAPE, seed=23).to(device), oblique(1, seed=24).to(device)
    weights = randn(1, 1, *SIZE, seed=25).to(device)
    where = frames.detach().requires_grad_()
    image = drrkit.project(values, where, SIZE, **options_of(method, beam))
    (found,) = torch.autograd.grad(image, where, weights)

    ends = endpoints(frames.cpu(), SIZE, beam)[0].to(device)
    _, ds, dp = ray_derivatives(values, ends, **options_of(method))
    g = weights.reshape(-1, 1)
    i, j = torch.meshgrid(*(torch.arange(n, device=device) for n in SIZE), indexing="ij")
    i, j = i.reshape(-1, 1), j.reshape(-1, 1)
    steps = dp if beam == "cone" else ds + dp
    expected = torch.stack([(g * ds), (g * dp), (g * j * steps), (g * i * steps)]).sum(1)
    assert relative(found[0], expected) <= 1e-12

    pixels = torch.cat([i, j], 1).double().requires_grad_()
    chosen = drrkit.project(values, frames, SIZE, pixels=pixels, **options_of(method, beam))
    (of_pixels,) = torch.autograd.grad(chosen.sum(), pixels)
    expected = torch.stack([steps @ frames[0, 3], steps @ frames[0, 2]], 1)
    assert relative(of_pixels, expected) <= 1e-12


@every_beam
@pytest.mark.parametrize("handed", [1.0, -1.0])
def test_the_pose_gradient_is_the_twist_formula(handed, beam, device) -> None:
    # dL/dtau = -B (G_s + G_o), dL/domega = -det(B) B sum_k q_k x G_k, from the frame's cotangent.
    direction = rotation(1) * torch.tensor([1.0, handed, 1.0])
    values = rand(*SHAPE, seed=26).to(device)
    volume = drrkit.Volume(values, SPACING, (3.0, -5.0, 7.0), direction, unit="mu")
    camera = drrkit.CArm(30.0, SIZE, 1.3)
    camera = drrkit.Camera(camera.K.double(), SIZE, 30.0, beam)
    center = drrkit.volume_center(volume)
    start = drrkit.perturb(
        drrkit.view_ap(volume, 16.0), 0.3 * randn(1, 6, seed=27).to(device), center
    )
    weights = randn(1, 1, *SIZE, seed=28).to(device)
    xi = torch.zeros(1, 6, dtype=torch.float64, device=device, requires_grad=True)
    image = drrkit.render(volume, camera, drrkit.perturb(start, xi, center), extend=False)
    (found,) = torch.autograd.grad(image, xi, weights)

    frames = drrkit.view_frames(volume, camera, start).requires_grad_()
    image = drrkit.project(values, frames, SIZE, spacing=SPACING, beam=beam)
    (g,) = torch.autograd.grad(image, frames, weights)
    g, frame = g[0].cpu(), frames[0].detach().cpu()
    sigma = torch.tensor(SPACING, dtype=torch.float64)
    middle = (torch.tensor(SHAPE[::-1], dtype=torch.float64) - 1) / 2
    arms = torch.cat([frame[:2] - middle, frame[2:]]) * sigma
    rows = g / sigma
    turn = start[0, :3, :3].cpu() @ direction
    tau = -turn @ (rows[0] + rows[1])
    omega = -torch.linalg.det(turn) * turn @ torch.linalg.cross(arms, rows).sum(0)
    assert relative(found[0].cpu(), torch.cat([omega, tau])) <= 1e-10


@every_method
def test_weights_of_a_ray_add_up_to_its_image_of_ones(method, device) -> None:
    frames = oblique(2, seed=29).to(device)
    ones = torch.ones(SHAPE, dtype=torch.float64, device=device)
    image = drrkit.project(ones, frames, SIZE, **options_of(method))
    weights = drrkit.backproject(torch.ones_like(image), frames, SHAPE, **options_of(method))
    assert math.isclose(float(weights.sum()), float(image.sum()), rel_tol=1e-13)
