"""The CUDA kernels' own sources, run on the CPU by tests/emulator, agree with the CPU ops.

Where there is no C++ compiler these tests fail: nothing else runs the kernels without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import c_int, c_int64, c_uint

import numpy as np
import pytest
import torch
from torch import Tensor

import drrkit
from drrkit._native import ops as _ops
from drrkit._native.ops import VOXELS
from tests.emulator import EmulatedOps, emulated_ops, library
from tests.support.scenes import (
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

METHODS = {
    "joseph": ("joseph", False, False),
    "siddon": ("siddon", False, False),
    "trilinear": ("trilinear", False, False),
    "line": ("trilinear", True, False),
    "foot": ("trilinear", False, True),
    "line-foot": ("trilinear", True, True),
}
SCALARS = (torch.float32, torch.float64)
SIZE = (5, 11)  # warps of 8 x 4 hang over both borders
VIEWS, VOLUMES, CHANNELS = 4, 2, 3
ORDERS = (0, None, 1)
"""Of blocks and threads: forwards, backwards and drawn. Where one thread writes what another reads
between the same two barriers, the first two orders see different values."""


@pytest.fixture
def ops() -> Iterator[EmulatedOps]:
    """The kernels, blocks in a shuffled order, on a GPU so small that no launch splits its rays."""
    emulator = emulated_ops()
    emulator.options(seed=1, multiprocessors=0)
    yield emulator
    emulator.options()


def spec_of(
    method: str, beam: str = "cone", size: tuple[int, int] = SIZE, shape: tuple[int, ...] = SHAPE
) -> _ops.Spec:
    name, line, foot = METHODS[method]
    flags = _ops.flags_of(name, beam, line=line, foot=foot)
    return _ops.Spec(shape, size, SPACING, flags, 0.37)


def scalar_of(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def agree(found: Tensor, expected: Tensor, what: str) -> None:
    """To rounding: float64 everywhere; float32 on the average, as a sample that rounding puts into
    the neighbouring cell has another derivative there."""
    assert found.shape == expected.shape and found.dtype == expected.dtype, what
    assert torch.equal(found.isnan(), expected.isnan()), what
    found, expected = found.nan_to_num(), expected.nan_to_num()
    # Of the order of 1 all of them, but for derivatives that vanish.
    largest = relative(found, expected, floor=1.0)
    if found.dtype == torch.float64:
        assert largest <= 2e-13, (what, largest)
    elif found.numel():
        mean = float((found - expected).abs().mean() / max(float(expected.abs().max()), 1.0))
        assert mean <= 2e-6 and largest <= 1e-3, (what, mean, largest)


def products(values: Tensor, geometry: Tensor, along: Tensor, spec: _ops.Spec) -> dict[str, Tensor]:
    """All six products, of whatever runs behind drrkit._native.ops now."""
    scalar = scalar_of(values.dtype)
    kept = geometry.dim() == 4
    image, _ = _ops.project(values, geometry, False, spec)
    same, six = _ops.project(values, geometry, True, spec)
    weights = randn(*image.shape, seed=7).to(image)
    found = {"image": image, "image with rays": same, "rays": six}
    volumes = values.shape[0]
    found["adjoint"] = _ops.backproject(weights, geometry, None, volumes, spec)
    found["tangent's adjoint"] = _ops.backproject(weights, geometry, along, volumes, spec)
    found["J"] = _ops.reduce(six, weights, kept, spec).to(scalar)
    found["J without weights"] = _ops.reduce(six, None, kept, spec).to(scalar)
    found["T"] = _ops.tangent(six, along, spec)
    if not spec.flags & (_ops._C.LINE | _ops._C.FOOT):
        second = _ops.second(values, geometry, weights, along, spec)
        found["K a ray"] = second.to(scalar)
        found["K"] = _ops.reduce(second, None, kept, spec).to(scalar)
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


LONG = {0: (4, 5, 90), 1: (4, 90, 5), 2: (90, 4, 5)}  # [D, H, W], by the long axis


def looking_along(axis: int, size: tuple[int, int]) -> Tensor:
    """Frames [2, 4, 3] along the long axis of LONG[axis] and back."""
    options = {"shape": LONG[axis], "size": size, "pitch": 0.4, "tilt": 0.02}
    return torch.cat([towards(axis, sign=sign, **options) for sign in (1, -1)])


def compare_long(ops: EmulatedOps, axis: int, method: str, dtype: torch.dtype) -> None:
    size, shape = (8, 16), LONG[axis]
    values, along = rand(1, 1, *shape, seed=2).to(dtype), 0.1 * oblique(2, seed=5)
    spec = spec_of(method, size=size, shape=shape)
    compare(ops, values, looking_along(axis, size), along, spec)


@pytest.mark.parametrize("dtype", VOXELS)
@pytest.mark.parametrize("method", METHODS)
def test_lanes_that_share_rays_along_memory_agree_with_the_cpu(method, dtype, ops) -> None:
    compare_long(ops, 0, method, dtype)


@pytest.mark.parametrize("split", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("axis", LONG)
@pytest.mark.parametrize("method", METHODS)
def test_split_rays_agree_with_the_cpu(method, axis, split, ops) -> None:
    method_has = 90 if METHODS[method][0] != "trilinear" else 90 * SPACING[axis] / 0.37
    reached = min(split, max(s for s in (1, 2, 4, 8, 16, 32) if method_has / s >= 16))
    ops.options(seed=2, multiprocessors=split)  # 16 warps in two views
    before = ops.counts().blocks
    values = rand(1, 1, *LONG[axis], seed=2)
    spec = spec_of(method, size=(8, 16), shape=LONG[axis])
    with ops.in_place():
        _ops.project(values, looking_along(axis, (8, 16)), False, spec)
    assert ops.counts().blocks - before == 4 * reached
    for dtype in SCALARS:
        compare_long(ops, axis, method, dtype)


def test_a_launch_is_split_by_its_size_alone(ops) -> None:
    """As far as it fills the GPU, and not beyond what a lane can do with so few samples."""
    spec = spec_of("joseph", size=(16, 16), shape=(4, 600, 4))
    values = rand(1, 1, 4, 600, 4, seed=1).float()
    frames = towards(1, shape=(4, 600, 4), size=(16, 16), pitch=0.2, tilt=0.01)
    for views, multiprocessors, split in ((1, 4, 8), (2, 4, 4), (8, 4, 1), (1, 132, 32)):
        ops.options(multiprocessors=multiprocessors)
        before = ops.counts().blocks
        with ops.in_place():
            _ops.project(values, frames.expand(views, -1, -1), True, spec)
        assert ops.counts().blocks - before == views * 2 * split


SIZES = [(1, 300), (300, 1), (2, 200), (40, 37), (17, 16), (3, 5)]


@pytest.mark.parametrize("multiprocessors", [0, 132])
@pytest.mark.parametrize("turn", ["columns", "rows", "neither"])
@pytest.mark.parametrize("size", SIZES)
def test_images_of_every_shape_are_covered_whichever_way_they_lie(
    size, turn, multiprocessors, ops
) -> None:
    shape, (rows, cols) = (40, 50, 60), size
    centre = torch.tensor([29.5, 24.5, 19.5]).double()
    across = {"columns": (0, 2), "rows": (2, 0), "neither": None}[turn]
    if across is None:
        u, v = torch.tensor([0.5, 0.0, 0.5]).double(), torch.tensor([0.5, 0.0, -0.5]).double()
    else:
        u, v = (0.7 * torch.eye(3, dtype=torch.float64)[axis] for axis in across)
    source = centre - torch.tensor([0.0, 120.0, 0.0]).double()
    corner = centre + torch.tensor([0.3, 90.0, 0.2]).double() - cols / 2 * u - rows / 2 * v
    frames = torch.stack([source, corner, u, v])[None]
    ops.options(seed=1, multiprocessors=multiprocessors)
    values, spec = rand(1, 1, *shape, seed=1), spec_of("joseph", size=size, shape=shape)
    compare(ops, values, frames, 0.1 * oblique(1, seed=5), spec)


def test_more_views_than_a_grid_has_rows(ops) -> None:
    frames = oblique(5).repeat(13200, 1, 1)
    frames[:, 1, 0] += 0.01 * torch.arange(66000)
    values, spec = rand(1, 1, *SHAPE), spec_of("joseph", size=(1, 1))
    expected, _ = _ops.project(values, frames, False, spec)
    with ops.in_place():
        found, _ = _ops.project(values, frames, False, spec)
    agree(found, expected, "image")


@pytest.mark.parametrize("size", [(1, 1), (1, 13), (7, 1), (11, 13)])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 7), (13, 1, 1), (1, 17, 2), (11, 13, 19)])
@pytest.mark.parametrize("method", METHODS)
def test_odd_grids_and_images_agree_with_the_cpu(method, shape, size, ops) -> None:
    views = [towards(axis, shape=shape, size=size, pitch=0.7, seed=axis) for axis in range(3)]
    geometry, along = torch.cat(views), 0.1 * oblique(3, seed=5)
    spec = spec_of(method, size=size, shape=shape)
    compare(ops, rand(1, 5, *shape, seed=1), geometry, along, spec)
    ends = [endpoints(frames, size, "cone") for frames in (geometry, along)]
    compare(ops, rand(3, 1, *shape, seed=2).float(), *ends, spec)


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
            for seed in ORDERS:
                ops.options(seed=seed, multiprocessors=0)
                orders.append(
                    ops.backproject(weights, rays, moved, (VOLUMES, *spec.grid), *spec[1:], True)
                )
            agree(orders[0], expected, "deterministic adjoint")
            assert torch.equal(orders[0], orders[1]) and torch.equal(orders[0], orders[2])


@pytest.mark.parametrize("what", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_spoils_the_fixed_point_adjoint(what, ops) -> None:
    geometry, spec = endpoints(oblique(VIEWS), SIZE, "cone"), spec_of("joseph")
    weights = torch.ones(VIEWS, 1, SIZE[0] * SIZE[1])
    weights[0, 0, 27] = what
    assert ops.backproject(weights, geometry, None, (1, *spec.grid), *spec[1:], True).isnan().all()


@pytest.mark.parametrize("method", METHODS)
def test_images_and_reductions_do_not_depend_on_the_order_of_blocks(method, ops) -> None:
    arguments = (volume(torch.float32), oblique(VIEWS), oblique(VIEWS, seed=5), spec_of(method))
    found = []
    for seed in ORDERS:
        ops.options(seed=seed, multiprocessors=0)
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
            expected = _ops.reduce(*arguments)
            with ops.in_place():
                agree(_ops.reduce(*arguments), expected, "reduction")


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


def grid(name: str, *arguments: object) -> list[int]:
    out = (c_uint * 3)()
    getattr(library(), name)(*arguments, out)
    return list(out)


@pytest.mark.parametrize("threads", [1, 256, 257, 2**31, 2**40 + 1, 3 * 2**43])
def test_grids_hold_every_thread_within_cudas_limits(threads) -> None:
    x, y, z = grid("probe_linear_grid", c_int64(threads), c_int(256))
    assert 1 <= x < 2**31 and 1 <= y <= 65535 and z == 1
    assert threads <= 256 * x * y < threads + 256 * y


@pytest.mark.parametrize("views", [1, 65535, 65536, 300_000, 10**9])
def test_grids_hold_every_view_within_cudas_limits(views) -> None:
    x, y, z = grid("probe_views_grid", c_int64(7), c_int64(views))
    assert x == 7 and 1 <= y <= 65535 and 1 <= z <= 65535
    assert views <= y * z < views + z


HUGE, CORNER = 1300, 10  # 1300^3 voxels are more than 2^31


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("method", ["joseph", "siddon", "trilinear"])
def test_voxels_beyond_32_bit_indices_are_read_and_written(method, axis, ops) -> None:
    """Rays through the last corner of a volume that is empty, and takes no memory, elsewhere."""
    shape, small, size = (HUGE,) * 3, (CORNER,) * 3, (4, 8)
    assert HUGE**3 > 2**31
    frames = towards(axis, shape=small, size=size, tilt=0.1, pitch=0.9, seed=axis)
    moved = frames.clone()
    moved[:, :2] += HUGE - CORNER
    filled = torch.zeros(1, 1, *small, dtype=torch.bfloat16)
    filled[..., 1:-1, 1:-1, 1:-1] = rand(*(CORNER - 2,) * 3).bfloat16()
    values = torch.from_numpy(np.zeros((1, 1, *shape), "uint16")).view(torch.bfloat16)
    values[..., -CORNER:, -CORNER:, -CORNER:] = filled
    corner, whole = spec_of(method, size=size, shape=small), spec_of(method, size=size, shape=shape)
    expected, six = _ops.project(filled, frames, True, corner)
    weights = randn(*expected.shape, seed=3).float()
    adjoint = _ops.backproject(weights, frames, None, 1, corner)
    assert expected.max() > 1
    with ops.in_place():
        found, rays = _ops.project(values, moved, True, whole)
        scattered = _ops.backproject(weights, moved, None, 1, whole)
    # In float32 the place of a sample is known to 1e-4 voxels out there.
    assert relative(found, expected) < 1e-4 and relative(rays, six) < 1e-3
    inner = (..., *[slice(-CORNER + 1, -1)] * 3)
    assert relative(scattered[inner], adjoint[..., 1:-1, 1:-1, 1:-1]) < 1e-3


def test_gradients_pass_gradcheck_on_the_kernels(ops) -> None:
    values, frames = rand(1, 2, 3, 4, seed=1), oblique(2, seed=1)
    values, frames = values.requires_grad_(), frames.requires_grad_()

    def image(values: Tensor, frames: Tensor) -> Tensor:
        return drrkit.project(values[0], frames, (3, 3), spacing=SPACING)

    with ops.in_place():
        assert torch.autograd.gradcheck(image, (values, frames))
        assert torch.autograd.gradgradcheck(image, (values, frames))
