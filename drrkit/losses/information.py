"""Mutual information of intensities: Gaussian Parzen windows, normalised, and Mattes' splines."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from drrkit.losses.arguments import check_count, check_images, check_number, check_range
from drrkit.losses.batches import by_views
from drrkit.losses.histograms import (
    SPLINE_PADDING,
    gaussian_windows,
    positions,
    spline_histogram,
)
from drrkit.losses.weights import intensity_range, shares

__all__ = ["mattes_mutual_information", "mutual_information", "normalized_mutual_information"]

Range = tuple[float, float] | None


class _Options(NamedTuple):
    bins: int
    sigma: float
    moving_range: Range
    fixed_range: Range


Measure = Callable[[Tensor], Tensor]
"""Joint histogram [b, C, bins, bins], moving bins first -> [b]."""

# Keeps 0 log 0 = 0 and the gradient of an empty bin finite.
_TINY_PROBABILITY = 1e-12


def mutual_information(
    moving: Tensor,
    fixed: Tensor,
    mask: Tensor | None = None,
    *,
    bins: int = 32,
    sigma: float = 0.5,
    moving_range: tuple[float, float] | None = None,
    fixed_range: tuple[float, float] | None = None,
) -> Tensor:
    """Minus the mutual information (nats) of a differentiable joint histogram.

    Intensities are mapped to [0, bins - 1]. A pixel joins bin a with Gaussian Parzen weight
    w_a(x) ~ exp(-(x - a)^2 / (2 sigma^2)), normalised over the bins, and
    p_ab = sum_n m_n w_a(I_n) w_b(J_n) / sum_n m_n;  MI = sum p_ab log(p_ab / (p_a p_b)).

    Args:
        bins: number of bins of each image, at least 2.
        sigma: width of the Parzen window in bins.
        moving_range, fixed_range: (low, high) intensities of the first and the last bin. Default:
            each view's own minimum and maximum under the mask, taken as constants by the gradient.

    Returns:
        [B] tensor, between minus log(bins) and 0.

    Raises:
        TypeError, ValueError: an argument is not an image of the shape, dtype or device expected,
            or bins, sigma or a range is out of bounds.
    """
    options = _check_options(bins, sigma, moving_range, fixed_range)
    return _compare(_minus_information, moving, fixed, mask, options)


def normalized_mutual_information(
    moving: Tensor,
    fixed: Tensor,
    mask: Tensor | None = None,
    *,
    bins: int = 32,
    sigma: float = 0.5,
    moving_range: tuple[float, float] | None = None,
    fixed_range: tuple[float, float] | None = None,
) -> Tensor:
    """Minus the normalised mutual information (H(I) + H(J)) / H(I, J).

    The entropies are those of the joint histogram of `mutual_information`, whose options these are.
    Hardly depends on how much of both images overlaps. Source: Studholme et al., Pattern
    Recognition 32, 1999.

    Returns:
        [B] tensor, between -2 (each image determines the other) and -1 (independent).

    Raises:
        TypeError, ValueError: as in `mutual_information`.
    """
    options = _check_options(bins, sigma, moving_range, fixed_range)
    return _compare(_minus_entropy_ratio, moving, fixed, mask, options)


def mattes_mutual_information(
    moving: Tensor,
    fixed: Tensor,
    mask: Tensor | None = None,
    *,
    bins: int = 50,
    moving_range: tuple[float, float] | None = None,
    fixed_range: tuple[float, float] | None = None,
) -> Tensor:
    """Minus the mutual information (nats) of Mattes et al., as ITK computes it.

    A pixel joins four moving bins with the weights of a cubic B-spline and one fixed bin; two bins
    at each end stay free for the spline's support. The marginals are sums of the joint histogram.
    Differentiable in the moving image only; a fixed intensity changes bins by jumps. Three
    derivatives are exact, though the third jumps at the bins' edges. Source: Mattes et al., IEEE
    Trans. Med. Imaging 22, 2003; ITK's MattesMutualInformationImageToImageMetricv4.

    Args:
        bins: number of bins of each image, at least 5.
        moving_range, fixed_range: (low, high) intensities that the inner bins cover; what lies
            outside counts as the nearer end. Default: each view's own minimum and maximum under the
            mask, taken as constants by the gradient.

    Returns:
        [B] tensor, at most 0.

    Raises:
        TypeError, ValueError: an argument is not an image of the shape, dtype or device expected,
            or bins or a range is out of bounds.
    """
    check_images(moving, fixed, mask)
    check_count(bins, "bins", 2 * SPLINE_PADDING + 1, "an integer")
    check_range(moving_range, "moving_range")
    check_range(fixed_range, "fixed_range")
    with torch.no_grad():
        low, high = intensity_range(fixed, mask, fixed_range)
        fixed_position = positions(fixed, low, high, bins, SPLINE_PADDING)
        fixed_bin = fixed_position.floor().clamp_max(bins - SPLINE_PADDING - 1).long()
    compare = partial(_mattes, bins=bins, moving_range=moving_range)
    numbers = 4 * moving[:1].numel()
    return by_views(compare, moving, fixed_bin, mask, shares(mask), numbers=numbers)


def _mattes(
    moving: Tensor,
    fixed_bin: Tensor,
    mask: Tensor | None,
    share: Tensor | None,
    *,
    bins: int,
    moving_range: Range,
) -> Tensor:
    low, high = intensity_range(moving, mask, moving_range)
    position = positions(moving, low, high, bins, SPLINE_PADDING)
    flat = None if share is None else share.flatten(2)
    return _minus_information(spline_histogram(position, fixed_bin, flat, bins))


def _check_options(bins: int, sigma: float, moving_range: Range, fixed_range: Range) -> _Options:
    check_count(bins, "bins", 2, "an integer")
    check_number(sigma, "sigma", "a number of bins")
    check_range(moving_range, "moving_range")
    check_range(fixed_range, "fixed_range")
    return _Options(bins, sigma, moving_range, fixed_range)


def _compare(
    measure: Measure, moving: Tensor, fixed: Tensor, mask: Tensor | None, options: _Options
) -> Tensor:
    """The measure of every view's joint histogram, averaged over channels -> [B]."""
    check_images(moving, fixed, mask)
    share = shares(mask)
    windows = None
    if fixed.shape[0] == 1 and (mask is None or mask.shape[0] == 1):
        windows = _fixed_windows(fixed, mask, share, options)
    compare = partial(_parzen, measure=measure, options=options)
    parts = (fixed if windows is None else None, windows, mask, share)
    # A quarter of the windows: much of their memory is touched only in passing.
    numbers = moving[:1].numel() * max(1, options.bins // 4)
    return by_views(compare, moving, *parts, numbers=numbers)


def _parzen(
    moving: Tensor,
    fixed: Tensor | None,
    fixed_windows: Tensor | None,
    mask: Tensor | None,
    share: Tensor | None,
    *,
    measure: Measure,
    options: _Options,
) -> Tensor:
    if fixed_windows is None:
        assert fixed is not None  # one of the two is always there
        fixed_windows = _fixed_windows(fixed, mask, share, options)
    low, high = intensity_range(moving, mask, options.moving_range)
    position = positions(moving, low, high, options.bins)
    windows = gaussian_windows(position, options.bins, options.sigma)
    # One matrix for all views is multiplied in place; a broadcast one would be copied for each.
    single = fixed_windows.shape[:2] == (1, 1)
    other = fixed_windows[0, 0] if single else fixed_windows
    with _full_precision(moving.device.type):
        joint = torch.matmul(windows, other.mT)
    return measure(joint)


def _full_precision(device_type: str) -> AbstractContextManager[None]:
    """No autocast where there could be one: a histogram in bfloat16 is none."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def _fixed_windows(
    fixed: Tensor, mask: Tensor | None, share: Tensor | None, options: _Options
) -> Tensor:
    """Windows [b, C, bins, pixels] of the fixed image, times what each pixel adds."""
    low, high = intensity_range(fixed, mask, options.fixed_range)
    position = positions(fixed, low, high, options.bins)
    windows = gaussian_windows(position, options.bins, options.sigma)
    if share is None:
        return windows / position.shape[-1]
    return windows * share.flatten(2).unsqueeze(-2)


def _minus_information(joint: Tensor) -> Tensor:
    moving_marginal = joint.sum(dim=-1, keepdim=True)
    fixed_marginal = joint.sum(dim=-2, keepdim=True)
    tiny = _TINY_PROBABILITY
    ratio = torch.log(joint + tiny) - torch.log(moving_marginal * fixed_marginal + tiny)
    return -(joint * ratio).sum(dim=(-1, -2)).mean(dim=1)


def _minus_entropy_ratio(joint: Tensor) -> Tensor:
    apart = _entropy(joint.sum(dim=-1)) + _entropy(joint.sum(dim=-2))
    together = _entropy(joint.flatten(2))
    # Two constant images have no entropy: independent, by this constant.
    tiny = _TINY_PROBABILITY
    return -((apart + tiny) / (together + tiny)).mean(dim=1)


def _entropy(probability: Tensor) -> Tensor:
    return -(probability * torch.log(probability + _TINY_PROBABILITY)).sum(dim=-1)
