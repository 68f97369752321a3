"""What every loss does with its arguments: checks, weights of the mask, intensity ranges."""

from __future__ import annotations

import torch
from torch import Tensor

NO_WEIGHT = 1e-12
"""A sum of mask weights below this counts as none."""


def check_pair(moving: Tensor, fixed: Tensor, mask: Tensor | None, smallest: int = 1) -> None:
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


def check_ranges(**ranges: tuple[float, float] | None) -> None:
    """Raise ValueError unless intensity ranges are (low, high) with low < high, or None."""
    for name, bounds in ranges.items():
        if bounds is not None and (len(bounds) != 2 or not bounds[0] < bounds[1]):
            raise ValueError(f"{name}: expected (low, high) with low < high, got {bounds!r}")


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


def shares(mask: Tensor | None) -> Tensor | None:
    """The mask's weights divided by their sum over the pixels; None weighs all pixels alike."""
    if mask is None:
        return None
    return mask / mask.sum(dim=(-1, -2), keepdim=True).clamp_min(NO_WEIGHT)


def unit(mask: Tensor | None) -> Tensor | None:
    """The mask's weights divided by their largest: binary masks of any height become 0 and 1."""
    if mask is None:
        return None
    return mask / mask.amax(dim=(-1, -2), keepdim=True).clamp_min(NO_WEIGHT)


def mean(values: Tensor, share: Tensor | None) -> Tensor:
    """Mean over the pixels with these shares -> [..., C]; zero where no pixel has weight."""
    if share is None:
        return values.mean(dim=(-1, -2))
    return (values * share).sum(dim=(-1, -2))


def at_unit_scale(image: Tensor, share: Tensor | None, like: Tensor | None = None) -> Tensor:
    """The image over the power of two above the largest magnitude of `like` (itself) in the mask.

    Floors thus mean the same for images of any intensity; powers of two round nothing. The scale
    [B, C, 1, 1] is a constant of the gradient, and 1 where all is zero.
    """
    measured = (image if like is None else like).detach()
    if share is not None:
        measured = torch.where(share.detach() > 0, measured, 0.0)
    largest = torch.linalg.vector_norm(measured, torch.inf, dim=(-1, -2), keepdim=True)
    largest = torch.where(largest > 0, largest, 0.5)
    return image * (torch.frexp(largest).mantissa / largest)


def intensity_range(
    image: Tensor, mask: Tensor | None, bounds: tuple[float, float] | None = None
) -> tuple[Tensor, Tensor]:
    """Lowest and highest intensity under the mask [B, C, 1, 1], constants of the gradient.

    `bounds`, where given, come back instead, as tensors without dimensions.
    """
    if bounds is not None:
        return image.new_tensor(bounds[0]), image.new_tensor(bounds[1])
    values, pixels = image.detach(), (-1, -2)
    if mask is None:
        return values.amin(dim=pixels, keepdim=True), values.amax(dim=pixels, keepdim=True)
    inside = mask.detach() > 0
    low = torch.where(inside, values, torch.inf).amin(dim=pixels, keepdim=True)
    high = torch.where(inside, values, -torch.inf).amax(dim=pixels, keepdim=True)
    # An empty mask leaves infinities; any finite range will do, no pixel counts.
    empty = ~inside.any(dim=-1, keepdim=True).any(dim=-2, keepdim=True)
    return low.masked_fill(empty, 0.0), high.masked_fill(empty, 1.0)
