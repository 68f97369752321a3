"""Mutual information of intensities: Gaussian Parzen windows, normalised, and Mattes' splines."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from drrkit.geometry import check_counts, check_numbers
from drrkit.losses.arguments import check_pair, check_ranges, intensity_range, shares
from drrkit.losses.batches import by_views

Range = tuple[float, float] | None


Measure = Callable[[Tensor], Tensor]
"""Joint histogram [b, C, bins, bins], moving bins first -> [b]."""

# Bins that stay free at both ends for the cubic spline's support.
_SPLINE_PADDING = 2

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

    Returns [B], between minus log(bins) and 0. Raises ValueError for bins, sigma or a range out of
    bounds.
    """
    options = (bins, sigma, moving_range, fixed_range)
    return _of_histogram(_minus_information, moving, fixed, mask, *options)


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

    Returns [B], between -2 (each image determines the other) and -1 (independent). Raises
    ValueError as `mutual_information`.
    """
    options = (bins, sigma, moving_range, fixed_range)
    return _of_histogram(_minus_entropy_ratio, moving, fixed, mask, *options)


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

    Returns [B], at most 0. Raises ValueError for bins or a range out of bounds.
    """
    check_pair(moving, fixed, mask)
    check_counts(2 * _SPLINE_PADDING + 1, bins=bins)
    check_ranges(moving_range=moving_range, fixed_range=fixed_range)
    with torch.no_grad():
        low, high = intensity_range(fixed, mask, fixed_range)
        fixed_position = _positions(fixed, low, high, bins, _SPLINE_PADDING)
        fixed_bin = fixed_position.floor().clamp_max(bins - _SPLINE_PADDING - 1).long()

    def compare(moving: Tensor, *parts: Any) -> Tensor:
        fixed_bin, mask, share = parts
        low, high = intensity_range(moving, mask, moving_range)
        position = _positions(moving, low, high, bins, _SPLINE_PADDING)
        flat = None if share is None else share.flatten(2)
        return _minus_information(_spline_histogram(position, fixed_bin, flat, bins))

    return by_views(compare, moving, fixed_bin, mask, shares(mask), images=4)


