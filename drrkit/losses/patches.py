"""Patch gradient NCC, as the registration library xreg defines it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from drrkit.geometry import check_counts, check_numbers
from drrkit.losses.arguments import NO_WEIGHT, at_unit_scale, check_pair, unit
from drrkit.losses.batches import by_views
from drrkit.losses.stencils import Taps, box, correlate

# Gaussians of these sides as OpenCV tabulates them for a standard deviation left to itself.
_BLURS: dict[int, Taps] = {
    0: (1.0,),
    3: (0.25, 0.5, 0.25),
    5: (0.0625, 0.25, 0.375, 0.25, 0.0625),
    7: (0.03125, 0.109375, 0.21875, 0.28125, 0.21875, 0.109375, 0.03125),
}

_WEIGHTINGS = (
    "uniform",
    "fixed_variance",
    "moving_variance",
    "fixed_gradient_variance",
    "moving_gradient_variance",
)

# A patch's variance is at least this, its standard deviation at least 1e-6, in images whose largest
# magnitude is about 1.
_LEAST_VARIANCE = 1e-12

# Patches with less than this share of all weight count as perfect matches: xreg leaves them out of
# the sum, not out of the weights that it divides by.
_LEAST_SHARE = 1e-6

# A sum of patch weights up to this counts as none.
_NO_PATCH = 1e-24

# xreg's radius is 41 pixels on a detector of 1536 pixels of which 50 are cropped at each side.
_RADIUS_PER_PIXEL = 41.0 / 1436.0


@dataclass(frozen=True)
class _Options:
    radius: int
    stride: int
    blur: int
    weighting: str
    masked_statistics: bool
    tolerance: float | None

    @property
    def side(self) -> int:
        return 2 * self.radius + 1


class _Moments(NamedTuple):
    """Of every patch: the sum over its pixels, and its variance, never zero."""

    total: Tensor
    variance: Tensor


class _Fixed(NamedTuple):
    """What all comparisons with one fixed image and mask share.

    Directions (x, y) are dimension 1, patches the last two of all but `gradients` and `pixels`.
    """

    gradients: Tensor  # [F, 2, C, rows, cols]
    mean: Tensor  # [F, 2, C, ...] of every patch
    inverse: Tensor  # 1 / (pixels times standard deviation)
    pixels: Tensor | None  # mask of largest weight 1 [F, 1, 1, rows, cols]
    count: Tensor | None  # its sum over every patch
    masked_total: Tensor | None  # sum of mask times gradients
    importance: Tensor | None  # weight of every patch; None: all alike, or by the moving image
    kept: Tensor | None  # 1 where the weight is not negligible
    chosen: Tensor | None  # how often a random patch was drawn


def patch_gradient_ncc(
    moving: Tensor,
    fixed: Tensor,
    mask: Tensor | None = None,
    *,
    radius: int | None = None,
    stride: int = 1,
    blur: int = 5,
    weighting: str = "uniform",
    masked_statistics: bool = False,
    tolerance: float | None = None,
    random_patches: int | None = None,
    separation: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One minus the weighted mean correlation of patches of the images' derivatives.

    Both images are blurred and differentiated by Sobel kernels, mirrored at their borders without
    repeating the border pixel. Every square patch inside a derivative image has the correlation
    sum (F - mean F)(M - mean M) / (n s_F s_M) with its n pixels and the sample standard deviations
    s (divided by n - 1; at least 1e-6 of the power of two above the image's largest magnitude). The
    loss is sum w (1 - correlation) / sum w over patches, averaged over the two derivatives. Equal
    images therefore give 1 / n, not 0.

    With a mask, a patch weighs as much as the mask's mean inside it (largest weight taken as 1) and
    masked pixels leave the sum of products, not the means and deviations unless masked_statistics.

    With a tolerance, a patch costs tolerance (1 - exp((correlation - 1) / tolerance)) instead: as
    much where it matches, but patches of which one image shows what the other lacks, or that moved
    by themselves, lose their pull. Half the squared distance of two patches of zero mean and unit
    length is 1 - correlation, so this is the M-estimator of Dennis and Welsch, Commun. Stat. B 7,
    1978, of that distance.

    Source: ImgSimMetric2DPatchGradNCC of github.com/rg2/xreg, whose parameters are the defaults;
    Grupp et al., IEEE Trans. Biomed. Eng. 67, 2020.

    Args:
        radius: the patches are 2 radius + 1 pixels wide. None: 41 / 1436 of the image's longer
            side, which is the library's rule for its 1536-pixel detector at any resolution.
        stride: step from patch to patch along rows and columns.
        blur: side of the Gaussian in pixels, 5, 3 or 7; 0 for none.
        weighting: "uniform", or by the variance of each patch in the "fixed_variance" or
            "moving_variance" image, or in its derivatives ("fixed_gradient_variance",
            "moving_gradient_variance"). Patches whose centre is masked then weigh nothing.
        masked_statistics: means and deviations leave masked pixels out too.
        tolerance: lack of correlation at which a patch's pull has fallen to 1 / e. None: all alike.
        random_patches: compare this number of patches only, drawn in proportion to the mask's
            weights, the same ones for all views.
        separation: least distance between their centres in pixels; None: sqrt(2) radius, 0: any.
        generator: of the draw, on the CPU. None: seed 0, so that every call compares the same
            patches.

    Returns [B], between 1 / n and 2 - 1 / n for uniform weights without a mask or tolerance, below
    the tolerance with one. Raises ValueError for images smaller than a patch, an option out of
    bounds, or random patches that do not fit at their separation.
    """
    options = _check_options(moving, radius, stride, blur, weighting, masked_statistics, tolerance)
    smallest = max(options.side, 2 + blur // 2)
    check_pair(moving, fixed, mask, smallest=smallest)
    weight = unit(mask)
    chosen = None
    if random_patches is not None:
        check_counts(random_patches=random_patches)
        distance = math.sqrt(2.0) * options.radius if separation is None else separation
        check_numbers(True, separation=distance)
        chosen = _choose(moving, weight, options, random_patches, distance, generator)
    parts = _prepare(fixed, weight, chosen, options)
    return by_views(partial(_patch_loss, options=options), moving, *parts, images=2)


def patch_curvature(
    moving: Tensor, fixed: Tensor, mask: Tensor | None, tolerance: float, **options: Any
) -> Tensor:
    """What the Gauss-Newton matrix of every patch counts for in that of the loss with a tolerance.

    The loss' derivative in the patch's correlation times the correlation itself: [B, 2, C, ...] of
    all patches, whose sum over them is at most 1. Arguments as of `patch_gradient_ncc`,
    with uniform weighting and all patches.
    """
    chosen = {"radius": None, "blur": 5, "masked_statistics": False, **options}
    checked = _check_options(moving, stride=1, weighting="uniform", tolerance=tolerance, **chosen)
    given = _prepare(fixed, unit(mask), None, checked)
    moving = at_unit_scale(moving, None if given.pixels is None else given.pixels[:, 0])
    correlation = _correlations(_gradients(moving, checked.blur), given, checked)
    weight = given.importance
    weight = torch.ones_like(correlation[:1]) if weight is None else weight
    share = weight / weight.sum(dim=(-1, -2), keepdim=True).clamp_min(_NO_PATCH)
    pull = torch.exp((correlation - 1.0) / tolerance)
    return share * pull * correlation.clamp_min(0.0)


def patch_radius(size: Sequence[int]) -> int:
    """The default radius of patches in images of (rows, cols) pixels: by the longer side."""
    return max(1, round(max(size) * _RADIUS_PER_PIXEL))


def _check_options(
    moving: Tensor,
    radius: int | None,
    stride: int,
    blur: int,
    weighting: str,
    masked_statistics: bool,
    tolerance: float | None,
) -> _Options:
    if radius is None:
        image = isinstance(moving, Tensor) and moving.dim() == 4
        radius = patch_radius(moving.shape[2:] if image else (1, 1))
    check_counts(radius=radius, stride=stride)
    if blur not in _BLURS:
        raise ValueError(f"blur: expected a side of 0, 3, 5 or 7 pixels, got {blur!r}")
    if weighting not in _WEIGHTINGS:
        names = ", ".join(map(repr, _WEIGHTINGS))
        raise ValueError(f"weighting: expected one of {names}, got {weighting!r}")
    if tolerance is not None:
        check_numbers(tolerance=tolerance)
    return _Options(radius, stride, blur, weighting, masked_statistics, tolerance)


def _gradients(image: Tensor, blur: int) -> Tensor:
    """Sobel derivatives along x and y of the blurred image, [b, 2, C, rows, cols]."""
    smooth = _BLURS[blur]
    margin = 1 + blur // 2
    # Mirrored once for both kernels: both are symmetric up to a sign, so blurring a mirrored image
    # gives the mirrored blurred image.
    image = functional.pad(image, (margin, margin, margin, margin), mode="reflect")
    across = _convolved((-1.0, 0.0, 1.0), smooth)
    along = _convolved((1.0, 2.0, 1.0), smooth)
    return torch.stack([correlate(image, along, across), correlate(image, across, along)], dim=1)


def _convolved(first: Taps, second: Taps) -> Taps:
    taps = [0.0] * (len(first) + len(second) - 1)
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            taps[i + j] += a * b
    return tuple(taps)


def _sums(image: Tensor, options: _Options) -> Tensor:
    """Sum over every patch."""
    return box(image, options.side)[..., :: options.stride, :: options.stride]


def _moments(image: Tensor, weight: Tensor | None, options: _Options) -> _Moments:
    """Sum and deviation of every patch, under pixel weights of at most 1 or over all its pixels."""
    if weight is None:
        count = float(options.side**2)
        total, squares = _sums(image, options), _sums(image.square(), options)
        spread = torch.maximum(squares - total.square() / count, _rounding(squares))
        variance = spread / (count - 1.0)
    else:
        sizes = _sums(weight, options)
        weighted = image * weight
        total, squares = _sums(weighted, options), _sums(weighted * image, options)
        mean_square = total.square() / sizes.clamp_min(NO_WEIGHT)
        spread = torch.maximum(squares - mean_square, _rounding(squares))
        # One pixel has no variance.
        several = sizes > 1.0
        variance = torch.where(several, spread / torch.where(several, sizes - 1.0, 1.0), 0.0)
    return _Moments(total, variance.clamp_min(_LEAST_VARIANCE))


def _rounding(squares: Tensor) -> Tensor:
    """The sum of squared deviations that rounding alone leaves of a flat patch."""
    return 16.0 * torch.finfo(squares.dtype).eps * squares.detach()


def _prepare(
    fixed: Tensor, weight: Tensor | None, chosen: Tensor | None, options: _Options
) -> _Fixed:
    fixed = at_unit_scale(fixed, weight)
    gradients = _gradients(fixed, options.blur)
    pixels = None if weight is None else weight.unsqueeze(1)
    moments = _moments(gradients, pixels if options.masked_statistics else None, options)
    count = None if pixels is None else _sums(pixels, options)
    masked_total = None if pixels is None else _sums(pixels * gradients, options)
    size: Tensor | float = float(options.side**2)
    if options.masked_statistics and count is not None:
        size = count.clamp_min(NO_WEIGHT)
    importance = kept = None
    if options.weighting == "uniform" and count is not None:
        importance = count / options.side**2
    elif options.weighting.startswith("fixed"):
        image = gradients if "gradient" in options.weighting else fixed.unsqueeze(1)
        variance = _moments(image, pixels, options).variance
        importance = variance * _centre_is_inside(pixels, options)
    if importance is not None:
        kept = _is_kept(importance, importance)
    return _Fixed(
        gradients,
        moments.total / size,
        torch.rsqrt(moments.variance) / size,
        pixels,
        count,
        masked_total,
        importance,
        kept,
        chosen,
    )


def _centre_is_inside(pixels: Tensor | None, options: _Options) -> Tensor | float:
    """1 where a patch's centre has weight, else 0."""
    if pixels is None:
        return 1.0
    rim = slice(options.radius, -options.radius)
    return (pixels[..., rim, rim] > 0)[..., :: options.stride, :: options.stride].to(pixels.dtype)


def _is_kept(weight: Tensor, all_weights: Tensor) -> Tensor:
    whole = all_weights.detach().sum(dim=(-1, -2), keepdim=True)
    return (weight.detach() > _LEAST_SHARE * whole).to(weight.dtype)


def _correlations(gradients: Tensor, given: _Fixed, options: _Options) -> Tensor:
    """The correlation of every patch of the moving derivatives, [b, 2, C, ...]."""
    pixels, count, masked_fixed = given.pixels, given.count, given.masked_total
    if pixels is None or count is None or masked_fixed is None:
        moving = _moments(gradients, None, options)
        products = _sums(gradients * given.gradients, options) - moving.total * given.mean
        return _bounded(products * torch.rsqrt(moving.variance) * given.inverse)
    moving = _moments(gradients, pixels if options.masked_statistics else None, options)
    weighted = pixels * gradients
    size = count.clamp_min(NO_WEIGHT) if options.masked_statistics else float(options.side**2)
    # sum w (M - mean M)(F - mean F), where the means may be those of all pixels
    mean = moving.total / size
    products = _sums(weighted * given.gradients, options) - mean * masked_fixed
    products = products + given.mean * (mean * count - _sums(weighted, options))
    if options.masked_statistics:  # a patch of weight 1 or less has no variance to divide by
        products = torch.where(count > 1.0, products, 0.0)
    return _bounded(products * torch.rsqrt(moving.variance) * given.inverse)


def _bounded(correlation: Tensor) -> Tensor:
    """Within [-1, 1], from which rounding takes the correlations of flat patches of few pixels."""
    return correlation.clamp(-1.0, 1.0)


def _patch_loss(moving: Tensor, *fixed_part: Any, options: _Options) -> Tensor:
    """`fixed_part`: the fields of _Fixed."""
    given = _Fixed(*fixed_part)
    moving = at_unit_scale(moving, None if given.pixels is None else given.pixels[:, 0])
    gradients = _gradients(moving, options.blur)
    correlation = _correlations(gradients, given, options)
    weight, kept = given.importance, given.kept
    if options.weighting.startswith("moving"):
        image = gradients if "gradient" in options.weighting else moving.unsqueeze(1)
        variance = _moments(image, None, options).variance
        weight = variance * _centre_is_inside(given.pixels, options)
        used = weight if given.chosen is None else weight * given.chosen
        kept = _is_kept(weight, used)
    if given.chosen is not None:
        weight = given.chosen if weight is None else weight * given.chosen
    cost = 1.0 - correlation
    if options.tolerance is not None:
        cost = options.tolerance * (1.0 - torch.exp(-cost / options.tolerance))
    if weight is None:
        return cost.mean(dim=(1, 2, 3, 4))
    whole = weight.sum(dim=(-1, -2), keepdim=True)
    has_weight = whole > _NO_PATCH
    share = weight / torch.where(has_weight, whole, 1.0)
    loss = (share * (cost if kept is None else kept * cost)).sum(dim=(-1, -2))
    # Without any weight nothing correlates.
    return torch.where(has_weight[..., 0, 0], loss, 1.0).mean(dim=(1, 2))


def _choose(
    moving: Tensor,
    weight: Tensor | None,
    options: _Options,
    count: int,
    distance: float,
    generator: torch.Generator | None,
) -> Tensor:
    """How often each patch was drawn: [B or 1, 1, 1, patch rows, patch cols]."""
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    if weight is None:
        weight = torch.ones_like(moving[:1, :1])
    chances = _sums(weight.detach(), options).to("cpu", torch.float64)
    draws = [_draw(view[0], options.stride, count, distance, generator) for view in chances]
    return torch.stack(draws)[:, None, None].to(moving)


def _draw(
    chances: Tensor, stride: int, count: int, distance: float, generator: torch.Generator
) -> Tensor:
    """Times each patch [rows, cols] was drawn, `count` in all, no two closer than the distance."""
    times = torch.zeros_like(chances)
    if not bool((chances > 0).any()):
        return times
    open_chances = chances.clone()
    rows = torch.arange(chances.shape[0], dtype=chances.dtype)[:, None]
    cols = torch.arange(chances.shape[1], dtype=chances.dtype)
    for drawn in range(count):
        if not bool((open_chances > 0).any()):
            raise ValueError(
                f"random_patches: expected room for {count} patches at least {distance:g} pixels "
                f"apart, got {drawn}"
            )
        index = int(torch.multinomial(open_chances.flatten(), 1, generator=generator))
        row, col = divmod(index, chances.shape[1])
        times[row, col] += 1.0
        away = stride**2 * ((rows - row).square() + (cols - col).square())
        open_chances = torch.where(away < distance**2, 0.0, open_chances)
    return times
