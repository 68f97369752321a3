"""CT reconstruction by conjugate gradients (CGLS) with project and its exact adjoint.

Run it: python examples/reconstruct_cgls.py
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import drrkit


def cgls(
    images: Tensor, frames: Tensor, shape: tuple[int, int, int], spacing: tuple, iterations: int
) -> tuple[Tensor, list[float]]:
    """argmin ||A x - images|| from x = 0 (Hestenes and Stiefel 1952, applied to A* A)."""
    size = images.shape[-2:]
    x = torch.zeros(shape, dtype=images.dtype)
    residual = images
    direction = drrkit.backproject(residual, frames, shape, spacing=spacing)
    norm = direction.square().sum()
    history = [float(residual.norm())]
    for _ in range(iterations):
        ahead = drrkit.project(direction, frames, size, spacing=spacing)
        step = norm / ahead.square().sum()
        x = x + step * direction
        residual = residual - step * ahead
        gradient = drrkit.backproject(residual, frames, shape, spacing=spacing)
        new = gradient.square().sum()
        direction = gradient + (new / norm) * direction
        norm = new
        history.append(float(residual.norm()))
    return x, history


def reconstruct(views: int = 60, iterations: int = 15, spacing: float = 12.0) -> tuple[float, list]:
    """The relative error of the reconstruction, and the residual of each iteration."""
    volume = drrkit.phantoms.torso(spacing=spacing).to_mu()
    camera = drrkit.CArm(sdd=1200, size=(64, 64), pixel_spacing=9.0)
    angles = torch.arange(views) * (2 * math.pi / views)
    frames = drrkit.view_frames(volume, camera, drrkit.view_carm(volume, 800.0, angles, 0.0))
    images = drrkit.project(volume.values, frames, camera.size, spacing=volume.spacing)
    shape = tuple(volume.values.shape)
    found, history = cgls(images, frames, shape, volume.spacing, iterations)
    return float((found - volume.values).norm() / volume.values.norm()), history


if __name__ == "__main__":
    error, residuals = reconstruct()
    print(f"residual {residuals[0]:.1f} -> {residuals[-1]:.2f}, relative error {error:.3f}")
