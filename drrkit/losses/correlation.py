"""Normalised cross-correlation: of images, of their derivatives, of patches."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from drrkit.losses.arguments import check_images
from drrkit.losses.batches import by_views
from drrkit.losses.stencils import box, sobel
from drrkit.losses.weights import NO_WEIGHT, mean, shares

__all__ = ["gradient_ncc", "local_ncc", "ncc"]

# A variance below this, or below the rounding error of the image's own magnitude, counts as none.
_TINY_VARIANCE = 1e-16


def ncc(moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
    """One minus the normalised cross-correlation (Pearson's r over the pixels).

    1 - sum w (I - mean I)(J - mean J) / sqrt(sum w (I - mean I)^2 sum w (J - mean J)^2), where the
    means carry the mask's weights too. Invariant to positive affine changes of either image.

    Returns:
        [B] tensor between 0 and 2.

    Raises:
        TypeError, ValueError: an argument is not an image of the shape, dtype or device expected.
    """
    check_images(moving, fixed, mask)
    share = shares(mask)
    parts = (*_standard(fixed, share), share)
    return by_views(_pearson_loss, moving, *parts, numbers=moving[:1].numel())


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
    check_images(moving, fixed, mask, smallest=3)
    inner = None if mask is None else -functional.max_pool2d(-mask, kernel_size=3, stride=1)
    share = shares(inner)
    fixed_x, fixed_y = sobel(fixed)
    parts = (*_standard(fixed_x, share), *_standard(fixed_y, share), share)
    return by_views(_gradient_loss, moving, *parts, numbers=moving[:1].numel())


def local_ncc(
    moving: Tensor, fixed: Tensor, mask: Tensor | None = None, *, patch: int = 13
) -> Tensor:
    """One minus the mean correlation over all square patches that lie inside the image.

    A patch counts in proportion to the mask's weight inside it; within it, pixels count by the mask
    as in `ncc`. Patches whose standard deviation is below 1e-3 of the whole image's are damped:
    1e-6 of the image's variance is added to theirs. The cost hardly depends on the patch's size.

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
    check_images(moving, fixed, mask, smallest=patch)
    share = shares(mask)
    total = None if mask is None else box(mask, patch)
    fixed, floor = _centred(fixed, share)
    parts = (fixed, *_local_moments(fixed, floor, mask, total, patch), mask, share, total)
    compare = partial(_local_loss, patch=patch)
    return by_views(compare, moving, *parts, numbers=moving[:1].numel())


def _standard(image: Tensor, share: Tensor | None) -> tuple[Tensor, Tensor]:
    """The image minus its mean, and its variance [B, C], never zero."""
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
    return 1.0 - _pearson(moving, fixed, variance, share).mean(dim=1)


def _gradient_loss(
    moving: Tensor,
    fixed_x: Tensor,
    variance_x: Tensor,
    fixed_y: Tensor,
    variance_y: Tensor,
    share: Tensor | None,
) -> Tensor:
    moving_x, moving_y = sobel(moving)
    along_x = _pearson(moving_x, fixed_x, variance_x, share)
    along_y = _pearson(moving_y, fixed_y, variance_y, share)
    return 1.0 - 0.5 * (along_x + along_y).mean(dim=1)


def _centred(image: Tensor, share: Tensor | None) -> tuple[Tensor, Tensor]:
    """The image minus its mean, and the variance [B, C, 1, 1] added to every patch's."""
    # Centring over the whole image first keeps mean(x^2) - mean(x)^2 accurate in float32.
    image = image - mean(image, share)[..., None, None]
    variance = mean(image.square(), share)[..., None, None]
    return image, 1e-6 * variance + _TINY_VARIANCE


def _local_mean(image: Tensor, mask: Tensor | None, total: Tensor | None, patch: int) -> Tensor:
    """Mean of every patch under the mask, whose sum over the patch is `total`."""
    if mask is None or total is None:
        return box(image, patch) / patch**2
    return box(mask * image, patch) / total.clamp_min(NO_WEIGHT)


def _local_moments(
    image: Tensor, floor: Tensor, mask: Tensor | None, total: Tensor | None, patch: int
) -> tuple[Tensor, Tensor]:
    """Mean and variance of every patch of a centred image; the variance is never zero."""
    centre = _local_mean(image, mask, total, patch)
    variance = _local_mean(image.square(), mask, total, patch) - centre.square()
    return centre, variance.clamp_min(0.0) + floor


def _local_loss(
    moving: Tensor,
    fixed: Tensor,
    fixed_mean: Tensor,
    fixed_variance: Tensor,
    mask: Tensor | None,
    share: Tensor | None,
    total: Tensor | None,
    *,
    patch: int,
) -> Tensor:
    moving, floor = _centred(moving, share)
    moving_mean, moving_variance = _local_moments(moving, floor, mask, total, patch)
    covariance = _local_mean(moving * fixed, mask, total, patch) - moving_mean * fixed_mean
    similarity = covariance / torch.sqrt(moving_variance * fixed_variance)
    return 1.0 - mean(similarity, shares(total)).mean(dim=1)
