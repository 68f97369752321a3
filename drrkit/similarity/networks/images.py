"""Images on one scale before a network compares them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["SCALINGS", "check_images", "scaled"]

SCALINGS = ("none", "unit", "standard")


def scaled(image: Tensor, how: str, mask: Tensor | None = None) -> Tensor:
    """Images [B, C, rows, cols] on the scale that a network expects, each by itself.

    how: "none"; "unit", the least value 0 and the largest 1, both constants for derivatives, as
    they stand at single pixels; "standard", mean 0 and standard deviation 1 over pixels and
    channels, differentiable twice. mask: float weights [B or 1, 1, rows, cols] of the pixels that
    count; the others become 0.
    """
    if how == "none":
        return image if mask is None else image * mask
    if how == "unit":
        low, high = _range(image.detach(), mask)
        image = (image - low) / (high - low).clamp_min(torch.finfo(image.dtype).tiny)
        return image if mask is None else image * mask
    if how != "standard":
        raise ValueError(f"how: expected one of {SCALINGS}, got {how!r}")
    weight = torch.ones_like(image[:1, :1]) if mask is None else mask
    weight = weight.expand(weight.shape[0], image.shape[1], -1, -1)
    total = weight.sum((1, 2, 3), keepdim=True)
    mean = (image * weight).sum((1, 2, 3), keepdim=True) / total
    centred = (image - mean) * weight
    variance = (centred.square()).sum((1, 2, 3), keepdim=True) / total
    # Of an empty image, too, the derivatives are finite.
    return centred / (variance + 1e-6).sqrt()


def _range(image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if mask is None:
        return image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
    inside = (mask > 0).expand_as(image)
    low = torch.where(inside, image, torch.inf).amin((1, 2, 3), keepdim=True)
    high = torch.where(inside, image, -torch.inf).amax((1, 2, 3), keepdim=True)
    return low, high


def check_images(moving: Tensor, fixed: Tensor, channels: int) -> None:
    """Raise ValueError unless these are [B, channels, r, c] and [B or 1, 1, r, c]."""
    if moving.dim() != 4 or moving.shape[1] != channels:
        raise ValueError(
            f"moving: expected [B, {channels}, rows, cols] (is the volume prepared?), "
            f"got {tuple(moving.shape)}"
        )
    views, _, rows, cols = moving.shape
    if fixed.dim() != 4 or fixed.shape[0] not in (1, views) or fixed.shape[1] != 1:
        raise ValueError(
            f"fixed: expected [{views} or 1, 1, {rows}, {cols}], got {tuple(fixed.shape)}"
        )
    if fixed.shape[2:] != moving.shape[2:]:
        raise ValueError(
            f"fixed: expected images of {rows} x {cols} as moving, got {tuple(fixed.shape)}"
        )
