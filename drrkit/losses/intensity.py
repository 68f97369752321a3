"""Losses of intensities: differences, overlap, structural similarity, spectra."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from drrkit.geometry import check_counts, check_numbers
from drrkit.losses.arguments import check_pair, intensity_range, mean, shares, unit
from drrkit.losses.batches import by_views
from drrkit.losses.stencils import Taps, correlate, local_means, local_moments


def mse(moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference, weighted by the mask.

    Shapes: see drrkit.losses. The result has the square of the images' unit.

    Returns [B].
    """
    return _mean_of(Tensor.square, moving, fixed, mask)


def l1(moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute difference, weighted by the mask.

    The derivative of a pixel without difference is taken as zero.

    Returns [B], in the images' unit.
    """
    return _mean_of(Tensor.abs, moving, fixed, mask)


def soft_dice(
    moving: Tensor, fixed: Tensor, mask: Tensor | None = None, *, smooth: float = 1e-5
) -> Tensor:
    """One minus the soft Dice coefficient with squared denominators.

    1 - (2 sum w I J + smooth) / (sum w I^2 + sum w J^2 + smooth), where the largest weight of the
    mask counts as 1. Meant for intensities between 0 and 1. Source: Milletari et al., V-Net, 2016;
    `smooth` as in MONAI's DiceLoss.

    Args:
        smooth: makes two empty images a perfect match.

    Returns [B], between 0 and 1 for images that are not negative. Raises ValueError for a smooth
    that is not positive.
    """
    check_pair(moving, fixed, mask)
    check_numbers(smooth=smooth)
    return by_views(partial(_overlap, smooth=smooth), moving, fixed, unit(mask))


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

    Returns [B], between 0 and 2. Raises ValueError for images smaller than the window, or an option
    out of bounds.
    """
    check_counts(window=window)
    check_numbers(sigma=sigma, k1=k1, k2=k2)
    if data_range is not None:
        check_numbers(data_range=data_range)
    check_pair(moving, fixed, mask, smallest=window)
    taps = _gaussian(window, sigma)
    low, high = intensity_range(fixed, mask, None if data_range is None else (0.0, data_range))
    extent = (high - low).clamp_min(torch.finfo(fixed.dtype).tiny ** 0.25)
    extent = extent.expand(*torch.broadcast_shapes(extent.shape, (1, 1, 1, 1)))
    total = None if mask is None else correlate(mask, taps, taps)
    # Subtracting one level from both images keeps mean(x^2) - mean(x)^2 accurate in float32.
    level = mean(fixed.detach(), shares(mask)).mean(dim=1)[:, None, None, None]
    parts = (fixed, level, *local_moments(fixed - level, mask, total, taps))
    parts = (*parts, (k1 * extent) ** 2, (k2 * extent) ** 2, mask, total)
    return by_views(partial(_structure_loss, taps=taps), moving, *parts)


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

    Returns [B]. Raises ValueError as `ssim`, or for weights that are not three numbers of at least
    0.
    """
    if not isinstance(weights, (tuple, list)) or len(weights) != 3:
        raise ValueError(f"weights: expected three numbers of at least 0, got {weights!r}")
    for weight in weights:
        check_numbers(True, weights=weight)
    structure = ssim(moving, fixed, mask, data_range=data_range, window=window)
    overlap, difference = soft_dice(moving, fixed, mask), l1(moving, fixed, mask)
    return weights[0] * structure + weights[1] * overlap + weights[2] * difference


def focal_frequency(
    moving: Tensor,
    fixed: Tensor,
    mask: Tensor | None = None,
    *,
    alpha: float = 1.0,
    patch_factor: int = 1,
    constant_weights: bool = True,
) -> Tensor:
    """Mean squared difference of the orthonormal spectra, weighted by the difference itself.

    mean over frequencies of w |D|^2 with D = FFT(I - J) and w = |D|^alpha / max |D|^alpha of each
    view and channel. Source: Jiang et al., ICCV 2021, whose parameters are the defaults. The mask
    scales the difference by the square root of its weights, so that alpha = 0 is `mse` exactly.

    Args:
        alpha: how much more a frequency counts the more it differs, at least 0.
        patch_factor: compares this number squared of patches, each with its own spectrum; it must
            divide the numbers of rows and columns.
        constant_weights: the gradient takes w as constant, as published; False differentiates it.

    Returns [B], with the square of the images' unit. Raises ValueError for an option out of bounds.
    """
    check_pair(moving, fixed, mask)
    check_numbers(True, alpha=alpha)
    check_counts(patch_factor=patch_factor)
    rows, cols = moving.shape[2:]
    if rows % patch_factor or cols % patch_factor:
        raise ValueError(
            f"patch_factor: expected a divisor of {rows} rows and {cols} columns, "
            f"got {patch_factor}"
        )
    share = shares(mask)
    root = None if share is None else torch.sqrt(share * (rows * cols))

    def compare(moving: Tensor, fixed: Tensor, root: Tensor | None) -> Tensor:
        difference = moving - fixed if root is None else (moving - fixed) * root
        rows, cols = (side // patch_factor for side in difference.shape[2:])
        # [b, C, down, rows, across, cols] -> one spectrum per patch.
        patches = difference.unflatten(2, (-1, rows)).unflatten(4, (-1, cols)).transpose(3, 4)
        spectrum = torch.fft.rfft2(patches, norm="ortho")
        power = spectrum.real.square() + spectrum.imag.square()
        weight = _focus(power.detach() if constant_weights else power, alpha)
        # Half of the spectrum of a real image mirrors the other half; rfft2 leaves that out.
        twice = power.new_full((power.shape[-1],), 2.0)
        twice[0] = 1.0
        if cols % 2 == 0:
            twice[-1] = 1.0
        return (weight * power * twice).sum(dim=(-1, -2)).mean(dim=(1, 2, 3)) / (rows * cols)

    return by_views(compare, moving, fixed, root)


def _mean_of(
    measure: Callable[[Tensor], Tensor], moving: Tensor, fixed: Tensor, mask: Tensor | None
) -> Tensor:
    """The weighted mean of a measure of every pixel's difference."""

    def compare(moving: Tensor, fixed: Tensor, share: Tensor | None) -> Tensor:
        return mean(measure(moving - fixed), share).mean(dim=1)

    check_pair(moving, fixed, mask)
    return by_views(compare, moving, fixed, shares(mask))


def _overlap(moving: Tensor, fixed: Tensor, weight: Tensor | None, *, smooth: float) -> Tensor:
    pixels = (-1, -2)
    weighted_moving = moving if weight is None else moving * weight
    weighted_fixed = fixed if weight is None else fixed * weight
    both = (weighted_moving * fixed).sum(pixels)
    squares = (weighted_moving * moving).sum(pixels) + (weighted_fixed * fixed).sum(pixels)
    return 1.0 - ((2.0 * both + smooth) / (squares + smooth)).mean(dim=1)


def _gaussian(window: int, sigma: float) -> Taps:
    """A Gaussian's weights about the middle of the window, which sum to one."""
    middle = 0.5 * (window - 1)
    weights = [math.exp(-0.5 * ((k - middle) / sigma) ** 2) for k in range(window)]
    return tuple(weight / sum(weights) for weight in weights)


def _structure_loss(moving: Tensor, *parts: Any, taps: Taps) -> Tensor:
    fixed, level, fixed_mean, fixed_variance, c1, c2, mask, total = parts
    moving = moving - level
    moving_mean, moving_variance = local_moments(moving, mask, total, taps)
    covariance = local_means(moving * (fixed - level), mask, total, taps) - moving_mean * fixed_mean
    moving_mean, fixed_mean = moving_mean + level, fixed_mean + level
    luminance = (2.0 * moving_mean * fixed_mean + c1) / (
        moving_mean.square() + fixed_mean.square() + c1
    )
    structure = (2.0 * covariance + c2) / (moving_variance + fixed_variance + c2)
    return 1.0 - mean(luminance * structure, shares(total)).mean(dim=1)


def _focus(power: Tensor, alpha: float) -> Tensor:
    """|D|^alpha of every frequency relative to the largest, from |D|^2."""
    largest = power.amax(dim=(-1, -2), keepdim=True).clamp_min(torch.finfo(power.dtype).tiny)
    # The floor keeps the derivatives of the power finite where there is no difference.
    return (power / largest).clamp_min(1e-20) ** (0.5 * alpha)
