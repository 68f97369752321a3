"""The CUDA kernels' own sources, run on the CPU by tests/cuda_emulation, agree with the CPU ops.

Where there is no C++ compiler these tests fail: nothing else runs the kernels without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cuda_emulation import EmulatedOps, emulated_ops
from scenes import (
    BEAMS,
    FRAMES,
    SHAPE,
    SPACING,
    axis_parallel,
    endpoints,
    oblique,
    rand,
    randn,
    relative,
    towards,
)
from torch import Tensor

import drrkit
from drrkit import _ops

METHODS = {
    "joseph": ("joseph", False, False),
    "siddon": ("siddon", False, False),
    "trilinear": ("trilinear", False, False),
    "line": ("trilinear", True, False),
    "foot": ("trilinear", False, True),
    "line-foot": ("trilinear", True, True),
}
VOXELS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SCALARS = (torch.float32, torch.float64)
SIZE = (5, 11)  # tiles of 8 x 4 hang over both borders
VIEWS, VOLUMES, CHANNELS = 4, 2, 3
TOLERANCE = {torch.float64: 2e-13, torch.float32: 1e-5}


@pytest.fixture
def ops() -> Iterator[EmulatedOps]:
    emulator = emulated_ops()
    emulator.options(seed=1)
    yield emulator
    emulator.options()


def spec_of(
    method: str, beam: str = "cone", size: tuple[int, int] = SIZE, shape: tuple[int, ...] = SHAPE
) -> _ops.Spec:
    name, line, foot = METHODS[method]
    mode = _ops.mode_bits(name, beam, line, foot)
    return _ops.Spec(*shape, *size, *SPACING, mode, 0.37)


def scalar_of(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def agree(found: Tensor, expected: Tensor, what: str) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype, what
    assert torch.equal(found.isnan(), expected.isnan()), what
    # Of the order of 1 all of them, but for derivatives that vanish.
    difference = relative(found.nan_to_num(), expected.nan_to_num(), floor=1.0)
    assert difference <= TOLERANCE[scalar_of(found.dtype)], (what, difference)


def products(values: Tensor, geometry: Tensor, along: Tensor, spec: _ops.Spec) -> dict[str, Tensor]:
    """All six products, of whatever runs behind drrkit._ops now."""
    scalar = scalar_of(values.dtype)
    kept = geometry.dim() == 4
    image, _ = _ops.project(values, geometry, False, spec)
    same, six = _ops.project(values, geometry, True, spec)
    weights = randn(*image.shape, seed=7).to(scalar)
    found = {"image": image, "image with rays": same, "rays": six}
    volumes = values.shape[0]
    found["adjoint"] = _ops.backproject(weights, geometry, None, volumes, spec)
    found["tangent's adjoint"] = _ops.backproject(weights, geometry, along, volumes, spec)
    found["J"] = _ops.reduce_rays(six, weights, kept, spec).to(scalar)
    found["J without weights"] = _ops.reduce_rays(six, None, kept, spec).to(scalar)
    found["T"] = _ops.tangent(six, along, spec)
    if _ops.METHODS[spec.mode & 3] != "trilinear" or not spec.mode & (_ops.LINE | _ops.FOOT):
        second = _ops.second(values, geometry, weights, along, spec)
        found["K a ray"] = second.to(scalar)
        found["K"] = _ops.reduce_rays(second, None, kept, spec).to(scalar)
    return found


def compare(ops: EmulatedOps, *arguments: object) -> None:
    expected = products(*arguments)
    with ops.in_place():
        found = products(*arguments)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        agree(value, expected[name], name)


def volume(dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return rand(VOLUMES, CHANNELS, *shape, seed=1).to(dtype)


@pytest.mark.parametrize("beam", BEAMS)
@pytest.mark.parametrize("dtype", VOXELS)
@pytest.mark.parametrize("method", METHODS)
def test_every_product_agrees_with_the_cpu_from_frames(method, dtype, beam, ops) -> None:
    geometry, along = oblique(VIEWS), 0.1 * oblique(VIEWS, seed=5)
    compare(ops, volume(dtype), geometry, along, spec_of(method, beam))


@pytest.mark.parametrize("rays", [1, 31, 33, 55])
@pytest.mark.parametrize("dtype", VOXELS)
@pytest.mark.parametrize("method", METHODS)
def test_every_product_agrees_with_the_cpu_from_end_points(method, dtype, rays, ops) -> None:
    geometry = endpoints(oblique(VIEWS), SIZE, "cone")[:, :rays].contiguous()
    along = 0.1 * endpoints(oblique(VIEWS, seed=5), SIZE, "cone")[:, :rays].contiguous()
    compare(ops, volume(dtype), geometry, along, spec_of(method))


@pytest.mark.parametrize("kind", FRAMES)
@pytest.mark.parametrize("method", METHODS)
def test_every_product_agrees_with_the_cpu_for_frames_of_every_kind(method, kind, ops) -> None:
    geometry = FRAMES[kind]()
    compare(ops, volume(), geometry, 0.1 * oblique(6, seed=5), spec_of(method))


@pytest.mark.parametrize("offset", [0.0, 0.3])
@pytest.mark.parametrize("method", METHODS)
def test_rays_exactly_along_the_axes_agree_with_the_cpu(method, offset, ops) -> None:
    geometry = axis_parallel(offset)
    compare(ops, volume(), geometry, 0.1 * oblique(6, seed=5), spec_of(method, "parallel"))


@pytest.mark.parametrize("dtype", SCALARS)
@pytest.mark.parametrize("method", METHODS)
def test_a_warp_whose_rays_all_run_along_memory_shares_them(method, dtype, ops) -> None:
    shape = (4, 5, 90)
    values = rand(1, 1, *shape, seed=2).to(dtype)
    along_x = [towards(0, sign=s, shape=shape, size=(8, 16), pitch=0.4, tilt=0.02) for s in (1, -1)]
    compare(
        ops,
        values,
        torch.cat(along_x),
        0.1 * oblique(2, seed=5),
        spec_of(method, size=(8, 16), shape=shape),
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_rays_of_a_warp_may_have_different_dominant_axes(method, ops) -> None:
    wide = [towards(axis, pitch=4.0, near=1.5, far=1.5, seed=axis) for axis in range(3)]
    geometry = torch.cat(wide)
    directions = endpoints(geometry, SIZE, "cone").diff(dim=2)[..., 0, :]
    axes = directions.abs().argmax(-1)
    assert all(len(view.unique()) > 1 for view in axes)
    values = rand(1, 2, *SHAPE, seed=2)
    compare(ops, values, geometry, 0.1 * oblique(3, seed=5), spec_of(method))


@pytest.mark.parametrize("method", METHODS)
def test_a_view_that_is_not_a_number_spoils_itself_alone(method, ops) -> None:
    geometry = oblique(VIEWS)
    geometry[1, 2, 0] = torch.nan
    geometry[2, 1, 1] = torch.inf
    values = volume()
    compare(ops, values, geometry, 0.1 * oblique(VIEWS, seed=5), spec_of(method))
    with ops.in_place():
        image, _ = _ops.project(values, geometry, False, spec_of(method))
    assert image[1].isnan().any() and not image[[0, 3]].isnan().any()


@pytest.mark.parametrize("dtype", SCALARS)
@pytest.mark.parametrize("method", METHODS)
def test_the_deterministic_adjoint_agrees_and_never_depends_on_the_order(
    method, dtype, ops
) -> None:
    spec = spec_of(method)
    weights = randn(VIEWS, CHANNELS, SIZE[0] * SIZE[1], seed=2).to(dtype)
    geometry, along = oblique(VIEWS, seed=3), 0.1 * oblique(VIEWS, seed=5)
    ends = endpoints(geometry, SIZE, "cone"), 0.1 * endpoints(along, SIZE, "cone")
    for rays, tangent in ((geometry, along), ends):  # gathered by voxel; scattered as integers
        for moved in (None, tangent):
            expected = _ops.backproject(weights, rays, moved, VOLUMES, spec)
            orders = []
            for seed in (0, 1, 2):
                ops.options(seed=seed)
                orders.append(ops.backproject(weights, rays, moved, VOLUMES, *spec, True))
            agree(orders[0], expected, "deterministic adjoint")
            assert torch.equal(orders[0], orders[1]) and torch.equal(orders[0], orders[2])


def test_what_is_not_finite_spoils_the_fixed_point_adjoint(ops) -> None:
    geometry, spec = endpoints(oblique(VIEWS), SIZE, "cone"), spec_of("joseph")
    weights = torch.ones(VIEWS, 1, SIZE[0] * SIZE[1])
    weights[0, 0, 27] = torch.inf
    assert ops.backproject(weights, geometry, None, 1, *spec, True).isnan().all()


@pytest.mark.parametrize("method", METHODS)
def test_images_and_reductions_do_not_depend_on_the_order_of_blocks(method, ops) -> None:
    arguments = (volume(torch.float32), oblique(VIEWS), oblique(VIEWS, seed=5), spec_of(method))
    found = []
    for seed in (0, 1, 2):
        ops.options(seed=seed)
        with ops.in_place():
            found.append(products(*arguments))
    for name in ("image", "image with rays", "rays", "J", "J without weights", "T", "K a ray", "K"):
        if name in found[0]:
            assert torch.equal(found[0][name], found[1][name]), name
            assert torch.equal(found[0][name], found[2][name]), name


def test_reductions_over_many_chunks_agree_with_the_cpu(ops) -> None:
    size = (61, 53)  # four chunks, the last one not full
    spec = spec_of("joseph", "parallel", size)
    six = randn(3, 2, 6, size[0] * size[1], seed=1)
    weights = randn(3, 2, size[0] * size[1], seed=2)
    for dtype in SCALARS:
        for ends in (False, True):
            arguments = (six.to(dtype), weights.to(dtype), ends, spec)
            expected = _ops.reduce_rays(*arguments)
            with ops.in_place():
                agree(_ops.reduce_rays(*arguments), expected, "reduction")


def test_several_tangents_at_a_time_agree_with_the_cpu(ops) -> None:
    spec = spec_of("joseph")
    six = randn(VIEWS, CHANNELS, 6, SIZE[0] * SIZE[1], seed=1)
    tangents = randn(VIEWS, 6, 4, 3, seed=2)
    expected = _ops.tangents(six, tangents, spec)
    with ops.in_place():
        agree(_ops.tangents(six, tangents, spec), expected, "six tangents")


def test_nothing_is_launched_for_nothing(ops) -> None:
    before = ops.counts().launches
    spec = spec_of("joseph", size=(0, 7))
    with ops.in_place():
        assert _ops.project(volume(), oblique(VIEWS), True, spec)[0].shape == (VIEWS, CHANNELS, 0)
        nobody = _ops.project(volume(), torch.empty(0, 4, 3).double(), True, spec_of("joseph"))
        assert nobody[0].shape == (0, CHANNELS, SIZE[0] * SIZE[1])
    assert ops.counts().launches == before


def test_gradients_pass_gradcheck_on_the_kernels(ops) -> None:
    values, frames = rand(1, 2, 3, 4, seed=1), oblique(2, seed=1)
    values, frames = values.requires_grad_(), frames.requires_grad_()

    def image(values: Tensor, frames: Tensor) -> Tensor:
        return drrkit.project(values[0], frames, (3, 3), spacing=SPACING)

    with ops.in_place():
        assert torch.autograd.gradcheck(image, (values, frames))
        assert torch.autograd.gradgradcheck(image, (values, frames))
