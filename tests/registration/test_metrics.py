"""Pose errors, success rates and target points."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from drrkit import metrics


def rotation(axis: str, angle: float) -> torch.Tensor:
    c, s = math.cos(angle), math.sin(angle)
    matrices = {
        "x": [[1, 0, 0], [0, c, -s], [0, s, c]],
        "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
        "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
    }
    return torch.tensor(matrices[axis], dtype=torch.float64)


def pose(matrix: torch.Tensor, translation: tuple[float, float, float]) -> torch.Tensor:
    out = torch.eye(4, dtype=torch.float64)
    out[:3, :3] = matrix
    out[:3, 3] = torch.tensor(translation, dtype=torch.float64)
    return out


def volume(values: torch.Tensor, unit: str = "HU") -> SimpleNamespace:
    """Stands for a Volume: 2 x 3 x 4 mm voxels, origin (10, 20, 30), x and y axes exchanged."""
    affine = torch.tensor(
        [[0, 3, 0, 10], [2, 0, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]], dtype=torch.float64
    )
    return SimpleNamespace(values=values, unit=unit, affine=affine)


def test_mtre_of_a_pure_translation_is_its_length_for_every_point():
    a = pose(rotation("x", 0.3), (1.0, 2.0, 500.0))
    b = a.clone()
    b[:3, 3] += torch.tensor([3.0, 4.0, 12.0])
    points = torch.tensor([[0.0, 0, 0], [100, -50, 20]])
    assert metrics.mtre(a, b, points).tolist() == pytest.approx([13.0])


def test_mtre_of_a_rotation_averages_the_chords():
    a, b = pose(rotation("z", 0.0), (0, 0, 0)), pose(rotation("z", 0.2), (0, 0, 0))
    points = torch.tensor([[10.0, 0, 5], [0, 30, -7], [0, 0, 99]])
    expected = (10 + 30 + 0) * 2 * math.sin(0.1) / 3
    assert metrics.mtre(a, b, points).item() == pytest.approx(expected)
    assert metrics.mtre(b, a, points).item() == pytest.approx(expected)


def test_poses_broadcast_and_float32_poses_give_float64_errors():
    one = pose(rotation("x", 0.0), (0, 0, 0)).float()
    many = torch.stack([pose(rotation("x", angle), (angle, 0, 0)) for angle in (0.0, 0.1, 0.5)])
    points = torch.zeros(1, 3)
    assert metrics.mtre(one, many, points).tolist() == pytest.approx([0.0, 0.1, 0.5])
    assert metrics.mtre(many, one, points).dtype == torch.float64
    assert metrics.rotation_error(many, one).tolist() == pytest.approx([0.0, 0.1, 0.5])
    assert metrics.rotation_error(many.float(), many.float()).shape == (3,)


@pytest.mark.parametrize("angle", [1e-9, 1e-4, 0.5, math.pi - 1e-6, math.pi])
@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_rotation_error_is_the_angle_in_radians_to_full_accuracy(axis, angle):
    a = pose(rotation("y", 1.1) @ rotation("x", 0.4), (5, 6, 7))
    b = a.clone()
    b[:3, :3] = rotation(axis, angle) @ a[:3, :3]
    assert metrics.rotation_error(a, b).item() == pytest.approx(angle, rel=1e-6)


def test_translation_error_depends_on_the_point_that_rotations_turn_about():
    a, b = pose(rotation("z", 0.0), (0, 0, 0)), pose(rotation("z", math.pi / 2), (0, 0, 0))
    origin = torch.zeros(3)
    assert metrics.translation_error(a, b, origin).item() == pytest.approx(0.0, abs=1e-12)
    away = torch.tensor([10.0, 0.0, 3.0])
    assert metrics.translation_error(a, b, away).item() == pytest.approx(10 * math.sqrt(2))


def test_mtre_has_a_gradient_in_the_pose():
    a = pose(rotation("z", 0.2), (1, 2, 3)).requires_grad_()
    b, points = pose(rotation("y", 0.1), (0, 0, 0)), torch.rand(5, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda m: metrics.mtre(m, b, points), (a,))


def test_success_rate_counts_errors_strictly_below_the_threshold_and_nan_as_failure():
    errors = torch.tensor([0.5, 2.0, 1.999, math.nan, math.inf])
    found = metrics.success_rate(errors, 2.0)
    assert (found.successes, found.total, found.rate) == (2, 5, 0.4)
    assert 0 < found.low < 0.4 < found.high < 1


@pytest.mark.parametrize(
    "successes, count, low, high",
    # Newcombe 1998, table I, score method without continuity correction.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_success_rate_intervals_agree_with_published_wilson_intervals(successes, count, low, high):
    errors = torch.cat([torch.zeros(successes), torch.full((count - successes,), 5.0)])
    found = metrics.success_rate(errors, 1.0)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    assert found.low <= found.rate <= found.high


def test_success_rate_of_certain_success_ends_exactly_at_one():
    found = metrics.success_rate(torch.zeros(10), 1.0)
    assert found.rate == found.high == 1.0 and 0.7 < found.low < 0.75


@pytest.mark.io
def test_bone_points_are_world_positions_of_the_largest_component_only():
    values = torch.zeros(6, 7, 8)
    values[1, 2, 3:6] = 400.0  # three voxels along x: the largest component
    values[4, 5, 1:3] = 900.0
    values[2, 3, 4] = 500.0  # touches the first along an edge only: another component
    found = metrics.bone_points(volume(values))
    expected = {(10 + 3 * 2, 20 + 2 * x, 30 + 4 * 1) for x in (3, 4, 5)}
    assert {tuple(point) for point in found.tolist()} == expected
    assert found.dtype == torch.float64


@pytest.mark.io
def test_bone_points_are_drawn_without_replacement_and_repeat_with_their_seed():
    values = torch.full((10, 10, 10), 300.0)
    first = metrics.bone_points(volume(values), count=200)
    assert first.shape == (200, 3) and len({tuple(p) for p in first.tolist()}) == 200
    assert torch.equal(first, metrics.bone_points(volume(values), count=200, seed=0))
    assert not torch.equal(first, metrics.bone_points(volume(values), count=200, seed=1))


@pytest.mark.io
def test_bone_points_refuse_volumes_without_bone_or_in_another_unit():
    with pytest.raises(ValueError, match=r"volume: expected voxels above 250.0 HU, got a max"):
        metrics.bone_points(volume(torch.zeros(3, 3, 3)))
    with pytest.raises(ValueError, match="volume: expected values in HU, got unit 'mu'"):
        metrics.bone_points(volume(torch.ones(3, 3, 3), unit="mu"))
    with pytest.raises(ValueError, match="volume: expected one channel"):
        metrics.bone_points(volume(torch.ones(2, 3, 3, 3)))
    with pytest.raises(ValueError, match="count: expected a positive number of points, got 0"):
        metrics.bone_points(volume(torch.full((3, 3, 3), 300.0)), count=0)


def test_bad_poses_and_points_raise_errors_that_name_them():
    good, points = torch.eye(4), torch.zeros(2, 3)
    cases = [
        (
            (None, good, points),
            TypeError,
            r"world_to_camera_a: expected a torch.Tensor.*None",
        ),
        ((good, good[:3], points), ValueError, r"world_to_camera_b: .*got \[3, 4\]"),
        ((good, good.long(), points), TypeError, r"world_to_camera_b: .*got torch.int64"),
        (
            (good.expand(2, 4, 4), good.expand(3, 4, 4), points),
            ValueError,
            "expected 2 poses.*got 3",
        ),
        ((good, good, points[:, :2]), ValueError, r"points: expected shape .*got \(2, 2\)"),
        ((good, good, points[:0]), ValueError, r"points: expected shape .*got \(0, 3\)"),
        ((good, good, [[0.0, 0, 0]]), TypeError, r"points: expected a tensor .*got list"),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            metrics.mtre(*arguments)
    with pytest.raises(ValueError, match=r"center: expected shape \[3\] in mm, got \(1, 3\)"):
        metrics.translation_error(good, good, torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"errors: expected at least one number, got shape \(0,\)"):
        metrics.success_rate(torch.zeros(0), 1.0)
    with pytest.raises(ValueError, match=r"threshold: expected a positive number, got -1"):
        metrics.success_rate(torch.zeros(3), -1)
