"""X-ray images from files, as what registration compares: bright where the patient attenuates."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from drrkit.xray import read_xray

__all__ = ["read_mask", "to_line"]


def to_line(path: Path, pixels: Tensor, kind: str, i0: float | None) -> Tensor:
    """Pixels on the scale of line integrals, up to the offset and gain that similarities ignore.

    Args:
        path: for messages.
        pixels: as read.
        kind: "line" and "display": bone is bright, taken as they are; "inverted": bone is dark,
            negated; "intensity": proportional to photons, -log(I / I0).
        i0: unattenuated intensity; default the brightest pixel. A pixel without any counts as the
            darkest that has some.

    Raises:
        ValueError: an image of one value, or intensities of which none is positive.
    """
    low, high = (float(value) for value in torch.aminmax(pixels))
    if low == high:
        raise ValueError(f"{path}: expected an X-ray, got an image whose pixels are all {low:g}")
    if kind == "inverted":
        return high - pixels
    if kind != "intensity":
        return pixels
    if low < 0:
        raise ValueError(
            f"{path}: expected intensities, 0 or more, got {low:g}; --xray-kind line says that "
            "these are line integrals"
        )
    darkest = float(pixels[pixels > 0].min())
    return -torch.log(pixels.clamp_min(darkest) / (high if i0 is None else i0))


def read_mask(path: Path, xray: Tensor) -> Tensor:
    """Weights of an X-ray's pixels [1, 1, rows, cols], scaled so that the largest is one.

    Raises:
        OSError, ImportError, ValueError: as read_xray; of another size, negative, or all zero.
    """
    pixels = read_xray(path).image
    if pixels.shape != xray.shape:
        wanted, found = ("x".join(map(str, image.shape[-2:])) for image in (xray, pixels))
        raise ValueError(
            f"{path}: expected a mask of {wanted} pixels as the X-ray has, got {found}"
        )
    low, high = (float(value) for value in torch.aminmax(pixels))
    if low < 0 or high <= 0:
        raise ValueError(
            f"{path}: expected weights 0 or more, some positive, got {low:g} to {high:g}"
        )
    return pixels / high
