"""Random X-rays for training: what is drawn, and that a seed repeats it."""

from __future__ import annotations

import pytest
import torch

from drrkit import CArm, Volume, phantoms, simulate_xray, view_ap
from drrkit.xray import (
    CdregRandomisation,
    DomainRandomisation,
    PlacedTool,
    TargetSynthesis,
    rod,
    tissue_materials,
)

CAMERA = CArm(1020.0, (32, 32), 8.0)


@pytest.fixture(scope="module")
def ct() -> Volume:
    return phantoms.random_anatomy("spine", 0, shape=24)


def test_a_seed_repeats_and_another_draws_anew(ct: Volume) -> None:
    views = view_ap(ct, 800.0).expand(3, 4, 4)
    everything = TargetSynthesis(tool_probability=0.5, motion_probability=0.5)
    state = torch.get_rng_state()
    first, again, other = (everything(ct, CAMERA, views, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == (3, 1, 32, 32) and torch.isfinite(first).all()
    assert torch.equal(first, again) and not torch.equal(first, other)
    same = everything(tissue_materials(ct), CAMERA, views, 1)
    torch.testing.assert_close(same, first)


def test_tubes_and_detectors_differ_from_call_to_call(ct: Volume) -> None:
    target = TargetSynthesis()
    drawn = [target._settings(torch.Generator().manual_seed(seed)) for seed in range(300)]
    assert {settings["spectrum"] for settings in drawn} == {"60kV", "90kV", "120kV"}
    for name, (low, high) in (
        ("photons", target.photons),
        ("scatter", target.scatter),
        ("electronic_noise", target.electronic_noise),
        ("blur_sigma_px", target.blur_sigma_px),
    ):
        values = torch.tensor([settings[name] for settings in drawn])
        assert low <= values.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < values.max() <= high
    photons = torch.tensor([settings["photons"] for settings in drawn]).log()
    middle = torch.tensor(target.photons).log().mean()
    assert float((photons.mean() - middle).abs()) < 0.15


def test_tools_are_in_the_views_that_draw_them(ct: Volume) -> None:
    views = view_ap(ct, 800.0).expand(200, 4, 4)
    target = TargetSynthesis(tools=(rod(30.0, 200.0),), tool_probability=0.3, tool_spread_mm=5.0)
    placed = target._placed(ct, 200, torch.Generator().manual_seed(0))
    assert len(placed) == 1
    seen = placed[0].area_density(CAMERA, views).amax(dim=(1, 2, 3)) > 0
    assert 0.2 < float(seen.double().mean()) < 0.4
    assert torch.equal(seen, placed[0].present & seen)
    assert TargetSynthesis()._placed(ct, 3, torch.Generator()) == []


def test_a_tool_of_one_view_stays_out_of_the_others_and_of_their_motion(ct: Volume) -> None:
    view = view_ap(ct, 800.0)
    moving = view[:, None].expand(2, 3, 4, 4)
    pose = torch.eye(4, dtype=torch.float64).expand(2, 4, 4)
    placed = PlacedTool(rod(30.0, 60.0), pose, torch.tensor([True, False]))
    plain = simulate_xray(ct, CAMERA, moving, seed=1)
    with_tool = simulate_xray(ct, CAMERA, moving, seed=1, tools=[placed])
    assert (with_tool[0] > plain[0] + 0.5).any()
    clean = {"seed": 1, "output": "intensity"}
    still = simulate_xray(ct, CAMERA, view.expand(2, 4, 4), tools=[placed], **clean)
    path = simulate_xray(ct, CAMERA, moving, tools=[placed], **clean)
    torch.testing.assert_close(still.mean(), path.mean(), rtol=0.01, atol=0)


def test_views_that_do_not_move_keep_their_pose(ct: Volume) -> None:
    poses = view_ap(ct, 800.0).expand(100, 4, 4)
    target = TargetSynthesis(motion_probability=0.25)
    path = target._moving(poses, ct, torch.Generator().manual_seed(3))
    assert path.shape == (100, 5, 4, 4)
    moves = (path - poses[:, None]).abs().amax(dim=(1, 2, 3)) > 1e-4
    assert 10 < int(moves.sum()) < 40


def test_it_fits_where_training_asks_for_targets_and_changes(ct: Volume) -> None:
    """(ct, camera, poses, seed) -> images, then (images, seed) -> images."""
    views = view_ap(ct, 800.0).expand(2, 4, 4)
    plain = simulate_xray(ct, CAMERA, views, supersample=1)
    images = TargetSynthesis()(ct, CAMERA, views, 5)
    assert images.shape == plain.shape and images.dtype == plain.dtype
    correlation = torch.corrcoef(torch.stack([images[0].flatten(), plain[0].flatten()]))[0, 1]
    assert float(correlation) > 0.9
    for recipe in (DomainRandomisation(), CdregRandomisation()):
        for seed in (7, torch.Generator().manual_seed(7)):
            assert recipe(images, seed).shape == images.shape


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"spectra": ()}, "spectra"),
        ({"spectra": ("50kV",)}, "spectrum"),
        ({"photons": (0.0, 1.0)}, "photons"),
        ({"scatter": (0.1, 2.0)}, "scatter"),
        ({"blur_sigma_px": (1.0, 0.5)}, "blur_sigma_px"),
        ({"tool_probability": 1.1}, "tool_probability"),
        ({"motion_probability": -0.1}, "motion_probability"),
    ],
)
def test_bad_settings_are_named(settings: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        TargetSynthesis(**settings)
