"""The CPU marches tiles of rays through blocks of planes: nothing of that may show.

The volumes are several blocks wide, so that whole blocks, partial ones and the grid's borders all
occur; the frames are dense and sparse, along memory and across it, of one axis and of all three.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import drrkit
from tests.support import oracle
from tests.support.scenes import (
    every_beam,
    every_method,
    options_of,
    rand,
    randn,
    relative,
    six_views,
    towards,
)

SHAPE = (37, 44, 51)  # (D, H, W): blocks of 16 planes along each axis, with a rest
SIZE = (9, 22)  # tiles hang over both borders

SCENES = {
    "dense": {"pitch": 0.6, "tilt": 0.1},  # neighbours share voxels
    "coarse": {"pitch": 2.4, "tilt": 0.1},
    "sparse": {"pitch": 9.0, "tilt": 0.1},  # most of a tile's box is read by nobody
    "mixed": {"pitch": 3.0, "tilt": 0.8},  # dominant axes differ within tiles
    "inside": {"pitch": 1.0, "tilt": 0.3, "near": 0.3, "far": 0.4},  # rays end in the volume
    "diverging": {"pitch": 30.0, "tilt": 0.2, "near": 0.2, "far": 1.2},
}

every_scene = pytest.mark.parametrize("scene", SCENES)


def frames_of(scene: str) -> Tensor:
    return six_views(seed=31, shape=SHAPE, size=SIZE, **SCENES[scene])


@every_method
@every_scene
@every_beam
def test_images_equal_the_oracle(scene, method, beam, device) -> None:
    values, frames = rand(*SHAPE, seed=1), frames_of(scene)
    options = options_of(method, beam)
    expected = oracle.project(values, frames, SIZE, **options)
    found = drrkit.project(values.to(device), frames.to(device), SIZE, **options)
    assert relative(found.cpu(), expected) < 1e-13
    found = drrkit.project(values.float().to(device), frames.to(device), SIZE, **options)
    assert relative(found.cpu().double(), expected) < 3e-6


@every_method
@every_scene
def test_frame_gradients_and_hessians_equal_the_oracle(scene, method, device) -> None:
    values, frames = rand(*SHAPE, seed=2), frames_of(scene)[1:2].requires_grad_()
    weights, direction = randn(1, 1, *SIZE, seed=3), 0.1 * randn(1, 4, 3, seed=4)

    def derivatives(image: Tensor, on: Tensor, where: str) -> list[Tensor]:
        (first,) = torch.autograd.grad(
            (image * weights.to(where)).sum(), on, create_graph=method != "foot"
        )
        if method == "foot":
            return [first.cpu()]
        (second,) = torch.autograd.grad((first * direction.to(where)).sum(), on)
        return [first.detach().cpu(), second.cpu()]

    expected = derivatives(
        oracle.project(values, frames, SIZE, **options_of(method)), frames, "cpu"
    )
    ours = frames.detach().to(device).requires_grad_()
    image = drrkit.project(values.to(device), ours, SIZE, **options_of(method))
    for found, wanted in zip(derivatives(image, ours, device), expected, strict=True):
        assert relative(found, wanted) < 1e-9


@every_method
@every_scene
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_ray_does_not_depend_on_the_rays_around_it(scene, method, dtype) -> None:
    # Cropped images, smaller batches and other tiles around a pixel: the same bits.
    values, frames = rand(2, 1, *SHAPE, seed=5).to(dtype), frames_of(scene)
    frames.requires_grad_()
    image = drrkit.project(values, frames, SIZE, **options_of(method))
    cropped = drrkit.project(values[1:], frames[3:], (5, 13), **options_of(method))
    assert torch.equal(image[3:, :, :5, :13], cropped)
    gradient = torch.autograd.grad(image[5].sum(), frames)[0][5]
    alone = drrkit.project(values[1], frames[5:], SIZE, **options_of(method))
    assert torch.equal(gradient, torch.autograd.grad(alone.sum(), frames)[0][5])


@every_method
def test_narrow_voxels_are_converted_before_anything_is_added(method, device) -> None:
    frames = frames_of("coarse").to(device)
    for dtype in (torch.float16, torch.bfloat16):
        values = rand(*SHAPE, seed=6).to(device, dtype)
        found = drrkit.project(values, frames, SIZE, **options_of(method))
        expected = drrkit.project(values.float(), frames, SIZE, **options_of(method))
        assert relative(found.cpu(), expected.cpu()) < 1e-6


@every_method
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(3, 1, 40), (40, 3, 1), (1, 40, 3), (17, 16, 15), (1, 1, 1)])
def test_thin_volumes_equal_the_oracle(shape, axis, method, device) -> None:
    values = rand(*shape, seed=7)
    frames = towards(axis, shape=shape, size=(6, 7), pitch=0.7, near=4.0, far=3.0, seed=axis)
    expected = oracle.project(values, frames, (6, 7), **options_of(method))
    found = drrkit.project(values.to(device), frames.to(device), (6, 7), **options_of(method))
    assert relative(found.cpu(), expected, floor=1e-3) < 1e-12


def test_a_nan_voxel_spoils_the_rays_that_read_it_and_no_others() -> None:
    values = rand(*SHAPE, seed=8).float()
    frames = frames_of("dense")
    clean = drrkit.project(values, frames, SIZE)
    values[SHAPE[0] // 2, SHAPE[1] // 2, SHAPE[2] // 2] = torch.nan
    image = drrkit.project(values, frames, SIZE)
    spoilt = image.isnan()
    touched = drrkit.project(values.isnan().float(), frames, SIZE) > 0
    assert touched.any() and (spoilt | ~touched).all()
    assert spoilt.float().mean() < 0.5
    assert torch.equal(image[~spoilt], clean[~spoilt])


@every_method
@pytest.mark.parametrize("scene", ["dense", "mixed"])
def test_explicit_rays_give_the_image_of_their_frame(scene, method, device) -> None:
    values, frames = rand(*SHAPE, seed=9).to(device), frames_of(scene).to(device)
    options = options_of(method)
    image = drrkit.project(values, frames, SIZE, **options)
    grid = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in SIZE)).to(device)
    order = torch.randperm(len(grid), generator=torch.Generator().manual_seed(0)).to(device)
    chosen = drrkit.project(values, frames, SIZE, pixels=grid[order], **options)
    assert relative(chosen.cpu(), image.flatten(2)[..., order].cpu()) < 1e-12
