"""Joseph's volume adjoint by gathering (csrc/cuda/adjoint), run on the CPU by tests/emulator.

The truth is the CPU's own adjoint, which scatters ray by ray and shares no line with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from drrkit._native import ops as _ops
from tests.emulator import EmulatedOps, emulated_ops
from tests.support.scenes import (
    BEAMS,
    FRAMES,
    SHAPE,
    SPACING,
    axis_parallel,
    endpoints,
    generator,
    oblique,
    rand,
    randn,
    relative,
    rotation,
    six_views,
    towards,
)

SIZE = (5, 7)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture
def ops() -> Iterator[EmulatedOps]:
    emulator = emulated_ops()
    emulator.options(seed=1)
    emulator.gathers = True
    yield emulator
    emulator.options()


def spec_of(
    beam: str = "cone",
    size: tuple[int, int] = SIZE,
    shape: tuple[int, ...] = SHAPE,
    spacing: tuple[float, float, float] = SPACING,
) -> _ops.Spec:
    return _ops.Spec(shape, size, spacing, _ops.flags_of("joseph", beam), 0.37)


def cotangents(frames: Tensor, spec: _ops.Spec, channels: int = 1, seed: int = 2) -> Tensor:
    """Positive, so that no sum vanishes by chance."""
    return 0.5 + rand(frames.shape[0], channels, spec.size[0] * spec.size[1], seed=seed)


def compare(
    ops: EmulatedOps,
    frames: Tensor,
    spec: _ops.Spec,
    *,
    channels: int = 1,
    volumes: int = 1,
    dtype: torch.dtype = torch.float64,
    tolerance: float | None = None,
) -> Tensor:
    """The gathered volumes, after they have been found to agree with the CPU's."""
    frames = frames.contiguous()
    weights = cotangents(frames, spec, channels).to(dtype)
    expected = _ops.backproject(weights, frames, None, volumes, spec)
    with ops.in_place():
        found = _ops.backproject(weights, frames, None, volumes, spec)
    assert found.dtype == dtype and found.isfinite().all()
    # Magnitudes are of the order of 1 where there are any.
    assert relative(found, expected, floor=0.01) <= (tolerance or TOLERANCE[dtype])
    return found


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("beam", BEAMS)
def test_gathering_is_the_scattering_adjoint(beam, dtype, ops) -> None:
    for kind, frames in FRAMES.items():
        found = compare(ops, frames(), spec_of(beam), dtype=dtype)
        assert bool(found.any()) == (kind not in ("misses", "before", "behind"))


SHAPES = {
    "one plot exactly": (8, 16, 16),
    "a voxel more than a plot": (9, 17, 17),
    "even": (10, 18, 34),
    "odd": (11, 19, 33),
    "flat": (1, 33, 20),
    "a needle": (17, 1, 2),
    "a single voxel": (1, 1, 1),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_plots_join_without_a_seam(shape, ops) -> None:
    """Rays along every axis and back, denser than voxels and sparser, over all borders."""
    for size, pitch in (((9, 11), 0.7 * max(shape) / 5), ((24, 19), 1.7 * max(shape) / 20)):
        for tilt in (0.05, 0.5):
            frames = six_views(seed=3, shape=shape, size=size, pitch=pitch, tilt=tilt)
            found = compare(ops, frames, spec_of("cone", size, shape))
            assert (found != 0).double().mean() > 0.5


@pytest.mark.parametrize("beam", BEAMS)
def test_views_with_several_dominant_axes_and_directions(beam, ops) -> None:
    """Cones so wide that their rays run along all axes, forth and back."""
    shape, size = (9, 12, 21), (13, 15)
    wide = [
        towards(axis, sign=sign, shape=shape, size=size, pitch=4.0, near=0.3, far=0.2, seed=seed)
        for seed, (axis, sign) in enumerate([(0, 1), (0, -1), (1, 1), (2, -1)])
    ]
    frames = torch.cat(wide)
    directions = endpoints(frames, size, "cone").diff(dim=2)[..., 0, :]
    assert all(len(view.abs().argmax(-1).unique()) == 3 for view in directions)
    compare(ops, frames, spec_of(beam, size, shape))


def uniform(low: float, high: float, source: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=source, dtype=torch.float64))


