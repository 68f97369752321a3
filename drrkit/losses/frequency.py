"""The focal frequency loss: differences of spectra, the worst frequencies first."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from drrkit.losses.arguments import check_count, check_images, check_number
from drrkit.losses.batches import by_views
from drrkit.losses.weights import shares

__all__ = ["focal_frequency"]


def focal_frequency(
    moving: Tensor,
    fixed: Tensor,
    mask: Tensor | None = None,
    *,
    alpha: float = 1.0,
    patch_factor: int = 1,
    constant_weights: bool = True,
) -> Tensor:
    """Mean squared difference of the orthonormal spectra, weighted by the difference itself.

    mean over frequencies of w |D|^2 with D = FFT(I - J) and w = |D|^alpha / max |D|^alpha of each
    view and channel. Source: Jiang et al., ICCV 2021, whose parameters are the defaults. The mask
    scales the difference by the square root of its weights, so that alpha = 0 is `mse` exactly.

    Args:
        alpha: how much more a frequency counts the more it differs, at least 0.
        patch_factor: compares this number squared of patches, each with its own spectrum; it must
            divide the numbers of rows and columns.
        constant_weights: the gradient takes w as constant, as published; False differentiates it.

    Returns:
        [B] tensor with the square of the images' unit.

    Raises:
        TypeError, ValueError: an argument is not an image of the shape, dtype or device expected,
            or an option is out of bounds.
    """
    check_images(moving, fixed, mask)
    check_number(alpha, "alpha", "a number", zero=True)
    check_count(patch_factor, "patch_factor", 1, "a number of patches along each side")
    rows, cols = moving.shape[2:]
    if rows % patch_factor or cols % patch_factor:
        raise ValueError(
            f"patch_factor: expected a divisor of {rows} rows and {cols} columns, "
            f"got {patch_factor}"
        )
    share = shares(mask)
    root = None if share is None else torch.sqrt(share * (rows * cols))
    compare = partial(
        _spectral_loss, alpha=alpha, patch_factor=patch_factor, constant_weights=constant_weights
    )
    return by_views(compare, moving, fixed, root, numbers=moving[:1].numel())


def _spectral_loss(
    moving: Tensor,
    fixed: Tensor,
    root: Tensor | None,
    *,
    alpha: float,
    patch_factor: int,
    constant_weights: bool,
) -> Tensor:
    difference = moving - fixed if root is None else (moving - fixed) * root
    rows, cols = (side // patch_factor for side in difference.shape[2:])
    # [b, C, down, rows, across, cols] -> one spectrum a patch.
    patches = difference.unflatten(2, (-1, rows)).unflatten(4, (-1, cols)).transpose(3, 4)
    spectrum = torch.fft.rfft2(patches, norm="ortho")
    power = spectrum.real.square() + spectrum.imag.square()
    weight = _focus(power.detach() if constant_weights else power, alpha)
    # Half of the spectrum of a real image mirrors the other half; rfft2 leaves that out.
    twice = power.new_full((power.shape[-1],), 2.0)
    twice[0] = 1.0
    if cols % 2 == 0:
        twice[-1] = 1.0
    return (weight * power * twice).sum(dim=(-1, -2)).mean(dim=(1, 2, 3)) / (rows * cols)


def _focus(power: Tensor, alpha: float) -> Tensor:
    """|D|^alpha of every frequency relative to the largest, from |D|^2."""
    largest = power.amax(dim=(-1, -2), keepdim=True).clamp_min(torch.finfo(power.dtype).tiny)
    # The floor keeps the derivatives of the power finite where there is no difference.
    return (power / largest).clamp_min(1e-20) ** (0.5 * alpha)
