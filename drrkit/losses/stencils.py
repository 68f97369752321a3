"""Separable correlations with small kernels, without padding: boxes, Gaussians, Sobel.

Shifted sums of whole images, which are faster on a CPU than convolutions of one channel, exact
where tensor cores would round, and cost a box only the logarithm of its side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from drrkit.losses.arguments import NO_WEIGHT

Taps = tuple[float, ...]
"""The weights of a one-dimensional kernel."""

_DIFFERENCE: Taps = (-1.0, 0.0, 1.0)
_SMOOTHING: Taps = (1.0, 2.0, 1.0)


def correlate(image: Tensor, row_taps: Taps, col_taps: Taps) -> Tensor:
    """sum_ij row_taps[i] col_taps[j] image[..., y + i, x + j] wherever the kernel fits.

    Args:
        image: [..., rows, cols].
        row_taps, col_taps: the kernel's factors along the rows and the columns.

    Returns:
        [..., rows - len(row_taps) + 1, cols - len(col_taps) + 1].
    """
    if torch.compiler.is_compiling():
        return _correlation(image, row_taps, col_taps)
    return _Correlate.apply(image, row_taps, col_taps)


def box(image: Tensor, side: int) -> Tensor:
    """Sums over all squares of side x side pixels inside the image."""
    ones = (1.0,) * side
    return correlate(image, ones, ones)


def local_means(image: Tensor, mask: Tensor | None, total: Tensor | None, taps: Taps) -> Tensor:
    """Mean over every window inside the image, weighted by taps x taps and by the mask.

    total: correlate(mask, taps, taps), the weight of every window; None without a mask.
    """
    if mask is None or total is None:
        found, whole = correlate(image, taps, taps), sum(taps) ** 2
        return found / whole if len(set(taps)) == 1 else found  # others sum to one
    return correlate(mask * image, taps, taps) / total.clamp_min(NO_WEIGHT)


def local_moments(
    image: Tensor, mask: Tensor | None, total: Tensor | None, taps: Taps
) -> tuple[Tensor, Tensor]:
    """Mean and variance of every window; arguments as for `local_means`."""
    centre = local_means(image, mask, total, taps)
    return centre, local_means(image.square(), mask, total, taps) - centre.square()


def sobel(image: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel derivatives along columns (x) and rows (y), [..., rows - 2, cols - 2] each."""
    return correlate(image, _SMOOTHING, _DIFFERENCE), correlate(image, _DIFFERENCE, _SMOOTHING)


class _Correlate(Function):
    """Linear in the image; the adjoint is the mirrored correlation of the padded cotangent."""

    @staticmethod
    def forward(image: Tensor, row_taps: Taps, col_taps: Taps) -> Tensor:
        return _correlation(image, row_taps, col_taps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.taps = inputs[1:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        row_taps, col_taps = ctx.taps
        rows, cols = len(row_taps) - 1, len(col_taps) - 1
        padded = functional.pad(grad, (cols, cols, rows, rows))
        return correlate(padded, row_taps[::-1], col_taps[::-1]), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return correlate(tangent, *ctx.taps)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None, None], image: Tensor, *taps: Taps):
        return correlate(image.movedim(in_dims[0], 0), *taps), 0


def _correlation(image: Tensor, row_taps: Taps, col_taps: Taps) -> Tensor:
    return _along(_along(image, row_taps, -2), col_taps, -1)


def _along(image: Tensor, taps: Taps, dim: int) -> Tensor:
    """Correlation of one dimension."""
    length = image.shape[dim] - len(taps) + 1
    if len(set(taps)) == 1:
        total = _running_sum(image, len(taps), dim, length)
        return total if taps[0] == 1.0 else total * taps[0]
    total = image.narrow(dim, 0, length) * taps[0]
    for offset, weight in enumerate(taps[1:], start=1):
        if weight != 0.0:
            total = total.add_(image.narrow(dim, offset, length), alpha=weight)
    return total


def _running_sum(image: Tensor, count: int, dim: int, length: int) -> Tensor:
    """Sums of `count` neighbours from sums of 1, 2, 4, ... of them."""
    total: Tensor | None = None
    power, width, offset = image, 1, 0
    while True:
        if count & width:
            piece = power.narrow(dim, offset, length)
            total = piece if total is None else total + piece
            offset += width
        width *= 2
        if width > count:
            assert total is not None  # count is at least 1
            return total
        longest = power.shape[dim] - width // 2
        power = power.narrow(dim, 0, longest) + power.narrow(dim, width // 2, longest)
