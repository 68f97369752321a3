"""Values and labels on another grid; index coordinates in, tensors out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Shape = tuple[int, int, int]

ALIGNED_TOLERANCE = 1e-3
"""Voxels by which a grid's axes may lean over its whole length and still count as parallel."""


def centred_grid(
    shape: Shape, spacing: tuple[float, float, float], new: tuple[float, float, float]
) -> tuple[Shape, tuple[float, float, float]]:
    """A grid of another spacing with the same centre and, to half a new voxel, the same extent.

    Args:
        shape, spacing, new: voxels, mm and new mm along (x, y, z).

    Returns:
        its shape (x, y, z), and the old index coordinates of its voxel (0, 0, 0).
    """
    counts, first = [], []
    for count, old, step in zip(shape, spacing, new, strict=True):
        n = max(1, round(count * old / step))
        counts.append(n)
        first.append((count - 1) / 2 - (n - 1) / 2 * step / old)
    return (counts[0], counts[1], counts[2]), (first[0], first[1], first[2])


def resample_values(values: Tensor, to_old: Tensor, shape: Shape, outside: float) -> Tensor:
    """Values on a new grid: box averages where it is coarser, linear interpolation where finer.

    Args:
        values: [..., D, H, W] on the old grid.
        to_old: [4, 4] float64 CPU, new index (x, y, z, 1) to old index.
        shape: the new grid's (x, y, z).
        outside: value of new voxels whose centres lie outside the old voxels.

    Returns:
        [..., z, y, x] of the new shape, in the dtype of ``values``; differentiable in them.
    """
    dtype = values.dtype
    work = values.to(torch.float64 if dtype == torch.float64 else torch.float32)
    axes = parallel_axes(to_old, shape)
    if axes is None:
        result = _oblique(work, to_old, shape, outside)
    else:
        result = _separable(work, to_old, shape, axes, outside)
    return result.to(dtype)


def resample_labels(labels: Tensor, to_old: Tensor, shape: Shape) -> Tensor:
    """Labels [D, H, W] of the nearest old voxel on a new grid; 0 outside the old voxels.

    ``to_old`` and ``shape`` as in ``resample_values``.
    """
    slabs = []
    for z in range(shape[2]):
        index = _slab_coordinates(to_old, shape, z, labels.device)
        x, y, wz = (
            index[..., a].add(0.5).floor().long().clamp_(0, labels.shape[2 - a] - 1)
            for a in range(3)
        )
        picked = labels[wz, y, x]
        slabs.append(picked.masked_fill(~_inside(index, labels.shape), 0))
    return torch.stack(slabs)


def parallel_axes(to_old: Tensor, shape: Shape) -> tuple[int, int, int] | None:
    """The old axis (0 x, 1 y, 2 z) along each new axis, or None where the grids lean."""
    linear = to_old[:3, :3]
    axes = linear.abs().argmax(0).tolist()
    if sorted(axes) != [0, 1, 2]:
        return None
    for new, old in enumerate(axes):
        others = [a for a in range(3) if a != old]
        if float(linear[others, new].abs().max()) * shape[new] > ALIGNED_TOLERANCE:
            return None
    return axes[0], axes[1], axes[2]


def _separable(
    values: Tensor, to_old: Tensor, shape: Shape, axes: tuple[int, int, int], outside: float
) -> Tensor:
    """Axis by axis, the new axes parallel to old ones.

    The axis that shrinks most comes first; of those that shrink about as much, the one whose
    neighbours are farthest apart in memory, as picking along it copies the longest runs.
    """
    lead = values.ndim - 3
    # Tensor dimensions run z, y, x: new axis a is dimension lead + 2 - a.
    order = [lead + 2 - axes[a] for a in (2, 1, 0)]
    values = values.permute(*range(lead), *order)

    def cost(axis: int) -> tuple[int, int]:
        dim = lead + 2 - axis
        return round(math.log2(shape[axis] / values.shape[dim])), -values.stride(dim)

    for axis in sorted(range(3), key=cost):
        scale, shift = float(to_old[axes[axis], axis]), float(to_old[axes[axis], 3])
        centres = shift + scale * torch.arange(shape[axis], dtype=torch.float64)
        values = _filter_axis(values, lead + 2 - axis, centres, max(abs(scale), 1.0), outside)
    return values.contiguous()


