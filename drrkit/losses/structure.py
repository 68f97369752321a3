"""Structural similarity, and its sum with soft Dice and the mean absolute difference."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from drrkit.losses.arguments import check_count, check_images, check_number
from drrkit.losses.batches import by_views
from drrkit.losses.intensity import l1, soft_dice
from drrkit.losses.stencils import Taps, correlate
from drrkit.losses.weights import NO_WEIGHT, intensity_range, mean, shares

__all__ = ["ssim", "ssim_dice_l1"]


def ssim(
    moving: Tensor,
    fixed: Tensor,
    mask: Tensor | None = None,
    *,
    data_range: float | None = 1.0,
    window: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Tensor:
    """One minus the mean structural similarity over all windows that lie inside the image.

    SSIM = (2 m_I m_J + C1)(2 c_IJ + C2) / ((m_I^2 + m_J^2 + C1)(v_I + v_J + C2)) with Gaussian
    windows, C1 = (k1 L)^2, C2 = (k2 L)^2 and the data range L. A window counts in proportion to
    the mask's weight inside it; within it, pixels count by the mask too. Source: Wang et al., IEEE
    Trans. Image Process. 13, 2004, whose parameters are the defaults.

    Args:
        data_range: L in the images' unit; None takes each fixed image's own range under the mask,
            a constant of the gradient.
        window: side of the window in pixels.
        sigma: standard deviation of the Gaussian in pixels.
        k1, k2: the constants that keep the quotients finite.

    Returns:
        [B] tensor between 0 and 2.

    Raises:
        TypeError, ValueError: an argument is not an image of the shape, dtype or device expected,
            is smaller than the window, or an option is out of bounds.
    """
    check_count(window, "window", 1, "a number of pixels")
    check_number(sigma, "sigma", "a number of pixels")
    check_number(k1, "k1", "a number")
    check_number(k2, "k2", "a number")
    if data_range is not None:
        check_number(data_range, "data_range", "a range of intensities or None")
    check_images(moving, fixed, mask, smallest=window)
    taps = _gaussian(window, sigma)
    low, high = intensity_range(fixed, mask, None if data_range is None else (0.0, data_range))
    extent = (high - low).clamp_min(torch.finfo(fixed.dtype).tiny ** 0.25)
    extent = extent.expand(*torch.broadcast_shapes(extent.shape, (1, 1, 1, 1)))
    total = None if mask is None else correlate(mask, taps, taps)
    # Subtracting one level from both images keeps mean(x^2) - mean(x)^2 accurate in float32.
    level = mean(fixed.detach(), shares(mask)).mean(dim=1)[:, None, None, None]
    parts = (fixed, level, *_moments(fixed - level, mask, total, taps))
    compare = partial(_structure_loss, taps=taps)
    constants = ((k1 * extent) ** 2, (k2 * extent) ** 2)
    return by_views(compare, moving, *parts, *constants, mask, total, numbers=moving[:1].numel())


def ssim_dice_l1(
    moving: Tensor,
    fixed: Tensor,
    mask: Tensor | None = None,
    *,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    data_range: float | None = 1.0,
    window: int = 11,
) -> Tensor:
    """Weighted sum of `ssim`, `soft_dice` and `l1`, for intensities between 0 and 1.

    The comparator of mutual information in arXiv 2308.00214, which states no weights.

    Args:
        weights: of the three, at least 0.
        data_range, window: as in `ssim`.

    Returns:
        [B] tensor.

    Raises:
        TypeError, ValueError: as in `ssim`, or the weights are not three numbers of at least 0.
    """
    if not isinstance(weights, (tuple, list)) or len(weights) != 3:
        raise ValueError(f"weights: expected three numbers of at least 0, got {weights!r}")
    for weight in weights:
        check_number(weight, "weights", "three numbers", zero=True)
    structure = ssim(moving, fixed, mask, data_range=data_range, window=window)
    overlap, difference = soft_dice(moving, fixed, mask), l1(moving, fixed, mask)
    return weights[0] * structure + weights[1] * overlap + weights[2] * difference


def _gaussian(window: int, sigma: float) -> Taps:
    """A Gaussian's weights about the middle of the window, which sum to one."""
    middle = 0.5 * (window - 1)
    weights = [math.exp(-0.5 * ((k - middle) / sigma) ** 2) for k in range(window)]
    return tuple(weight / sum(weights) for weight in weights)


def _local(image: Tensor, mask: Tensor | None, total: Tensor | None, taps: Taps) -> Tensor:
    """Mean of every window under the mask, whose mean over the window is `total`."""
    if mask is None or total is None:
        return correlate(image, taps, taps)
    return correlate(mask * image, taps, taps) / total.clamp_min(NO_WEIGHT)


def _moments(
    image: Tensor, mask: Tensor | None, total: Tensor | None, taps: Taps
) -> tuple[Tensor, Tensor]:
    """Mean and variance of every window."""
    centre = _local(image, mask, total, taps)
    return centre, _local(image.square(), mask, total, taps) - centre.square()


def _structure_loss(
    moving: Tensor,
    fixed: Tensor,
    level: Tensor,
    fixed_mean: Tensor,
    fixed_variance: Tensor,
    c1: Tensor,
    c2: Tensor,
    mask: Tensor | None,
    total: Tensor | None,
    *,
    taps: Taps,
) -> Tensor:
    moving = moving - level
    moving_mean, moving_variance = _moments(moving, mask, total, taps)
    covariance = _local(moving * (fixed - level), mask, total, taps) - moving_mean * fixed_mean
    moving_mean, fixed_mean = moving_mean + level, fixed_mean + level
    luminance = (2.0 * moving_mean * fixed_mean + c1) / (
        moving_mean.square() + fixed_mean.square() + c1
    )
    structure = (2.0 * covariance + c2) / (moving_variance + fixed_variance + c2)
    return 1.0 - mean(luminance * structure, shares(total)).mean(dim=1)
