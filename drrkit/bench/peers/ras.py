"""The world of tools that count millimetres in RAS, as NIfTI does."""

from __future__ import annotations

import torch
from torch import Tensor


def lps_from_ras() -> Tensor:
    """[4, 4] float64, its own inverse."""
    return torch.diag(torch.tensor((-1.0, -1.0, 1.0, 1.0), dtype=torch.float64))


def ras_from_camera(world_to_camera: Tensor) -> Tensor:
    """Camera to RAS world [B, 4, 4] of world_to_camera [B, 4, 4] in LPS; differentiable."""
    turn = world_to_camera[..., :3, :3].mT
    source = -turn @ world_to_camera[..., :3, 3:]
    upper = torch.cat((turn, source), -1)
    matrix = torch.cat((upper, world_to_camera[..., 3:, :]), -2)
    return lps_from_ras().to(matrix) @ matrix
