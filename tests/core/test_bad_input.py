"""What the projector does with what it cannot take: an error that names argument and finding.

NaN and infinite numbers in tensors are no errors: they reach the pixels they belong to, and no ray,
however wild, ends the process, hangs it or touches another ray.
"""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import drrkit
from tests.support.scenes import BEAMS, LINES, METHODS, SHAPE, SPACING, oblique, rand, six_views

SIZE = (4, 5)
NAN, INF = math.nan, math.inf
ALL = {**METHODS, **LINES}


def volume(unit: str = "mu", **change: Any) -> drrkit.Volume:
    given = {"values": rand(*SHAPE), "spacing": SPACING, "unit": unit, **change}
    return drrkit.Volume(**given)


def camera(**change: Any) -> drrkit.Camera:
    return drrkit.Camera(
        **{"K": drrkit.CArm(40.0, SIZE, 1.0).K, "size": SIZE, "sdd": 40.0} | change
    )


def pose() -> Tensor:
    return drrkit.view_ap(volume(), 20.0)


def on_meta(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float64, device="meta")


def of_project(**change: Any) -> Tensor:
    given = {"values": rand(2, 1, *SHAPE), "frames": oblique(4), "size": SIZE, **change}
    return drrkit.project(given.pop("values"), given.pop("frames"), given.pop("size"), **given)


def of_backproject(**change: Any) -> Tensor:
    given = {"images": rand(4, 2, *SIZE), "frames": oblique(4), "shape": (2, 2, *SHAPE), **change}
    return drrkit.backproject(given.pop("images"), given.pop("frames"), given.pop("shape"), **given)


