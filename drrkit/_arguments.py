"""Checks of the projector's arguments: every public argument is looked at once, here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from drrkit._native import BEAMS, METHODS, VOXELS, Spec
from drrkit._native import ops as _ops
from drrkit.geometry import Camera
from drrkit.volume import Volume


def kind(value: Any) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def as_volumes(values: Tensor) -> Tensor:
    """values as [N, C, D, H, W]."""
    if not isinstance(values, Tensor) or values.dtype not in VOXELS:
        names = "float16, bfloat16, float32 or float64"
        raise TypeError(f"values: expected a {names} tensor, got {kind(values)}")
    if values.dim() not in (3, 4, 5):
        raise ValueError(
            "values: expected [D, H, W], [C, D, H, W] or [N, C, D, H, W], got shape "
            f"{tuple(values.shape)}"
        )
    if values.numel() == 0:
        raise ValueError(f"values: expected at least one voxel, got shape {tuple(values.shape)}")
    # A view, not expand, whose backward sums: that would copy every volume gradient.
    missing = 5 - values.dim()
    return values.view((1,) * missing + values.shape) if missing else values


def checked_frames(frames: Tensor, like: Tensor) -> Tensor:
    """frames as float64 on `like`'s device, or an error."""
    if not isinstance(frames, Tensor) or frames.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"frames: expected a float32 or float64 tensor, got {kind(frames)}")
    if frames.dim() != 3 or tuple(frames.shape[1:]) != (4, 3):
        raise ValueError(f"frames: expected [B, 4, 3], got shape {tuple(frames.shape)}")
    if frames.device != like.device:
        raise ValueError(f"frames: expected device {like.device}, got {frames.device}")
    return frames.to(torch.float64)


def checked_shape(shape: Sequence[int], views: int) -> tuple[int, int, tuple[int, ...]]:
    """(N, C, (D, H, W)) of a volume's shape."""
    expected = "(D, H, W), (C, D, H, W) or (N, C, D, H, W), positive integers"
    numbers = _counts("shape", shape, (3, 4, 5), expected)
    count, channels = (1, 1, *numbers)[-5:-3]
    if views % count:
        raise ValueError(f"shape: {count} volumes do not divide {views} views, got {numbers}")
    return count, channels, numbers[-3:]


def spec_of(
    values: Tensor, camera: Camera, supersample: int, spacing: Sequence[float], options: dict
) -> Spec:
    """The op's constants for volumes [N, C, D, H, W] seen by a camera."""
    size = tuple(n * supersample for n in camera.size)
    return make_spec(tuple(values.shape[2:]), size, spacing, beam=camera.beam, **options)


def make_spec(
    grid: tuple[int, ...],
    size: Sequence[int],
    spacing: Sequence[float],
    method: str,
    beam: str,
    step: float | None,
    derivative: str | None,
    anchor: str | None,
) -> Spec:
    """The op's constants, every one of them checked."""
    for name, word, words in (
        ("method", method, METHODS),
        ("beam", beam, BEAMS),
        ("derivative", derivative, (None, "exact", "line")),
        ("anchor", anchor, (None, "source", "foot")),
    ):
        if word not in words:
            choices = ", ".join(repr(w) for w in words if w is not None)
            raise ValueError(f"{name}: expected one of {choices}, got {word!r}")
    if method != "trilinear":
        for name, value in (("step", step), ("derivative", derivative), ("anchor", anchor)):
            if value is not None:
                raise ValueError(
                    f"{name}: only method 'trilinear' takes it, got {value!r} with {method!r}"
                )
    rows, cols = _counts("size", size, (2,), "(rows, cols), positive integers")
    expected = "three positive numbers (x, y, z) mm"
    sides = _sequence("spacing", spacing, expected)
    if len(sides) != 3:
        raise ValueError(f"spacing: expected {expected}, got {spacing!r}")
    for side in sides:
        _check_length("spacing", side, expected)
    if step is not None:
        _check_length("step", step, "a positive number of mm")
    sx, sy, sz = (float(side) for side in sides)
    distance = 0.5 * min(sx, sy, sz) if step is None else float(step)
    flags = _ops.flags_of(method, beam, line=derivative == "line", foot=anchor == "foot")
    return Spec(grid, (rows, cols), (sx, sy, sz), flags, distance)


def _sequence(name: str, value: Any, expected: str) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)) and not hasattr(value, "__iter__"):
        raise TypeError(f"{name}: expected {expected}, got {value!r}")
    return tuple(value)


def _counts(name: str, value: Any, lengths: tuple[int, ...], expected: str) -> tuple[int, ...]:
    """A sequence of positive integers of an allowed length."""
    numbers = _sequence(name, value, expected)
    if len(numbers) not in lengths or not all(_is_count(n) for n in numbers):
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return numbers


def _is_count(n: Any) -> bool:
    whole = isinstance(n, (int, torch.SymInt, Integral))
    return whole and not isinstance(n, bool) and n > 0


def _check_length(name: str, x: Any, expected: str) -> None:
    if not isinstance(x, (int, float, Real)) or isinstance(x, bool):
        raise TypeError(f"{name}: expected {expected}, got {x!r}")
    if not 0 < x < math.inf:  # compared rather than asked: math.isfinite cannot be compiled
        raise ValueError(f"{name}: expected {expected}, got {x!r}")


def check_supersample(n: Any) -> None:
    if not _is_count(n):
        raise ValueError(f"supersample: expected a positive integer, got {n!r}")


def check_attenuation(volume: Any, name: str = "volume") -> None:
    """Raises TypeError or ValueError unless the argument is a Volume in mu."""
    if not isinstance(volume, Volume):
        raise TypeError(f"{name}: expected a drrkit.Volume, got {type(volume).__name__}")
    if volume.unit != "mu":
        raise ValueError(
            f"{name}: expected attenuation in 1/mm (unit 'mu'), got unit {volume.unit!r}; "
            f"{name}.to_mu() converts Hounsfield units"
        )


def check_scene(volume: Any, camera: Any) -> None:
    check_attenuation(volume)
    if not isinstance(camera, Camera):
        raise TypeError(f"camera: expected a drrkit.Camera, got {type(camera).__name__}")
