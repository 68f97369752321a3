"""Similarity losses between a rendered (moving) and an acquired (fixed) X-ray image.

Every loss has one shape: ``loss(moving, fixed, mask=None) -> [B]``, to be minimised.

    moving  [B, C, rows, cols], float32 or float64; usually carries the gradient
    fixed   [B or 1, C or 1, rows, cols], same dtype and device; one image may serve all views
    mask    [B or 1, 1, rows, cols] float weights >= 0 (their values are not checked), or None

Correlations are returned as 1 - similarity (0 is perfect, 2 is worst), mutual information as
minus MI in nats. Channels are compared one by one and averaged. A constant image correlates with
nothing: its correlation is 0 and its gradient is finite. All losses are twice differentiable
(`mutual_information` at a constant intensity range) and keep no more than a few images a view.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["gradient_ncc", "local_ncc", "mse", "mutual_information", "ncc"]

# A variance below this, or below the rounding error of the image's own magnitude, counts as none.
_TINY_VARIANCE = 1e-16

# A sum of mask weights below this counts as none.
_NO_WEIGHT = 1e-12


def mse(moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference, weighted by the mask.

    Shapes, units and errors: see the module. The result has the square of the images' unit.

    Returns:
        [B] tensor.

    Raises:
        TypeError, ValueError: an argument is not an image of the shape, dtype or device expected.
    """
    _check_images(moving, fixed, mask)
    return _mean((moving - fixed).square(), mask).mean(dim=1)