def of_render(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(**change: Any) -> Any:
        given = {"volume": volume(), "camera": camera(), "world_to_camera": pose(), **change}
        scene = [given.pop(name) for name in ("volume", "camera", "world_to_camera")]
        return function(*scene, **given)

    return call


def by_projector(volume: Any, camera: Any, world_to_camera: Any, **options: Any) -> Tensor:
    return drrkit.Projector(volume, camera, **options)(world_to_camera)


Case = tuple[dict[str, Any], type[Exception], str, str]
"""Changed arguments, the error, the argument its message starts with, and what it quotes."""

OPTIONS: list[Case] = [
    ({"method": "raycast"}, ValueError, "method", "'raycast'"),
    ({"method": None}, ValueError, "method", "None"),
    ({"method": ["joseph"]}, ValueError, "method", "['joseph']"),
    ({"method": "trilinear", "step": 0.0}, ValueError, "step", "0.0"),
    ({"method": "trilinear", "step": -1.0}, ValueError, "step", "-1.0"),
    ({"method": "trilinear", "step": NAN}, ValueError, "step", "nan"),
    ({"method": "trilinear", "step": INF}, ValueError, "step", "inf"),
    ({"method": "trilinear", "step": "fine"}, TypeError, "step", "fine"),
    ({"method": "trilinear", "step": [1.0]}, TypeError, "step", "1.0"),
    ({"step": 0.5}, ValueError, "step", "'joseph'"),
    ({"method": "siddon", "anchor": "foot"}, ValueError, "anchor", "'siddon'"),
    ({"derivative": "line"}, ValueError, "derivative", "'joseph'"),
    ({"method": "trilinear", "anchor": "centre"}, ValueError, "anchor", "'centre'"),
    ({"method": "trilinear", "derivative": "none"}, ValueError, "derivative", "'none'"),
]

GEOMETRY: list[Case] = [
    ({"frames": None}, TypeError, "frames", "NoneType"),
    ({"frames": oblique(4).numpy()}, TypeError, "frames", "ndarray"),
    ({"frames": oblique(4).long()}, TypeError, "frames", "int64"),
    ({"frames": oblique(4).half()}, TypeError, "frames", "float16"),
    ({"frames": oblique(4)[0]}, ValueError, "frames", "(4, 3)"),
    ({"frames": oblique(4)[:, :3]}, ValueError, "frames", "(4, 3, 3)"),
    ({"frames": oblique(4).mT}, ValueError, "frames", "(4, 3, 4)"),
    ({"frames": on_meta(4, 4, 3)}, ValueError, "frames", "meta"),
    ({"spacing": (0.0, 1.0, 1.0)}, ValueError, "spacing", "0.0"),
    ({"spacing": (1.0, -2.0, 1.0)}, ValueError, "spacing", "-2.0"),
    ({"spacing": (1.0, NAN, 1.0)}, ValueError, "spacing", "nan"),
    ({"spacing": (1.0, 1.0, INF)}, ValueError, "spacing", "inf"),
    ({"spacing": (1.0, 1.0)}, ValueError, "spacing", "(1.0, 1.0)"),
    ({"spacing": 1.0}, TypeError, "spacing", "1.0"),
    ({"spacing": None}, TypeError, "spacing", "None"),
    ({"spacing": ("a", "b", "c")}, TypeError, "spacing", "'a'"),
    ({"beam": "fan"}, ValueError, "beam", "'fan'"),
    ({"beam": None}, ValueError, "beam", "None"),
    ({"pixels": [[0, 1]]}, TypeError, "pixels", "list"),
    ({"pixels": torch.zeros(5, 2, dtype=torch.int64)}, TypeError, "pixels", "int64"),
    ({"pixels": torch.zeros(2)}, ValueError, "pixels", "(2,)"),
    ({"pixels": torch.zeros(5, 3)}, ValueError, "pixels", "(5, 3)"),
    ({"pixels": torch.zeros(3, 5, 2)}, ValueError, "pixels", "3"),
    ({"pixels": torch.zeros(1, 4, 5, 2)}, ValueError, "pixels", "(1, 4, 5, 2)"),
    ({"pixels": on_meta(5, 2)}, ValueError, "pixels", "meta"),
]

PROJECT: list[Case] = [
    ({"values": None}, TypeError, "values", "NoneType"),
    ({"values": np.zeros(SHAPE)}, TypeError, "values", "ndarray"),
    ({"values": volume()}, TypeError, "values", "Volume"),
    ({"values": torch.zeros(SHAPE, dtype=torch.int16)}, TypeError, "values", "int16"),
    ({"values": torch.zeros(SHAPE, dtype=torch.complex64)}, TypeError, "values", "complex64"),
    ({"values": torch.zeros(SHAPE, dtype=torch.bool)}, TypeError, "values", "bool"),
    ({"values": torch.zeros(6, 7)}, ValueError, "values", "(6, 7)"),
    ({"values": torch.zeros(1, 1, 1, *SHAPE)}, ValueError, "values", "(1, 1, 1, 5, 6, 7)"),
    ({"values": torch.zeros(5, 0, 7)}, ValueError, "values", "(5, 0, 7)"),
    ({"values": torch.zeros(0, 1, *SHAPE)}, ValueError, "values", "(0, 1, 5, 6, 7)"),
    ({"values": torch.zeros(0, *SHAPE)}, ValueError, "values", "(0, 5, 6, 7)"),
    ({"values": torch.zeros(3, 1, *SHAPE)}, ValueError, "values", "3 volumes"),
    ({"values": torch.zeros(8, 1, *SHAPE)}, ValueError, "values", "8 volumes"),
    ({"values": on_meta(*SHAPE)}, ValueError, "frames", "cpu"),
    ({"size": (4,)}, ValueError, "size", "(4,)"),
    ({"size": (4, 5, 6)}, ValueError, "size", "(4, 5, 6)"),
    ({"size": (0, 5)}, ValueError, "size", "(0, 5)"),
    ({"size": (4, -5)}, ValueError, "size", "-5"),
    ({"size": (4.0, 5)}, ValueError, "size", "4.0"),
    ({"size": (True, 5)}, ValueError, "size", "True"),
    ({"size": "45"}, ValueError, "size", "4"),
    ({"size": 4}, TypeError, "size", "4"),
    ({"size": None}, TypeError, "size", "None"),
]

BACKPROJECT: list[Case] = [
    ({"images": None}, TypeError, "images", "NoneType"),
    ({"images": torch.zeros(4, 2, *SIZE, dtype=torch.int32)}, TypeError, "images", "int32"),
    ({"images": rand(4, *SIZE)}, ValueError, "images", "(4, 4, 5)"),
    ({"images": rand(4, 2, *SIZE), "pixels": rand(5, 2)}, ValueError, "images", "(4, 2, 4, 5)"),
    ({"images": rand(3, 2, *SIZE)}, ValueError, "images", "3"),
    ({"images": on_meta(4, 2, *SIZE)}, ValueError, "frames", "cpu"),
    ({"images": rand(4, 2, 6), "pixels": rand(5, 2)}, ValueError, "pixels", "5"),
    ({"images": rand(4, 2, 0, 5)}, ValueError, "images", "0"),
    ({"shape": (6, 7)}, ValueError, "shape", "(6, 7)"),
    ({"shape": (1, 2, 2, *SHAPE)}, ValueError, "shape", "(1, 2, 2, 5, 6, 7)"),
    ({"shape": (2, 2, 5, 0, 7)}, ValueError, "shape", "0"),
    ({"shape": (2, 2, 5, 6.0, 7)}, ValueError, "shape", "6.0"),
    ({"shape": (2, 2, 5, -6, 7)}, ValueError, "shape", "-6"),
    ({"shape": SHAPE}, ValueError, "shape", "(5, 6, 7)"),
    ({"shape": (3, *SHAPE)}, ValueError, "shape", "(3, 5, 6, 7)"),
    ({"shape": (3, 2, *SHAPE)}, ValueError, "shape", "3 volumes"),
    ({"shape": None}, TypeError, "shape", "None"),
    ({"shape": 5}, TypeError, "shape", "5"),
]

RENDER: list[Case] = [
    ({"volume": volume("HU")}, ValueError, "volume", "'HU'"),
    ({"volume": rand(*SHAPE)}, TypeError, "volume", "Tensor"),
    ({"volume": None}, TypeError, "volume", "NoneType"),
    ({"camera": torch.eye(3)}, TypeError, "camera", "Tensor"),
    ({"camera": None}, TypeError, "camera", "NoneType"),
    ({"world_to_camera": None}, TypeError, "world_to_camera", "NoneType"),
    ({"world_to_camera": np.eye(4)}, TypeError, "world_to_camera", "ndarray"),
    ({"world_to_camera": torch.eye(4).long()}, TypeError, "world_to_camera", "int64"),
    ({"world_to_camera": torch.eye(3)}, ValueError, "world_to_camera", "3, 3"),
    ({"world_to_camera": torch.zeros(2, 3, 4)}, ValueError, "world_to_camera", "2, 3, 4"),
    ({"world_to_camera": torch.zeros(1, 2, 4, 4)}, ValueError, "world_to_camera", "1, 2, 4, 4"),
    ({"world_to_camera": on_meta(4, 4)}, ValueError, "world_to_camera", "meta"),
    ({"supersample": 0}, ValueError, "supersample", "0"),
    ({"supersample": -2}, ValueError, "supersample", "-2"),
    ({"supersample": 1.5}, ValueError, "supersample", "1.5"),
    ({"supersample": True}, ValueError, "supersample", "True"),
    ({"supersample": "2"}, ValueError, "supersample", "'2'"),
    ({"camera": camera(K=camera().K.expand(3, 3, 3)), "world_to_camera": pose().expand(2, 4, 4)},)
    + (ValueError, "world_to_camera", "2"),
]


def cases() -> list[Any]:
    renders = {
        "render": drrkit.render,
        "Projector": by_projector,
        "project_with_jacobian": drrkit.project_with_jacobian,
    }
    sets = {
        "project": (of_project, PROJECT + GEOMETRY + OPTIONS),
        "backproject": (of_backproject, BACKPROJECT + GEOMETRY + OPTIONS),
        **{name: (of_render(f), RENDER + OPTIONS) for name, f in renders.items()},
    }
    return [
        pytest.param(call, *case, id=f"{name}-{case[2]}-{case[3]}")
        for name, (call, listed) in sets.items()
        for case in listed
    ]


@pytest.mark.parametrize("call, change, error, argument, finding", cases())
def test_bad_arguments_are_refused_by_name_with_what_was_found(
    call, change, error, argument, finding
) -> None:
    if call is of_backproject and "pixels" in change and "images" not in change:
        change = {"images": rand(4, 2, 5), **change}
    with pytest.raises(error) as caught:
        call(**change)
    message = str(caught.value)
    # The name comes first, so that it cannot be missed, and the expectation is stated.
    assert re.match(rf"{argument}\b", message), message
    assert finding in message.split(":", 1)[-1], message
    assert len(message) < 300


def test_what_the_cases_change_is_all_that_is_wrong() -> None:
    assert of_project().shape == (4, 1, *SIZE)
    assert of_backproject().shape == (2, 2, *SHAPE)
    for function in (drrkit.render, by_projector):
        assert of_render(function)().shape == (1, 1, *SIZE)
    image, jacobian = of_render(drrkit.project_with_jacobian)()
    assert image.shape == (1, 1, *SIZE) and jacobian.shape == (1, 1, 6, *SIZE)


@pytest.mark.parametrize("number", [NAN, INF, -INF])
def test_a_volume_with_numbers_that_are_none_is_refused_when_it_is_made(number) -> None:
    values = rand(*SHAPE)
    values[1, 2, 3] = number
    with pytest.raises(ValueError, match=r"^values: .*\(1, 2, 3\).*" + str(number)):
        volume(values=values)


def test_refused_arguments_leave_no_trace() -> None:
    projector = drrkit.Projector(volume(), camera())
    before = projector(pose())
    with pytest.raises(ValueError, match="world_to_camera"):
        projector(torch.eye(3))
    assert torch.equal(projector(pose()), before)


# ---- numbers that are none


@pytest.mark.parametrize("beam", BEAMS)
@pytest.mark.parametrize("number", [NAN, INF])
@pytest.mark.parametrize("method", ALL)
def test_a_frame_that_is_no_number_makes_its_view_nan_and_no_other(
    method, number, beam, device
) -> None:
    for dtype in (torch.float32, torch.float64):
        values = rand(*SHAPE).to(device, dtype)
        for row, column in ((r, c) for r in range(4) for c in range(3)):
            frames = six_views(seed=3)
            frames[2, row, column] = number
            frames = frames.to(device).requires_grad_()
            image = drrkit.project(values, frames, SIZE, beam=beam, **ALL[method])
            (gradient,) = torch.autograd.grad(image.sum(), frames)
            assert bool(image[2].isnan().all())
            assert bool(gradient[2].isnan().all())
            others = [0, 1, 3, 4, 5]
            assert bool(image[others].isfinite().all())
            assert bool(gradient[others].isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_a_voxel_that_is_no_number_shows_in_the_pixels_that_see_it(method, dtype, device) -> None:
    frames, where = six_views(seed=3, pitch=1.2).to(device), (2, 3, 3)
    weight = torch.zeros(SHAPE, dtype=torch.float64, device=device)
    weight[where] = 1
    sees = drrkit.project(weight, frames, (9, 9), **METHODS[method]) > 1e-6
    neighbours = torch.zeros_like(weight)
    neighbours[1:4, 2:5, 2:5] = 1
    near = drrkit.project(neighbours, frames, (9, 9), **METHODS[method]) > 0
    assert bool(sees.any()) and not bool(near.all())
    for number in (NAN, INF):
        values = rand(*SHAPE).to(device, dtype)
        values[where] = number
        image = drrkit.project(values, frames, (9, 9), **METHODS[method])
        assert not bool(image[sees].isfinite().any())
        assert bool(image[~near].isfinite().all())


@pytest.mark.parametrize("method", METHODS)
def test_a_pixel_that_is_no_number_shows_in_the_voxels_that_it_sees(method, device) -> None:
    frames = oblique(1, seed=2).to(device)
    images = torch.zeros(1, 1, *SIZE, dtype=torch.float64, device=device)
    images[0, 0, 2, 2] = 1
    seen = drrkit.backproject(images, frames, SHAPE, **METHODS[method]) > 1e-6
    images[0, 0, 2, 2] = NAN
    volume = drrkit.backproject(images, frames, SHAPE, **METHODS[method])
    assert bool(seen.any()) and bool(volume[seen].isnan().all())
    assert bool(volume[0, 0, 0].isfinite()) or bool(seen[0, 0, 0])


@pytest.mark.parametrize("beam", BEAMS)
@pytest.mark.parametrize("method", ALL)
def test_a_ray_without_length_is_zero_with_a_zero_gradient(method, beam, device) -> None:
    for point in (2.2, 2.0, 1.5, 50.0):  # in a cell, on a voxel centre, on a face, outside
        frames = torch.zeros(1, 4, 3, dtype=torch.float64, device=device)
        frames[:, :2] = point
        values = rand(*SHAPE).to(device).requires_grad_()
        frames.requires_grad_()
        image = drrkit.project(values, frames, (1, 1), beam=beam, **ALL[method])
        gradients = torch.autograd.grad(image.sum(), (values, frames))
        assert float(image.detach()) == 0
        assert not any(bool(g.any()) for g in gradients)


WILD = [0.0, -0.0, 1.0, -0.5, 2.5, 1e9, -1e9, 2.0**24, 2.0**31, 2.0**53, 2.0**63, 1e12, 1e15, 1e19]
WILD += [-1e19, 1e30, -1e30, 1e38, 3e38, 1e300, -1e300, 1e-30, 1e-310, 5e-324, 0.49999999999999994]
WILD += [NAN, INF, -INF]


def wild_rays(count: int, source: random.Random) -> Tensor:
    """Frames [B, 4, 3] for one pixel, of numbers at the ends of what a float can be."""

    def number() -> float:
        return source.choice(WILD) if source.random() < 0.5 else 10 * source.random() - 2

    rays = torch.tensor([[[number() for _ in range(3)] for _ in range(4)] for _ in range(count)])
    rays = rays.double()
    rays[::2, 2:] = 0.0
    for ray in range(0, count, 3):  # some without extent along an axis
        axis = source.randrange(3)
        rays[ray, 1, axis] = rays[ray, 0, axis]
    return rays


# Rays that once ended the process: all samples at one place far outside, in float64 and float32.
HUGE = [
    [[1e38, 9.2e18, 1e38], [1e38, 10.0, 1e38]],
    [[6e38, 12.157, 2.4498], [6e38, 12.157, 3.4498]],
    [[2.0**53, 2.0**31, 1.259], [1e-30, 2.0**31, 1.479]],
    [[3e38, 1e15, 2.0**31], [2.5, 2.923, 2.5]],
    [[-1e19, 0.052, 1e38], [1e30, -1e30, 1e38]],
]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("method", ALL)
def test_wild_frames_neither_crash_nor_disturb_their_neighbours(method, dtype, device) -> None:
    tame = six_views(seed=4)
    huge = torch.tensor(HUGE, dtype=torch.float64)
    huge = torch.cat([huge, torch.zeros_like(huge)], 1)
    rays = torch.cat([huge, wild_rays(1500, random.Random(method)), tame]).to(device)
    values = rand(2, *SHAPE).to(device, dtype).requires_grad_()
    for beam in BEAMS:
        for size in ((1, 1), (2, 3)):
            for frames in (rays, rays.float()):
                frames = frames.detach().requires_grad_()
                image = drrkit.project(values, frames, size, beam=beam, **ALL[method])
                gradients = torch.autograd.grad(image.sum(), (values, frames))
                alone = frames[-6:].detach().requires_grad_()
                expected = drrkit.project(values, alone, size, beam=beam, **ALL[method])
                (gradient,) = torch.autograd.grad(expected.sum(), alone)
                torch.testing.assert_close(image[-6:], expected, rtol=1e-6, atol=1e-6)
                torch.testing.assert_close(gradients[1][-6:], gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_one_million_steps_outside_the_volume_cost_nothing(method, device) -> None:
    """In the processor time of an image from nearby; marched, they would cost 1e5 times as much."""
    values, spent = rand(*SHAPE).to(device), []
    for distances in ({}, {"near": 1e7, "far": 1e7}):
        frames, started = six_views(**distances).to(device), time.process_time()
        for _ in range(10):
            drrkit.project(values, frames, (30, 30), **METHODS[method])
        spent.append(time.process_time() - started)
    assert spent[1] < 100 * spent[0]
