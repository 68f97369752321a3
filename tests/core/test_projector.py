"""project() and backproject() against the oracle: images and first derivatives of all rays."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import drrkit
from tests.support import oracle
from tests.support.launches import Launches
from tests.support.scenes import (
    FRAMES,
    LINES,
    METHODS,
    SHAPE,
    SPACING,
    axis_parallel,
    every_beam,
    every_method,
    every_option,
    oblique,
    options_of,
    rand,
    randn,
    relative,
    six_views,
)

SIZE = (4, 5)
IMAGE_TOLERANCE, GRADIENT_TOLERANCE = 1e-12, 1e-10


def both(
    device: torch.device,
    values: Tensor,
    frames: Tensor,
    size: tuple[int, int] = SIZE,
    *,
    pixels: Tensor | None = None,
    image_tolerance: float = IMAGE_TOLERANCE,
    gradient_tolerance: float = GRADIENT_TOLERANCE,
    **options: Any,
) -> Tensor:
    """Compares image and first derivatives of all inputs with the oracle's; the oracle's image."""
    inputs = [values, frames] + ([] if pixels is None else [pixels])
    found_in = [t.detach().clone().to(device).requires_grad_() for t in inputs]
    expected_in = [t.detach().clone().requires_grad_() for t in inputs]

    def run(project: Any, inputs: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        points = {} if pixels is None else {"pixels": inputs[2]}
        image = project(inputs[0], inputs[1], size, **points, **options)
        weights = randn(*image.shape, seed=99).to(image.device)
        return image.detach(), torch.autograd.grad(image, inputs, weights)

    found, found_gradients = run(drrkit.project, found_in)
    expected, expected_gradients = run(oracle.project, expected_in)
    assert found.shape == expected.shape and found.dtype == torch.float64
    assert relative(found.cpu(), expected) <= image_tolerance
    for name, a, b in zip(
        ("values", "frames", "pixels"), found_gradients, expected_gradients, strict=False
    ):
        assert a.shape == b.shape
        # Where a gradient vanishes, the image sets the scale of what rounding leaves of it.
        floor = float(expected.abs().max())
        assert relative(a.cpu(), b, floor=floor) <= gradient_tolerance, name
    return expected


@every_beam
@pytest.mark.parametrize("kind", FRAMES)
@every_method
def test_images_and_first_derivatives_equal_the_oracle(method, kind, beam, device) -> None:
    values = rand(2, 3, *SHAPE, seed=1)
    image = both(device, values, FRAMES[kind](), **options_of(method, beam))
    is_empty = kind in ("misses", "before", "behind")
    assert bool((image == 0).all()) == is_empty  # the scene is what its name says


@every_beam
@pytest.mark.parametrize("method", LINES)
def test_the_line_derivative_equals_the_oracle(method, beam, device) -> None:
    for kind in ("along-axes", "oblique", "source-inside", "detector-inside"):
        both(device, rand(*SHAPE, seed=2), FRAMES[kind](), **options_of(method, beam))


@every_beam
@every_option
def test_fractional_pixels_equal_the_oracle_and_are_differentiable(method, beam, device) -> None:
    values, frames = rand(3, 2, *SHAPE, seed=3), oblique(6, seed=4)
    shared = rand(13, 2, seed=5) * 6 - 1
    each = rand(6, 7, 2, seed=6) * 6 - 1
    for pixels in (shared, each, shared[:1]):
        both(device, values, frames, pixels=pixels, **options_of(method, beam))


@every_beam
@every_method
def test_one_view_may_stand_for_the_pixels_of_all(method, beam, device) -> None:
    frames, pixels = oblique(3).to(device), (rand(1, 4, 2, seed=6) * 4).to(device)
    values = rand(*SHAPE).to(device)
    given = drrkit.project(values, frames, SIZE, pixels=pixels, **options_of(method, beam))
    shared = drrkit.project(values, frames, SIZE, pixels=pixels[0], **options_of(method, beam))
    assert given.shape == (3, 1, 4) and torch.equal(given, shared)


@every_beam
@pytest.mark.parametrize(
    "shape", [(1, 6, 7), (5, 1, 7), (5, 6, 1), (1, 1, 7), (1, 6, 1), (1, 1, 1)]
)
@every_method
def test_grids_one_voxel_thick_equal_the_oracle(method, shape, beam, device) -> None:
    values = rand(2, *shape, seed=7)
    for near, far, seed in ((2.5, 2.5, 0), (0.3, 0.4, 20)):
        frames = six_views(seed=seed, shape=shape, near=near, far=far, pitch=0.4)
        assert bool(both(device, values, frames, **options_of(method, beam)).any())


@every_beam
@pytest.mark.parametrize("offset", [0.0, 0.25, 0.5, -0.5])
@every_method
def test_rays_along_the_axes_equal_the_oracle(method, offset, beam, device) -> None:
    # Offset 0: rays through voxel centres, where interpolation cells meet; 1/2: along voxel faces.
    values, frames = rand(*SHAPE, seed=8), axis_parallel(offset)
    found = drrkit.project(values.to(device), frames.to(device), (9, 9), **options_of(method, beam))
    expected = oracle.project(values, frames, (9, 9), **options_of(method, beam))
    if beam == "parallel":
        assert bool((expected == 0).any()) and bool(expected.any())  # the border is in view
    assert relative(found.cpu(), expected) <= IMAGE_TOLERANCE


@every_beam
@every_method
def test_rays_in_a_plane_of_two_axes_have_the_oracles_derivatives(method, beam, device) -> None:
    frames = six_views(seed=31)
    for axis in range(3):
        flat = frames.clone()
        flat[:, :2, axis], flat[:, 2:, axis] = 1.27, 0.0
        both(device, rand(*SHAPE, seed=9), flat, **options_of(method, beam))


@every_beam
@every_method
def test_ends_on_voxel_centres_and_faces_and_equal_slopes_equal_the_oracle(
    method, beam, device
) -> None:
    for seed in range(4):
        frames = 20 * (rand(12, 4, 3, seed=seed) - 0.5) + 2.5
        frames[:, 2:] *= 0.05
        frames = (2 * frames).round() / 2 if seed % 2 else frames.round()
        frames[:4, 1, 1] = frames[:4, 0, 1] + (frames[:4, 1, 0] - frames[:4, 0, 0])  # ties of |d|
        values = rand(*SHAPE, seed=seed)
        found = drrkit.project(
            values.to(device), frames.to(device), (3, 3), **options_of(method, beam)
        )
        expected = oracle.project(values, frames, (3, 3), **options_of(method, beam))
        assert relative(found.cpu(), expected) <= IMAGE_TOLERANCE


@every_beam
@every_method
def test_rays_grazing_the_border_equal_the_oracle(method, beam, device) -> None:
    # Along y, at distances in x about the ends of the support: -1, -1/2, n - 1/2 and n.
    edge = torch.tensor([-1.0, -0.5, 0.0, 6.0, 6.5, 7.0], dtype=torch.float64)
    beside = torch.tensor([-1e-3, -1e-9, 1e-9, 1e-3], dtype=torch.float64)
    lateral = (edge[:, None] + beside).reshape(-1, 1)
    frames = torch.zeros(len(lateral), 4, 3, dtype=torch.float64)
    frames[:, 0, 1], frames[:, 1, 1] = -4.0, 11.0
    frames[:, :2, 0], frames[:, :2, 2] = lateral, 1.7
    frames[:, 2, 2], frames[:, 3, 2] = 0.3, 0.7
    both(device, rand(*SHAPE, seed=10), frames, (2, 2), **options_of(method, beam))


@every_beam
@every_method
def test_every_image_size_and_channel_count_equals_the_oracle(method, beam, device) -> None:
    # Sizes around the widths of vector registers and warps, channels around any unrolling.
    frames = oblique(2, seed=12)
    for size, channels in (((1, 1), 1), ((1, 17), 2), ((33, 1), 4), ((3, 5), 5), ((7, 9), 9)):
        pitched = frames.clone()
        pitched[:, 2:] *= 4.0 / max(size)
        both(device, rand(channels, *SHAPE, seed=11), pitched, size, **options_of(method, beam))


@every_beam
@every_method
def test_far_sources_lose_only_the_digits_of_their_coordinates(method, beam, device) -> None:
    for view, distance in enumerate((1e3, 1e4, 1e6)):
        frames = six_views(seed=13, near=distance, far=distance)
        tolerance = 1e-14 * distance
        both(
            device,
            rand(*SHAPE, seed=12),
            frames[view : view + 1],  # the oracle's samples are those of all views together
            image_tolerance=tolerance,
            gradient_tolerance=100 * tolerance,
            **options_of(method, beam),
        )


@pytest.mark.parametrize("step", [0.05, 0.8, 3.0, 50.0])
@pytest.mark.parametrize("anchor", ["source", "foot"])
def test_every_step_length_equals_the_oracle(step, anchor, device) -> None:
    options = {"method": "trilinear", "step": step, "anchor": anchor, "spacing": SPACING}
    both(device, rand(*SHAPE, seed=13), six_views(seed=14), **options)


def test_the_default_step_is_half_the_smallest_spacing(device) -> None:
    values, frames = rand(*SHAPE).to(device), six_views().to(device)
    given = {"method": "trilinear", "spacing": (1.4, 0.6, 1.1)}
    default = drrkit.project(values, frames, SIZE, **given)
    assert torch.equal(default, drrkit.project(values, frames, SIZE, step=0.3, **given))


def test_no_voxel_outside_the_volume_is_read(device) -> None:
    # NaN all around the volume in memory: reading one, even with weight zero, shows.
    for shape in (SHAPE, (1, 4, 4), (4, 1, 4), (4, 4, 1), (1, 1, 1), (2, 2, 2)):
        count = math.prod(shape)
        memory = torch.full((count + 4000,), math.nan, dtype=torch.float64, device=device)
        memory[2000 : 2000 + count] = rand(count, seed=15).to(device)
        values = memory[2000 : 2000 + count].view(shape)
        for method, kind in [(m, k) for m in METHODS for k in ("wide", "axes", "inside")]:
            frames = {
                "wide": six_views(seed=16, shape=shape, pitch=0.7),
                "axes": axis_parallel(),
                "inside": six_views(seed=17, shape=shape, near=0.4, far=0.5, pitch=0.3),
            }[kind].to(device)
            frames.requires_grad_()
            image = drrkit.project(values, frames, (9, 9), **options_of(method, "cone"))
            (gradient,) = torch.autograd.grad(image.sum(), frames)
            assert bool(image.isfinite().all()), (shape, method, kind)
            assert bool(gradient.isfinite().all()), (shape, method, kind)


@every_beam
@every_option
def test_backproject_is_the_oracles_adjoint_for_every_shape(method, beam, device) -> None:
    frames = oblique(6, seed=18)
    for shape in (SHAPE, (2, *SHAPE), (3, 2, *SHAPE), (6, 1, *SHAPE)):
        channels = 1 if len(shape) == 3 else shape[-4]
        images = randn(6, channels, *SIZE, seed=19)
        found = drrkit.backproject(
            images.to(device), frames.to(device), shape, **options_of(method, beam)
        )
        probe = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        image = oracle.project(probe, frames, SIZE, **options_of(method, beam))
        (expected,) = torch.autograd.grad(image, probe, images)
        assert found.shape == tuple(shape) and found.dtype == torch.float64
        assert relative(found.cpu(), expected) <= IMAGE_TOLERANCE


@every_beam
@every_method
def test_the_first_derivatives_of_backproject_equal_the_oracle(method, beam, device) -> None:
    # <W, P*(g; f)> = <P(f) W, g>, whose derivatives in g and f the oracle knows.
    pixels = rand(11, 2, seed=20) * 4
    for points in (None, pixels):
        images = randn(4, 2, *(SIZE if points is None else (11,)), seed=21)
        weights, frames = rand(2, 2, *SHAPE, seed=22), oblique(4, seed=23)
        options = options_of(method, beam)
        where = [t.detach().clone().to(device).requires_grad_() for t in (images, frames)]
        given = {} if points is None else {"pixels": points.to(device)}
        volume = drrkit.backproject(*where, weights.shape, **given, **options)
        found = torch.autograd.grad((volume * weights.to(device)).sum(), where)
        truth = [t.detach().clone().requires_grad_() for t in (images, frames)]
        image = oracle.project(weights, truth[1], SIZE, pixels=points, **options)
        expected = torch.autograd.grad((image * truth[0]).sum(), truth)
        for a, b in zip(found, expected, strict=True):
            assert relative(a.cpu(), b) <= GRADIENT_TOLERANCE


@every_beam
@every_method
def test_gradcheck_passes_in_values_frames_and_pixels(method, beam, device) -> None:
    values = rand(2, 2, 3, 4, 3, seed=24).to(device).requires_grad_()
    frames = six_views(seed=25, shape=(3, 4, 3), pitch=0.4)[[0, 2, 4, 5]].to(device)
    frames.requires_grad_()
    pixels = (rand(5, 2, seed=26) * 4).to(device).requires_grad_()
    options = options_of(method, beam)

    def image(values: Tensor, frames: Tensor) -> Tensor:
        return drrkit.project(values, frames, (3, 2), **options)

    def chosen(values: Tensor, frames: Tensor, pixels: Tensor) -> Tensor:
        return drrkit.project(values, frames, (1, 1), pixels=pixels, **options)

    assert torch.autograd.gradcheck(image, (values, frames), eps=1e-7, atol=1e-6)
    assert torch.autograd.gradcheck(chosen, (values, frames, pixels), eps=1e-7, atol=1e-6)


@every_beam
@every_method
def test_gradcheck_of_backproject_passes_in_images_and_frames(method, beam, device) -> None:
    images = randn(4, 2, 3, 2, seed=27).to(device).requires_grad_()
    frames = six_views(seed=25, shape=(3, 4, 3), pitch=0.4)[[0, 2, 4, 5]].to(device)
    frames.requires_grad_()

    def volume(images: Tensor, frames: Tensor) -> Tensor:
        return drrkit.backproject(images, frames, (2, 2, 3, 4, 3), **options_of(method, beam))

    assert torch.autograd.gradcheck(volume, (images, frames), eps=1e-7, atol=1e-6)


# ---- dtypes and layouts


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_method
def test_half_precision_voxels_are_rendered_as_their_float32_values(method, dtype, device) -> None:
    half = rand(2, *SHAPE, seed=28).to(device, dtype).requires_grad_()
    single = half.detach().float().requires_grad_()
    frames = oblique(2).to(device)
    images = [drrkit.project(v, frames, SIZE, **options_of(method, "cone")) for v in (half, single)]
    assert images[0].dtype == torch.float32
    assert relative(images[0].detach(), images[1].detach()) <= 1e-6
    gradients = [
        torch.autograd.grad(i.sum(), v)[0] for i, v in zip(images, (half, single), strict=True)
    ]
    assert gradients[0].dtype == dtype
    torch.testing.assert_close(gradients[0], gradients[1].to(dtype), rtol=1e-2, atol=1e-3)


@every_method
def test_float32_frames_are_taken_at_their_value_and_get_a_float32_gradient(method, device) -> None:
    values, single = rand(*SHAPE).to(device), oblique(2).to(device, torch.float32).requires_grad_()
    double = single.detach().double().requires_grad_()
    options = options_of(method, "cone")
    images = [drrkit.project(values, f, SIZE, **options) for f in (single, double)]
    assert images[0].dtype == torch.float64 and torch.equal(*images)
    found, expected = (
        torch.autograd.grad(i.sum(), f)[0] for i, f in zip(images, (single, double), strict=True)
    )
    assert found.dtype == torch.float32 and torch.equal(found, expected.float())


@every_method
def test_memory_layout_does_not_matter(method, device) -> None:
    options = options_of(method, "cone")
    values, frames = rand(2, 3, *SHAPE, seed=29).to(device), oblique(4).to(device)
    pixels, weights = (rand(9, 2) * 4).to(device), randn(4, 3, 9).to(device)

    def everything(values: Tensor, frames: Tensor, pixels: Tensor, weights: Tensor) -> list[Tensor]:
        inputs = [t.detach().requires_grad_() for t in (values, frames, pixels)]
        image = drrkit.project(inputs[0], inputs[1], SIZE, pixels=inputs[2], **options)
        volume = drrkit.backproject(weights, frames, values.shape, pixels=pixels, **options)
        return [image, volume, *torch.autograd.grad(image, inputs, weights)]

    def scattered(t: Tensor) -> Tensor:
        """Every second element of a larger tensor with its dimensions in reverse order."""
        large = torch.full(tuple(2 * n for n in t.shape[::-1]), math.nan, device=device).double()
        view = large.permute(*range(t.dim() - 1, -1, -1))[(slice(None, None, 2),) * t.dim()]
        return view.copy_(t)

    inputs = (values, frames, pixels, weights)
    for a, b in zip(everything(*inputs), everything(*map(scattered, inputs)), strict=True):
        assert relative(a, b) <= 1e-14


@every_method
def test_expanded_inputs_equal_their_copies(method, device) -> None:
    options = options_of(method, "parallel")
    leaf_values, leaf_frame = rand(1, 1, *SHAPE).to(device), oblique(1).to(device)
    leaves = [t.requires_grad_() for t in (leaf_values, leaf_frame)]
    values, frames = leaf_values.expand(3, 2, -1, -1, -1), leaf_frame.expand(3, -1, -1)
    results = []
    for v, f in ((values, frames), (values.clone(), frames.clone())):
        image = drrkit.project(v, f, SIZE, **options)
        gradients = torch.autograd.grad(image.sum(), leaves)  # .sum(): a cotangent of stride 0
        results.append([image.detach(), *gradients])
    for a, b in zip(*results, strict=True):
        assert relative(a, b) <= IMAGE_TOLERANCE


@every_beam
@every_method
def test_no_views_and_no_pixels_give_empty_images_with_zero_gradients(method, beam, device) -> None:
    options = options_of(method, beam)
    values = rand(2, *SHAPE).to(device).requires_grad_()
    none = torch.zeros(0, 4, 3, dtype=torch.float64, device=device, requires_grad=True)
    image = drrkit.project(values, none, SIZE, **options)
    assert image.shape == (0, 2, *SIZE)
    gradients = torch.autograd.grad(image.sum(), (values, none))
    assert gradients[0].shape == values.shape and not gradients[0].any()
    assert gradients[1].shape == (0, 4, 3)
    assert not drrkit.backproject(image.detach(), none, (2, *SHAPE), **options).any()

    frames = oblique(3).to(device).requires_grad_()
    pixels = torch.zeros(0, 2, dtype=torch.float64, device=device)
    image = drrkit.project(values, frames, SIZE, pixels=pixels, **options)
    assert image.shape == (3, 2, 0)
    for gradient in torch.autograd.grad(image.sum(), (values, frames)):
        assert not gradient.any()
    volume = drrkit.backproject(image.detach(), frames, (2, *SHAPE), pixels=pixels, **options)
    assert volume.shape == (2, *SHAPE) and not volume.any()


# ---- one march, and the same bits every time


@every_method
def test_image_and_pose_gradient_take_one_march(method, device) -> None:
    values, frames = rand(*SHAPE).to(device), oblique(2).to(device)
    pixels = rand(5, 2).to(device) * 3
    options = options_of(method, "cone")
    for points in (None, pixels):
        given = {} if points is None else {"pixels": points}
        wanted = frames.clone().requires_grad_()
        with Launches() as ran:
            drrkit.project(values, wanted, SIZE, **given, **options).sum().backward()
        assert ran.counts == {"project+six": 1, "reduce": 1}
        with Launches() as ran:
            drrkit.project(values, frames, SIZE, **given, **options)
        assert ran.counts == {"project": 1}
        with Launches() as ran, torch.no_grad():
            drrkit.project(values, wanted, SIZE, **given, **options)
        assert ran.counts == {"project": 1}
        trained = values.clone().requires_grad_()
        with Launches() as ran:
            drrkit.project(trained, frames, SIZE, **given, **options).sum().backward()
        assert ran.counts == {"project": 1, "backproject": 1}
        with Launches() as ran:
            drrkit.project(trained, wanted, SIZE, **given, **options).sum().backward()
        assert ran.counts == {"project+six": 1, "reduce": 1, "backproject": 1}


def large_scene(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Values [2, 20, 22, 24] and frames [3, 4, 3] for images of 61 x 47 pixels: many tasks."""
    frames = six_views(seed=30, shape=(20, 22, 24), size=(61, 47), pitch=0.9)[::2]
    return rand(2, 20, 22, 24, seed=31).to(dtype), frames


every_arithmetic = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@every_arithmetic
@every_option
def test_image_and_pose_gradient_are_the_same_bits_over_runs_and_threads(
    method, dtype, device
) -> None:
    values, frames = (t.to(device) for t in large_scene(dtype))
    weights = randn(3, 2, 61, 47).to(device, dtype)
    results = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        pose = frames.clone().requires_grad_()
        image = drrkit.project(values, pose, (61, 47), **options_of(method, "cone"))
        results.append([image, *torch.autograd.grad(image, pose, weights)])
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], again, strict=True))


@every_arithmetic
@every_method
def test_the_volume_gradient_is_the_same_bits_over_runs_when_asked(method, dtype, device) -> None:
    values, frames = (t.to(device) for t in large_scene(dtype))
    images = randn(3, 2, 61, 47).to(device, dtype)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    try:
        first, *others = (
            drrkit.backproject(images, frames, values.shape, **options_of(method, "cone"))
            for _ in range(4)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(first, again) for again in others)