def _of_histogram(
    measure: Measure,
    moving: Tensor,
    fixed: Tensor,
    mask: Tensor | None,
    bins: int,
    sigma: float,
    moving_range: Range,
    fixed_range: Range,
) -> Tensor:
    """The measure of every view's joint histogram, averaged over channels -> [B]."""
    check_counts(2, bins=bins)
    check_numbers(sigma=sigma)
    check_ranges(moving_range=moving_range, fixed_range=fixed_range)
    check_pair(moving, fixed, mask)

    def windows(image: Tensor, mask: Tensor | None, bounds: Range) -> Tensor:
        low, high = intensity_range(image, mask, bounds)
        return _gaussian_windows(_positions(image, low, high, bins), bins, sigma)

    def fixed_windows(fixed: Tensor, mask: Tensor | None, share: Tensor | None) -> Tensor:
        """Windows [b, C, bins, pixels] of the fixed image, times what each pixel adds."""
        found = windows(fixed, mask, fixed_range)
        if share is None:
            return found / found.shape[-1]
        return found * share.flatten(2).unsqueeze(-2)

    def compare(moving: Tensor, *parts: Any) -> Tensor:
        fixed, known, mask, share = parts
        known = fixed_windows(fixed, mask, share) if known is None else known
        found = windows(moving, mask, moving_range)
        # One matrix for all views is multiplied in place; a broadcast one would be copied for each.
        known = known[0, 0] if known.shape[:2] == (1, 1) else known
        with _full_precision(moving.device.type):
            joint = torch.matmul(found, known.mT)
        return measure(joint)

    share = shares(mask)
    serves_all = fixed.shape[0] == 1 and (mask is None or mask.shape[0] == 1)
    known = fixed_windows(fixed, mask, share) if serves_all else None
    # A quarter of the windows: much of their memory is touched only in passing.
    images = max(1, bins // 4)
    return by_views(
        compare, moving, None if serves_all else fixed, known, mask, share, images=images
    )


def _full_precision(device_type: str) -> AbstractContextManager[None]:
    """No autocast where there could be one: a histogram in bfloat16 is none."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


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


def _positions(image: Tensor, low: Tensor, high: Tensor, bins: int, padding: int = 0) -> Tensor:
    """Bin coordinates [b, C, pixels]: `padding` at low and `bins - padding` (- 1 without) at high.

    Without padding the bins' centres reach from low to high. Intensities outside go to at most one
    bin beyond, with padding to the range's ends, and have no derivative there.
    """
    intervals = bins - 1 if padding == 0 else bins - 2 * padding
    width = (high - low).clamp_min(torch.finfo(image.dtype).tiny ** 0.5) / intervals
    relative = ((image - low) / width).flatten(2)
    if padding == 0:
        return relative.clamp(-1.0, float(bins))
    return relative.clamp(0.0, float(intervals)) + padding


def _gaussian_windows(position: Tensor, bins: int, sigma: float) -> Tensor:
    """Gaussian Parzen weights [..., bins, pixels] of positions [..., pixels]; sum over bins is 1.

    Bins so far off that their weight is below the dtype's rounding get none.
    """
    negligible = 1e-16 if position.dtype == torch.float64 else 1e-9
    reach = math.ceil(sigma * math.sqrt(-2.0 * math.log(negligible)) - 0.5)
    taps = min(2 * max(reach, 1) + 1, bins)
    nearest = torch.round(position.detach())
    first = (nearest - (taps - 1) // 2).clamp(0.0, float(bins - taps))
    offset = torch.arange(taps, dtype=position.dtype, device=position.device).unsqueeze(-1)
    distance = (position - first).unsqueeze(-2) - offset
    weight = torch.softmax(distance.square() * (-0.5 / sigma**2), dim=-2)
    index = (first.unsqueeze(-2) + offset).long()
    windows = weight.new_zeros(*weight.shape[:-2], bins, weight.shape[-1])
    return windows.scatter_(-2, index, weight)


def _spline_histogram(moving: Tensor, fixed_bin: Tensor, share: Tensor | None, bins: int) -> Tensor:
    """Joint histogram [b, C, bins, bins] of cubic B-spline windows against whole bins.

    Args:
        moving: [b, C, pixels] positions in [_SPLINE_PADDING, bins - _SPLINE_PADDING].
        fixed_bin: [b or 1, C or 1, pixels] integers in [0, bins).
        share: [b or 1, 1, pixels] what each pixel adds; None for 1 / pixels each.
    """
    batch, channels, pixels = moving.shape
    middle = moving.detach().floor().clamp(_SPLINE_PADDING, bins - _SPLINE_PADDING - 1)
    fraction = moving - middle
    cells = torch.arange(batch * channels, device=moving.device).view(batch, channels, 1)
    index = ((cells * bins + middle.long() - 1) * bins + fixed_bin).flatten()
    amount: Tensor | float = 1.0 / pixels if share is None else share
    joint = moving.new_zeros(batch * channels * bins * bins)
    for step, weight in enumerate(_cubic_spline(fraction)):
        joint = joint.index_add(0, index + step * bins, (weight * amount).flatten())
    return joint.view(batch, channels, bins, bins)


def _cubic_spline(fraction: Tensor) -> tuple[Tensor, ...]:
    """The four weights of a cubic B-spline, this far beyond its second knot in [0, 1]."""
    rest = 1.0 - fraction
    square, cube = fraction.square(), fraction.square() * fraction
    rest_square, rest_cube = rest.square(), rest.square() * rest
    return (
        rest_cube / 6.0,
        (3.0 * cube - 6.0 * square + 4.0) / 6.0,
        (3.0 * rest_cube - 6.0 * rest_square + 4.0) / 6.0,
        cube / 6.0,
    )
