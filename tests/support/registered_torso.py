"""The torso that most tests of registration register, displacements of it, and what is left."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from drrkit import CArm, Volume, perturb, simulate_xray, view_ap
from drrkit.geometry import CameraSigma, volume_center
from drrkit.metrics import mtre
from drrkit.phantoms import torso

CAMERA = CArm(1020.0, (64, 64), 4.352, sigma=CameraSigma(0.0, 0.0, 0.0))
AWAY = torch.tensor([0.05, -0.04, 0.03, 4.0, -3.0, 7.0], dtype=torch.float64)
"""What takes an AP view to the pose that is looked for."""


@lru_cache
def phantom() -> Volume:
    """In HU, voxels of 5 mm."""
    return torso(5.0)


@lru_cache
def attenuation() -> Volume:
    return phantom().to_mu()


def random_motions(degrees: float, mm: float, seed: int = 0, count: int = 1) -> Tensor:
    """Motions [count, 6] (rad, mm) of these lengths in random directions."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(count, 2, 3, generator=generator, dtype=torch.float64)
    direction = direction / direction.norm(dim=-1, keepdim=True)
    size = torch.tensor([[math.radians(degrees)], [mm]], dtype=torch.float64)
    return (direction * size).reshape(count, 6)


def box_mtre(found: Tensor, truth: Tensor, center: Tensor, reach: float = 80.0) -> Tensor:
    """mTRE [B] mm of poses [B, 4, 4] over the corners of a box about a centre."""
    corners = torch.cartesian_prod(*[torch.tensor([-reach, reach], dtype=torch.float64)] * 3)
    return mtre(found, truth, corners + center)


def truth() -> Tensor:
    return perturb(view_ap(phantom(), 800.0), AWAY, volume_center(phantom()))


def target() -> Tensor:
    return simulate_xray(phantom(), CAMERA, truth())


def off(degrees: float, mm: float, seed: int = 0, count: int = 1) -> Tensor:
    """Poses [count, 4, 4] at these distances from the truth, in random directions."""
    motions = random_motions(degrees, mm, seed, count)
    return perturb(truth(), motions, volume_center(phantom()))


def error(world_to_camera: Tensor) -> Tensor:
    """mTRE [B] mm over a box about the volume's centre."""
    return box_mtre(world_to_camera, truth(), volume_center(phantom()))