def any_view(shape: tuple[int, ...], size: tuple[int, int], source: torch.Generator) -> Tensor:
    """A frame [4, 3] from anywhere, sheared detectors and magnifications below 1 included."""
    extent = max(shape)
    centre = (torch.tensor(shape[::-1]).double() - 1) / 2
    right, down, forward = rotation(int(uniform(0, 1e6, source)))
    near, far = extent * 10 ** uniform(-1.5, 1.5, source), extent * uniform(-0.3, 3, source)
    pitch = 10 ** uniform(-1.2, 0.8, source) * max(near + far, 0.1) / max(near, 0.1)
    if uniform(0, 1, source) < 0.5:
        right = right + uniform(-1, 1, source) * down + uniform(-1, 1, source) * forward
        down = down + uniform(-1, 1, source) * forward
    shift = 0.3 * torch.randn(3, generator=source, dtype=torch.float64)
    u, v = pitch * right, pitch * 10 ** uniform(-0.4, 0.4, source) * down
    corner = centre + far * forward - (size[1] - 1) / 2 * u - (size[0] - 1) / 2 * v
    return torch.stack([centre + shift - near * forward, corner, u, v])


@pytest.mark.parametrize("seed", range(40))
def test_random_scenes(seed, ops) -> None:
    source = generator(seed)
    shape = tuple(int(uniform(1, 22, source)) for _ in range(3))
    size = (int(uniform(1, 14, source)), int(uniform(1, 16, source)))
    spacing = tuple(10 ** uniform(-0.7, 0.7, source) for _ in range(3))
    frames = torch.stack([any_view(shape, size, source) for _ in range(3)])
    for beam in BEAMS:
        compare(ops, frames, spec_of(beam, size, shape, spacing))


@pytest.mark.parametrize("offset", [0.0, 0.5, 0.25])
def test_rays_through_voxel_centres_and_faces(offset, ops) -> None:
    compare(ops, axis_parallel(offset), spec_of("parallel"))


def test_rays_on_the_diagonal_belong_to_one_axis(ops) -> None:
    """Ties of the dominant axis, ray by ray: the lowest axis has them, in every patch."""
    shape, size = (9, 10, 11), (7, 9)
    frames = []
    for axis in range(3):
        forward, down = torch.zeros(2, 3, dtype=torch.float64)
        forward[axis], forward[(axis + 1) % 3] = 1, (-1) ** axis
        down[(axis + 2) % 3] = 1
        right = torch.linalg.cross(down, forward) / 2
        corner = torch.tensor([5.0, 4.0, 4.0]).double() - 4 * right - 3 * down
        frames.append(torch.stack([corner - 16 * forward, corner + 16 * forward, right, down]))
    compare(ops, torch.stack(frames), spec_of("parallel", size, shape))
    compare(ops, torch.stack(frames), spec_of("cone", size, shape))


def degenerate() -> dict[str, Tensor]:
    frames = {}
    for name, (u, v) in {
        "collinear steps": (1.0, -0.5),
        "equal steps": (1.0, 1.0),
        "no rows": (1.0, 0.0),
        "no columns": (0.0, 1.0),
        "one ray": (0.0, 0.0),
    }.items():
        frames[name] = oblique(2, seed=3)
        step = frames[name][:, 2].clone()
        frames[name][:, 2], frames[name][:, 3] = u * step, v * step
    steps_along_the_ray = oblique(2, seed=4)
    steps_along_the_ray[:, 3] = 0.1 * (steps_along_the_ray[:, 1] - steps_along_the_ray[:, 0])
    no_length = oblique(2, seed=5)
    no_length[:, 1:2] = no_length[:, :1]
    nothing = torch.zeros(2, 4, 3, dtype=torch.float64)
    return frames | {
        "steps along the ray": steps_along_the_ray,
        "no length": no_length,
        "nothing": nothing,
    }


