"""Prepared volumes for CUDA, on the emulator: textures, derivatives, empty bricks, life."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import drrkit
from drrkit._native import ops as _ops
from drrkit._native import pack as _pack
from drrkit._native.pack import Pack
from tests.emulator import library
from tests.emulator.packed import CudaPackedVolume, PackedOps, Stream, capture, emulated_packs
from tests.support.scenes import (
    BEAMS,
    FRAMES,
    SHAPE,
    SPACING,
    axis_parallel,
    endpoints,
    rand,
    relative,
    towards,
)

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("int16", "float16", "float32")
SIZE = (6, 11)
GRID = (19, 34, 27)  # several bricks along each axis, none of them whole


@pytest.fixture
def ops() -> Iterator[PackedOps]:
    with emulated_packs() as emulated:
        emulated.options(seed=1)
        yield emulated
        emulated.options()


def spec_of(
    shape: tuple[int, ...] = GRID, size: tuple[int, int] = SIZE, beam: str = "cone"
) -> _ops.Spec:
    return _ops.Spec(shape, size, SPACING, _ops.flags_of("joseph", beam), 0.4)


def blobs(shape: tuple[int, ...] = GRID, seed: int = 0) -> Tensor:
    """Two small cubes of noise in a volume of zeros, float32."""
    values = torch.zeros(shape)
    depth, height, width = shape
    values[1:4, 5:9, 3:7] = rand(3, 4, 4, seed=seed).float() + 0.1
    values[depth - 4 : depth - 1, height - 6 : height - 1, width - 5 : width - 2] = (
        rand(3, 5, 3, seed=seed + 1).float() + 0.1
    )
    return values


def smooth(shape: tuple[int, ...] = GRID) -> Tensor:
    """A soft ball off the centre, float32: nothing at the border, nothing for a cell to jump at."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    distance = sum((a - 0.1 * i) ** 2 for i, a in enumerate(axes))
    return 0.02 * (0.8 - distance).clamp(min=0) ** 2


def all_around(shape: tuple[int, ...] = GRID, **options: float) -> Tensor:
    """Frames along every axis and back, and one so wide that its rays have all three axes."""
    frames = [
        towards(axis, sign=sign, shape=shape, size=SIZE, seed=3 * axis + sign, **options)
        for axis in range(3)
        for sign in (1, -1)
    ]
    wide = towards(2, shape=shape, size=SIZE, tilt=0.9, pitch=9.0, near=1.4, far=1.2, seed=7)
    return torch.cat([*frames, wide])


def packed(values: Tensor, frames: Tensor, spec: _ops.Spec, kind: str = "int16", rays=False):
    """Images and six-vectors by what is prepared from `values`; nothing else will do."""
    pack = Pack(kind, "joseph")
    handle = pack.handle_of(values)
    assert handle
    result = _ops.project_packed(values, frames, handle, rays, spec)
    assert pack.prepared is not None and pack.prepared.uses == 1
    return result


