"""How sure a result is: what probabilities are made of; wrong CTs behind masks of any shape."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from torch import Tensor

from drrkit import CArm, Volume, register, simulate_xray, view_ap
from drrkit.phantoms import random_anatomy
from drrkit.registration.certainty import Agreement, probability
from tests.support.registered_torso import attenuation, off, phantom, truth

CAMERA = CArm(1020.0, (96, 96), 2.9)


def test_the_probability_rises_with_agreement_and_falls_with_fewer_pixels():
    for limit in (2.0, 10.0):
        by_value = [probability(Agreement(a / 20, 16384), limit) for a in range(21)]
        assert by_value == sorted(by_value) and by_value[0] < 0.01 and by_value[-1] > 0.999
        by_pixels = [probability(Agreement(0.6, n), limit) for n in (600, 1200, 5000, 16384)]
        assert by_pixels == sorted(by_pixels) and by_pixels[0] < by_pixels[-1]
    for value in (0.4, 0.5, 0.6, 0.9):
        found = Agreement(value, 9000)
        assert probability(found, 2.0) <= probability(found, 10.0)


def test_too_few_pixels_are_no_evidence():
    assert probability(Agreement(1.0, 300), 10.0) is None
    xray = simulate_xray(phantom(), CAMERA, truth())
    mask = torch.zeros(1, 1, 96, 96)
    mask[..., 40:56, 40:56] = 1.0
    found = register(attenuation(), CAMERA, xray, off(2.0, 3.0)[0], mask=mask)
    assert found.confidence is None and found.confidence_10mm is None
    assert "little_evidence" in found.reasons and not found.accepted


@lru_cache
def another_patient() -> Volume:
    return random_anatomy("pelvis", 3, shape=64).to_mu()


def shapes() -> dict[str, Tensor]:
    """Ten masks [1, 1, 96, 96]."""
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")

    def disc(row: float, col: float, radius: float) -> Tensor:
        return (y - row) ** 2 + (x - col) ** 2 < radius**2

    made = {
        "small disc": disc(48, 48, 18),
        "disc aside": disc(30, 62, 24),
        "large disc": disc(48, 48, 44),
        "ring": disc(48, 48, 44) & ~disc(48, 48, 28),
        "columns": (x > 36) & (x < 58),
        "rows": (y > 20) & (y < 44),
        "corner": x + y < 80,
        "cross": ((x - 48).abs() < 9) | ((y - 48).abs() < 9),
        "two": disc(28, 28, 17) | disc(66, 66, 17),
        "stripes": (x // 12) % 2 == 0,
    }
    return {name: mask.float()[None, None] for name, mask in made.items()}


@pytest.mark.parametrize("shape", shapes())
def test_another_patients_ct_is_never_accepted_behind_a_mask(shape):
    xray = simulate_xray(phantom(), CAMERA, truth())
    start = view_ap(another_patient(), 800.0)
    mask = shapes()[shape]
    wrong = register(another_patient(), CAMERA, xray, start, mask=mask)
    assert not wrong.accepted
    assert wrong.confidence_10mm is None or wrong.confidence_10mm < 0.9


@pytest.mark.parametrize("shape", ["large disc", "ring", "corner", "cross"])
def test_the_right_ct_is_accepted_behind_a_mask(shape):
    xray = simulate_xray(phantom(), CAMERA, truth())
    right = register(attenuation(), CAMERA, xray, off(4.0, 8.0)[0], mask=shapes()[shape])
    assert right.accepted
