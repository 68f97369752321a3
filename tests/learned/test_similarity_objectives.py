"""Geodesic distances of poses, and the objectives that compare gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from drrkit import Volume, so3_exp, so3_log
from drrkit.geometry import view_ap, volume_center
from drrkit.phantoms import torso
from drrkit.registration import Directions
from drrkit.registration.optimisers.optimiser import PoseProblem
from drrkit.similarity import (
    SAMPLINGS,
    PoseChart,
    PoseSampling,
    cosines,
    direction_distance,
    geodesic_distance,
    geodesic_gradient,
    geodesic_loss,
    objective_loss,
    pose_gradient,
)


def poses(count: int, seed: int = 0, turn: float = 1.0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return turn * torch.randn(count, 6, generator=random, dtype=torch.float64) * 0.6


def closed_form(theta: Tensor, target: Tensor) -> Tensor:
    """(-2 J_l(r_m) phi, 2 (t_m - t_t)), phi = rotvec(R_m' R_t), for phi below pi.

    d phi / d r_m = -J_l(phi)^-1 J_r(r_m), phi' J_l(phi)^-1 = phi' and J_r' = J_l, where
    J_l(r) is the integral of exp(s [r]) over s from 0 to 1.
    """
    block = theta.new_zeros(len(theta), 6, 6)
    x, y, z = theta[:, :3].unbind(-1)
    for row, col, value in ((0, 1, -z), (0, 2, y), (1, 0, z), (1, 2, -x), (2, 0, -y), (2, 1, x)):
        block[:, row, col] = value
    block[:, :3, 3:] = torch.eye(3, dtype=theta.dtype)
    left_jacobian = torch.linalg.matrix_exp(block)[:, :3, 3:]
    phi = so3_log(so3_exp(theta[:, :3]).mT @ so3_exp(target[:, :3]))
    turn = (left_jacobian @ phi[..., None])[..., 0]
    return torch.cat((-2.0 * turn, 2.0 * (theta[:, 3:] - target[:, 3:])), -1)


def test_the_geodesic_gradient_is_its_closed_form() -> None:
    theta, target = poses(200, 1), poses(200, 2)
    close = so3_log(so3_exp(theta[:, :3]).mT @ so3_exp(target[:, :3])).norm(dim=-1) < 3.1
    assert int(close.sum()) > 190
    error = (geodesic_gradient(theta, target) - closed_form(theta, target))[close].abs().max()
    assert float(error) < 1e-9


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e-5, 0.0999, 0.1001])
def test_the_geodesic_gradient_agrees_beside_the_identity(scale: float) -> None:
    direction = torch.nn.functional.normalize(poses(50, 3)[:, :3], dim=-1)
    theta = torch.cat((scale * direction, poses(50, 4)[:, 3:]), -1)
    target = poses(50, 5)
    error = geodesic_gradient(theta, target) - closed_form(theta, target)
    assert float(error.abs().max()) < 1e-9


@pytest.mark.parametrize("angle", [0.0, 1e-8, 0.05, 0.1, 2.5])
def test_the_distance_has_correct_derivatives_everywhere(angle: float) -> None:
    theta = torch.zeros(1, 6, dtype=torch.float64)
    theta[:, :3] = angle * torch.tensor([0.6, -0.48, 0.64])
    target = torch.tensor([[0.1, 0.2, -0.1, 0.5, 0.0, 0.2]], dtype=torch.float64)
    theta.requires_grad_()
    assert torch.autograd.gradcheck(geodesic_loss, (theta, target))
    assert torch.autograd.gradgradcheck(geodesic_loss, (theta, target))


def test_equal_poses_have_distance_and_gradient_zero_without_nan() -> None:
    theta = torch.cat((poses(20, 6), torch.zeros(1, 6, dtype=torch.float64))).requires_grad_()
    loss = geodesic_loss(theta, theta.detach())
    (gradient,) = torch.autograd.grad(loss.sum(), theta, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum() + gradient.sum(), theta)
    assert float(loss.abs().max()) < 1e-25 and float(gradient.abs().max()) < 1e-12
    assert bool(second.isfinite().all())
    assert float(geodesic_gradient(theta, theta).abs().max()) < 1e-12


def test_the_distance_is_left_invariant() -> None:
    """L(T m, T t) = L(m, t) for any rigid motion T in front of both."""
    theta, target, motion = poses(50, 7), poses(50, 8), poses(50, 9)

    def moved(pose: Tensor) -> Tensor:
        rotation = so3_exp(motion[:, :3])
        turn = so3_log(rotation @ so3_exp(pose[:, :3]))
        shift = (rotation @ pose[:, 3:, None])[..., 0] + motion[:, 3:]
        return torch.cat((turn, shift), -1)

    before, after = geodesic_loss(theta, target), geodesic_loss(moved(theta), moved(target))
    assert float((before - after).abs().max()) < 1e-10


def test_a_known_distance() -> None:
    theta = torch.tensor([[0.0, 0.0, 0.3, 1.0, 2.0, 3.0]], dtype=torch.float64)
    target = torch.tensor([[0.0, 0.0, -0.2, 1.0, 0.0, 3.5]], dtype=torch.float64)
    assert float(geodesic_loss(theta, target)) == pytest.approx(0.25 + 4.0 + 0.25, abs=1e-12)


def test_the_direction_distance_counts_directions_only() -> None:
    found, wanted = poses(100, 12), poses(100, 13)
    stretched = torch.cat((1e-7 * found[:, :3], 1e5 * found[:, 3:]), -1)
    assert torch.allclose(direction_distance(stretched, wanted), direction_distance(found, wanted))
    assert float(direction_distance(found, found).max()) < 1e-12
    assert torch.allclose(
        direction_distance(-found, found), torch.full((100,), 8.0, dtype=torch.float64)
    )
    rotation, translation = cosines(found, wanted)
    assert torch.allclose(direction_distance(found, wanted), 4 - 2 * (rotation + translation))


def test_random_directions_are_at_chance_level() -> None:
    found, wanted = poses(4000, 14), poses(4000, 15)
    assert float(direction_distance(found, wanted).mean()) == pytest.approx(4.0, abs=0.1)


def test_objectives_of_gradients_are_finite_and_derivable_where_a_gradient_vanishes() -> None:
    for distance in (direction_distance, geodesic_distance):
        found = torch.zeros(1, 6, dtype=torch.float64, requires_grad=True)
        wanted = torch.tensor([[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
        (gradient,) = torch.autograd.grad(distance(found, wanted).sum(), found)
        assert bool(gradient.isfinite().all())
        generic = poses(1, 16).requires_grad_()
        assert torch.autograd.gradcheck(lambda q: distance(q, wanted), (generic,))  # noqa: B023


def test_the_geodesic_distance_of_gradients_is_zero_only_where_they_agree() -> None:
    found = poses(50, 17)
    assert float(geodesic_distance(found, found).max()) < 1e-20
    assert float(geodesic_distance(found, 2.0 * found).min()) > 1e-4
    assert float(geodesic_distance(found, -found).min()) > 1e-2


def toy(theta: Tensor, weight: Tensor) -> Tensor:
    """A similarity of pose alone: weighted squares."""
    return (weight * theta.square()).sum(-1)


@pytest.mark.parametrize("name", ["direction", "geodesic", "mse"])
def test_objectives_differentiate_into_the_weights(name: str) -> None:
    theta, target = poses(6, 18).requires_grad_(), poses(6, 19)
    weight = torch.rand(6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda w: objective_loss(name, toy(theta, w), theta, target), (weight,)
    )


def test_objectives_are_zero_for_the_distance_itself() -> None:
    theta, target = poses(8, 20).requires_grad_(), poses(8, 21)
    for name in ("direction", "geodesic", "mse"):
        own = geodesic_loss(theta, target)
        assert float(objective_loss(name, own, theta, target)) < 1e-12
        worse = toy(theta, torch.ones(6, dtype=torch.float64))
        assert float(objective_loss(name, worse, theta, target)) > 0.01


def test_an_unknown_objective_is_refused() -> None:
    theta = poses(1).requires_grad_()
    with pytest.raises(ValueError, match="objective: expected one of"):
        objective_loss("cosine", theta.sum(-1), theta, poses(1))


def test_pose_gradients_are_those_of_single_poses() -> None:
    theta = poses(3, 22).requires_grad_()
    weight = torch.rand(6, dtype=torch.float64)
    together = pose_gradient(toy(theta, weight), theta)
    assert torch.allclose(together, 2 * weight * theta)


# ---- the chart


def torso_and_chart() -> tuple[Volume, PoseChart]:
    volume = torso(12.0)
    return volume, PoseChart(volume, view_ap(volume, 800.0)[0])


def test_the_chart_and_its_inverse() -> None:
    volume, chart = torso_and_chart()
    theta = poses(20, 23)
    pose = chart.world_to_camera(theta)
    assert torch.allclose(chart.theta(pose), theta, atol=1e-9)
    identity = pose[:, :3, :3] @ pose[:, :3, :3].mT
    assert torch.allclose(identity, torch.eye(3, dtype=torch.float64).expand(20, 3, 3))
    start = chart.world_to_camera(torch.zeros(1, 6))
    assert torch.allclose(start, view_ap(volume, 800.0))


def test_a_patient_chart_turns_about_the_centre_and_shifts_along_the_camera() -> None:
    volume, chart = torso_and_chart()
    theta = torch.tensor([[0.3, -0.2, 0.5, 0.1, -0.2, 0.4]], dtype=torch.float64)
    pose = chart.world_to_camera(theta)[0]
    place = pose[:3, :3] @ volume_center(volume) + pose[:3, 3]
    shift = chart.unit * theta[0, 3:]
    assert torch.allclose(place, torch.tensor([0.0, 0.0, 800.0]).double() + shift)
    assert chart.unit == pytest.approx(volume.shape_xyz[0] * 6.0)


@pytest.mark.parametrize("name", list(SAMPLINGS))
def test_samplings_have_the_widths_they_name(name: str) -> None:
    _, chart = torso_and_chart()
    sampling = SAMPLINGS[name]
    moving, target = sampling.draw(chart, 4000, torch.Generator().manual_seed(0))
    if sampling.about_target:
        moving = torch.cat((moving[:, :3], moving[:, 3:] - target[:, 3:]), -1)
    for found, widths, normal in (
        (moving, sampling.moving, sampling.moving_normal),
        (target, sampling.target, sampling.target_normal),
    ):
        mm = found[:, 3:] * (1.0 if sampling.relative else chart.unit)
        deviation = torch.tensor(widths[3:]).double() * (1.0 if normal else 3**-0.5)
        assert torch.allclose(mm.std(0), deviation, rtol=0.05)
        if not sampling.about_target:
            angle = found[:, :3].norm(dim=-1).square().mean().sqrt()
            wanted = math.radians(widths[0]) * (3**0.5 if normal else 1.0)
            assert float(angle) == pytest.approx(wanted, rel=0.08)


def test_drawn_poses_repeat() -> None:
    _, chart = torso_and_chart()
    sampling = PoseSampling((5.0,) * 6, (10.0,) * 6)
    once, again = (sampling.draw(chart, 4, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(once[0], again[0]) and torch.equal(once[1], again[1])


def test_bad_charts_and_samplings_are_refused() -> None:
    volume = torso(12.0)
    with pytest.raises(ValueError, match="reference: expected a tensor"):
        PoseChart(volume, view_ap(volume, 800.0))
    with pytest.raises(ValueError, match="target: expected six widths"):
        PoseSampling((1.0,) * 5, (1.0,) * 6)


# ---- descent by directions


def test_descent_by_directions_takes_steps_of_the_length_it_says() -> None:
    """The squared distance of the centre: shifts point at it, and their length halves."""
    volume = torso(16.0)
    center, truth = volume_center(volume), view_ap(volume, 800.0)[0]
    target = truth[:3, :3] @ center + truth[:3, 3] + torch.tensor([30.0, -40.0, 0.0]).double()
    trail: list[Tensor] = []

    def objective(pose: Tensor) -> Tensor:
        place = pose[:, :3, :3] @ center + pose[:, :3, 3]
        trail.append(place.detach())
        return (place - target).square().sum(-1)

    units = torch.tensor([0.01, 0.01, 0.01, 1.0, 1.0, 3.0], dtype=torch.float64)
    problem = PoseProblem(center=center, units=units, objective=objective, iterations=40)
    descent = Directions(8.0, patience=3, final_step=0.5).begin(problem, truth[None])
    while not descent.finished:
        descent.step()
    lengths = torch.cat(trail).diff(dim=0).norm(dim=-1)
    expected = [8.0 * 0.5 ** (k // 3) for k in range(len(lengths))]
    assert torch.allclose(lengths, torch.tensor(expected, dtype=torch.float64))
    assert len(trail) == 15 and descent.stop_reason == "converged"
    assert float(descent.best_loss[0].sqrt()) < 8.0
