"""Checks of arguments; errors name the argument, what was expected and what came."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def check_floating(name: str, value: Any, tail: tuple[int, ...]) -> None:
    """A floating point tensor whose last dimensions are `tail`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating point tensor, got {value.dtype}")
    if tuple(value.shape[-len(tail) :]) != tail:
        wanted = ", ".join(map(str, tail))
        raise ValueError(f"{name}: expected shape [..., {wanted}], got {list(value.shape)}")


def batched(name: str, value: Any, tail: tuple[int, ...]) -> Tensor:
    """A floating point tensor [*tail] or [B, *tail] -> [B, *tail]."""
    check_floating(name, value, tail)
    if value.dim() == len(tail) + 1:
        return value
    if value.dim() > len(tail):
        item = ", ".join(map(str, tail))
        raise ValueError(f"{name}: expected shape [{item}] or [B, {item}], got {list(value.shape)}")
    return value.unsqueeze(0)


def batched_pose(world_to_camera: Tensor, cameras: int | None = None) -> Tensor:
    """[4, 4] or [B, 4, 4] -> [B, 4, 4]; for a batch of cameras, one pose or one per camera."""
    pose = batched("world_to_camera", world_to_camera, (4, 4))
    if cameras is not None and cameras != len(pose) and 1 not in (cameras, len(pose)):
        raise ValueError(
            f"world_to_camera: expected one pose or {cameras}, one per camera, got {len(pose)}"
        )
    return pose


def check_intrinsics(matrix: Any) -> None:
    """[3, 3] or [B, 3, 3], [[fx, skew, cx], [0, fy, cy], [0, 0, 1]] with fx, fy > 0."""
    check_floating("K", matrix, (3, 3))
    if matrix.dim() not in (2, 3) or matrix.numel() == 0:
        raise ValueError(f"K: expected shape [3, 3] or [B, 3, 3], got {list(matrix.shape)}")
    numbers = _readable(matrix)
    if numbers is None:
        return
    if not bool(numbers.isfinite().all()):
        raise ValueError(f"K: expected finite entries, got {numbers.tolist()}")
    below = numbers[..., (1, 2, 2), (0, 0, 1)]
    if not bool((below == 0).all() & (numbers[..., 2, 2] == 1).all()):
        form = "[[fx, skew, cx], [0, fy, cy], [0, 0, 1]]"
        raise ValueError(f"K: expected {form}, got {numbers.tolist()}")
    if not bool((numbers[..., (0, 1), (0, 1)] > 0).all()):
        raise ValueError(f"K: expected fx > 0 and fy > 0, got {numbers.tolist()}")


def check_distances(name: str, value: Tensor) -> None:
    """A tensor [] or [B] of finite positive numbers."""
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating point tensor, got {value.dtype}")
    if value.dim() > 1 or value.numel() == 0:
        raise ValueError(f"{name}: expected a number or shape [B], got {list(value.shape)}")
    numbers = _readable(value)
    if numbers is not None and not bool((numbers.isfinite() & (numbers > 0)).all()):
        raise ValueError(f"{name}: expected finite numbers > 0, got {numbers.tolist()}")


def checked_positive(name: str, value: Any) -> float:
    """A finite positive number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {value!r}") from None
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name}: expected a finite number > 0, got {number}")
    return number


def check_counts(least: int = 1, /, **counts: Any) -> None:
    """Named integers of at least `least`; numpy's are none."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            wanted = "a positive integer" if least == 1 else f"an integer >= {least}"
            raise ValueError(f"{name}: expected {wanted}, got {value!r}")


def check_numbers(zero: bool = False, /, **numbers: Any) -> None:
    """Named finite numbers above 0, or of 0 and more."""
    for name, value in numbers.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and (value >= 0 if zero else value > 0) and value < math.inf):
            wanted = "a number >= 0" if zero else "a positive number"
            raise ValueError(f"{name}: expected {wanted}, got {value!r}")


def as_distance(name: str, value: Any, device: torch.device | None) -> Tensor:
    """A positive number, or a tensor [] or [B] of them, as float64 on a device."""
    number = value if isinstance(value, Tensor) else checked_positive(name, value)
    tensor = torch.as_tensor(number, dtype=torch.float64, device=device)
    check_distances(name, tensor)
    return tensor


def checked_integer(name: str, value: Any) -> int:
    """An integer, numpy's too, but no bool and no float."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    return operator.index(value)


def checked_size(size: Any) -> tuple[int, int]:
    """(rows, cols), both positive."""
    if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 2:
        raise TypeError(f"size: expected (rows, cols), got {size!r}")
    rows, cols = (checked_integer("size", value) for value in size)
    if rows < 1 or cols < 1:
        raise ValueError(f"size: expected positive (rows, cols), got {size!r}")
    return rows, cols


def pair(name: str, value: Any) -> tuple[float | Tensor, float | Tensor]:
    """A number for both, or two numbers; each a tensor [] or [B] where derivatives are wanted."""
    # Tensors and arrays of no dimension have a __len__ that raises.
    if getattr(value, "ndim", 1) == 0 or not hasattr(value, "__len__"):
        return value, value
    if isinstance(value, str):
        raise TypeError(f"{name}: expected a number or a pair, got {value!r}")
    if len(value) != 2:
        raise ValueError(f"{name}: expected a number or a pair, got {value!r}")
    return value[0], value[1]


def _readable(tensor: Tensor) -> Tensor | None:
    """The values, float64 on the CPU, or None where none can be read: in torch.vmap, on meta."""
    try:
        numbers = tensor.detach().to("cpu", torch.float64)
        numbers.sum().item()
    except RuntimeError:
        return None
    return numbers