@pytest.mark.parametrize("beam", BEAMS)
@pytest.mark.parametrize("frames", degenerate().values(), ids=degenerate())
def test_degenerate_detectors(frames, beam, ops) -> None:
    for size in (SIZE, (1, 7), (5, 1), (1, 1)):
        compare(ops, frames, spec_of(beam, size))


def test_frames_that_are_not_numbers_add_nothing_and_spoil_nothing(ops) -> None:
    frames = oblique(4)
    frames[1, 2, 0] = torch.nan
    frames[2, 1, 1] = torch.inf
    compare(ops, frames, spec_of())


@pytest.mark.parametrize("number", [1e12, 1e20, 1e38, 1e200])
def test_wild_frames_come_to_an_end(number, ops) -> None:
    frames = oblique(6)
    frames[0, 0], frames[1, 1], frames[2, 2], frames[3, 3] = number, number, number, -number
    frames[4] *= number
    frames[5] /= number
    weights = torch.ones(6, 1, SIZE[0] * SIZE[1])
    for dtype in TOLERANCE:
        with ops.in_place():
            found = _ops.backproject(weights.to(dtype), frames, None, 1, spec_of())
        assert found.shape == (1, 1, *SHAPE)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("volumes", [1, 2, 6])
def test_channels_and_volumes(channels, volumes, ops) -> None:
    shape = (9, 12, 17)
    frames = six_views(seed=9, shape=shape, pitch=3.0)
    compare(ops, frames, spec_of(shape=shape), channels=channels, volumes=volumes)


def test_many_views(ops) -> None:
    """More bundles than a block looks at together, and than fit its shared memory."""
    shape, size = (4, 5, 18), (3, 4)
    for volumes in (1, 2):
        compare(ops, oblique(100, seed=8), spec_of("cone", size, shape), volumes=volumes)


def test_fewer_views_at_a_time_add_up_to_the_same(ops) -> None:
    shape = (9, 10, 33)
    frames = six_views(seed=4, shape=shape, pitch=4.0)
    spec = spec_of(shape=shape)
    for volumes in (1, 2, 3):
        whole = compare(ops, frames, spec, volumes=volumes)
        few = frames[:volumes]
        arguments = cotangents(few, spec), few, None, volumes, spec, True
        ops.most_workspace = ops.gather_workspace(*arguments)
        before = ops.counts().launches
        part = compare(ops, frames, spec, volumes=volumes)
        assert ops.counts().launches - before >= 3 * len(frames) / volumes
        assert relative(part, whole) <= 1e-14
        ops.most_workspace = 2**40


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_order_of_blocks_and_threads_changes_no_bit(dtype, ops) -> None:
    shape = (10, 18, 17)
    frames = six_views(seed=6, shape=shape, pitch=4.0, tilt=0.4)
    spec, weights = spec_of(shape=shape), randn(6, 3, 35, seed=2).to(dtype)
    found = []
    for seed in (0, None, 1, 2):
        ops.options(seed=seed)
        with ops.in_place():
            found.append(_ops.backproject(weights, frames, None, 2, spec))
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("beam", BEAMS)
def test_gathering_is_matched_to_projecting(beam, ops) -> None:
    """<P V, g> = <V, P* g>, all of it on the kernels."""
    frames, spec = oblique(4, seed=2), spec_of(beam)
    values, weights = rand(2, 3, *SHAPE, seed=1), randn(4, 3, SIZE[0] * SIZE[1], seed=7)
    with ops.in_place():
        image, _ = _ops.project(values, frames, False, spec)
        back = _ops.backproject(weights, frames, None, 2, spec)
    left, right = float((image * weights).sum()), float((values * back).sum())
    assert abs(left - right) <= 1e-12 * float((image * weights).abs().sum())


