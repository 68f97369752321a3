"""Means over pixels under a mask, and intensity ranges under it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["NO_WEIGHT", "intensity_range", "mean", "shares", "unit"]

NO_WEIGHT = 1e-12
"""A sum of mask weights below this counts as none."""


def shares(mask: Tensor | None) -> Tensor | None:
    """The mask's weights divided by their sum over the pixels; None weighs all pixels alike."""
    if mask is None:
        return None
    return mask / mask.sum(dim=(-1, -2), keepdim=True).clamp_min(NO_WEIGHT)


def unit(mask: Tensor | None) -> Tensor | None:
    """The mask's weights divided by their largest: binary masks of any height become 0 and 1."""
    if mask is None:
        return None
    return mask / mask.amax(dim=(-1, -2), keepdim=True).clamp_min(NO_WEIGHT)


def mean(values: Tensor, share: Tensor | None) -> Tensor:
    """Mean over the pixels with these shares -> [..., C]; zero where no pixel has weight."""
    if share is None:
        return values.mean(dim=(-1, -2))
    return (values * share).sum(dim=(-1, -2))


def intensity_range(
    image: Tensor, mask: Tensor | None, bounds: tuple[float, float] | None = None
) -> tuple[Tensor, Tensor]:
    """Lowest and highest intensity under the mask [B, C, 1, 1], constants of the gradient.

    `bounds`, where given, come back instead, as tensors without dimensions.
    """
    if bounds is not None:
        return image.new_tensor(bounds[0]), image.new_tensor(bounds[1])
    values, pixels = image.detach(), (-1, -2)
    if mask is None:
        return values.amin(dim=pixels, keepdim=True), values.amax(dim=pixels, keepdim=True)
    inside = mask.detach() > 0
    low = torch.where(inside, values, torch.inf).amin(dim=pixels, keepdim=True)
    high = torch.where(inside, values, -torch.inf).amax(dim=pixels, keepdim=True)
    # An empty mask leaves infinities; any finite range will do, no pixel counts.
    empty = ~inside.any(dim=-1, keepdim=True).any(dim=-2, keepdim=True)
    return low.masked_fill(empty, 0.0), high.masked_fill(empty, 1.0)
