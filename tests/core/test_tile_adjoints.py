"""The CPU scatters tiles of rays through sums of boxes: nothing of that may show.

Scenes, volumes and reasons are those of test_tiles: tiles that share boxes, tiles of rays too far
apart for one, and boxes that hang over the grid and over the slabs of the threads.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import jvp

import drrkit
from tests.core.test_tiles import SHAPE, SIZE, every_scene, frames_of
from tests.support.scenes import (
    every_beam,
    every_method,
    options_of,
    rand,
    randn,
    relative,
    towards,
)

VIEWS, CHANNELS, VOLUMES = 6, 2, 3


def agree(x: Tensor, y: Tensor, expected_x: Tensor, expected_y: Tensor) -> bool:
    """Whether two inner products are equal, to rounding of the terms they sum."""
    found, expected = x * y, expected_x * expected_y
    scale = float(expected.abs().sum())
    return scale > 0 and abs(float(found.sum() - expected.sum())) < 1e-12 * scale


@every_beam
@every_method
@every_scene
def test_the_scatter_is_the_adjoint_of_the_march(scene, method, beam, device) -> None:
    """<P x, y> = <x, P* y> and, along a motion of the frames, <T x, y> = <x, T* y>."""
    options = options_of(method, beam)
    frames = frames_of(scene).to(device)
    motion = 0.1 * randn(*frames.shape, seed=41).to(device)
    shape = (VOLUMES, CHANNELS, *SHAPE)
    x = randn(*shape, seed=42).to(device)
    y = randn(VIEWS, CHANNELS, *SIZE, seed=43).to(device)
    image, tangent = jvp(lambda f: drrkit.project(x, f, SIZE, **options), (frames,), (motion,))
    volume, scattered = jvp(
        lambda f: drrkit.backproject(y, f, shape, **options), (frames,), (motion,)
    )
    assert agree(x, volume, image, y)
    assert agree(x, scattered, tangent, y)


@every_method
@every_scene
def test_each_channel_is_scattered_alone(scene, method, device) -> None:
    frames = frames_of(scene).to(device)
    shape = (VOLUMES, CHANNELS, *SHAPE)
    y = randn(VIEWS, CHANNELS, *SIZE, seed=44).to(device)
    found = drrkit.backproject(y, frames, shape, **options_of(method))
    for n in range(VOLUMES):
        views = slice(2 * n, 2 * n + 2)
        for c in range(CHANNELS):
            alone = drrkit.backproject(
                y[views, c : c + 1], frames[views], SHAPE, **options_of(method)
            )
            assert relative(found[n, c], alone) < 1e-13


@every_method
@every_scene
def test_single_precision_is_as_good_as_it_can_be(scene, method, device) -> None:
    frames = frames_of(scene).to(device)
    motion = 0.1 * randn(*frames.shape, seed=45).to(device)
    y = randn(VIEWS, 1, *SIZE, seed=46).to(device)

    def volumes(images: Tensor) -> list[Tensor]:
        found = jvp(
            lambda f: drrkit.backproject(images, f, SHAPE, **options_of(method)),
            (frames,),
            (motion,),
        )
        return [v.double() for v in found]

    single, double = volumes(y.float()), volumes(y)
    assert relative(single[0], double[0]) < 1e-5
    # A sample on the face of a cell may lie on either side, where the derivative jumps.
    off = (single[1] - double[1]).abs() > 1e-4 * double[1].abs().max()
    assert off.double().mean() < 2e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_method
@every_scene
def test_bits_do_not_depend_on_threads(scene, method, dtype) -> None:
    frames = frames_of(scene)
    motion = 0.1 * randn(*frames.shape, seed=47)
    y = randn(VIEWS, CHANNELS, *SIZE, seed=48).to(dtype)
    shape = (VOLUMES, CHANNELS, *SHAPE)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(
            jvp(
                lambda f: drrkit.backproject(y, f, shape, **options_of(method)),
                (frames,),
                (motion,),
            )
        )
    for volume, tangent in found[1:]:
        assert torch.equal(volume, found[0][0]) and torch.equal(tangent, found[0][1])


@every_method
@every_scene
@pytest.mark.parametrize("threads", [1, 3])
def test_nothing_of_what_was_in_memory_before_comes_out(scene, method, threads) -> None:
    torch.set_num_threads(threads)
    frames, shape = frames_of(scene)[1:3], (2, *SHAPE)
    y = rand(2, 1, *SIZE, seed=53)
    found = []
    for before in (torch.nan, 7.0):
        spoilt = torch.full(shape, before, dtype=y.dtype)  # the next tensor's memory
        del spoilt
        found.append(drrkit.backproject(y, frames, (2, 1, *SHAPE), **options_of(method)))
    assert found[0].isfinite().all() and torch.equal(*found)


@every_method
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(3, 1, 40), (40, 3, 1), (1, 40, 3), (17, 16, 15), (1, 1, 1)])
def test_thin_volumes_get_their_adjoint(shape, axis, method, device) -> None:
    frames = towards(axis, shape=shape, size=(6, 7), pitch=0.7, near=4.0, far=3.0, seed=axis)
    frames = frames.to(device)
    x = rand(*shape, seed=49).to(device)
    y = rand(1, 1, 6, 7, seed=50).to(device)
    image = drrkit.project(x, frames, (6, 7), **options_of(method))
    volume = drrkit.backproject(y, frames, shape, **options_of(method))
    assert agree(x, volume.reshape(shape), image, y)


@every_method
@every_scene
def test_a_nan_pixel_spoils_the_voxels_of_its_ray_and_no_others(scene, method) -> None:
    frames = frames_of(scene)[:1]
    y = rand(1, 1, *SIZE, seed=51).float()
    clean = drrkit.backproject(y, frames, SHAPE, **options_of(method))
    alone = torch.zeros_like(y)
    alone[..., 4, 11] = torch.nan
    y[..., 4, 11] = torch.nan
    ray = drrkit.backproject(alone, frames, SHAPE, **options_of(method))
    found = drrkit.backproject(y, frames, SHAPE, **options_of(method))
    assert 0 < ray.isnan().float().mean() < 0.1
    assert torch.equal(found.isnan(), ray.isnan())
    assert torch.equal(found[~found.isnan()], clean[~found.isnan()])


@every_method
def test_explicit_rays_give_the_adjoint_of_their_frame(method, device) -> None:
    frames = frames_of("mixed").to(device)
    y = randn(VIEWS, 1, *SIZE, seed=52).to(device)
    grid = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in SIZE)).to(device)
    order = torch.randperm(len(grid), generator=torch.Generator().manual_seed(0)).to(device)
    expected = drrkit.backproject(y, frames, SHAPE, **options_of(method))
    found = drrkit.backproject(
        y.flatten(2)[..., order], frames, SHAPE, pixels=grid[order], **options_of(method)
    )
    assert relative(found, expected) < 1e-12
