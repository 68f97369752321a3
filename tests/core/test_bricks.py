"""What is known of a volume's zeros, how texels store its numbers, and that the CPU skips air.

CUDA's kernels over bricks and textures: tests/emulator/test_pack.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import drrkit
from drrkit._native import pack as _pack
from drrkit._native.pack import occupancy, quantised
from tests.support.packs import SHAPE, camera, poses, uses, values_of, volume_of
from tests.support.scenes import rand

# ---- what is known of zeros


def brick_of(filled: Tensor, z: int, y: int, x: int) -> bool:
    """Whether a brick's voxels, and one more on every side, are filled anywhere."""
    low = [max(8 * b - 2, 0) for b in (z, y, x)]
    high = [8 * b + 9 for b in (z, y, x)]
    return bool(filled[low[0] : high[0], low[1] : high[1], low[2] : high[2]].any())


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 8, 9), (15, 16, 17), (40, 23, 31), (3, 200, 5)])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_bricks_and_their_distances_are_those_of_a_search(shape, count, device) -> None:
    filled = torch.zeros(shape, dtype=torch.bool)
    for i in range(count):
        filled[
            tuple(int(n * u) for n, u in zip(shape, rand(3, seed=7 * i + count), strict=True))
        ] = 1
    values = torch.where(filled, -1.5, 0.0)
    _, distance = occupancy(values[None, None].to(device))
    counts = tuple(n // 8 + 1 for n in shape)
    assert distance.shape == (1, *counts) and distance.dtype == torch.uint8
    bricks = [
        (z, y, x) for z in range(counts[0]) for y in range(counts[1]) for x in range(counts[2])
    ]
    full = [b for b in bricks if brick_of(filled, *b)]
    for brick in bricks:
        steps = (max(abs(p - q) for p, q in zip(brick, other, strict=True)) for other in full)
        assert int(distance[0][brick]) == min([*steps, 15])


def test_the_box_holds_what_is_not_zero_in_any_channel(device) -> None:
    values = torch.zeros(3, 2, 12, 20, 30)
    values[0, 0, 3:5, 6:9, 10] = 1.0
    values[0, 1, 4:7, 5, 10:29] = -1.0
    values[2, 1, 11, 19, 29] = torch.nan
    occupied = occupancy(values.to(device)).occupied.cpu()
    assert occupied.dtype == torch.int32 and occupied.shape == (3, 8)
    assert occupied[0, :6].tolist() == [10, 5, 3, 28, 8, 6]
    assert (occupied[1, :3] > occupied[1, 3:6]).all()
    assert occupied[2, :6].tolist() == [29, 19, 11] * 2


@pytest.mark.parametrize(
    "where, leaps",
    [("cpu", [0, 0, 1, 1, 1, 0]), ("cuda", [0, 0, 0, 0, 1, 0])],
)
def test_bricks_are_looked_up_where_enough_of_them_are_empty(where, leaps, monkeypatch) -> None:
    """From 30 % of those in the box on, on CUDA from 55 % on."""
    monkeypatch.setattr(_pack, "_is_cuda", lambda values: where == "cuda")
    volumes = []  # 9 x 9 x 26 bricks
    for hollow in (0, 12, 13, 23, 24):  # times 7 x 7 empty: 0, 27.9, 30.2, 53.5 and 55.8 %
        volumes.append(torch.ones(66, 66, 202))
        if hollow:
            volumes[-1][6:65, 6:65, 6 : 9 + 8 * hollow] = 0
    volumes.append(torch.zeros(66, 66, 202))
    volumes[-1][20:30, 20:30, 20:30] = 1  # full, within its own box
    occupied, distance = occupancy(torch.stack(volumes)[:, None])
    empty = [0, 588, 637, 1127, 1176, 2106 - 8]
    assert (distance > 0).flatten(1).sum(1).tolist() == empty
    assert occupied[:, 6].tolist() == leaps


@pytest.mark.parametrize("peak", [3e-3, 1.0, 65000.0, 1e-38, 3e38])
@pytest.mark.parametrize("kind", ["int16", "float16", "float32"])
def test_texels_are_off_by_no_more_than_is_said(kind, peak, device) -> None:
    values = ((2 * rand(2, 3, 4, 5, 6) - 1).float() * peak).to(device)
    values[:, :, 1:3] = 0
    values[1, 2] = 0
    largest = values.flatten(2).abs().amax(2)
    texels, scale = quantised(values, kind, largest)
    found = texels.double() * scale.double()[:, :, None, None, None]
    if kind == "int16":
        found = found / 32767  # normalised: 32767 reads 1
        off = largest.double()[:, :, None, None, None] / 65534
    elif kind == "float16":
        off = torch.maximum(2.0**-11 * values.double().abs(), peak * torch.tensor(2.0**-35))
    else:
        off = torch.zeros(())
    assert ((found - values.double()).abs() <= off * 1.0001).all()
    assert (found[values == 0] == 0).all()


def test_float16_values_are_stored_exactly(device) -> None:
    values = (rand(1, 1, 5, 6, 7) * 3000).half().to(device)
    texels, scale = quantised(values, "float16", values.flatten(2).amax(2))
    assert torch.equal(texels.float() * scale.view(1, 1, 1, 1, 1), values.float())


# ---- empty bricks on the CPU; CUDA's kernels: tests/emulator/test_pack.py


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["joseph", "siddon", "trilinear"])
def test_leaving_out_what_is_empty_changes_no_bit(method, dtype) -> None:
    one = torch.zeros(2, *SHAPE)
    one[1, 11, 17, 22] = 3.0
    for values in (values_of(), torch.zeros(SHAPE), rand(*SHAPE) + 0.1, one):
        results = []
        for pack in ("auto", None):
            volume = volume_of(values.to(dtype))
            project = drrkit.Projector(volume, camera(), method=method, pack=pack)
            leaf = poses().requires_grad_()
            with torch.no_grad():
                alone = project(leaf)
            image = project(leaf)
            gradient = torch.autograd.grad(image.square().sum(), leaf)[0]
            results.append((alone, image, gradient))
            assert bool(project._pack.handle) == (pack == "auto")
        for found, expected in zip(*results, strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("method", ["joseph", "siddon", "trilinear"])
def test_the_cpu_does_not_read_what_is_empty(method) -> None:
    values = torch.zeros(20, 150, 30)
    values[:, 60:70] = 0.1 + rand(20, 10, 30).float()
    volume = volume_of(values)
    project = drrkit.Projector(volume, camera(), method=method)
    pose = drrkit.view_carm(volume, 110.0, 0.05, 0.03)  # along y
    expected = project(pose)
    assert expected.any()
    values.data[:, :8] = values.data[:, 130:] = torch.nan  # torch does not count it
    before = uses(project._pack)
    assert torch.equal(project(pose), expected) and uses(project._pack) == before + 1
    assert drrkit.render(volume, camera(), pose, method=method).isnan().any()
