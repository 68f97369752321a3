"""The emulator that runs the CUDA kernels on the CPU does what a GPU does, and tells mistakes."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from ctypes import c_int, c_void_p
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.emulator import EmulatorBuildError, emulated_ops
from tests.emulator import build as building
from tests.emulator.products import call, pointer
from tests.support.scenes import rand

ROOT = Path(__file__).resolve().parents[2]
LANES = torch.arange(32, dtype=torch.int32)


@pytest.fixture(autouse=True)
def _no_order() -> Iterator[None]:
    emulated_ops().options()
    yield
    emulated_ops().options()


def ints(*shape: int) -> Tensor:
    return torch.full(shape, -1, dtype=torch.int32)


def address(tensor: Tensor) -> c_void_p:
    return c_void_p(pointer(tensor))


# ---- threads


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_blocks_add_up_by_shuffles_and_shared_memory(seed) -> None:
    emulated_ops().options(seed=seed)
    out = ints(5, 96)
    call("probe_block_sums", c_int(5), c_int(96), address(out))
    expected = torch.arange(5 * 96, dtype=torch.int32).reshape(5, 96).sum(1, keepdim=True)
    assert torch.equal(out, expected.int().expand(5, 96))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shuffles_and_votes_exchange_what_cuda_says(seed) -> None:
    emulated_ops().options(seed=seed)
    out = ints(8, 32)
    call("probe_warp_words", address(out))
    x, eight = 100 + LANES, LANES % 8
    assert torch.equal(out[0], x[(LANES // 2).long()])
    assert torch.equal(out[1], 100 + (LANES ^ 5))
    assert torch.equal(out[2], torch.where(eight >= 3, x - 3, x))
    assert torch.equal(out[3], torch.where(eight < 5, x + 3, x))
    every_third = sum(1 << lane for lane in range(0, 32, 3))
    assert out[4].tolist() == [every_third if every_third < 2**31 else every_third - 2**32] * 32
    assert out[5].tolist() == [3] * 32
    assert torch.equal(out[6], 100 + (LANES ^ 1))
    assert out[7].tolist() == [-1] + [0] * 31


def test_a_seed_shuffles_blocks_and_threads_and_repeats() -> None:
    found = {}
    for seed in (0, 1, 2, None, 1):
        emulated_ops().options(seed=seed)
        out = ints(6, 40)
        call("probe_orders", c_int(6), c_int(40), address(out))
        assert out.flatten().sort().values.tolist() == list(range(240))
        assert torch.equal(found.setdefault(seed, out), out)
    assert found[0].flatten().tolist() == list(range(240))
    assert torch.equal(found[None], found[0].flatten().flip(0).reshape(6, 40))
    assert not torch.equal(found[1], found[2])
    assert found[1][:, 0].argsort().tolist() != list(range(6))


def test_shared_memory_starts_as_garbage_in_every_block() -> None:
    out = torch.zeros(32)
    call("probe_fresh_shared_memory", address(out))
    assert out.isnan().all()


def test_a_missing_barrier_shows_in_the_order_backwards() -> None:
    found = set()
    for seed in (0, None):
        emulated_ops().options(seed=seed)
        out = ints(32)
        call("probe_missing_barrier", address(out))
        found.add(tuple(out.tolist()))
    assert len(found) > 1


MISTAKES = {
    0: "deadlock: thread 0 waits in a shuffle at probes.cpp",
    1: "does not name its own lane",
    2: r"under mask .* reads lane \d+, which is not there",
    3: "reads lane 3, which is not there",
    4: "lanes of one mask do different things",
    5: "threads of a block wait in different barriers",
    6: "deadlock: thread 0 waits in __syncthreads",
    7: "thread 5 touches memory that is not there: 0x100000",
    8: "thread 5 touches memory that is not there",
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_fails_the_launch_and_says_where(kind) -> None:
    out = ints(2, 32)
    with pytest.raises(RuntimeError, match=MISTAKES[kind]):
        call("probe_mistake", c_int(kind), address(out))
    # The next launch works.
    call("probe_block_sums", c_int(2), c_int(32), address(out))
    assert out[0, 0] == 31 * 16


@pytest.mark.parametrize("blocks, threads", [(0, 32), (1, 0), (1, 1025), (2**31, 32)])
def test_a_launch_that_no_gpu_takes_is_refused(blocks, threads) -> None:
    with pytest.raises(RuntimeError, match="cudaErrorInvalidConfiguration"):
        call("probe_launch", ctypes.c_uint(blocks), ctypes.c_uint(threads))


# ---- textures


class Probe(ctypes.Structure):
    """TextureProbe of probes.cpp."""

    _fields_ = [
        *((n, c_int) for n in ("shape", "kind", "bits", "width", "height", "depth")),
        *((n, c_int) for n in ("address", "filter", "normalize")),
    ]


SHAPES = ("2D", "3D", "layered", "linear")
CLAMP, BORDER, POINT, LINEAR = 1, 3, 0, 1
FORMATS = {
    torch.float32: (2, 32, 0),
    torch.float16: (2, 16, 0),
    torch.int16: (0, 16, 1),
    torch.uint16: (1, 16, 1),
    torch.uint8: (1, 8, 1),
}


def fetch(shape: str, texels: Tensor, at: Tensor, address_mode: int, filter_mode: int) -> Tensor:
    """texels [D, H, W] read at [n, 3] (x, y, z or layer), unnormalised coordinates."""
    kind, bits, normalize = FORMATS[texels.dtype]
    depth, height, width = texels.shape
    number = SHAPES.index(shape)
    modes = (address_mode, filter_mode, normalize)
    probe = Probe(number, kind, bits, width, height, depth, *modes)
    at = at.float().contiguous()
    out = torch.full((len(at),), torch.nan)
    before = bytes(emulated_ops().counts())[16:]
    arguments = (address(texels), address(at), c_int(len(at)), address(out))
    call("probe_texture", ctypes.byref(probe), *arguments)
    assert bytes(emulated_ops().counts())[16:] == before  # nothing is left allocated
    return out


def expected_fetch(
    shape: str, texels: Tensor, at: Tensor, address_mode: int, filter_mode: int
) -> Tensor:
    """The programming guide's formulas, one corner after the other, in float64."""
    floating = texels.dtype.is_floating_point
    values = texels.double()
    if not floating:
        values = (values / torch.iinfo(texels.dtype).max).clamp_min(-1)
    at = at.double().clone()
    axes = 3 if shape == "3D" else 2
    low, weight = at.floor(), torch.zeros_like(at)
    if filter_mode == LINEAR:
        low[:, :axes] = (at[:, :axes] - 0.5).floor()
        weight[:, :axes] = ((at[:, :axes] - 0.5 - low[:, :axes]) * 256 + 0.5).floor() / 256
    limit = torch.tensor(values.shape[::-1])
    if shape == "layered":
        low[:, 2] = low[:, 2].clamp(0, len(values) - 1)
    if shape == "2D":
        low[:, 2] = 0
    total = torch.zeros(len(at), dtype=torch.float64)
    for corner in range(8):
        upper = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2 & 1])
        share = torch.where(upper.bool(), weight, 1 - weight).prod(1)
        index = (low + upper).long()
        inside = ((index >= 0) & (index < limit)).all(1)
        x, y, z = index.clamp(min=torch.zeros(3).long(), max=limit - 1).unbind(1)
        keep = inside if address_mode == BORDER else torch.ones_like(inside)
        total += share * torch.where(keep, values[z, y, x], torch.zeros_like(share))
    return total


