"""Small oblique volumes for the tests of drrkit.volume."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from drrkit.volume import Volume

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
SPACING, ORIGIN = (0.703125, 1.25, 2.5), (-123.456789, 20.0, -1030.123)


def oblique(left_handed: bool = False) -> torch.Tensor:
    """A rotation about two axes, or one with its third column reversed."""
    c, s = math.cos(0.3), math.sin(0.3)
    about_z = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)
    c, s = math.cos(-0.5), math.sin(-0.5)
    about_x = torch.tensor([[1, 0, 0], [0, c, -s], [0, s, c]], dtype=torch.float64)
    third = torch.tensor([1.0, 1.0, -1.0 if left_handed else 1.0], dtype=torch.float64)
    return about_z @ about_x * third


def random_volume(
    shape: tuple[int, ...] = (5, 6, 7),
    *,
    left_handed: bool = False,
    whole: bool = True,
    labels: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Volume:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(shape, generator=generator, dtype=torch.float64) * 4095 - 1024
    if whole:
        values = values.round()
    marks = torch.randint(0, 4, shape[-3:], generator=generator, dtype=torch.int16)
    return Volume(
        values.to(dtype), SPACING, ORIGIN, oblique(left_handed), labels=marks if labels else None
    )


def ramp(volume: Volume, slope: tuple[float, float, float] = (1.5, -2.0, 0.7)) -> Volume:
    """The volume's grid holding a linear function of world position, in float64."""
    depth, height, width = volume.values.shape[-3:]
    z, y, x = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float64) for n in (depth, height, width)), indexing="ij"
    )
    world = volume.index_to_world(torch.stack([x, y, z], dim=-1))
    return replace(volume, values=world @ torch.tensor(slope, dtype=torch.float64))


def centre_of(volume: Volume) -> torch.Tensor:
    middle = (torch.tensor(volume.shape_xyz, dtype=torch.float64) - 1) / 2
    return volume.index_to_world(middle)
