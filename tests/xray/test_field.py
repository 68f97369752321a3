"""The open field of an X-ray: found where blades or a round rim cover the rest, not elsewhere."""

from __future__ import annotations

import math
from functools import lru_cache

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from drrkit import CArm, Volume, render, view_carm
from drrkit.phantoms import torso
from drrkit.xray import gaussian_blur, open_field

CAMERA = CArm(1020.0, (128, 128), 2.176)
SHAPES = {
    "rectangle": ((20, 30), (20, 100), (110, 100), (110, 30)),
    "turned": ((16, 44), (40, 112), (112, 88), (86, 18)),
    "five corners": ((14, 60), (52, 112), (108, 92), (112, 36), (50, 14)),
    "cut by the border": ((-20, 20), (-20, 90), (90, 140), (120, 60)),
}


@lru_cache
def attenuation() -> Volume:
    return torso(5.0).to_mu()


@lru_cache
def lines(primary: float = 0.0) -> Tensor:
    pose = view_carm(attenuation(), 800.0, math.radians(primary))
    return render(attenuation(), CAMERA, pose, supersample=2)


def polygon(corners: tuple[tuple[float, float], ...], side: int = 128) -> Tensor:
    """1 inside a convex polygon of (row, col), [1, 1, side, side]."""
    row, col = torch.meshgrid(torch.arange(side) * 1.0, torch.arange(side) * 1.0, indexing="ij")
    depth = torch.full((side, side), math.inf)
    for (y, x), (v, u) in zip(corners, corners[1:] + corners[:1], strict=True):
        across = (col - x) * (v - y) - (row - y) * (u - x)
        depth = torch.minimum(depth, -across)
    return (depth > 0).float()[None, None]


def disc(row: float, col: float, radius: float, side: int = 128) -> Tensor:
    grid = torch.arange(side) * 1.0
    return (torch.hypot(grid[:, None] - row, grid - col) < radius).float()[None, None]


def behind(opening: Tensor, rim: float, image: Tensor) -> tuple[Tensor, Tensor]:
    """The X-ray behind blades, on the scale of line integrals, and the share of the beam."""
    opening = gaussian_blur(opening, rim) if rim else opening
    primary = (-image).exp() * opening
    scatter = 0.02 * functional.avg_pool2d(primary, 31, 1, 15) + 0.002 * primary.mean()
    return -(primary + scatter).log(), opening


@pytest.mark.parametrize("rim", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("primary", [0.0, 90.0])
@pytest.mark.parametrize("shape", [*SHAPES, "round", "round, cut"])
def test_a_convex_field_is_found_and_its_rim_left_out(shape, primary, rim):
    discs = {"round": disc(60, 66, 46), "round, cut": disc(50, 90, 60)}
    opening = discs[shape] if shape in discs else polygon(SHAPES[shape])
    xray, opening = behind(opening, rim, lines(primary))
    field = open_field(xray)
    assert field is not None and field.shape == (1, 1, 128, 128) and field.dtype == torch.bool
    sure, touched = opening > 0.999, opening > 0.5
    assert float((field & ~(opening > 0.9)).sum()) < 0.05 * float(field.sum())
    assert float((field & ~touched).sum()) < 0.011 * float(field.sum())
    assert float((field & sure).sum()) > 0.85 * float(sure.sum())


@pytest.mark.parametrize("primary", [0.0, 20.0, 45.0, 90.0, 135.0, 180.0])
def test_an_open_image_has_no_field(primary):
    assert open_field(lines(primary)) is None
    assert open_field(-lines(primary)) is None


@pytest.mark.parametrize("shift", [140.0, -140.0])
def test_air_beside_a_patient_is_no_field(shift):
    pose = view_carm(attenuation(), 800.0, 0.0)
    pose[:, 0, 3] += shift
    assert open_field(render(attenuation(), CAMERA, pose, supersample=2)) is None


@pytest.mark.parametrize(("gain", "offset"), [(1e-6, 0.0), (3.0, -7.0), (1e6, 5e6)])
def test_gain_and_offset_do_not_matter(gain, offset):
    xray, _ = behind(disc(64, 64, 50), 1.0, lines().double())
    first, second = open_field(xray), open_field(gain * xray + offset)
    assert first is not None and second is not None
    assert float((first != second).double().mean()) < 1e-3


def test_a_finer_image_has_the_same_field():
    xray, _ = behind(polygon(SHAPES["turned"]), 1.0, lines())
    coarse = open_field(xray)
    fine = open_field(functional.interpolate(xray, scale_factor=4.0, mode="bilinear"))
    assert coarse is not None and fine is not None
    pooled = functional.avg_pool2d(fine.float(), 4) > 0.5
    assert float((pooled != coarse).float().mean()) < 0.02


def test_pixels_that_a_mask_leaves_out_count_as_covered():
    opening = disc(64, 64, 48)
    spoiled = torch.where(opening > 0, lines(), lines().min() - 3.0)
    field = open_field(spoiled, opening)
    assert field is not None and not bool((field & (opening == 0)).any())
    assert float(field.sum()) > 0.75 * float(opening.sum())


def test_a_constant_or_tiny_image_has_none():
    assert open_field(torch.zeros(64, 64)) is None
    assert open_field(torch.rand(8, 8)) is None
