"""A scene with much air for the tests of prepared volumes."""

from __future__ import annotations

import torch
from torch import Tensor

import drrkit
from drrkit._native.pack import Pack
from tests.support.scenes import SPACING, towards

SHAPE = (20, 26, 30)
SIZE = (6, 7)


def volume_of(values: Tensor) -> drrkit.Volume:
    return drrkit.Volume(values, SPACING, unit="mu")


def camera() -> drrkit.Camera:
    return drrkit.CArm(200.0, SIZE, pixel_spacing=8.0)


def poses(device: torch.device | str = "cpu") -> Tensor:
    volume = volume_of(torch.zeros(SHAPE))
    views = [drrkit.view_carm(volume, 110.0, a, b) for a, b in ((0.4, -0.3), (1.4, 0.2))]
    return torch.cat(views).to(device)


def values_of(seed: int = 1) -> Tensor:
    """A soft ball in a corner that the seed chooses, float32: 8 fraction bits show little, and most
    bricks are empty."""
    places = [(n - 1) * (0.75 if seed >> i & 1 else 0.25) for i, n in enumerate(SHAPE)]
    grids = torch.meshgrid(*(torch.arange(n) for n in SHAPE), indexing="ij")
    squared = sum((g - p) ** 2 for g, p in zip(grids, places, strict=True))
    return 0.3 * (1 - squared / 36).clamp(min=0) ** 2


def around() -> Tensor:
    """Frames along the three axes."""
    return torch.cat([towards(axis, shape=SHAPE, size=SIZE, pitch=4.0) for axis in range(3)])


def uses(pack: Pack) -> int:
    """How many ops went by what was prepared."""
    assert pack.prepared is not None
    return pack.prepared.uses