def texels_of(dtype: torch.dtype, *shape: int) -> Tensor:
    noise = rand(*shape, seed=4)
    if dtype.is_floating_point:
        return (2 * noise - 1).to(dtype)
    info = torch.iinfo(dtype)
    return (info.min + noise * (info.max - info.min)).round().to(dtype)


@pytest.mark.parametrize("filter_mode", [POINT, LINEAR])
@pytest.mark.parametrize("address_mode", [CLAMP, BORDER])
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("shape", SHAPES[:3])
def test_textures_filter_as_the_programming_guide_says(
    shape, dtype, address_mode, filter_mode
) -> None:
    texels = texels_of(dtype, 1 if shape == "2D" else 3, 5, 7)
    at = 9 * rand(500, 3, seed=6) - 1  # outside, too
    how = (shape, texels, at.float(), address_mode, filter_mode)
    torch.testing.assert_close(fetch(*how).double(), expected_fetch(*how), rtol=0, atol=2e-7)


def test_a_texel_centre_reads_the_texel_and_int16_is_lossless() -> None:
    texels = texels_of(torch.int16, 2, 4, 6)
    texels[0, 0, 0], texels[1, 3, 5] = -32768, 32767
    z, y, x = torch.meshgrid(*(torch.arange(n) for n in texels.shape), indexing="ij")
    at = torch.stack([x + 0.5, y + 0.5, z], dim=-1).reshape(-1, 3)
    found = fetch("layered", texels, at, BORDER, LINEAR)
    assert torch.equal((found * 32767).round().int().flatten()[1:], texels.flatten().int()[1:])
    assert found[0] == -1  # two integers mean -1
    assert found[-1] == 1


