"""Volumes for tools whose grids stand along the world's axes: data flipped, nothing turned."""

from __future__ import annotations

from dataclasses import replace

import torch

from drrkit.bench.peers.peer import Cannot
from drrkit.volume import Volume


def upright(volume: Volume) -> tuple[Volume, tuple[int, ...]]:
    """The volume with flipped axes so that its direction is the identity, and which dims flipped.

    Raises Cannot when the grid is oblique or its axes are permuted.
    """
    signs = volume.direction.diagonal()
    if not torch.allclose(volume.direction, torch.diag(signs), atol=1e-6):
        raise Cannot("the tool's volumes stand along the world's axes, this one does not")
    flipped = tuple(2 - axis for axis in range(3) if signs[axis] < 0)  # x is the last dimension
    corner = [
        float(o) - (n - 1) * s if sign < 0 else float(o)
        for o, n, s, sign in zip(
            volume.origin, volume.shape_xyz, volume.spacing, signs.tolist(), strict=True
        )
    ]
    values = volume.values.flip(flipped) if flipped else volume.values
    turned = replace(
        volume, values=values, origin=tuple(corner), direction=torch.eye(3, dtype=torch.float64)
    )
    return turned, flipped