def ncc(moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
    """One minus the normalised cross-correlation (Pearson's r over the pixels).

    1 - sum w (I - mean I)(J - mean J) / sqrt(sum w (I - mean I)^2 sum w (J - mean J)^2), where the
    means carry the mask's weights too. Invariant to positive affine changes of either image.

    Returns:
        [B] tensor between 0 and 2.

    Raises:
        TypeError, ValueError: an argument is not an image of the shape, dtype or device expected.
    """
    _check_images(moving, fixed, mask)
    return 1.0 - _correlation(moving, fixed, mask).mean(dim=1)


def gradient_ncc(moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
    """One minus the mean correlation of the two Sobel derivatives of the images.

    1 - (NCC(Sx I, Sx J) + NCC(Sy I, Sy J)) / 2 with 3 x 3 Sobel kernels. The one-pixel border,
    where the kernel would leave the image, is dropped. A derivative weighs as much as the smallest
    mask value under its kernel, so masking a rectangle equals cropping it.

    Returns:
        [B] tensor between 0 and 2.

    Raises:
        TypeError, ValueError: an argument is not an image of the shape, dtype or device expected,
            or has fewer than 3 rows or columns.
    """
    _check_images(moving, fixed, mask, smallest=3)
    inner = None if mask is None else -functional.max_pool2d(-mask, kernel_size=3, stride=1)
    fixed_x, fixed_y = _sobel(fixed)
    moving_x, moving_y = _sobel(moving)
    similarity = _correlation(moving_x, fixed_x, inner) + _correlation(moving_y, fixed_y, inner)
    return 1.0 - 0.5 * similarity.mean(dim=1)


def local_ncc(
    moving: Tensor, fixed: Tensor, mask: Tensor | None = None, *, patch: int = 13
) -> Tensor:
    """One minus the mean correlation over all square patches that lie inside the image.

    A patch counts in proportion to the mask's weight inside it; within it, pixels count by the mask
    as in `ncc`. Patches whose standard deviation is below 1e-3 of the whole image's are damped.
    Box filters make the cost independent of the patch size.

    Args:
        patch: odd or even side of a patch in pixels, at least 2.

    Returns:
        [B] tensor between 0 and 2.

    Raises:
        TypeError, ValueError: an argument is not an image of the shape, dtype or device expected,
            or the patch is smaller than 2 or larger than the image.
    """
    if not isinstance(patch, int) or patch < 2:
        raise ValueError(f"patch: expected an integer of at least 2 pixels, got {patch!r}")
    _check_images(moving, fixed, mask, smallest=patch)
    weight = torch.ones_like(fixed[:1, :1]) if mask is None else mask
    total = functional.avg_pool2d(weight, patch, stride=1)
    safe_total = total.clamp_min(_NO_WEIGHT)

    def local(image: Tensor) -> Tensor:
        return functional.avg_pool2d(weight * image, patch, stride=1) / safe_total

    # Centring over the whole image first keeps mean(x^2) - mean(x)^2 accurate in float32.
    moving, moving_floor = _centred(moving, mask)
    fixed, fixed_floor = _centred(fixed, mask)
    moving_mean, fixed_mean = local(moving), local(fixed)
    covariance = local(moving * fixed) - moving_mean * fixed_mean
    moving_variance = (local(moving.square()) - moving_mean.square()).clamp_min(0.0)
    fixed_variance = (local(fixed.square()) - fixed_mean.square()).clamp_min(0.0)
    similarity = covariance / torch.sqrt(
        (moving_variance + moving_floor) * (fixed_variance + fixed_floor)
    )
    return 1.0 - _mean(similarity, total).mean(dim=1)


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
    _check_images(moving, fixed, mask)
    if not isinstance(bins, int) or bins < 2:
        raise ValueError(f"bins: expected an integer of at least 2, got {bins!r}")
    if not (isinstance(sigma, (int, float)) and math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma: expected a positive number of bins, got {sigma!r}")
    batch, channels = moving.shape[:2]
    moving_weights = _parzen(moving, mask, bins, sigma, moving_range, "moving_range")
    fixed_weights = _parzen(fixed, mask, bins, sigma, fixed_range, "fixed_range")
    if mask is not None:
        flat = mask.flatten(2).unsqueeze(-2)
        fixed_weights = fixed_weights * (
            flat / flat.sum(dim=-1, keepdim=True).clamp_min(_NO_WEIGHT)
        )
    else:
        fixed_weights = fixed_weights / moving[0, 0].numel()
    joint = torch.matmul(moving_weights, fixed_weights.transpose(-1, -2))
    joint = joint.expand(batch, channels, bins, bins)
    # The tiny constant keeps 0 log 0 = 0 and the gradient of an empty bin finite.
    tiny = 1e-12
    moving_marginal = joint.sum(dim=-1, keepdim=True)
    fixed_marginal = joint.sum(dim=-2, keepdim=True)
    ratio = torch.log(joint + tiny) - torch.log(moving_marginal * fixed_marginal + tiny)
    return -(joint * ratio).sum(dim=(-1, -2)).mean(dim=1)


def _parzen(
    image: Tensor,
    mask: Tensor | None,
    bins: int,
    sigma: float,
    bounds: tuple[float, float] | None,
    name: str,
) -> Tensor:
    """Parzen weights [B, C, bins, pixels] of an image, summing to one over the bins."""
    flat = image.flatten(2)
    low, high = _intensity_range(flat, mask, bounds, name)
    width = (high - low).clamp_min(torch.finfo(flat.dtype).tiny ** 0.5) / (bins - 1)
    # Masked pixels may lie outside the range: clamping keeps their (unused) weights finite.
    position = ((flat - low) / width).clamp(-1.0, float(bins)).unsqueeze(-2)
    centre = torch.arange(bins, dtype=flat.dtype, device=flat.device).unsqueeze(-1)
    return torch.softmax((position - centre).square() * (-0.5 / sigma**2), dim=-2)


def _intensity_range(
    flat: Tensor, mask: Tensor | None, bounds: tuple[float, float] | None, name: str
) -> tuple[Tensor, Tensor]:
    """Lowest and highest intensity, constants that broadcast against flat [B, C, pixels]."""
    if bounds is not None:
        if len(bounds) != 2 or not bounds[0] < bounds[1]:
            raise ValueError(f"{name}: expected (low, high) with low < high, got {bounds!r}")
        return flat.new_tensor(bounds[0]), flat.new_tensor(bounds[1])
    values = flat.detach()
    if mask is None:
        return values.amin(dim=-1, keepdim=True), values.amax(dim=-1, keepdim=True)
    inside = mask.detach().flatten(2) > 0
    low = torch.where(inside, values, torch.inf).amin(dim=-1, keepdim=True)
    high = torch.where(inside, values, -torch.inf).amax(dim=-1, keepdim=True)
    # An empty mask leaves infinities; any finite range will do, no pixel counts.
    empty = ~inside.any(dim=-1, keepdim=True)
    return low.masked_fill(empty, 0.0), high.masked_fill(empty, 1.0)


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Weighted mean over the pixels -> [B, C]; zero where no pixel has weight."""
    if weights is None:
        return values.mean(dim=(-1, -2))
    total = weights.sum(dim=(-1, -2), keepdim=True).clamp_min(_NO_WEIGHT)
    return (values * (weights / total)).sum(dim=(-1, -2))


def _centred(image: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """The image minus its weighted mean, and the variance [B, C, 1, 1] a flat patch has."""
    image = image - _mean(image, weights)[..., None, None]
    variance = _mean(image.square(), weights)[..., None, None]
    return image, 1e-6 * variance + _TINY_VARIANCE


def _correlation(moving: Tensor, fixed: Tensor, weights: Tensor | None) -> Tensor:
    """Pearson correlation of two images over their pixels -> [B, C]."""
    moving_centred = moving - _mean(moving, weights)[..., None, None]
    fixed_centred = fixed - _mean(fixed, weights)[..., None, None]
    covariance = _mean(moving_centred * fixed_centred, weights)
    moving_variance = _mean(moving_centred.square(), weights) + _floor(moving, weights)
    fixed_variance = _mean(fixed_centred.square(), weights) + _floor(fixed, weights)
    return covariance / torch.sqrt(moving_variance * fixed_variance)


def _floor(image: Tensor, weights: Tensor | None) -> Tensor:
    """The variance [B, C] that rounding alone gives an image of this magnitude."""
    relative = 8.0 * torch.finfo(image.dtype).eps
    return relative**2 * _mean(image.detach().square(), weights) + _TINY_VARIANCE


def _sobel(image: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel derivatives along columns (x) and rows (y), [B, C, rows - 2, cols - 2] each."""
    # Separable, by slices: faster than a convolution with two 3 x 3 kernels and lean in memory.
    across = image[..., :, 2:] - image[..., :, :-2]
    along = image[..., 2:, :] - image[..., :-2, :]
    x = across[..., :-2, :] + 2.0 * across[..., 1:-1, :] + across[..., 2:, :]
    y = along[..., :, :-2] + 2.0 * along[..., :, 1:-1] + along[..., :, 2:]
    return x, y


def _check_images(moving: Tensor, fixed: Tensor, mask: Tensor | None, smallest: int = 1) -> None:
    """Raise TypeError or ValueError, naming the argument, unless the images fit each other."""
    _check_tensor(moving, "moving", "[B, C, rows, cols]")
    channels, rows, cols = moving.shape[1:]
    if rows < smallest or cols < smallest:
        raise ValueError(
            f"moving: expected at least {smallest} rows and columns, got {rows} x {cols}"
        )
    _check_fits(fixed, "fixed", channels, moving)
    if mask is not None:
        _check_fits(mask, "mask", 1, moving)


def _check_fits(image: Tensor, name: str, channels: int, moving: Tensor) -> None:
    """Raise unless an image or mask broadcasts against `moving` without changing its shape."""
    batch, rows, cols = moving.shape[0], *moving.shape[2:]
    layers = f"{channels} or 1" if channels > 1 else "1"
    expected = f"[{batch} or 1, {layers}, {rows}, {cols}]"
    _check_tensor(image, name, expected)
    fits = image.shape[0] in (1, batch) and image.shape[1] in (1, channels)
    if not fits or image.shape[2:] != moving.shape[2:]:
        raise ValueError(
            f"{name}: expected shape {expected} to fit moving {tuple(moving.shape)}, "
            f"got {tuple(image.shape)}"
        )
    for attribute in ("dtype", "device"):
        wanted, found = getattr(moving, attribute), getattr(image, attribute)
        if wanted != found:
            raise ValueError(f"{name}: expected {attribute} {wanted} as moving has, got {found}")


def _check_tensor(image: object, name: str, shape: str) -> None:
    """Raise unless the argument is a non-empty float32 or float64 tensor with four dimensions."""
    if not isinstance(image, Tensor):
        raise TypeError(f"{name}: expected a tensor {shape}, got {type(image).__name__}")
    if image.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: expected float32 or float64, got {image.dtype}")
    if image.dim() != 4 or 0 in image.shape[1:]:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(image.shape)}")
