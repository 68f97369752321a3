"""Volumes on other grids."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from drrkit.volume import Volume
from tests.support.volumes import DEVICES, SPACING, centre_of, oblique, ramp, random_volume


@pytest.mark.parametrize("device", DEVICES)
def test_doubling_the_spacing_averages_eight_voxels_and_keeps_centre_and_integral(device):
    volume = random_volume((6, 8, 10), dtype=torch.float64).to(device)
    coarse = volume.resample([2 * s for s in SPACING])
    expected = torch.nn.functional.avg_pool3d(volume.values[None], 2)[0]
    assert torch.allclose(coarse.values, expected, atol=1e-9)
    assert torch.allclose(centre_of(coarse), centre_of(volume), atol=1e-9)
    assert float(coarse.values.sum() * 8) == pytest.approx(float(volume.values.sum()), rel=1e-12)


@pytest.mark.parametrize("spacing", [0.9, 2.0, (0.5, 1.25, 3.1)])
@pytest.mark.parametrize("left_handed", [False, True])
def test_resampling_reproduces_a_linear_function_away_from_the_edges(spacing, left_handed):
    volume = ramp(random_volume((12, 14, 16), left_handed=left_handed))
    new = volume.resample(spacing)
    truth = ramp(new).values
    assert torch.allclose(centre_of(new), centre_of(volume), atol=1e-9)
    for size, old in zip(
        (n * s for n, s in zip(new.shape_xyz, new.spacing, strict=True)),
        (n * s for n, s in zip(volume.shape_xyz, volume.spacing, strict=True)),
        strict=True,
    ):
        assert abs(size - old) <= max(new.spacing) / 2
    # Averages of a cut box at the edge, and the clamped half voxel, are not linear.
    margins = [math.ceil(2 * max(o / n, 1)) for o, n in zip(SPACING, new.spacing, strict=True)]
    x, y, z = (slice(m, -m) for m in margins)
    difference = (new.values - truth)[z, y, x]
    assert difference.numel() > 0
    # A box of 1 + f old voxels centred off the lattice is an average of constants: off by less
    # than an eighth of an old voxel's slope along each axis.
    bound = sum(abs(d) for d in (1.5, 2.0, 0.7)) * max(SPACING) / 8
    assert float(difference.abs().max()) < bound
    if max(new.spacing) <= min(SPACING):
        assert float(difference.abs().max()) < 1e-9


def test_finer_grids_interpolate_linearly_and_keep_the_values_at_the_old_voxels():
    volume = random_volume((5, 6, 7), dtype=torch.float64)
    fine = volume.resample([s / 3 for s in SPACING])
    assert torch.allclose(fine.values[1::3, 1::3, 1::3], volume.values, atol=1e-9)
    between = fine.values[1::3, 1::3, 2::3][..., :-1]
    expected = (2 * volume.values[..., :-1] + volume.values[..., 1:]) / 3
    assert torch.allclose(between, expected, atol=1e-9)


def test_the_same_spacing_changes_nothing():
    volume = random_volume(labels=True)
    same = volume.resample(SPACING)
    assert torch.equal(same.values, volume.values) and torch.equal(same.labels, volume.labels)
    assert torch.allclose(same.affine, volume.affine, atol=1e-10)


def test_downsampling_a_fine_pattern_does_not_alias():
    pattern = torch.where(torch.arange(60) % 2 == 0, 1.0, -1.0).expand(4, 4, 60)
    coarse = Volume(pattern.contiguous(), (1, 1, 1)).resample((4.5, 1, 1))
    assert float(coarse.values.abs().max()) < 0.25


@pytest.mark.parametrize("device", DEVICES)
def test_like_a_permuted_and_flipped_grid_moves_the_very_same_voxels(device):
    volume = replace(random_volume(labels=True), direction=torch.eye(3)).to(device)
    # New axes: x along old -z, y along old x, z along old y.
    direction = torch.tensor([[0.0, 1, 0], [0, 0, 1], [-1, 0, 0]])
    corner = volume.index_to_world(torch.tensor([0.0, 0.0, 4.0], dtype=torch.float64))
    spacing = (SPACING[2], SPACING[0], SPACING[1])
    grid = Volume(torch.zeros(6, 7, 5), spacing, tuple(corner.tolist()), direction)
    moved = volume.resample(like=grid)
    assert torch.allclose(moved.values, volume.values.permute(1, 2, 0).flip(2), atol=1e-3)
    assert torch.equal(moved.labels, volume.labels.permute(1, 2, 0).flip(2))


@pytest.mark.parametrize("device", DEVICES)
def test_like_an_oblique_grid_interpolates_inside_and_fills_with_air_outside(device):
    volume = ramp(Volume(torch.zeros(12, 14, 16), (1.0, 1.2, 1.4), (-8, -8, -8))).to(device)
    grid = Volume(torch.zeros(9, 10, 11), (1.0, 1.0, 1.0), (-7, -6, -2), oblique(True))
    new = volume.resample(like=grid)
    assert new.affine.cpu().equal(grid.affine) and new.values.shape == grid.values.shape
    points = ramp(grid).values.to(device)
    z, y, x = torch.meshgrid(*(torch.arange(n).double() for n in (9, 10, 11)), indexing="ij")
    world = grid.index_to_world(torch.stack([x, y, z], -1))
    index = volume.world_to_index(world.to(device))
    size = torch.tensor(volume.shape_xyz, device=device)
    inner = ((index >= 0) & (index <= size - 1)).all(-1)
    outer = ((index < -0.51) | (index > size - 0.49)).any(-1)
    assert bool(inner.any()) and bool(outer.any())
    assert torch.allclose(new.values[inner], points[inner], atol=1e-9)
    assert bool((new.values[outer] == -1000.0).all())
    assert bool((volume.to_mu().resample(like=grid).values[outer] == 0).all())


def test_like_a_coarse_oblique_grid_averages_before_it_samples():
    generator = torch.Generator().manual_seed(1)
    noise = Volume(torch.randn(24, 24, 24, generator=generator), (1, 1, 1))
    direction, middle = oblique(), torch.tensor([11.5, 11.5, 11.5], dtype=torch.float64)
    origin = tuple((middle - direction @ torch.full((3,), 6.0, dtype=torch.float64)).tolist())
    coarse = noise.resample(like=Volume(torch.zeros(5, 5, 5), (3, 3, 3), origin, direction))
    # 27 voxels of unit noise average to a deviation near 0.19; sampling alone would keep 0.5-1.
    assert 0.05 < float(coarse.values.std()) < 0.3


def test_labels_resample_to_the_nearest_voxel_exactly():
    labels = torch.tensor([[[0, 70000, 2, 16777217]]], dtype=torch.int32)
    volume = Volume(torch.zeros(1, 1, 4), (2, 1, 1), labels=labels)
    assert volume.resample((1, 1, 1)).labels.flatten().tolist() == [
        *(0, 0, 70000, 70000),
        *(2, 2, 16777217, 16777217),
    ]
    shifted = Volume(torch.zeros(1, 1, 4), (2, 1, 1), (4, 0, 0))
    assert volume.resample(like=shifted).labels.flatten().tolist() == [2, 16777217, 0, 0]


def test_channels_and_half_precision_resample_like_single_volumes():
    volume = random_volume((2, 6, 6, 6))
    tilted = replace(random_volume((3, 4, 5)), direction=torch.eye(3))
    for arguments in ({"spacing": 1.9}, {"like": tilted}):
        both = volume.resample(**arguments).values
        one = replace(volume, values=volume.values[1]).resample(**arguments).values
        assert torch.allclose(both[1], one, atol=1e-3)
        half = volume.to(torch.float16).resample(**arguments).values
        assert half.dtype == torch.float16
        assert torch.allclose(half.float(), both, atol=4.0)


def test_resample_refuses_unclear_requests():
    volume = random_volume()
    with pytest.raises(ValueError, match="exactly one of spacing and like"):
        volume.resample()
    with pytest.raises(ValueError, match="exactly one of spacing and like"):
        volume.resample(1.0, like=volume)
    with pytest.raises(ValueError, match="spacing: expected positive"):
        volume.resample(0.0)
    with pytest.raises(TypeError, match="like: expected a Volume"):
        volume.resample(like=volume.values)


@pytest.mark.io
@pytest.mark.parametrize("left_handed", [False, True])
def test_resampling_onto_an_oblique_grid_agrees_with_simpleitk(left_handed):
    import SimpleITK as sitk

    volume = random_volume((12, 13, 14), left_handed=left_handed, dtype=torch.float64)
    image = sitk.GetImageFromArray(volume.values.numpy())
    image.SetSpacing(volume.spacing)
    image.SetOrigin(volume.origin)
    image.SetDirection(volume.direction.flatten().tolist())
    middle = centre_of(volume) - 3.0
    grid = Volume(torch.zeros(9, 10, 11), (0.5, 0.6, 0.7), tuple(middle.tolist()))
    onto = sitk.Image(11, 10, 9, sitk.sitkFloat64)
    onto.SetSpacing(grid.spacing)
    onto.SetOrigin(grid.origin)
    expected = sitk.Resample(image, onto, sitk.Transform(), sitk.sitkLinear, -1000.0)
    expected = torch.from_numpy(sitk.GetArrayFromImage(expected))
    found = volume.resample(like=grid).values
    index = torch.stack(
        torch.meshgrid(*(torch.arange(n).double() for n in (11, 10, 9)), indexing="ij"), -1
    ).permute(2, 1, 0, 3)
    place = volume.world_to_index(grid.index_to_world(index))
    inner = ((place > 0) & (place < torch.tensor(volume.shape_xyz) - 1)).all(-1)
    assert int(inner.sum()) > 300
    assert torch.allclose(found[inner], expected[inner], atol=1e-6)
