"""Trilinear interpolation and the learned feature grids of neural fields."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import drrkit
from drrkit import fields
from drrkit.fields.encodings import FeatureGrids, trilinear
from drrkit.training import train
from drrkit.volume import Volume


def random_points(count: int, low: float, high: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return low + (high - low) * torch.rand(count, 3, generator=generator, dtype=torch.float64)


def striped(spacing: float = 6.0) -> tuple[Volume, Tensor]:
    """A ball of 60 mm with oblique stripes two voxels wide, and its mask."""
    grid = Volume(torch.zeros(24, 24, 24), (spacing,) * 3, unit="mu")
    counts = torch.arange(24.0)
    z, y, x = torch.meshgrid(counts, counts, counts, indexing="ij")
    radius = spacing * torch.stack((z, y, x)).sub(11.5).norm(dim=0)
    values = 0.02 * (1.0 + 0.8 * torch.sign(torch.sin(torch.pi * (x + z + 0.5) / 2)))
    mask = radius < 60.0
    return Volume(values * (radius < 52.0), grid.spacing, unit="mu"), mask


def test_interpolation_agrees_with_torch_within_and_outside_the_grid() -> None:
    grid = torch.rand(5, 6, 7, dtype=torch.float64)
    index = random_points(200, -2.0, 8.0)
    unit = 2 * index / index.new_tensor((6, 5, 4)) - 1
    expected = functional.grid_sample(
        grid[None, None], unit[None, None, None], padding_mode="zeros", align_corners=True
    ).flatten()
    assert torch.allclose(trilinear(grid, index), expected, atol=1e-14)
    solid = torch.ones(5, 6, 7, dtype=torch.bool)
    inside = ((unit > -1) & (unit < 1)).all(-1)
    assert torch.allclose(trilinear(solid, index)[inside], torch.ones(int(inside.sum())).double())


def test_interpolation_has_first_and_second_derivatives_in_both_modes() -> None:
    grid = torch.rand(4, 4, 5, dtype=torch.float64)
    index = random_points(5, -0.9, 4.9).requires_grad_()
    torch.autograd.gradcheck(lambda x: trilinear(grid, x), index, check_forward_ad=True)
    torch.autograd.gradgradcheck(lambda x: trilinear(grid, x), index)
    grids = FeatureGrids((5, 6, 7), (2.0, 2.0, 3.0), 2.0, levels=2).double()
    inner = random_points(4, 0.1, 3.9).requires_grad_()
    torch.autograd.gradcheck(grids, inner, check_forward_ad=True)
    torch.autograd.gradgradcheck(grids, inner)


def test_feature_grids_span_the_grid_and_reproduce_what_is_linear() -> None:
    shape, spacing = (9, 8, 7), (2.0, 2.5, 3.0)
    grids = FeatureGrids(shape, spacing, 2.0, levels=3, features=1).double()
    assert grids.size == 3 and grids.shapes == [(13, 10, 7), (7, 6, 4), (4, 4, 3)]
    slope = torch.tensor((0.3, -0.2, 0.5), dtype=torch.float64)
    for cell, (depth, height, width), table in zip(
        grids.cells, grids.shapes, grids.tables, strict=True
    ):
        counts = [torch.arange(n).double() for n in (depth, height, width)]
        node = torch.stack(torch.meshgrid(*counts, indexing="ij"), -1).flip(-1)
        with torch.no_grad():
            table.copy_((cell * node @ slope).reshape(-1, 1))
    index = random_points(50, 0.0, 1.0) * torch.tensor((6.0, 7.0, 8.0), dtype=torch.float64)
    expected = index * index.new_tensor(spacing) @ slope
    assert torch.allclose(grids(index), expected[:, None].expand(-1, 3), atol=1e-12)


@pytest.mark.parametrize("wrong", [{"levels": -1}, {"levels": 1, "cell": 0.0}])
def test_feature_grids_without_size_are_refused(wrong: dict[str, float]) -> None:
    volume, mask = striped()
    with pytest.raises(ValueError, match=r"levels.*: expected|cell: expected a positive"):
        fields.MNeRF(mask, volume, **wrong)


def test_feature_grids_learn_fine_structure_that_the_encoding_alone_has_not_yet_learned(
    tmp_path: Path,
) -> None:
    volume, mask = striped()
    poses = fields.random_views(volume, 30)
    camera = drrkit.CArm(1020.0, (24, 24), 7.5)
    xrays = drrkit.render(volume, camera, poses)
    train_on, validate_on = fields.Pairs("a", volume, camera, xrays, poses).held_out(4)
    objective = fields.ImageObjective(normalised=False, rate=2e-2, final_rate=1e-3)
    found = []
    for levels in (0, 2):
        torch.manual_seed(0)
        field = fields.MNeRF(mask, volume, octaves=4, width=16, depth=2, step=6.0, levels=levels)
        task = fields.MNeRFTask(
            field, train_on, validate_on, objective=objective, steps=150, rays=128
        )
        place = tmp_path / str(levels)
        result = train(task, place, steps=150, validate_every=150, save_every=150, progress=False)
        found.append(result.metrics["psnr"])
    assert found[1] > found[0] + 5.0, found