def exact(values: Tensor, frames: Tensor, spec: _ops.Spec) -> tuple[Tensor, Tensor]:
    """The plain CPU op, in float64."""
    volumes = values.reshape(_pack._shape(values)).double()
    return torch.ops.drrkit.project(volumes, frames, *spec[1:], True)


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative L2."""
    return float((found.double() - expected).norm() / expected.norm())


# ---- images by textures


@pytest.mark.parametrize("beam", BEAMS)
@pytest.mark.parametrize("kind", KINDS)
def test_textures_give_the_image_within_five_in_ten_thousand(kind, beam, ops) -> None:
    values, frames = smooth(), all_around(pitch=1.7)
    spec = spec_of(beam=beam)
    image = packed(values, frames, spec, kind)[0]
    expected = exact(values, frames, spec)[0]
    for view in range(len(frames)):
        assert distance(image[view], expected[view]) <= 5e-4


def test_texels_are_centred_where_voxels_are(ops) -> None:
    # Rays along the axes through voxel centres: no fraction for the hardware to round.
    values = rand(*SHAPE, seed=2).float()
    spec = spec_of(SHAPE, (9, 8), "parallel")
    frames = axis_parallel()
    image = packed(values, frames, spec, "float32")[0]
    assert relative(image.double(), exact(values, frames, spec)[0]) <= 1e-6


def test_halfway_between_voxels_a_texture_gives_their_mean_also_at_the_border(ops) -> None:
    values = rand(*SHAPE, seed=3).float() + 1
    spec = spec_of(SHAPE, (9, 8), "parallel")
    frames = axis_parallel(0.5)  # from half a voxel outside, where one neighbour is zero
    image = packed(values, frames, spec, "float32")[0]
    assert relative(image.double(), exact(values, frames, spec)[0]) <= 1e-6


def test_parallel_rays_beside_an_edge_are_off_by_what_the_documentation_says(ops) -> None:
    """All samples of a ray round their place to the same 1/256: up to 1/512 of the jump each."""
    said = " ".join((ROOT / "docs" / "performance.md").read_text().split())
    assert "a relative L2 norm of 5e-4 over an image, not a bound on each pixel" in said
    assert "can be off by 1/512 of the jump at the edge times the ray's length" in said
    values = torch.zeros(SHAPE)
    values[:, :, 4:] = 1.0
    spec = spec_of(SHAPE, (9, 8), "parallel")
    frames = axis_parallel()
    frames[:, :2, 0] += 100.5 / 256  # as far as can be from what the hardware rounds to
    image = packed(values, frames, spec, "float32")[0]
    off = (image - exact(values, frames, spec)[0]).abs().amax((1, 2))
    lengths = torch.tensor([side * n for side, n in zip(SPACING, SHAPE[::-1], strict=True)])
    worst = lengths.double().repeat_interleave(2) / 512
    assert off[:2].max() <= 1e-5  # across the edge, samples are at voxels
    torch.testing.assert_close(off[2:].double(), worst[2:], rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", FRAMES)
def test_rays_of_every_kind_agree_with_the_values(kind, ops) -> None:
    values = rand(2, *SHAPE, seed=4).float() - 0.3
    frames, spec = FRAMES[kind](), spec_of(SHAPE, (4, 5))
    expected, six = exact(values, frames, spec)
    image = packed(values, frames, spec)[0]
    # One part in 512 of a voxel is what the fractions may be off by, and neighbours differ by 1.
    reach = float(expected.abs().max()) + 1
    assert float((image - expected).abs().max()) <= 4e-3 * reach
    same, found = packed(values, frames, spec, rays=True)
    assert relative(same.double(), expected, floor=1.0) <= 2e-5
    assert relative(found.double(), six, floor=1.0) <= 2e-4


@pytest.mark.parametrize("multiprocessors", [1, 4, 132])
def test_rays_that_lanes_share_give_the_same_image(multiprocessors, ops) -> None:
    shape = (40, 130, 70)  # long enough for eight lanes a ray
    frames = all_around(shape, pitch=1.1)
    values = smooth(shape) + blobs(shape)
    spec = spec_of(shape)
    expected, six = exact(values, frames, spec)
    ops.options(seed=2, multiprocessors=multiprocessors)
    image = packed(values, frames, spec, "float32")[0]
    assert distance(image, expected) <= 2e-3
    image, found = packed(values, frames, spec, rays=True)
    assert relative(image.double(), expected) <= 2e-6
    assert relative(found.double(), six) <= 2e-5


def test_a_view_by_textures_fills_a_large_gpu(ops) -> None:
    """169 squares of 16 x 16 pixels are 1352 warps where every lane has a ray of its own.

    Textures want 32 warps on each of 132 multiprocessors, 4224: 1352 and 2704 are fewer, 5408 is
    what four lanes a ray make. Marches that read voxels have registers for 16, 2112 on all of them,
    and two lanes a ray make 2704. A block has four warps.
    """
    ops.options(multiprocessors=132)
    spec = spec_of((4, 128, 4), (200, 200))
    frames = towards(1, shape=(4, 128, 4), size=(200, 200), pitch=0.1, tilt=0.01)
    values = rand(4, 128, 4, seed=1).float()
    for rays, blocks in ((False, 5408 // 4), (True, 2704 // 4)):
        before = ops.counts().blocks
        packed(values, frames, spec, rays=rays)
        assert ops.counts().blocks - before == blocks


@pytest.mark.parametrize("rays", [1, 5, 31, 66])
def test_rays_given_by_their_ends_agree_with_frames(rays, ops) -> None:
    values, frames = smooth(), all_around(pitch=1.3)
    ends = endpoints(frames, SIZE, "cone")[:, :rays].contiguous()
    by_frames = packed(values, frames, spec_of())[0][..., :rays]
    assert torch.equal(packed(values, ends, spec_of())[0], by_frames)


@pytest.mark.parametrize("shape", [(2, 3, *GRID), (3, *GRID)], ids=["N C", "C"])
def test_volumes_and_channels_have_textures_and_scales_of_their_own(shape, ops) -> None:
    count = shape[-4] * (shape[0] if len(shape) == 5 else 1)
    scales = torch.logspace(-3, 2, count).reshape(*shape[:-3], 1, 1, 1)
    values = smooth() * scales
    frames = all_around(pitch=1.7)[:6]
    image = packed(values, frames, spec_of())[0]
    expected = exact(values, frames, spec_of())[0]
    for view in range(len(frames)):
        for channel in range(3):
            assert distance(image[view, channel], expected[view, channel]) <= 5e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_derivatives_are_those_of_the_values_whatever_their_dtype(dtype, ops) -> None:
    values = (rand(*GRID, seed=5) - 0.3).to(dtype)
    frames = all_around(pitch=1.1)
    expected, six = exact(values, frames, spec_of())
    image, found = packed(values, frames, spec_of(), "auto", rays=True)
    assert relative(image.double(), expected) <= 2e-6
    assert relative(found.double(), six) <= 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_textures_hold_every_dtype(dtype, ops) -> None:
    values, frames = smooth().to(dtype), all_around(pitch=1.7)
    image = packed(values, frames, spec_of(), "auto")[0]
    assert distance(image, exact(values, frames, spec_of())[0]) <= 5e-4


@pytest.mark.data
@pytest.mark.parametrize("kind", KINDS)
def test_the_chest_ct_by_textures_is_within_five_in_ten_thousand(kind, ops, data_folder) -> None:
    volume = drrkit.read_volume(data_folder / "chest_2mm.nii.gz").to_mu()
    camera = drrkit.CArm(1020.0, (24, 24), pixel_spacing=14.0)
    poses = torch.cat(
        [drrkit.view_carm(volume, 800.0, a, b) for a, b in ((0.03, 0.02), (1.53, 0.05), (0.7, 0.5))]
    )
    with torch.no_grad():
        image = drrkit.Projector(volume, camera, pack=kind)(poses)
        assert (ops.packed, ops.plain) == (1, 0)
        expected = drrkit.render(volume.to(torch.float64), camera, poses)
    for view in range(len(poses)):
        assert distance(image[view], expected[view]) <= 5e-4


def test_what_is_not_finite_is_rendered_by_the_values(ops) -> None:
    values = smooth()
    values[9, 20, 13] = torch.nan
    frames = all_around(pitch=1.7)
    pack = Pack("auto", "joseph")
    image = _ops.project_packed(values, frames, pack.handle_of(values), False, spec_of())[0]
    expected = exact(values, frames, spec_of())[0]
    assert torch.equal(image.isnan(), expected.isnan()) and image.isnan().any()
    assert relative(image.nan_to_num().double(), expected.nan_to_num()) <= 1e-5


# ---- empty bricks


EMPTY = {
    "blobs": blobs,
    "one voxel": lambda: torch.zeros(GRID).index_put_(
        tuple(torch.tensor([i]) for i in (11, 17, 22)), torch.tensor(2.0)
    ),
    "corners": lambda: torch.zeros(GRID).index_put_(
        (torch.tensor([0, -1]), torch.tensor([0, -1]), torch.tensor([0, -1])), torch.tensor(1.0)
    ),
    "nothing": lambda: torch.zeros(GRID),
    "everything": lambda: rand(*GRID, seed=8).float() + 0.1,
}


def always_or_never(patch: pytest.MonkeyPatch, always: bool) -> None:
    patch.setattr(_pack, "SPARSE", dict.fromkeys(("cpu", "cuda"), -1.0 if always else 2.0))


@pytest.fixture(params=["always", "never"])
def looking_up(request, monkeypatch) -> str:
    """Bricks are looked up in every volume, or in none."""
    always_or_never(monkeypatch, request.param == "always")
    return request.param


@pytest.mark.parametrize("multiprocessors", [1, 132])
@pytest.mark.parametrize("what", EMPTY)
def test_leaving_out_empty_bricks_changes_no_bit_of_an_image(
    what, multiprocessors, ops, monkeypatch
) -> None:
    values, frames = EMPTY[what](), torch.cat([all_around(pitch=p) for p in (0.7, 1.3, 2.2)])
    images, vectors = [], []
    for share, order in ((-1.0, 2), (2.0, 2), (-1.0, None), (2.0, 0)):
        ops.options(seed=order, multiprocessors=multiprocessors)
        always_or_never(monkeypatch, share < 0)
        _pack._shared.clear()
        images.append(packed(values, frames, spec_of())[0])
        vectors.append(packed(values, frames, spec_of(), rays=True))
    assert all(torch.equal(images[0], image) for image in images[1:])
    # Derivatives are added up stretch by stretch: their last bits may differ.
    assert torch.equal(vectors[0][1], vectors[2][1]) and torch.equal(vectors[1][1], vectors[3][1])
    for found, expected in zip(*vectors[:2], strict=True):
        assert relative(found, expected) <= 2e-6


@pytest.mark.parametrize("offset", [0.0, 0.5, 1e-5, -1e-5])
@pytest.mark.parametrize("what", ["blobs", "one voxel", "corners"])
def test_rays_along_the_faces_of_bricks_lose_nothing(what, offset, looking_up, ops) -> None:
    values = EMPTY[what]()
    size = (36, 36)
    frames = axis_parallel(offset)
    for view, frame in enumerate(frames):
        axis = view // 2
        start, end = (-5.0, 40.0) if view % 2 == 0 else (40.0, -5.0)
        frame[0, axis], frame[1, axis] = start, end
    spec = spec_of(size=size, beam="parallel")
    expected, six = exact(values, frames, spec)
    image, found = packed(values, frames, spec, rays=True)
    assert relative(image.double(), expected, floor=1e-3) <= 1e-5
    if offset == 0.5:  # elsewhere a sample stands on a face and may choose the cell
        assert relative(found.double(), six) <= 1e-5
    by_texture = packed(values, frames, spec, "float32")[0]
    assert float((by_texture - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


def test_samples_in_empty_bricks_are_not_taken(looking_up, ops) -> None:
    """Texels and voxels of empty bricks are NaN behind the kernels' back."""
    values = blobs()
    frames = all_around(pitch=1.1)
    pack = Pack("float32", "joseph")
    handle = pack.handle_of(values)
    expected = _ops.project_packed(values, frames, handle, False, spec_of())[0]
    poisoned = poison(values)
    assert pack.prepared is not None
    native = pack.prepared.on_device.native
    for axis in range(3):
        layers = _pack.in_layers(poisoned, axis)
        native.fill_texture(0, axis, layers.data_ptr(), 0)
    image = _ops.project_packed(values, frames, handle, False, spec_of())[0]
    if looking_up == "always":
        assert torch.equal(image, expected)
    else:
        assert image.isnan().any()


