"""Geometry for tools whose volumes stand along the world's axes: data flipped, nothing turned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from drrkit.bench.peers.peer import Cannot
from drrkit.volume import Volume


@dataclass(frozen=True)
class Viewpoint:
    """A view in world mm (LPS)."""

    source: np.ndarray  # [3]
    foot: np.ndarray  # [3], of the source on the detector's plane: here also the detector's centre
    right: np.ndarray  # [3], unit vector of growing columns
    down: np.ndarray  # [3], unit vector of growing rows
    towards: np.ndarray  # [3], unit vector from the source to the detector


def viewpoints(world_to_camera: Tensor, sdd: float) -> Iterator[Viewpoint]:
    """The views [B, 4, 4] one by one."""
    for pose in world_to_camera.double().cpu().numpy():
        right, down, towards = pose[:3, :3]
        source = -pose[:3, :3].T @ pose[:3, 3]
        yield Viewpoint(source, source + sdd * towards, right, down, towards)


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
