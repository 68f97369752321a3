"""Trilinear interpolation written out in look-ups and weights.

Unlike torch's grid_sample it has forward-mode and second derivatives with respect to the points.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["corners_and_weights", "trilinear"]


def corners_and_weights(index: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """The eight nodes of a grid around points, and their trilinear weights.

    Args:
        index: [S, 3] points (x, y, z) in index coordinates.
        shape: (D, H, W) of the grid.

    Returns:
        [S, 8] int64, places in the flattened grid, and [S, 8] in the dtype of the points. A node
        outside the grid has the place of one inside and weight 0.
    """
    low = index.detach().floor()
    share = index - low
    node = low.long()[..., None] + torch.arange(2, device=index.device)  # [S, 3, 2]
    last = torch.tensor(shape[::-1], device=index.device)[:, None] - 1
    inside = (node >= 0) & (node <= last)
    x, y, z = torch.minimum(node.clamp_min(0), last).unbind(1)
    along_x, along_y, along_z = (torch.stack((1.0 - share, share), -1) * inside).unbind(1)
    plane = z[:, :, None] * shape[1] + y[:, None]  # [S, 2, 2]
    place = plane[..., None] * shape[2] + x[:, None, None]
    weight = along_z[:, :, None, None] * along_y[:, None, :, None] * along_x[:, None, None]
    return place.flatten(1), weight.flatten(1)


def trilinear(grid: Tensor, index: Tensor) -> Tensor:
    """Values [S] of a grid [D, H, W] of numbers or bools, zero outside, at [S, 3] (x, y, z)."""
    place, weight = corners_and_weights(index, (grid.shape[0], grid.shape[1], grid.shape[2]))
    return (grid.flatten()[place] * weight).sum(-1)