def poison(values: Tensor) -> Tensor:
    """NaN wherever no sample outside the empty bricks can reach."""
    (_, distance_) = _pack.occupancy(values[None, None])
    keep = torch.zeros_like(values, dtype=torch.bool)
    for z, y, x in (distance_[0] == 0).nonzero().tolist():
        keep[
            max(8 * z - 2, 0) : 8 * z + 9,
            max(8 * y - 2, 0) : 8 * y + 9,
            max(8 * x - 2, 0) : 8 * x + 9,
        ] = True
    assert not values[~keep].any() and (~keep).float().mean() > 0.3
    return values.masked_fill(~keep, torch.nan)


def test_rays_end_at_the_box_of_what_is_not_zero(monkeypatch, ops) -> None:
    always_or_never(monkeypatch, False)
    values = torch.zeros(GRID)
    values[6:9, 11:20, 9:13] = 1.0
    frames = all_around(pitch=1.1)
    pack = Pack("float32", "joseph")
    handle = pack.handle_of(values)
    expected = _ops.project_packed(values, frames, handle, False, spec_of())[0]
    poisoned = torch.full(GRID, torch.nan)
    poisoned[1:14, 6:25, 4:18] = values[1:14, 6:25, 4:18]
    assert pack.prepared is not None
    for axis in range(3):
        layers = _pack.in_layers(poisoned, axis)
        pack.prepared.on_device.native.fill_texture(0, axis, layers.data_ptr(), 0)
    image = _ops.project_packed(values, frames, handle, False, spec_of())[0]
    assert torch.equal(image, expected) and bool(image.any())