def test_a_cotangent_that_is_not_a_number_stays_near_its_ray(ops) -> None:
    shape, size = (12, 14, 30), (9, 9)
    frames = towards(2, shape=shape, size=size, pitch=3.5, tilt=0.02, far=3.0)
    spec = spec_of("cone", size, shape)
    weights = torch.ones(1, 1, 81, dtype=torch.float64)
    ray = torch.zeros_like(weights)
    weights[0, 0, 40], ray[0, 0, 40] = torch.nan, 1
    with ops.in_place():
        spoilt = _ops.backproject(weights, frames, None, 1, spec).isnan()
        touched = _ops.backproject(ray, frames, None, 1, spec) != 0
    assert spoilt[touched].all()
    near = torch.nn.functional.max_pool3d(touched.double(), 5, 1, 2) > 0
    assert not spoilt[~near].any()


def asked(ops: EmulatedOps, geometry: Tensor, spec: _ops.Spec, fixed: bool = False) -> int:
    """Bytes of workspace for one float32 volume."""
    return ops.gather_workspace(torch.empty(0, 1), geometry, None, 1, spec, fixed)


def test_gathering_is_chosen_by_sizes_alone(ops) -> None:
    ops.gathers = False
    frames = oblique(2)
    dense = spec_of(size=(200, 200), shape=(128, 128, 128))
    assert asked(ops, frames, dense) > 0
    assert asked(ops, frames, dense) == asked(ops, 2 * frames, dense)
    sparse = spec_of(size=(32, 32), shape=(128, 128, 128))
    tiny = spec_of(size=(200, 200), shape=(16, 16, 16))
    for spec in (sparse, tiny):
        assert asked(ops, frames, spec) == 0
        assert asked(ops, frames, spec, True) > 0  # in a fixed order


@pytest.mark.parametrize("fixed", [False, True])
def test_nothing_but_josephs_adjoint_is_gathered(fixed, ops) -> None:
    frames, dense = oblique(2), spec_of(size=(200, 200), shape=(128, 128, 128))
    for method in ("siddon", "trilinear"):
        other = dense._replace(flags=_ops.flags_of(method, "cone"))
        assert asked(ops, frames, other, fixed) == 0
    images = torch.empty(0, 1)
    assert ops.gather_workspace(images, frames, 0.1 * frames, 1, dense, fixed) == 0


def test_the_workspace_is_bounded(ops) -> None:
    """64 MiB for the views, whatever their number, and less than a quarter of the volume."""
    for views in (1, 10, 1000):
        spec = spec_of(size=(512, 512), shape=(256, 256, 256))
        found = asked(ops, torch.zeros(views, 4, 3).double(), spec)
        assert found <= 2**26 + 0.25 * 4 * 256**3


def test_rays_with_their_own_end_points_are_scattered(ops) -> None:
    frames, spec = oblique(3), spec_of()
    ends = endpoints(frames, SIZE, "cone")
    assert asked(ops, ends, spec, True) == 0
    weights = cotangents(frames, spec)
    expected = _ops.backproject(weights, ends, None, 1, spec)
    with ops.in_place():
        assert relative(_ops.backproject(weights, ends, None, 1, spec), expected) <= 1e-12


def test_what_no_ray_meets_stays_zero(ops) -> None:
    shape, size = (20, 40, 40), (6, 6)
    frames = towards(2, shape=shape, size=size, pitch=1.0, tilt=0.0, near=40.0, far=40.0)
    found = compare(ops, frames, spec_of("cone", size, shape))
    reach = math.ceil(size[0] / 2) + 2
    outside = found.clone()
    outside[..., 20 - reach : 20 + reach, 20 - reach : 20 + reach] = 0
    assert found.any() and not outside.any()
