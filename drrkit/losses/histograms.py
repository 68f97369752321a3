"""Differentiable joint histograms of two images, from windows of a few bins a pixel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["SPLINE_PADDING", "gaussian_windows", "positions", "spline_histogram"]

SPLINE_PADDING = 2
"""Bins that stay free at both ends for the cubic spline's support."""


def positions(image: Tensor, low: Tensor, high: Tensor, bins: int, padding: int = 0) -> Tensor:
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


def gaussian_windows(position: Tensor, bins: int, sigma: float) -> Tensor:
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


def spline_histogram(moving: Tensor, fixed_bin: Tensor, share: Tensor | None, bins: int) -> Tensor:
    """Joint histogram [b, C, bins, bins] of cubic B-spline windows against whole bins.

    Args:
        moving: [b, C, pixels] positions in [SPLINE_PADDING, bins - SPLINE_PADDING].
        fixed_bin: [b or 1, C or 1, pixels] integers in [0, bins).
        share: [b or 1, 1, pixels] what each pixel adds; None for 1 / pixels each.
    """
    batch, channels, pixels = moving.shape
    middle = moving.detach().floor().clamp(SPLINE_PADDING, bins - SPLINE_PADDING - 1)
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
