"""A scene and its scaled copy register alike: lengths follow the object."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from torch import Tensor

import drrkit
from drrkit import CArm, Volume, perturb, register, render, view_ap, volume_center
from drrkit.phantoms import torso
from drrkit.registration import RegistrationResult, extent_mm

SIZE, PITCH, SOD = (64, 64), 4.352, 800.0


def scaled(k: float) -> tuple[Volume, drrkit.Camera]:
    volume = torso(8.0).to_mu().to(dtype=torch.float64)
    volume = replace(
        volume,
        values=0.02 * volume.values / k,  # at every scale less than metal has
        spacing=tuple(k * s for s in volume.spacing),
        origin=tuple(k * o for o in volume.origin),
    )
    return volume, CArm(1020.0 * k, SIZE, PITCH * k)


def motion(k: float, *xi: float) -> Tensor:
    return torch.tensor([*xi[:3], *(k * x for x in xi[3:])], dtype=torch.float64)


@lru_cache
def registered(k: float, stages: str, gain: float = 1.0) -> RegistrationResult:
    volume, camera = scaled(k)
    center = volume_center(volume)
    truth = perturb(view_ap(volume, SOD * k), motion(k, 0.1, -0.05, 0.08, 9, -7, 20), center)
    # A denser X-ray than the volume renders: not a perfect match, as none is.
    xray = gain * render(volume, camera, truth, supersample=3) ** 1.1
    offset = motion(k, 0.12, 0.1, -0.08, 12, -15, 30)
    return register(volume, camera, xray, perturb(truth, offset, center), stages=stages)


@pytest.mark.parametrize("stages", ["auto", "global"])
@pytest.mark.parametrize("k", [0.03, 0.1, 10.0])
def test_a_scaled_scene_has_the_scaled_pose_and_the_same_loss(k, stages):
    one, other = registered(1.0, stages), registered(k, stages)
    pose = other.world_to_camera.clone()
    pose[:3, 3] /= k
    turn = (pose[:3, :3] - one.world_to_camera[:3, :3]).abs().max()
    shift = (pose[:3, 3] - one.world_to_camera[:3, 3]).norm() / one.extent_mm
    assert turn < 1e-3 and shift < 1e-3
    assert other.loss == pytest.approx(one.loss, rel=1e-3)
    assert other.agreement == pytest.approx(one.agreement, rel=1e-3)
    assert other.extent_mm == pytest.approx(k * one.extent_mm, rel=1e-6)
    sigma = other.sigma / torch.tensor([1.0] * 3 + [k] * 3)
    torch.testing.assert_close(sigma, one.sigma, rtol=1e-2, atol=0)


def test_the_unit_of_the_x_ray_moves_neither_pose_nor_confidence():
    """X-rays near 1e-6 had the same pose and another confidence."""
    found = [registered(1.0, "auto", gain) for gain in (1.0, 1e-6)]
    torch.testing.assert_close(*(f.world_to_camera for f in found), rtol=0, atol=1e-2)
    assert found[1].confidence == pytest.approx(found[0].confidence, abs=1e-3)
    assert found[1].accepted == found[0].accepted


def test_the_extent_is_that_of_the_object_or_of_the_field_whichever_is_smaller():
    values = torch.zeros(20, 30, 40)
    values[5:9, 10:20, 3:33] = 0.02
    values[0, 0, 0] = 0.0009  # below 5 % of the peak
    volume = Volume(values, (1.0, 2.0, 3.0), unit="mu")
    box = (30.0**2 + 20.0**2 + 12.0**2) ** 0.5
    assert extent_mm(volume, CArm(1000.0, (100, 100), 1.0), 800.0) == pytest.approx(box)
    narrow = CArm(1000.0, (30, 40), 0.5)
    assert extent_mm(volume, narrow, 800.0) == pytest.approx(0.5 * 50 * 0.8)
