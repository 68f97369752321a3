"""Similarities by name, and their Gauss-Newton matrices from an image and its pose Jacobian.

A correlation is a least-squares problem: with m and f brought to zero mean and unit variance,
1 - NCC = mean (m - f)^2 / 2, whatever gain and offset the images have. Its Gauss-Newton matrix is

    mean J J' - mean J (mean J)' - (mean m J)(mean m J)',   J = d image / d xi / std(image),

what is left of J J' when m may shift and scale. Where the best correlation is r < 1, because of
noise or of structure that one image lacks, the loss is r times as curved: the matrix is multiplied
by the correlation met. Gradient correlations do all this with Sobel derivatives, local ones in
every patch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from drrkit import losses
from drrkit.losses import box, patch_curvature, patch_radius, sobel

__all__ = [
    "SIMILARITIES",
    "Similarity",
    "UnitRange",
    "gauss_newton",
    "has_curvature",
    "ignores_gain",
]

Similarity = Callable[..., Tensor]
"""similarity(moving [B, C, rows, cols], fixed, mask) -> [B], to be minimised."""

# A correlation below this says little about the curvature near the optimum.
_LEAST_CORRELATION = 0.05

# Share of an image's variance below which it, or a patch of it, counts as flat.
_FLAT = 1e-6


class UnitRange:
    """A similarity of images each mapped to [0, 1] by its own lowest and highest intensity.

    For losses of intensities as they are: an X-ray out of a machine has another scale than line
    integrals. The range is that of each view and channel under the mask. It moves with the image,
    so the derivative is exact: u = (I - low) / (high - low) has du = (dI - (1 - u) dlow - u dhigh)
    / (high - low), and dlow is dI where I is lowest. A constant image becomes 0.

    Args:
        similarity: (moving, fixed, mask) -> [B].
    """

    def __init__(self, similarity: Callable[..., Tensor]) -> None:
        self.similarity = similarity
        name = getattr(similarity, "__name__", type(similarity).__name__)
        self.__name__ = f"unit_{name}"

    def __call__(self, moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        """The similarity [B] of the mapped images; arguments as for the losses."""
        low, high = _ends(moving, mask)
        lowest, highest = _ends(fixed, mask)
        return self.similarity(_mapped(moving, low, high), _mapped(fixed, lowest, highest), mask)

    def linearised(
        self, moving: Tensor, jacobian: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The mapped image and its Jacobian, [B, C, rows, cols] and [B, C, 6, rows, cols]."""
        inside = moving if mask is None else torch.where(mask > 0, moving, torch.inf)
        first = inside.flatten(2).argmin(-1)
        inside = moving if mask is None else torch.where(mask > 0, moving, -torch.inf)
        last = inside.flatten(2).argmax(-1)
        ends, moves = [], []
        for index in (first, last):
            ends.append(moving.flatten(2).gather(2, index[..., None])[..., None])
            where = index[..., None, None].expand(*jacobian.shape[:3], 1)
            moves.append(jacobian.flatten(3).gather(3, where)[..., None])
        unit = _mapped(moving, *ends)
        share = unit.unsqueeze(2)
        change = jacobian - (1.0 - share) * moves[0] - share * moves[1]
        return unit, change / _extent(*ends).unsqueeze(2)


