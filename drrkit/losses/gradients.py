"""Gradient difference: how much of the fixed image's edges the moving image explains."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from drrkit.losses.arguments import check_images, check_number
from drrkit.losses.batches import by_views
from drrkit.losses.stencils import sobel
from drrkit.losses.weights import mean, shares

__all__ = ["gradient_difference"]

# The search for the best scale: first guesses as multiples of the ratio of the images' variation,
# steps that never lead away from the optimum's basin, steps that end in it exactly.
_GUESSES = (1.0, 0.7, 0.4, 0.2, 0.0)
_REWEIGHTINGS = 5
_NEWTON_STEPS = 4


def gradient_difference(
    moving: Tensor,
    fixed: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """One minus the gradient difference of Penney et al.

    1 - mean over pixels and both directions of A / (A + (S J - scale S I)^2), with S the 3 x 3
    Sobel derivative and A the variance of S J. Large differences saturate: structures that only one
    image shows (instruments) hardly disturb. The border and the mask are treated as in
    `gradient_ncc`. Source: Penney et al., IEEE Trans. Med. Imaging 17, 1998, where the sum is
    maximised and the scale is free.

    Args:
        scale: of the moving intensities. None: the best one of each view, channel and direction, at
            least 0, found by iterations from the best of a few guesses; the derivatives account
            for its dependence on the images. Images on a common intensity scale need none: 1.0.

    Returns:
        [B] tensor between 0 and 1.

    Raises:
        TypeError, ValueError: an argument is not an image of the shape, dtype or device expected,
            has fewer than 3 rows or columns, or the scale is not positive.
    """
    if scale is not None:
        check_number(scale, "scale", "a number or None")
    check_images(moving, fixed, mask, smallest=3)
    inner = None if mask is None else -functional.max_pool2d(-mask, kernel_size=3, stride=1)
    share = shares(inner)
    fixed_gradients = torch.stack(sobel(fixed), dim=1)  # [B or 1, 2, C, rows - 2, cols - 2]
    if share is not None:
        share = share.unsqueeze(1)
    spread = _variance(fixed_gradients, share)
    compare = partial(_difference_loss, scale=scale)
    parts = (fixed_gradients, spread, share)
    return by_views(compare, moving, *parts, numbers=2 * moving[:1].numel())


def _variance(gradients: Tensor, share: Tensor | None) -> Tensor:
    """Variance [..., 1, 1] over the pixels, never zero."""
    centred = gradients - mean(gradients, share)[..., None, None]
    relative = 8.0 * torch.finfo(gradients.dtype).eps
    floor = relative**2 * mean(gradients.detach().square(), share) + 1e-16
    return (mean(centred.square(), share) + floor)[..., None, None]


def _difference_loss(
    moving: Tensor,
    fixed: Tensor,
    spread: Tensor,
    share: Tensor | None,
    *,
    scale: float | None,
) -> Tensor:
    moving = torch.stack(sobel(moving), dim=1)
    factor: float | Tensor = _best_scale(moving, fixed, spread, share) if scale is None else scale
    residual = fixed - factor * moving
    return 1.0 - mean(spread / (spread + residual.square()), share).mean(dim=(1, 2))


def _best_scale(moving: Tensor, fixed: Tensor, spread: Tensor, share: Tensor | None) -> Tensor:
    """The scale [b, 2, C, 1, 1] of the moving derivatives that explains most of the fixed ones.

    The search keeps no graph. One more Newton step from its end does: at a stationary point it
    moves nothing but carries the derivative of the scale by the images (implicit functions).
    """
    given = moving, fixed, spread
    with torch.no_grad():
        moving, fixed, spread = (tensor.detach() for tensor in given)
        scale, unit = _first_guess(moving, fixed, spread, share)
        for step in range(_REWEIGHTINGS + _NEWTON_STEPS):
            reweighted = _reweighted(scale, moving, fixed, spread, share)
            if step < _REWEIGHTINGS:
                scale = reweighted
                continue
            slope, bend = _slope_and_bend(scale, moving, fixed, spread, share)
            newton = scale - slope / bend
            close = (bend > 0) & ((newton - scale).abs() < 0.25 * unit)
            scale = torch.where(close, newton, reweighted).clamp_min(0.0)
        _, bend = _slope_and_bend(scale, moving, fixed, spread, share)
        bend = torch.where((scale > 0) & (bend > 0), bend, torch.inf)
    slope, _ = _slope_and_bend(scale, *given, share)
    return scale - slope / bend


def _first_guess(
    moving: Tensor, fixed: Tensor, spread: Tensor, share: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The best of a few multiples of the scale at which both images vary alike; that scale."""
    moving_spread = _variance(moving, share)
    unit = torch.sqrt(spread / moving_spread)
    best = torch.full_like(unit, -torch.inf)
    scale = unit
    for multiple in _GUESSES:
        guess = multiple * unit
        value = mean(1.0 / (1.0 + _relative_square(guess, moving, fixed, spread)), share)
        value = value[..., None, None]
        scale = torch.where(value > best, guess, scale)
        best = torch.maximum(value, best)
    return scale, unit


def _reweighted(
    scale: Tensor, moving: Tensor, fixed: Tensor, spread: Tensor, share: Tensor | None
) -> Tensor:
    """The least-squares scale under the weights that the residuals at `scale` deserve.

    Never lowers the similarity, which is convex in the squared residuals.
    """
    weighted = moving / (1.0 + _relative_square(scale, moving, fixed, spread)).square()
    along = mean(weighted * fixed, share)[..., None, None]
    length = mean(weighted * moving, share)[..., None, None]
    return (along / length.clamp_min(torch.finfo(moving.dtype).tiny)).clamp_min(0.0)


def _relative_square(scale: Tensor, moving: Tensor, fixed: Tensor, spread: Tensor) -> Tensor:
    return (fixed - scale * moving).square() / spread


def _slope_and_bend(
    scale: Tensor, moving: Tensor, fixed: Tensor, spread: Tensor, share: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A / 2 times the derivatives by the scale of -mean A / (A + (S J - scale S I)^2)."""
    ratio = _relative_square(scale, moving, fixed, spread)
    slope = -moving * (fixed - scale * moving) / (1.0 + ratio).square()
    bend = moving.square() * (1.0 - 3.0 * ratio) / (1.0 + ratio) ** 3
    return mean(slope, share)[..., None, None], mean(bend, share)[..., None, None]
