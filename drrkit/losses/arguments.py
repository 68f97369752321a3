"""Checks of the arguments of every loss: errors name argument, expectation and finding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["check_count", "check_images", "check_number", "check_range"]


def check_images(moving: Tensor, fixed: Tensor, mask: Tensor | None, smallest: int = 1) -> None:
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


def check_count(value: object, name: str, least: int, meaning: str) -> None:
    """Raise ValueError unless the value is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: expected {meaning} of at least {least}, got {value!r}")


def check_number(value: object, name: str, meaning: str, *, zero: bool = False) -> None:
    """Raise ValueError unless the value is finite and positive, or zero where that is allowed."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and (value > 0 or (zero and value == 0))):
        raise ValueError(
            f"{name}: expected {meaning} {'of at least' if zero else 'above'} 0, got {value!r}"
        )


def check_range(bounds: tuple[float, float] | None, name: str) -> None:
    """Raise ValueError unless the intensity range is (low, high) with low < high, or None."""
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
