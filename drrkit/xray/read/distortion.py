"""Lens distortion as OpenCV models it, taken out of images.

Source: the camera model of OpenCV's calib3d: radial (rational), tangential and thin-prism terms.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

__all__ = ["distorted_pixels", "undistorted"]

COUNTS = (4, 5, 8, 12, 14)
"""k1, k2, p1, p2; k3; k4, k5, k6; s1, s2, s3, s4; and the tilts of a sensor, zero here."""


def distorted_pixels(matrix: Tensor, coefficients: Tensor, pixels: Tensor) -> Tensor:
    """Where the camera with distortion sees what one without sees at pixels [..., 2], (col, row).

    matrix        [3, 3] K, pixel centres at integers
    coefficients  [4], [5], [8], [12] or [14], as OpenCV orders them: k1, k2, p1, p2[, k3[, k4, k5,
                  k6[, s1, s2, s3, s4[, 0, 0]]]]

    float64, differentiable. Raises ValueError for another number of coefficients or a tilt.
    """
    k = coefficients.double().flatten()
    if len(k) not in COUNTS:
        raise ValueError(f"coefficients: expected {COUNTS} numbers, got {len(k)}")
    if len(k) == 14 and bool((k[12:] != 0).any()):
        raise ValueError(f"coefficients: expected no tilt of the sensor, got {k[12:].tolist()}")
    k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4 = torch.nn.functional.pad(
        k[:12], (0, 12 - min(len(k), 12))
    )
    K = matrix.double()
    points = torch.cat((pixels.double(), torch.ones_like(pixels[..., :1]).double()), -1)
    x, y, _ = (points @ torch.linalg.inv(K).mT).unbind(-1)
    r2 = x * x + y * y
    radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    moved = torch.stack(
        (
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x) + r2 * (s1 + r2 * s2),
            y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y + r2 * (s3 + r2 * s4),
            torch.ones_like(x),
        ),
        -1,
    )
    return (moved @ K.mT)[..., :2]


def undistorted(image: Tensor, matrix: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """The images [F, 1, rows, cols] that a camera K without distortion would have taken.

    Bilinear, as cv2.undistort(image, K, coefficients). Also a mask [1, 1, rows, cols] float32:
    0 where nothing was seen. Arguments and errors as distorted_pixels.
    """
    rows, cols = image.shape[-2:]
    row, col = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64),
        torch.arange(cols, dtype=torch.float64),
        indexing="ij",
    )
    at = distorted_pixels(matrix.cpu(), coefficients.cpu(), torch.stack((col, row), -1))
    last = at.new_tensor((cols - 1.0, rows - 1.0))
    inside = ((at >= 0) & (at <= last)).all(-1)
    grid = 2 * at / last.clamp_min(1.0) - 1
    moved = grid_sample(
        image.double(),
        grid.to(image.device).expand(len(image), rows, cols, 2),
        padding_mode="border",
        align_corners=True,
    )
    return moved.to(image.dtype), inside.float()[None, None].to(image.device)
