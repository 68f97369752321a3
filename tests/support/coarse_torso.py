"""A coarse torso in float64, as the tests of single optimisers move it."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

import drrkit
from drrkit import CArm, Volume, perturb, render, view_ap
from drrkit.geometry import CameraSigma, volume_center
from drrkit.phantoms import torso
from tests.support.registered_torso import AWAY, box_mtre, random_motions

CAMERA = CArm(1020.0, (32, 32), 8.704, sigma=CameraSigma(0.0, 0.0, 0.0))
ORIGIN = torch.zeros(3, dtype=torch.float64)
UNITS = torch.ones(6, dtype=torch.float64)


@lru_cache
def attenuation() -> Volume:
    return torso(6.0).to_mu().to(dtype=torch.float64)


def truth() -> Tensor:
    return perturb(view_ap(attenuation(), 800.0), AWAY, volume_center(attenuation()))


def off(degrees: float, mm: float, seed: int = 0, count: int = 1) -> Tensor:
    """Poses [count, 4, 4] at these distances from the truth, in random directions."""
    motions = random_motions(degrees, mm, seed, count)
    return perturb(truth(), motions, volume_center(attenuation()))


def error(world_to_camera: Tensor) -> Tensor:
    """mTRE [B] mm over a box about the volume's centre."""
    return box_mtre(world_to_camera, truth(), volume_center(attenuation()))


def drr() -> Tensor:
    return render(attenuation(), CAMERA, truth(), supersample=2)


def identity(count: int) -> Tensor:
    return torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)


def place(pose: Tensor) -> Tensor:
    """The six numbers [B, 6] of a pose near the identity."""
    return drrkit.se3_log(pose)
