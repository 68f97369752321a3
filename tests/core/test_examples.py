"""The examples run, and do what they say."""

import importlib.util
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_training_through_the_projection_learns_the_beam() -> None:
    losses = example("train_through_projection").train(steps=40, spacing=14.0, size=32)
    assert losses[-1] < 0.02 * losses[0]


def test_cgls_reconstructs_the_torso() -> None:
    error, residuals = example("reconstruct_cgls").reconstruct(views=30, iterations=10, spacing=16)
    assert all(later < earlier for earlier, later in pairwise(residuals))
    assert residuals[-1] < 0.02 * residuals[0]
    assert error < 0.3


@pytest.mark.io
def test_two_views_know_more_than_one() -> None:
    found = example("biplane").register_biplane(spacing=6.0, size=80)
    # Rays through the ends at which the torso is cut are left out, as what is behind them in an
    # X-ray is not known: that costs a single view some depth.
    one, two = found["mtre"]
    assert one < 1.0 and two < 0.2 and two < 0.5 * one
    one, two = found["depth sigma"]
    assert two < one  # not by half: one view's is too small, for robust weights count as curvature


def test_a_patient_is_followed_through_a_sequence_and_found_again_after_a_jump() -> None:
    found = example("track_sequence").track(frames=6, spacing=7.0, size=72)
    assert max(found["mtre"]) < 2.0
    assert not any(found["lost"])
    jump = 3
    assert found["attempts"][jump] > 1
    assert all(n == 1 for k, n in enumerate(found["attempts"]) if k != jump)