def test_filtering_weights_have_eight_bits_of_fraction() -> None:
    texels = torch.tensor([0.0, 1.0]).reshape(1, 1, 2)
    at = torch.zeros(4097, 3)
    at[:, 0] = 0.5 + torch.arange(4097) / 4096
    at[:, 1] = 0.5
    found = fetch("2D", texels, at, CLAMP, LINEAR)
    assert torch.equal(found * 256, (found * 256).round())
    assert (found - (at[:, 0] - 0.5)).abs().max() <= 0.5 / 256
    assert len(found.unique()) == 257


def test_linear_memory_gives_zero_out_of_bounds() -> None:
    texels = texels_of(torch.float32, 1, 1, 6)
    at = torch.zeros(8, 3)
    at[:, 0] = torch.arange(-1, 7)
    found = fetch("linear", texels, at, CLAMP, POINT)
    assert found[0] == found[-1] == 0 and torch.equal(found[1:-1], texels.flatten())


def test_textures_that_no_gpu_makes_are_refused() -> None:
    at = torch.zeros(1, 3)
    with pytest.raises(RuntimeError, match="cudaErrorInvalidValue"):
        fetch("layered", torch.zeros(2049, 1, 1), at, CLAMP, LINEAR)
    with pytest.raises(RuntimeError, match="cudaErrorInvalidValue"):
        fetch("3D", torch.zeros(1, 1, 16385), at, CLAMP, LINEAR)


def test_surfaces_write_what_copies_read() -> None:
    out = torch.full((3, 4, 5), torch.nan)
    call("probe_surface", c_int(5), c_int(4), c_int(3), ctypes.c_uint(2), address(out))
    assert torch.equal(out.flatten(), torch.arange(60.0))
    with pytest.raises(RuntimeError, match="cudaErrorInvalidValue"):
        call("probe_surface", c_int(5), c_int(4), c_int(3), ctypes.c_uint(0), address(out))


# ---- the build


def test_without_a_compiler_the_build_says_so(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(EmulatorBuildError, match="with a C\\+\\+ compiler: none was found"):
        building.build()


def sanitized(code: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs Python with the library that is compiled for the sanitizers."""
    runtimes = [
        subprocess.run(
            [building.compiler(), f"-print-file-name={name}"], capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": os.pathsep.join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "DRRKIT_EMULATION": str(building.build(sanitize=True)),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, *(("-c", code) if code else ("-m", "pytest", *arguments))]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)


READ = """
import torch
from tests.emulator.products import call, pointer
from ctypes import c_int64, c_void_p
values, out = torch.ones(5), torch.zeros(1)
call("probe_read", c_void_p(pointer(values)), c_int64({at}), c_void_p(pointer(out)))
print("read", out.item())
"""


@pytest.mark.slow
def test_the_address_sanitizer_sees_what_kernels_read() -> None:
    assert "read 1.0" in sanitized(READ.format(at=4)).stdout
    for at in (5, -1):
        wrong = sanitized(READ.format(at=at))
        assert wrong.returncode != 0
        assert "heap-buffer-overflow" in wrong.stderr and "read_at" in wrong.stderr


WRITE = """
import torch
from tests.emulator.products import call, pointer
from ctypes import c_int, c_void_p
out = torch.zeros(1)
call("probe_shared", c_int({at}), c_void_p(pointer(out)))
print("wrote", out.item())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "inside, outside, what",
    [(6, 7, "global-buffer-overflow"), (-3, -4, "index 3 out of bounds")],
    ids=["a pointer", "of a struct"],
)
def test_the_sanitizers_see_what_kernels_write_to_shared_memory(inside, outside, what) -> None:
    assert "wrote 1.0" in sanitized(WRITE.format(at=inside)).stdout
    wrong = sanitized(WRITE.format(at=outside))
    assert wrong.returncode != 0
    assert what in wrong.stderr and "write_shared" in wrong.stderr


@pytest.mark.slow
def test_the_kernels_stay_inside_their_tensors() -> None:
    """Every method, all products, rays and images of every kind, under the address sanitizer."""
    chosen = ("tests/emulator/test_kernels.py", "-k", "every_kind or every_shape or odd_grids")
    done = sanitized("", "-q", "-p", "no:cacheprovider", *chosen)
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout[-3000:] + done.stderr