def _ends(image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Lowest and highest intensity under the mask, [B, C, 1, 1], differentiable."""
    low = image if mask is None else torch.where(mask > 0, image, torch.inf)
    high = image if mask is None else torch.where(mask > 0, image, -torch.inf)
    return low.amin((-1, -2), keepdim=True), high.amax((-1, -2), keepdim=True)


def _mapped(image: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return (image - low) / _extent(low, high)


def _extent(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp_min(torch.finfo(low.dtype).tiny ** 0.5)


SIMILARITIES: dict[str, Similarity] = {
    **losses.LOSSES,
    "weighted_patch_gradient_ncc": partial(
        losses.patch_gradient_ncc,
        blur=0,
        weighting="moving_gradient_variance",
        masked_statistics=True,
    ),
    "robust_patch_gradient_ncc": partial(
        losses.patch_gradient_ncc, blur=0, masked_statistics=True, tolerance=0.1
    ),
    "mi": losses.mutual_information,
    "mattes_mi": losses.mattes_mutual_information,
    "nmi": losses.normalized_mutual_information,
    **{
        f"unit_{name}": UnitRange(losses.LOSSES[name])
        for name in ("focal_frequency", "l1", "mse", "soft_dice", "ssim", "ssim_dice_l1")
    },
}
"""Names a Stage accepts: every loss of drrkit.losses, three of them by short names too; unit_*
compares images that are each mapped to [0, 1] first, for X-rays on another scale than the volume.
"""


def gauss_newton(
    similarity: Callable[..., Tensor],
    loss: Tensor,
    moving: Tensor,
    jacobian: Tensor,
    mask: Tensor | None = None,
    fixed: Tensor | None = None,
) -> Tensor:
    """Gauss-Newton matrix of a similarity in the pose: [B, 6, 6], symmetric, positive semidefinite.

    Exists for mse, soft_dice and the correlations of drrkit.losses, for partials of them and on
    unit ranges. Any other similarity gets that of `ncc` at a perfect match: the metric in which
    images differ, but not the steepness of the loss, which damping has to find out.

    Args:
        similarity: (moving, fixed, mask) -> [B].
        loss: [B], its values.
        moving: [B, C, rows, cols]; channels are averaged.
        jacobian: [B, C, 6, rows, cols], the derivative of `moving` in the pose.
        mask: [1, 1, rows, cols] weights, or [B, 1, rows, cols], or None.
        fixed: the X-ray; a loss by patches with a tolerance weighs them by how they match it.
    """
    name = _loss_of(similarity)
    options = similarity.keywords if isinstance(similarity, partial) else {}
    emphasis = None
    if fixed is not None and "tolerance" in options:
        emphasis = patch_curvature(moving, fixed, mask, **options)
    if isinstance(similarity, UnitRange):
        moving, jacobian = similarity.linearised(moving, jacobian, mask)
        similarity = similarity.similarity
    weight = torch.ones_like(moving[:1, :1]) if mask is None else mask
    if "gradient_ncc" in name:
        weight = -functional.max_pool2d(-weight, 3, stride=1)
    image, weight = moving.unsqueeze(2), weight.unsqueeze(2)
    if name == "mse":
        return 2.0 * _gram(jacobian, _share(weight)).mean(1)
    if name == "soft_dice":  # sum (I - J)^2 / (sum I^2 + sum J^2), where I is about J
        squares = (weight * image.square()).sum((-1, -2)).clamp_min(1e-12)
        return (_gram(jacobian, weight) / squares[..., None]).mean(1)
    if "gradient_ncc" in name:
        image, jacobian = torch.cat(sobel(image), 1), torch.cat(sobel(jacobian), 1)
    if name in ("local_ncc", "patch_gradient_ncc"):
        side = _patch_side(options, name, weight)
        matrix = _by_patches(image, jacobian, weight, side, emphasis)
    else:
        matrix = _over_the_image(image, jacobian, weight)
    if emphasis is not None or not name.endswith("ncc"):
        return matrix
    return matrix * (1.0 - loss).clamp_min(_LEAST_CORRELATION)[:, None, None]


def has_curvature(similarity: Callable[..., Tensor]) -> bool:
    """Whether `gauss_newton` knows how steep the similarity is, not only in which metric."""
    name = _loss_of(similarity)
    return name in ("mse", "soft_dice") or name.endswith("ncc")


def ignores_gain(similarity: Callable[..., Tensor]) -> bool:
    """Whether the similarity is known not to change with the images' gain and offset."""
    return isinstance(similarity, UnitRange) or _loss_of(similarity).endswith("ncc")


def _loss_of(similarity: Callable[..., Tensor]) -> str:
    """The name of the loss of drrkit.losses that a similarity is made of, or nothing."""
    if isinstance(similarity, UnitRange):
        similarity = similarity.similarity
    function = similarity.func if isinstance(similarity, partial) else similarity
    name = getattr(function, "__name__", "")
    return name if function is losses.LOSSES.get(name) else ""


def _over_the_image(image: Tensor, jacobian: Tensor, weight: Tensor) -> Tensor:
    """The matrix of one correlation a channel: [B, 6, 6] from [B, C, 1 and 6, rows, cols]."""
    share = _share(weight)
    image = image - (image * share).sum((-1, -2), keepdim=True)
    variance = (image.square() * share).sum((-1, -2))[..., None]  # [B, C, 1, 1]
    variance = variance + _FLAT * variance.mean(1, keepdim=True) + torch.finfo(image.dtype).tiny
    weighed = (jacobian * share).flatten(3)
    mean = weighed.sum(-1, keepdim=True)
    along = weighed @ image.flatten(3).mT
    matrix = weighed @ jacobian.flatten(3).mT - mean @ mean.mT - along @ along.mT / variance
    return (matrix / variance).mean(1)


def _by_patches(
    image: Tensor, jacobian: Tensor, weight: Tensor, side: int, emphasis: Tensor | None = None
) -> Tensor:
    """The mean matrix of the correlations in all patches of side x side pixels that fit.

    emphasis: what each of them counts for, [B, 2, C, ...] of two derivatives' patches, those of a
    border of one pixel more included; None: by its share of the weight.
    """
    image = image - image.mean((-1, -2), keepdim=True)  # keeps E[m^2] - E[m]^2 accurate
    total = box(weight, side)
    safe = total.clamp_min(1e-12)
    weighted = weight * image
    mean = box(weighted, side) / safe
    mean_jacobian = box(weight * jacobian, side) / safe
    variance = box(weighted * image, side) / safe - mean.square()
    floor = 1e-3 * variance.clamp_min(0.0).mean((-1, -2), keepdim=True)
    # An image without any structure has no curvature; its Jacobian is 0 there.
    variance = variance.clamp_min(0.0) + torch.where(floor > 0, floor, 1.0)
    along = box(weighted * jacobian, side) / safe - mean * mean_jacobian
    share = (
        _share(total) if emphasis is None else emphasis[..., 1:-1, 1:-1].flatten(1, 2)[:, :, None]
    )
    share = share / variance  # [B, C, 1, rows', cols']
    # Sum over patches of the means of J J' in them = sum over pixels, each weighed by its patches.
    margin = side - 1
    pixel = box(functional.pad(share / safe, (margin, margin, margin, margin)), side)
    matrix = _gram(jacobian, weight * pixel) - _gram(mean_jacobian, share)
    return (matrix - _gram(along, share / variance)).mean(1)


def _share(weight: Tensor) -> Tensor:
    """Of every pose's own sum of weights: pixels of another pose do not count."""
    return weight / weight.sum((-1, -2), keepdim=True).clamp_min(1e-12)


def _gram(jacobian: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums of J J' over the pixels: [B, C, 6, 6]."""
    return (jacobian * weight).flatten(3) @ jacobian.flatten(3).mT


def _patch_side(options: dict[str, Any], name: str, weight: Tensor) -> int:
    """Side of the patches that a similarity compares, or about that; it fits the image."""
    side = options.get("patch", 13)
    if name == "patch_gradient_ncc":
        rows, cols = (n + 2 for n in weight.shape[-2:])  # the image's: derivatives lost a border
        side = 2 * (options.get("radius") or patch_radius((rows, cols))) + 1
    return max(2, min(side, *weight.shape[-2:]))