def test_the_bricks_of_each_volume_are_its_own(looking_up, ops) -> None:
    values = torch.stack([blobs(), torch.zeros(GRID), smooth(), blobs(seed=9).flip(0)])[:, None]
    frames = torch.cat([all_around(pitch=1.3)] * 4)
    expected = exact(values, frames, spec_of())[0]
    image = packed(values, frames, spec_of(), rays=True)[0]
    assert relative(image.double(), expected) <= 2e-6


# ---- lifetimes


def resources(ops: PackedOps) -> tuple[int, int, int]:
    counts = ops.counts()
    return counts.allocations, counts.arrays, counts.textures


def projector(values: Tensor, **options) -> drrkit.Projector:
    volume = drrkit.Volume(values, SPACING, unit="mu")
    return drrkit.Projector(volume, drrkit.CArm(200.0, SIZE, pixel_spacing=1.9), **options)


def pose_of(project: drrkit.Projector) -> Tensor:
    volume = drrkit.Volume(project.values, SPACING, unit="mu")
    return drrkit.view_carm(volume, 120.0, 0.4, -0.3)


def test_memory_is_what_is_said_and_is_given_back(ops) -> None:
    before = resources(ops)
    project = projector(smooth().repeat(2, 1, 1, 1))
    assert resources(ops) == (before[0] + 2, before[1] + 6, before[2] + 6)
    voxels = project.values.numel()
    assert project._pack.prepared is not None
    assert 0 <= project._pack.prepared.bytes - (3 * 2 + 4) * voxels <= 8192
    del project
    gc.collect()
    assert resources(ops) == before


