"""How alike a rendered image and an X-ray are: PSNR, SSIM, and losses of normalised images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from drrkit import losses

__all__ = ["IMAGE_LOSSES", "Normalised", "min_max", "psnr", "ssim_index"]

IMAGE_LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": losses.mse,
    "l1": losses.l1,
    "ssim_dice_l1": losses.ssim_dice_l1,
}
"""Losses that fields can be trained with; the last needs whole images or patches."""


def min_max(image: Tensor, mask: Tensor | None = None) -> Tensor:
    """Images [B, C, rows, cols] mapped to [0, 1] one by one; a constant image becomes zero.

    The range is that under the mask (weights above 0), and is part of the gradient.
    """
    pixels = (-1, -2)
    if mask is None:
        low, high = image.amin(pixels, keepdim=True), image.amax(pixels, keepdim=True)
    else:
        inside = mask > 0
        low = torch.where(inside, image, torch.inf).amin(pixels, keepdim=True)
        high = torch.where(inside, image, -torch.inf).amax(pixels, keepdim=True)
        low, high = low.nan_to_num(posinf=0.0), high.nan_to_num(neginf=0.0)
    extent = high - low
    return (image - low) / torch.where(extent > 0, extent, torch.ones_like(extent))


class Normalised:
    """A similarity of images that are both mapped to [0, 1] first, as DiffProj's comparators are.

    Args:
        similarity: (moving, fixed, mask) -> [B], to be minimised.
    """

    def __init__(self, similarity: Callable[..., Tensor]) -> None:
        self.similarity = similarity
        self.__name__ = f"normalised_{getattr(similarity, '__name__', 'similarity')}"

    def __call__(self, moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B], as the similarity's."""
        return self.similarity(min_max(moving, mask), min_max(fixed, mask), mask)


def psnr(image: Tensor, reference: Tensor, data_range: float | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, [B]: 10 log10(range^2 / MSE).

    Args:
        image, reference: [B, C, rows, cols]; the reference may be one for all.
        data_range: the peak; default each reference's own range.
    """
    error = (image - reference).square().mean((-1, -2, -3))
    if data_range is None:
        peak = reference.amax((-1, -2, -3)) - reference.amin((-1, -2, -3))
    else:
        peak = torch.full_like(error, data_range)
    return 10.0 * torch.log10(peak.square() / error)


def ssim_index(image: Tensor, reference: Tensor, data_range: float | None = None) -> Tensor:
    """Structural similarity, [B], 1 for equal images; data_range as for `psnr`."""
    return 1.0 - losses.ssim(image, reference, data_range=data_range)
