"""Encodings of points (positional, learned features on grids), and the networks that read them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from drrkit.geometry import check_counts


def positional_encoding(x: Tensor, octaves: int) -> Tensor:
    """(x, sin 2^l pi x, cos 2^l pi x) for l < octaves: [..., D] -> [..., D (1 + 2 octaves)].

    Source: Mildenhall et al., NeRF, ECCV 2020; Eq. 5 and 7 of arXiv 2308.00214. x is meant to stay
    within [-1, 1].
    """
    if octaves == 0:
        return x
    frequency = math.pi * 2.0 ** torch.arange(octaves, dtype=x.dtype, device=x.device)
    angle = (x[..., None] * frequency).flatten(-2)
    return torch.cat((x, angle.sin(), angle.cos()), -1)


def encoded_size(dimensions: int, octaves: int) -> int:
    """Numbers that `positional_encoding` makes of so many."""
    return dimensions * (1 + 2 * octaves)


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
    """Values [S] of a grid [D, H, W] of numbers or bools, zero outside, at [S, 3] (x, y, z).

    Unlike torch's grid_sample this has forward-mode and second derivatives in the points.
    """
    place, weight = corners_and_weights(index, (grid.shape[0], grid.shape[1], grid.shape[2]))
    return (grid.flatten()[place] * weight).sum(0)


class FeatureGrids(nn.Module):
    """Learned features on nested grids, interpolated trilinearly: [S, 3] -> [S, size].

    Source: the multiresolution encoding of Mueller et al., Instant neural graphics primitives, ACM
    TOG 41(4), 2022, with dense tables in the place of hashed ones.

    Args:
        shape: (D, H, W) of the grid whose index coordinates (x, y, z) the points are in.
        spacing: its voxel size (x, y, z) mm.
        cell: side of the finest level's cells, mm; every other level's are twice the one before.
        levels: their number.
        features: numbers per node.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        spacing: tuple[float, float, float],
        cell: float,
        levels: int,
        features: int = 2,
    ) -> None:
        super().__init__()
        self.spacing, self.size = spacing, levels * features
        self.cells = [cell * 2.0**level for level in range(levels)]
        sides = [(n - 1) * s for n, s in zip(shape, spacing[::-1], strict=True)]
        self.shapes = []
        for one in self.cells:
            depth, height, width = (math.ceil(side / one - 1e-9) + 1 for side in sides)
            self.shapes.append((depth, height, width))
        # So small that an untrained field is flat, and no two nodes are the same.
        tables = [
            torch.empty(math.prod(one), features).uniform_(-1e-4, 1e-4) for one in self.shapes
        ]
        self.tables = nn.ParameterList(tables)

    def forward(self, index: Tensor) -> Tensor:
        found = []
        for cell, shape, table in zip(self.cells, self.shapes, self.tables, strict=True):
            place, weight = corners_and_weights(
                index * index.new_tensor(self.spacing) / cell, shape
            )
            nodes = table.index_select(0, place.flatten()).unflatten(0, place.shape)
            found.append((nodes * weight.to(table.dtype)[..., None]).sum(0))
        return torch.cat(found, -1)


class Perceptron(nn.Module):
    """A multilayer perceptron with ReLU between its layers: [..., inputs] -> [..., 1].

    Args:
        inputs: numbers that go in.
        width: of the hidden layers.
        depth: number of hidden layers.
        skip: the hidden layer that sees the input again (NeRF's fifth of eight: skip=4), or None.

    Raises:
        ValueError: a count that is not positive, or a skip that is no layer behind the first.
    """

    def __init__(self, inputs: int, width: int = 64, depth: int = 4, skip: int | None = None):
        super().__init__()
        check_counts(inputs=inputs, width=width, depth=depth)
        if skip is not None and not 0 < skip < depth:
            raise ValueError(f"skip: expected a layer from 1 to {depth - 1}, got {skip!r}")
        self.skip = skip
        sizes = [inputs] + [width] * (depth - 1)
        if skip is not None:
            sizes[skip] += inputs
        hidden = [nn.Linear(size, width) for size in sizes]
        self.hidden = nn.ModuleList(hidden)
        self.last = nn.Linear(width, 1)
        for layer in hidden:
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for number, layer in enumerate(self.hidden):
            y = torch.relu(layer(torch.cat((y, x), -1) if number == self.skip else y))
        return self.last(y)