def test_projectors_of_one_volume_share_what_is_prepared(ops) -> None:
    values = smooth()
    first, second, other = projector(values), projector(values), projector(values.clone())
    assert first._pack.prepared is second._pack.prepared
    assert first._pack.handle != other._pack.handle
    by_kind = projector(values, pack="float32")
    assert by_kind._pack.prepared is not first._pack.prepared
    before = resources(ops)
    pose = pose_of(first)
    image = first(pose)
    del first
    gc.collect()
    assert resources(ops) == before
    assert torch.equal(second(pose), image)
    values.mul_(2)
    assert distance(second(pose), 2 * image.double()) <= 1e-6


def test_a_graph_keeps_what_its_launches_read(ops) -> None:
    before = resources(ops)
    project = projector(smooth())
    pose = pose_of(project)
    held = resources(ops)
    with capture() as graphs:
        project(pose)
        project(pose)
    del project
    gc.collect()
    assert resources(ops) == held
    graphs[0].destroy()
    Pack("auto", "joseph").handle_of(torch.ones(3, 3, 3))  # whoever comes next tidies up
    gc.collect()
    assert resources(ops) == before


def test_letting_go_during_a_capture_does_not_spoil_it(ops) -> None:
    before = resources(ops)
    project, other = projector(smooth()), projector(smooth())
    with capture() as graphs:
        image = project(pose_of(project))
        del other
        gc.collect()
    assert image.any()
    graphs[0].destroy()
    del project
    gc.collect()
    Pack("auto", "joseph").handle_of(torch.ones(3, 3, 3))
    gc.collect()
    assert resources(ops) == before


def test_a_call_that_waits_for_the_device_spoils_a_capture(ops) -> None:
    with pytest.raises(RuntimeError, match="waits for the device"), capture():
        library().emulated_device_synchronize()


def test_what_a_stream_still_reads_is_not_freed(ops) -> None:
    """Also during a capture, which must not wait for the whole device."""
    expected = projector(smooth())(pose_of(projector(smooth())))
    for capturing in (False, True):
        stream, project = Stream(), projector(smooth())
        with ops.on(stream):
            image = project(pose_of(project))
        assert not image.isfinite().any()  # the launch was put off
        with capture() if capturing else contextlib.nullcontext():
            del project
            gc.collect()
        assert torch.equal(image, expected)  # before anything was freed