def _filter_axis(values: Tensor, dim: int, centres: Tensor, width: float, outside: float) -> Tensor:
    """Averages of the old voxels over boxes of ``width`` voxels about ``centres`` along one axis.

    A box one voxel wide weighs its two neighbours exactly as linear interpolation does, so one
    formula serves finer and coarser grids. Parts of a box beyond the edge do not count.
    """
    count = values.shape[dim]
    here = centres.numel() == count and bool((centres - torch.arange(count)).abs().max() < 1e-9)
    if here and width == 1.0:
        return values
    first = (centres - width / 2 + 0.5).floor().long()
    taps = range(math.ceil(width) + 1)
    index = torch.stack([first + k for k in taps])
    low = torch.maximum(centres - width / 2, index - 0.5)
    high = torch.minimum(centres + width / 2, index + 0.5)
    weight = (high - low).clamp(min=0) * ((index >= 0) & (index < count))
    inside = (centres >= -0.5 - 1e-6) & (centres <= count - 0.5 + 1e-6)
    weight = torch.where(inside, weight / weight.sum(0).clamp(min=1e-12), 0.0).to(values)
    index = index.clamp(0, count - 1).to(values.device)
    along = [-1 if d == dim else 1 for d in range(values.ndim)]
    result: Tensor | None = None
    for k in taps:
        if not bool(weight[k].any()):
            continue
        part = values.index_select(dim, index[k]) * weight[k].reshape(along)
        result = part if result is None else result + part
    if result is None:
        sizes = [centres.numel() if d == dim else n for d, n in enumerate(values.shape)]
        return values.new_full(sizes, outside)
    if bool(inside.all()):
        return result
    beyond = (~inside).to(values.device).reshape(along)
    return result.masked_fill(beyond, outside)


def _oblique(values: Tensor, to_old: Tensor, shape: Shape, outside: float) -> Tensor:
    """Trilinear interpolation slab by slab, after a box filter as wide as the new voxels."""
    lead = values.ndim - 3
    for axis, width in enumerate(to_old[:3, :3].norm(dim=1).tolist()):
        if width > 1.0 + 1e-6:
            dim = lead + 2 - axis
            centres = torch.arange(values.shape[dim], dtype=torch.float64)
            values = _filter_axis(values, dim, centres, width, outside)
    source = values.reshape(1, -1, *values.shape[lead:])
    size = torch.tensor(source.shape[:1:-1], dtype=torch.float64, device=values.device)
    slabs = []
    for z in range(shape[2]):
        index = _slab_coordinates(to_old, shape, z, values.device)
        grid = ((2 * index + 1) / size - 1).to(values.dtype)
        slab = torch.nn.functional.grid_sample(
            source, grid[None, None], mode="bilinear", padding_mode="border", align_corners=False
        )[0, :, 0]
        slabs.append(slab.masked_fill(~_inside(index, source.shape[-3:]), outside))
    result = torch.stack(slabs, dim=1)
    return result.reshape(*values.shape[:lead], *result.shape[1:])


def _slab_coordinates(to_old: Tensor, shape: Shape, z: int, device: torch.device) -> Tensor:
    """Old index coordinates [H, W, 3] of the new voxels (., ., z)."""
    x = torch.arange(shape[0], dtype=torch.float64)[:, None] * to_old[:3, 0]
    y = torch.arange(shape[1], dtype=torch.float64)[:, None] * to_old[:3, 1]
    return (y[:, None] + x + (z * to_old[:3, 2] + to_old[:3, 3])).to(device)


def _inside(index: Tensor, shape_zyx: tuple[int, ...] | torch.Size) -> Tensor:
    """Whether coordinates [..., 3] lie in the voxel boxes of a grid, up to rounding."""
    size = torch.tensor(shape_zyx[::-1], dtype=torch.float64, device=index.device)
    return ((index >= -0.5 - 1e-6) & (index <= size - 0.5 + 1e-6)).all(-1)
