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
        [8, S] int64, places in the flattened grid, and [8, S] in the dtype of the points. A node
        outside the grid has the place of one inside and weight 0.
    """
    # The points come last, so that all arithmetic runs along contiguous rows.
    rows = index.T.contiguous()  # [3, S]
    low = rows.detach().floor()
    share = rows - low
    node = low.long() + torch.arange(2, device=index.device)[:, None, None]  # [2, 3, S]
    last = torch.tensor(shape[::-1], device=index.device)[:, None] - 1
    inside = (node >= 0) & (node <= last)
    x, y, z = torch.minimum(node.clamp_min(0), last).unbind(1)
    along_x, along_y, along_z = (torch.stack((1.0 - share, share)) * inside).unbind(1)
    plane = z[:, None] * shape[1] + y  # [2, 2, S]
    place = plane[:, :, None] * shape[2] + x
    weight = (along_z[:, None] * along_y)[:, :, None] * along_x
    return place.flatten(0, 2), weight.flatten(0, 2)


def trilinear(grid: Tensor, index: Tensor) -> Tensor:
    """Values [S] of a grid [D, H, W] of numbers or bools, zero outside, at [S, 3] (x, y, z)."""
    place, weight = corners_and_weights(index, (grid.shape[0], grid.shape[1], grid.shape[2]))
    return (grid.flatten()[place] * weight).sum(0)
