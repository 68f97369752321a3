"""Losses of pixel by pixel differences and overlaps."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from drrkit.losses.arguments import check_images, check_number
from drrkit.losses.batches import by_views
from drrkit.losses.weights import mean, shares, unit

__all__ = ["l1", "mse", "soft_dice"]


def mse(moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference, weighted by the mask.

    Shapes: see drrkit.losses. The result has the square of the images' unit.

    Returns:
        [B] tensor.

    Raises:
        TypeError, ValueError: an argument is not an image of the shape, dtype or device expected.
    """
    check_images(moving, fixed, mask)
    return by_views(_squares, moving, fixed, shares(mask), numbers=moving[:1].numel())


def l1(moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute difference, weighted by the mask.

    The derivative of a pixel without difference is taken as zero.

    Returns:
        [B] tensor, in the images' unit.

    Raises:
        TypeError, ValueError: an argument is not an image of the shape, dtype or device expected.
    """
    check_images(moving, fixed, mask)
    return by_views(_magnitudes, moving, fixed, shares(mask), numbers=moving[:1].numel())


def soft_dice(
    moving: Tensor, fixed: Tensor, mask: Tensor | None = None, *, smooth: float = 1e-5
) -> Tensor:
    """One minus the soft Dice coefficient with squared denominators.

    1 - (2 sum w I J + smooth) / (sum w I^2 + sum w J^2 + smooth), where the largest weight of the
    mask counts as 1. Meant for intensities between 0 and 1. Source: Milletari et al., V-Net, 2016;
    `smooth` as in MONAI's DiceLoss.

    Args:
        smooth: makes two empty images a perfect match.

    Returns:
        [B] tensor, between 0 and 1 for images that are not negative.

    Raises:
        TypeError, ValueError: an argument is not an image of the shape, dtype or device expected,
            or smooth is not positive.
    """
    check_images(moving, fixed, mask)
    check_number(smooth, "smooth", "a number")
    compare = partial(_overlap, smooth=smooth)
    return by_views(compare, moving, fixed, unit(mask), numbers=moving[:1].numel())


def _squares(moving: Tensor, fixed: Tensor, share: Tensor | None) -> Tensor:
    return mean((moving - fixed).square(), share).mean(dim=1)


def _magnitudes(moving: Tensor, fixed: Tensor, share: Tensor | None) -> Tensor:
    return mean((moving - fixed).abs(), share).mean(dim=1)


def _overlap(moving: Tensor, fixed: Tensor, weight: Tensor | None, *, smooth: float) -> Tensor:
    pixels = (-1, -2)
    weighted_moving = moving if weight is None else moving * weight
    weighted_fixed = fixed if weight is None else fixed * weight
    both = (weighted_moving * fixed).sum(pixels)
    squares = (weighted_moving * moving).sum(pixels) + (weighted_fixed * fixed).sum(pixels)
    return 1.0 - ((2.0 * both + smooth) / (squares + smooth)).mean(dim=1)