def test_fillings_and_launches_on_several_streams_come_in_their_order(ops) -> None:
    """One stream reads, the next fills anew, a third reads; the third alone is waited for."""
    before, filling, after = Stream(), Stream(), Stream()
    project = projector(smooth())
    pose = pose_of(project)
    old = project(pose)
    with ops.on(before):
        first = project(pose)
    with ops.on(filling):
        project.values.mul_(3)
        project.prepare()
    with ops.on(after):
        second = project(pose)
    assert not first.isfinite().any() and not second.isfinite().any()  # all of it was put off
    after.synchronize()
    before.synchronize()
    assert torch.equal(first, old)
    assert distance(second, 3 * old.double()) <= 1e-6


def test_nothing_is_prepared_during_a_capture(ops) -> None:
    project = projector(smooth())
    pose = pose_of(project)
    expected = project(pose)
    project.values.mul_(2)
    calls = ops.packed
    with capture() as graphs:
        image = project(pose)  # of the values as they are, whatever was prepared
    graphs[0].destroy()
    assert ops.packed == calls
    assert distance(image, 2 * expected.double()) <= 5e-4
    project(pose)
    assert ops.packed == calls + 1


def test_new_values_are_filled_into_what_a_graph_reads(ops) -> None:
    project = projector(smooth())
    assert project._pack.prepared is not None
    native, handle = project._pack.prepared.on_device.native, project._pack.handle
    pose = pose_of(project)
    before = resources(ops)
    image = project(pose)
    project.values.mul_(3)
    project.prepare()
    assert project._pack.prepared.on_device.native is native
    assert project._pack.handle == handle and resources(ops) == before
    assert distance(project(pose), 3 * image.double()) <= 1e-6


def test_a_volume_that_fails_half_way_leaves_nothing_behind(ops) -> None:
    before = resources(ops)
    with pytest.raises(RuntimeError, match="InvalidValue"):
        CudaPackedVolume(0, (1, 1, 3, 3, 2049), 2, 0, (257, 1, 1))  # axis x: 2049 layers
    assert resources(ops) == before


# ---- obstacles


def full(*_: object) -> None:
    raise MemoryError("no memory")


def test_without_memory_auto_renders_the_values_and_a_kind_by_name_says_so(
    ops, monkeypatch
) -> None:
    monkeypatch.setattr(_pack._C, "CudaPackedVolume", full)
    project = projector(smooth())
    assert project._pack.handle == 0
    image = project(pose_of(project))
    volume = drrkit.Volume(project.values, SPACING, unit="mu")
    assert torch.equal(image, drrkit.render(volume, project.camera, pose_of(project)))
    with pytest.raises(torch.OutOfMemoryError, match="pack: no memory left for 'int16'"):
        projector(smooth(), pack="int16")


def test_auto_leaves_half_of_the_memory_alone(ops, monkeypatch) -> None:
    needed = 10 * smooth().numel()
    monkeypatch.setattr(_pack, "_free_bytes", lambda device: 2 * needed - 1)
    assert projector(smooth())._pack.handle == 0
    assert projector(smooth(), pack="int16")._pack.handle
    monkeypatch.setattr(_pack, "_free_bytes", lambda device: 2 * needed)
    assert projector(smooth())._pack.handle


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_had_by_name_is_refused_and_auto_does_without(kind, ops) -> None:
    for values, message in (
        (smooth().double(), "float64 volumes are projected in float64"),
        (torch.zeros(2, 2, 2049), "sides of at most 2048 voxels"),
        (smooth().mT, "values that are contiguous"),
    ):
        assert projector(values)._pack.handle == 0
        with pytest.raises(ValueError, match=f"pack: '{kind}' .*{message}"):
            projector(values, pack=kind)


def test_a_kind_by_name_is_stored_where_the_values_are(ops, monkeypatch) -> None:
    monkeypatch.setattr(_pack, "_is_cuda", lambda values: False)
    project = projector(smooth(), pack="int16")
    assert project._pack.prepared is not None
    assert isinstance(project._pack.prepared.on_device, _pack._OnCpu)
    before = resources(ops)
    monkeypatch.setattr(_pack, "_is_cuda", lambda values: True)
    project.values = project.values.clone()
    project.float()  # moves, as to("cuda") does
    assert isinstance(project._pack.prepared.on_device, _pack._OnCuda)
    assert resources(ops) > before
