"""The open field of a detector: what is seen, without specks, and its convex hull."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["convex_depth", "opened"]


def opened(mask: Tensor, size: int = 5) -> Tensor:
    """A mask [1, 1, rows, cols] without what is narrower than `size` pixels (letters, specks)."""
    pad = size // 2
    # Outside counts as inside, so that the edge of the image is none of the mask.
    outside = functional.pad((~mask).float(), (pad,) * 4, value=0.0)
    kept = 1.0 - functional.max_pool2d(outside, size, stride=1)
    return functional.max_pool2d(kept, size, stride=1, padding=pad) > 0.5


def convex_depth(mask: Tensor) -> Tensor:
    """How deep each pixel lies in the convex hull of a mask: [1, 1, rows, cols] float64.

    Pixels to the nearest edge of the polygon through the outermost pixels' centres, negative
    outside; a mask of less than three corners has depth -1 everywhere but on itself.
    """
    corners = _hull(_row_ends(mask[0, 0]))
    rows, cols = mask.shape[-2:]
    if len(corners) < 3:
        return mask.double() - 1.0
    row = torch.arange(rows, dtype=torch.float64, device=mask.device)[:, None]
    col = torch.arange(cols, dtype=torch.float64, device=mask.device)[None, :]
    depth = torch.full((rows, cols), float("inf"), dtype=torch.float64, device=mask.device)
    for (y0, x0), (y1, x1) in zip(corners, corners[1:] + corners[:1], strict=True):
        dy, dx = y1 - y0, x1 - x0
        length = (dy * dy + dx * dx) ** 0.5
        depth = torch.minimum(depth, ((row - y0) * dx - (col - x0) * dy) / length)
    return depth[None, None]


def _row_ends(mask: Tensor) -> list[tuple[float, float]]:
    """(row, col) of the first and the last pixel of every row."""
    inside = mask.to(torch.uint8).cpu()
    first = inside.argmax(dim=1)
    last = inside.shape[1] - 1 - inside.flip(1).argmax(dim=1)
    ends = []
    for row in inside.any(dim=1).nonzero().flatten().tolist():
        ends += [(float(row), float(first[row])), (float(row), float(last[row]))]
    return sorted(set(ends))


def _hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Corners of the convex hull of sorted points (row, col), inside on the positive side.

    Andrew's monotone chain.
    """

    def chain(ordered: list[tuple[float, float]]) -> list[tuple[float, float]]:
        corners: list[tuple[float, float]] = []
        for y, x in ordered:
            while len(corners) >= 2:
                (y0, x0), (y1, x1) = corners[-2:]
                if (y - y0) * (x1 - x0) - (x - x0) * (y1 - y0) > 0:
                    break
                corners.pop()
            corners.append((y, x))
        return corners[:-1]

    if len(points) < 3:
        return points
    return chain(points) + chain(points[::-1])
