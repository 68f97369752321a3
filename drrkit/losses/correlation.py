"""Correlations of images, of their patches and derivatives; the gradient difference."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from drrkit.geometry import check_counts, check_numbers
from drrkit.losses.arguments import at_unit_scale, check_pair, mean, shares
from drrkit.losses.batches import by_views
from drrkit.losses.stencils import Taps, box, local_means, local_moments, sobel

# A variance below this, or below the rounding error of the image's own magnitude, counts as none.
# Of images whose largest magnitude is about 1, which all are here.
_TINY_VARIANCE = 1e-16

# The search for the best scale: first guesses as multiples of the ratio of the images' variation,
# steps that never lead away from the optimum's basin, steps that end in it exactly.
_GUESSES = (1.0, 0.7, 0.4, 0.2, 0.0)
_REWEIGHTINGS = 5
_NEWTON_STEPS = 4


def ncc(moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
    """One minus the normalised cross-correlation (Pearson's r over the pixels).

    1 - sum w (I - mean I)(J - mean J) / sqrt(sum w (I - mean I)^2 sum w (J - mean J)^2), where the
    means carry the mask's weights too. Invariant to positive affine changes of either image.

    Returns [B], between 0 and 2.
    """
    check_pair(moving, fixed, mask)
    share = shares(mask)
    parts = (*_standard(at_unit_scale(fixed, share), share), share)
    return by_views(_pearson_loss, moving, *parts)


def gradient_ncc(moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
    """One minus the mean correlation of the two Sobel derivatives of the images.

    1 - (NCC(Sx I, Sx J) + NCC(Sy I, Sy J)) / 2 with 3 x 3 Sobel kernels. The one-pixel border,
    where the kernel would leave the image, is dropped. A derivative weighs as much as the smallest
    mask value under its kernel, so masking a rectangle equals cropping it.

    Returns [B], between 0 and 2. Raises ValueError for fewer than 3 rows or columns.
    """
    check_pair(moving, fixed, mask, smallest=3)
    share = _sobel_shares(mask)
    fixed_x, fixed_y = sobel(at_unit_scale(fixed, mask))
    parts = (*_standard(fixed_x, share), *_standard(fixed_y, share), share, mask)
    return by_views(_gradient_loss, moving, *parts)


def local_ncc(
    moving: Tensor, fixed: Tensor, mask: Tensor | None = None, *, patch: int = 13
) -> Tensor:
    """One minus the mean correlation over all square patches that lie inside the image.

    A patch counts in proportion to the mask's weight inside it; within it, pixels count by the mask
    as in `ncc`. Patches whose standard deviation is below 1e-3 of the whole image's are damped:
    1e-6 of the image's variance is added to theirs. The cost hardly depends on the patch's size.

    Args:
        patch: odd or even side of a patch in pixels, at least 2.

    Returns [B], between 0 and 2. Raises ValueError for a patch smaller than 2 or larger than the
    image.
    """
    check_counts(2, patch=patch)
    check_pair(moving, fixed, mask, smallest=patch)
    share = shares(mask)
    total = None if mask is None else box(mask, patch)
    fixed, floor = _centred(at_unit_scale(fixed, share), share)
    taps = (1.0,) * patch
    centre, variance = local_moments(fixed, mask, total, taps)
    parts = (fixed, centre, variance.clamp_min(0.0) + floor, mask, share, total)
    return by_views(partial(_local_loss, taps=taps), moving, *parts)


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

    Returns [B], between 0 and 1. Raises ValueError for fewer than 3 rows or columns, or a scale
    that is not positive.
    """
    if scale is not None:
        check_numbers(scale=scale)
    check_pair(moving, fixed, mask, smallest=3)
    share = _sobel_shares(mask)
    unscaled, fixed = fixed, at_unit_scale(fixed, mask)
    fixed_gradients = torch.stack(sobel(fixed), dim=1)  # [B or 1, 2, C, rows - 2, cols - 2]
    if share is not None:
        share = share.unsqueeze(1)
    spread = _standard(fixed_gradients, share)[1][..., None, None]
    parts = (fixed_gradients, spread, share, mask, unscaled)
    return by_views(partial(_difference_loss, scale=scale), moving, *parts, images=2)


def _sobel_shares(mask: Tensor | None) -> Tensor | None:
    """Of every derivative: in proportion to the smallest mask value under its kernel."""
    return shares(None if mask is None else -functional.max_pool2d(-mask, kernel_size=3, stride=1))


def _standard(image: Tensor, share: Tensor | None) -> tuple[Tensor, Tensor]:
    """The image minus its mean, and its variance [..., C], never zero."""
    centred = image - mean(image, share)[..., None, None]
    # What rounding alone gives an image of this magnitude is no variance.
    relative = 8.0 * torch.finfo(image.dtype).eps
    floor = relative**2 * mean(image.detach().square(), share) + _TINY_VARIANCE
    return centred, mean(centred.square(), share) + floor


def _pearson(moving: Tensor, fixed: Tensor, variance: Tensor, share: Tensor | None) -> Tensor:
    """Correlation [B, C] with a fixed image that is centred and has this variance."""
    centred, moving_variance = _standard(moving, share)
    return mean(centred * fixed, share) / torch.sqrt(moving_variance * variance)


def _pearson_loss(moving: Tensor, fixed: Tensor, variance: Tensor, share: Tensor | None) -> Tensor:
    return 1.0 - _pearson(at_unit_scale(moving, share), fixed, variance, share).mean(dim=1)


def _gradient_loss(moving: Tensor, *parts: Any) -> Tensor:
    fixed_x, variance_x, fixed_y, variance_y, share, mask = parts
    moving_x, moving_y = sobel(at_unit_scale(moving, mask))
    along_x = _pearson(moving_x, fixed_x, variance_x, share)
    along_y = _pearson(moving_y, fixed_y, variance_y, share)
    return 1.0 - 0.5 * (along_x + along_y).mean(dim=1)


def _centred(image: Tensor, share: Tensor | None) -> tuple[Tensor, Tensor]:
    """The image minus its mean, and the variance [B, C, 1, 1] added to every patch's."""
    # Centring over the whole image first keeps mean(x^2) - mean(x)^2 accurate in float32.
    image = image - mean(image, share)[..., None, None]
    variance = mean(image.square(), share)[..., None, None]
    return image, 1e-6 * variance + _TINY_VARIANCE


def _local_loss(moving: Tensor, *parts: Any, taps: Taps) -> Tensor:
    fixed, fixed_mean, fixed_variance, mask, share, total = parts
    moving, floor = _centred(at_unit_scale(moving, share), share)
    moving_mean, moving_variance = local_moments(moving, mask, total, taps)
    moving_variance = moving_variance.clamp_min(0.0) + floor
    covariance = local_means(moving * fixed, mask, total, taps) - moving_mean * fixed_mean
    similarity = covariance / torch.sqrt(moving_variance * fixed_variance)
    return 1.0 - mean(similarity, shares(total)).mean(dim=1)


def _difference_loss(moving: Tensor, *parts: Any, scale: float | None) -> Tensor:
    """A `scale` that is given holds between images that were divided by the same number."""
    fixed, spread, share, mask, unscaled = parts
    moving = at_unit_scale(moving, mask, moving if scale is None else unscaled)
    moving = torch.stack(sobel(moving), dim=1)
    factor = _best_scale(moving, fixed, spread, share) if scale is None else scale
    residual = fixed - factor * moving
    return 1.0 - mean(spread / (spread + residual.square()), share).mean(dim=(1, 2))


class _Derivatives(NamedTuple):
    """Of both images [b, 2, C, rows, cols], the spread of the fixed ones, the pixels' shares."""

    moving: Tensor
    fixed: Tensor
    spread: Tensor
    share: Tensor | None

    def mean(self, values: Tensor) -> Tensor:
        return mean(values, self.share)[..., None, None]

    def relative_square(self, scale: Tensor) -> Tensor:
        return (self.fixed - scale * self.moving).square() / self.spread

    def reweighted(self, scale: Tensor) -> Tensor:
        """The least-squares scale under the weights that the residuals at `scale` deserve.

        Never lowers the similarity, which is convex in the squared residuals.
        """
        weighted = self.moving / (1.0 + self.relative_square(scale)).square()
        along, length = self.mean(weighted * self.fixed), self.mean(weighted * self.moving)
        return (along / length.clamp_min(torch.finfo(length.dtype).tiny)).clamp_min(0.0)

    def slope_and_bend(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """A / 2 times the derivatives by the scale of -mean A / (A + (S J - scale S I)^2)."""
        ratio = self.relative_square(scale)
        slope = -self.moving * (self.fixed - scale * self.moving) / (1.0 + ratio).square()
        bend = self.moving.square() * (1.0 - 3.0 * ratio) / (1.0 + ratio) ** 3
        return self.mean(slope), self.mean(bend)


def _best_scale(moving: Tensor, fixed: Tensor, spread: Tensor, share: Tensor | None) -> Tensor:
    """The scale [b, 2, C, 1, 1] of the moving derivatives that explains most of the fixed ones.

    The search keeps no graph. One more Newton step from its end does: at a stationary point it
    moves nothing but carries the derivative of the scale by the images (implicit functions).
    """
    with torch.no_grad():
        constant = _Derivatives(moving.detach(), fixed.detach(), spread.detach(), share)
        scale, unit = _first_guess(constant)
        for step in range(_REWEIGHTINGS + _NEWTON_STEPS):
            reweighted = constant.reweighted(scale)
            if step < _REWEIGHTINGS:
                scale = reweighted
                continue
            slope, bend = constant.slope_and_bend(scale)
            newton = scale - slope / bend
            close = (bend > 0) & ((newton - scale).abs() < 0.25 * unit)
            scale = torch.where(close, newton, reweighted).clamp_min(0.0)
        _, bend = constant.slope_and_bend(scale)
        bend = torch.where((scale > 0) & (bend > 0), bend, torch.inf)
    slope, _ = _Derivatives(moving, fixed, spread, share).slope_and_bend(scale)
    return scale - slope / bend


def _first_guess(given: _Derivatives) -> tuple[Tensor, Tensor]:
    """The best of a few multiples of the scale at which both images vary alike; that scale."""
    moving_spread = _standard(given.moving, given.share)[1][..., None, None]
    unit = torch.sqrt(given.spread / moving_spread)
    best = torch.full_like(unit, -torch.inf)
    scale = unit
    for multiple in _GUESSES:
        guess = multiple * unit
        value = given.mean(1.0 / (1.0 + given.relative_square(guess)))
        scale = torch.where(value > best, guess, scale)
        best = torch.maximum(value, best)
    return scale, unit
