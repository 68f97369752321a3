"""The voxelised torso: anatomy, densities, asymmetry, repeatability."""

from __future__ import annotations

import math

import pytest
import torch

from drrkit.geometry import volume_center
from drrkit.phantoms import TORSO_LABELS, torso
from drrkit.volume import Volume


@pytest.fixture(scope="module")
def body() -> Volume:
    return torso()


def test_the_torso_is_of_the_stated_size(body: Volume) -> None:
    assert body.unit == "HU" and body.values.dtype == torch.float32
    for count, pitch, extent in zip(body.shape_xyz, body.spacing, (342, 246, 330), strict=True):
        assert abs(count * pitch - extent) < 3.0
    assert volume_center(body).abs().max() < 1e-3


def test_the_torso_is_the_same_every_time(body: Volume) -> None:
    again = torso()
    assert torch.equal(body.values, again.values)
    assert torch.equal(body.labels, again.labels)
    state = torch.get_rng_state()
    torso(12.0)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone


@pytest.mark.parametrize("spacing", [2.5, 4.0, (3.0, 4.0, 5.0)])
def test_the_torso_has_every_label_with_plausible_densities(
    spacing: float | tuple[float, float, float],
) -> None:
    body = torso(spacing)
    labels, hu = body.labels, body.values
    assert set(labels.unique().tolist()) == set(TORSO_LABELS.values())
    median = {name: hu[labels == k].median().item() for name, k in TORSO_LABELS.items()}
    assert median["air"] == -1000.0 and median["gas"] < -900.0
    assert -115 < median["fat"] < -90
    for name in ("muscle", "liver", "kidney_left", "kidney_right"):
        assert 25 < median[name] < 70, name
    assert 0 < median["bladder"] < 20 and -90 < median["viscera"] < 45
    for name, k in TORSO_LABELS.items():
        if k >= TORSO_LABELS["ribs"]:
            assert 250 < median[name] < 1000, name
            assert 600 < hu[labels == k].max() <= 1400, name
    cortical = ((hu > 900) & (labels >= TORSO_LABELS["ribs"])).float().mean()
    assert 0.001 < cortical < 0.05
    assert hu.min() == -1000.0 and hu.max() <= 1400.0


def test_organs_have_plausible_volumes_and_places(body: Volume) -> None:
    ranges_ml = {
        "vertebra_L3": (25, 80),
        "sacrum": (100, 260),
        "hip_left": (150, 400),
        "hip_right": (150, 400),
        "femur_left": (90, 260),
        "bladder": (60, 250),
        "kidney_left": (70, 220),
        "liver": (300, 1500),
    }
    voxel_ml = math.prod(body.spacing) / 1000.0
    middle = {}
    for name, k in TORSO_LABELS.items():
        index = (body.labels == k).nonzero().flip(-1).double()
        middle[name] = body.index_to_world(index).mean(0)
        if name in ranges_ml:
            low, high = ranges_ml[name]
            assert low < len(index) * voxel_ml < high, (name, len(index) * voxel_ml)
    # World is LPS: x to the left, y to the back, z upwards.
    assert middle["hip_left"][0] > 50 and middle["hip_right"][0] < -50
    assert middle["kidney_left"][0] > 50 and middle["kidney_right"][0] < -50
    assert middle["liver"][0] < -20
    assert middle["sacrum"][1] > middle["bladder"][1] + 50
    heights = [middle[f"vertebra_L{k}"][2].item() for k in (5, 4, 3, 2)]
    assert heights == sorted(heights) and middle["sacrum"][2] < heights[0]
    assert middle["femur_left"][2] < middle["hip_left"][2]


def test_the_body_is_inside_the_field_at_its_sides(body: Volume) -> None:
    for side in (body.values[:, 0], body.values[:, -1], body.values[..., 0], body.values[..., -1]):
        assert (side == -1000.0).all()


def test_the_torso_has_no_mirror_symmetry(body: Volume) -> None:
    mu = body.to_mu().values
    for dim in (0, 1, 2):
        difference = (mu - mu.flip(dim)).norm() / mu.norm()
        assert difference > 0.15, dim
    front = mu.sum(1)  # also where it matters most: in the frontal image
    assert (front - front.flip(1)).norm() / front.norm() > 0.05
    bones = (body.labels >= TORSO_LABELS["ribs"]).float()
    shared = (bones * bones.flip(2)).sum() / bones.sum()
    assert shared < 0.85


def test_every_spacing_shows_the_same_body(body: Volume) -> None:
    coarse = torso(6.0)
    pooled = torch.nn.functional.avg_pool3d(body.values[None], 2)[0]
    assert pooled.shape == coarse.values.shape  # 342 x 246 x 330 mm: both grids are centred
    difference = (pooled - coarse.values)[coarse.labels > 0]
    assert difference.abs().median() < 10.0
    assert difference.square().mean().sqrt() < 60.0
    assert difference.mean().abs() < 8.0


def test_texture_can_be_switched_off_and_the_dtype_chosen() -> None:
    plain, textured = torso(6.0, texture=0.0, dtype=torch.float64), torso(6.0)
    assert plain.values.dtype == torch.float64
    for volume, spread in ((plain, (0.0, 2.0)), (textured, (20.0, 150.0))):
        # Deep inside the femoral head: cancellous bone alone.
        where = (volume.labels == TORSO_LABELS["femur_left"]).nonzero().flip(-1).double()
        away = (volume.index_to_world(where) - torch.tensor([82.0, -15.0, -75.0]).double()).norm(
            dim=-1
        )
        x, y, z = where[away < 14.0].long().unbind(-1)
        deviation = volume.values[z, y, x].std().item()
        assert len(x) > 20 and spread[0] <= deviation <= spread[1]


@pytest.mark.parametrize(
    "spacing, texture, message",
    [
        (0.1, 1.0, "spacing: expected"),
        ((3.0, 3.0), 1.0, "spacing: expected"),
        (math.nan, 1.0, "spacing: expected"),
        (8.0, -1.0, "texture: expected"),
        (8.0, math.nan, "texture: expected"),
    ],
)
def test_bad_torso_arguments_are_named(spacing: object, texture: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torso(spacing, texture=texture)  # type: ignore[arg-type]
