"""Levenberg-Marquardt: the curvature that it is told, its steps, the covariance at its end."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

import drrkit
from drrkit import Stage, losses, perturb, register, render
from drrkit.geometry import Camera, volume_center
from drrkit.losses import sobel
from drrkit.registration import Levenberg
from drrkit.registration.lengths import motion_units
from drrkit.registration.optimisers.optimiser import Expansion, PoseProblem
from drrkit.registration.problem.loss import StageLoss, objective
from drrkit.registration.problem.rendering import SceneRenderer
from drrkit.registration.problem.views import View
from drrkit.registration.similarities import gauss_newton
from tests.support.coarse_torso import (
    CAMERA,
    ORIGIN,
    UNITS,
    attenuation,
    drr,
    error,
    identity,
    off,
    place,
    truth,
)

# ---- Gauss-Newton matrices


def random_images(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """An image [2, 2, 11, 12], its Jacobian [2, 2, 6, 11, 12] and weights [1, 1, 11, 12]."""
    generator = torch.Generator().manual_seed(seed)
    moving = torch.rand(2, 2, 11, 12, generator=generator, dtype=torch.float64)
    jacobian = torch.randn(2, 2, 6, 11, 12, generator=generator, dtype=torch.float64)
    weight = torch.rand(1, 1, 11, 12, generator=generator, dtype=torch.float64)
    return moving, jacobian, weight


def normalised(values: Tensor, weight: Tensor) -> Tensor:
    """Values [N] with weighted mean 0 and variance 1, times the root of their weights' shares."""
    share = weight / weight.sum()
    values = values - (share * values).sum()
    return share.sqrt() * values / (share * values.square()).sum().sqrt()


def by_residuals(residuals: Callable[[Tensor], Tensor], jacobian: Tensor) -> Tensor:
    """Sum of r' r over the residuals' derivatives in xi, differentiated by torch: [6, 6]."""
    slopes = torch.autograd.functional.jacobian(residuals, torch.zeros(6).double())
    return slopes.mT @ slopes


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["ncc", "gradient_ncc"])
def test_the_matrix_of_a_correlation_is_that_of_its_normalised_residuals(name, masked):
    moving, jacobian, weight = random_images(0)
    mask = weight if masked else None
    loss = torch.tensor([0.4, 0.2], dtype=torch.float64)
    matrix = gauss_newton(getattr(losses, name), loss, moving, jacobian, mask)
    weight = weight if masked else torch.ones_like(weight)
    if name == "gradient_ncc":
        weight = -torch.nn.functional.max_pool2d(-weight, 3, stride=1)
    for view in range(2):
        expected = torch.zeros(6, 6, dtype=torch.float64)
        for channel in range(2):

            def image(xi: Tensor, v: int = view, c: int = channel) -> Tensor:
                return moving[v, c] + torch.einsum("k,kij->ij", xi, jacobian[v, c])

            parts = sobel if name == "gradient_ncc" else lambda x: (x,)
            for part in range(len(parts(moving))):

                def residuals(xi: Tensor, image=image, parts=parts, part=part) -> Tensor:
                    return normalised(parts(image(xi))[part].flatten(), weight.flatten())

                expected += by_residuals(residuals, jacobian) / len(parts(moving)) / 2
        expected *= 1.0 - loss[view]
        torch.testing.assert_close(matrix[view], expected, rtol=1e-5, atol=1e-6)


def test_the_matrix_of_local_ncc_is_the_mean_over_its_patches():
    moving, jacobian, weight = random_images(1)
    patch = partial(losses.local_ncc, patch=5)
    loss = torch.full((2,), 0.1, dtype=torch.float64)
    matrix = gauss_newton(patch, loss, moving, jacobian, weight)
    expected, total = torch.zeros(6, 6, dtype=torch.float64), 0.0
    for row in range(7):
        for col in range(8):
            part = slice(row, row + 5), slice(col, col + 5)
            share = weight[0, 0][part].sum()
            total += float(share)
            for channel in range(2):

                def residuals(xi: Tensor, part=part, c: int = channel) -> Tensor:
                    image = moving[1, c] + torch.einsum("k,kij->ij", xi, jacobian[1, c])
                    return normalised(image[part].flatten(), weight[0, 0][part].flatten())

                expected += share * by_residuals(residuals, jacobian) / 2
    # The patches' variances are raised a little, by a thousandth of their mean.
    torch.testing.assert_close(matrix[1], 0.9 * expected / total, rtol=5e-3, atol=5e-3)


def test_the_matrix_of_mse_is_twice_the_mean_product_of_the_jacobian():
    moving, jacobian, weight = random_images(2)
    matrix = gauss_newton(losses.mse, torch.zeros(2), moving, jacobian, weight)
    flat, share = jacobian.flatten(3), (weight / weight.sum()).flatten()
    expected = 2 * torch.einsum("bcip,bcjp,p->bij", flat, flat, share) / 2
    torch.testing.assert_close(matrix, expected)


def test_an_unknown_similarity_gets_the_metric_of_images_whatever_its_name():
    moving, jacobian, weight = random_images(3)

    def mse(moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        raise AssertionError("not called")

    matrix = gauss_newton(mse, torch.zeros(2), moving, jacobian, weight)
    perfect = gauss_newton(losses.ncc, torch.zeros(2), moving, jacobian, weight)
    torch.testing.assert_close(matrix, perfect)
    assert (torch.linalg.eigvalsh(matrix) > 0).all()


# ---- what Levenberg-Marquardt sees


class Scene:
    """The volume as a scene that renders itself."""

    def render(self, camera: Camera, world_to_camera: Tensor) -> Tensor:
        return render(attenuation(), camera, world_to_camera)


def views_of_two_cameras() -> list[View]:
    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, :3] = drrkit.so3_exp(torch.tensor([0.2, 1.1, -0.1], dtype=torch.float64))
    isocentre = torch.tensor([0.0, 0.0, 800.0], dtype=torch.float64)
    turn[:3, 3] = isocentre - turn[:3, :3] @ isocentre
    second = render(attenuation(), CAMERA, turn @ truth())
    mask = torch.ones_like(second)
    mask[..., :9, :] = 0.0
    return [View(CAMERA, drr(), None, None), View(CAMERA, second, mask, turn)]


@pytest.mark.parametrize("scene", ["volume", "scene"])
@pytest.mark.parametrize("similarity", ["ncc", "gradient_ncc", "local_ncc", "mi", "mse"])
def test_an_expansion_has_the_value_and_the_gradient_of_the_objective(similarity, scene):
    stage = Stage(similarity, optimiser=Levenberg(), blur=0.7)
    center = volume_center(attenuation()) + torch.tensor([20.0, -30.0, 10.0]).double()
    pose = off(3.0, 6.0, seed=1, count=2)
    views = views_of_two_cameras()
    drawn = attenuation() if scene == "volume" else Scene()
    found = StageLoss(SceneRenderer(drawn), views, stage, 1, center).expand(pose)
    xi = torch.zeros(2, 6, dtype=torch.float64, requires_grad=True)
    loss = objective(attenuation(), views, stage, 1, "joseph")(perturb(pose, xi, center))
    (gradient,) = torch.autograd.grad(loss.sum(), xi)
    torch.testing.assert_close(found.loss, loss.detach())
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-6, atol=1e-9)
    assert found.matrix.shape == (2, 6, 6)


@pytest.mark.parametrize("similarity", ["ncc", "gradient_ncc"])
def test_the_matrix_is_the_second_derivative_at_a_perfect_match(similarity):
    stage = Stage(similarity, optimiser=Levenberg())
    image = render(attenuation(), CAMERA, truth())
    view, center = View(CAMERA, image, None, None), volume_center(attenuation())
    found = StageLoss(SceneRenderer(attenuation()), [view], stage, 1, center).expand(truth())
    measure = objective(attenuation(), [view], stage, 1, "joseph")
    units = motion_units(CAMERA, 800.0)

    def loss(xi: Tensor) -> Tensor:
        return measure(perturb(truth(), (xi * units)[None], center))[0]

    # Central differences of exact gradients: the projector's own second derivatives jump.
    step, columns = 1e-3, []
    for k in range(6):
        ends = [torch.zeros(6).double().index_fill(0, torch.tensor(k), s) for s in (step, -step)]
        slopes = [torch.autograd.functional.jacobian(loss, end) for end in ends]
        columns.append((slopes[0] - slopes[1]) / (2 * step))
    hessian = torch.stack(columns)
    matrix = found.matrix[0] * units * units[:, None]
    assert (matrix - hessian).abs().max() < 0.02 * hessian.abs().max()


def test_levenberg_marquardt_converges_in_a_few_steps_from_every_start():
    view, center = View(CAMERA, drr(), None, None), volume_center(attenuation())
    loss = StageLoss(SceneRenderer(attenuation()), [view], Stage("ncc"), 1, center)
    start = off(6.0, 12.0, seed=2, count=4)
    problem = PoseProblem(
        center=center, units=motion_units(CAMERA, 800.0), expand=loss.expand, iterations=30
    )
    levenberg = Levenberg(20.0, final_step=1e-3).begin(problem, start)
    while not levenberg.finished:
        levenberg.step()
    assert (error(start) > 5.0).all() and (error(levenberg.best_pose) < 0.2).all()
    assert levenberg.steps < 20
    trace = torch.stack(levenberg.trace)
    assert trace.shape == (levenberg.steps, 4)
    torch.testing.assert_close(levenberg.best_loss, trace.nan_to_num(nan=9.0).amin(0))


def test_levenberg_marquardt_survives_wrong_models_and_losses_that_are_no_numbers():
    def expand(pose: Tensor) -> Expansion:
        x = place(pose)
        loss = x.square().sum(-1)
        loss = torch.where(x[:, 3] > 30.0, torch.nan, loss)
        # The gradient is right, the curvature ten thousand times too small.
        return Expansion(loss, 2 * x, 2e-4 * torch.eye(6).double().expand(len(x), 6, 6))

    start = perturb(
        identity(2), torch.tensor([[0, 0, 0, 9.0, 0, 0], [0, 0, 0, 50.0, 0, 0]]), ORIGIN
    )
    problem = PoseProblem(center=ORIGIN, units=UNITS, expand=expand)
    levenberg = Levenberg(25.0, final_step=1e-4).begin(problem, start)
    while not levenberg.finished:
        levenberg.step()
    assert levenberg.best_loss[0] < 1e-4
    assert levenberg.best_loss[1] == math.inf and torch.equal(levenberg.best_pose[1], start[1])


# ---- covariance


def test_the_covariance_is_that_of_poses_found_in_repeatedly_noisy_images():
    image, center = render(attenuation(), CAMERA, truth()), volume_center(attenuation())
    stage = Stage("ncc", optimiser=Levenberg(5.0, final_step=1e-3), iterations=8, mm=True)
    found, predicted = [], []
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(1, 1, 33, 33, generator=generator, dtype=torch.float64)
        # Noise of neighbouring pixels is correlated, as a detector's blur makes it.
        noise = torch.nn.functional.avg_pool2d(noise, 2, stride=1)
        result = register(attenuation(), CAMERA, image + 0.2 * noise, truth(), stages=stage)
        to_center = torch.eye(4, dtype=torch.float64)
        to_center[:3, 3] = -(truth()[0, :3, :3] @ center + truth()[0, :3, 3])
        motion = to_center @ result.world_to_camera @ torch.linalg.inv(to_center @ truth()[0])
        found.append(drrkit.se3_log(motion))
        predicted.append(result.covariance)
    scatter = torch.stack(found).mT.cov()
    expected = torch.stack(predicted).mean(0)
    ratio = scatter.diagonal().sqrt() / expected.diagonal().sqrt()
    assert (ratio > 0.7).all() and (ratio < 1.4).all()
    correlation = [c / torch.outer(*[c.diagonal().sqrt()] * 2) for c in (scatter, expected)]
    assert (correlation[0] - correlation[1]).abs().max() < 0.35


def test_a_second_camera_makes_depth_as_certain_as_the_rest():
    generator = torch.Generator().manual_seed(0)
    views = views_of_two_cameras()
    rig = torch.stack([torch.eye(4, dtype=torch.float64), views[1].rig_to_camera])
    noise = 0.1 * torch.randn(2, 1, 1, 32, 32, generator=generator, dtype=torch.float64)
    xrays = [view.xray + n for view, n in zip(views, noise, strict=True)]
    stage = Stage("ncc", optimiser=Levenberg(5.0, final_step=1e-3), iterations=8, mm=True)
    one = register(attenuation(), CAMERA, xrays[0], truth(), stages=stage)
    both = register(attenuation(), [CAMERA] * 2, xrays, truth(), stages=stage, rig_to_camera=rig)
    deviations = [result.covariance.diagonal().sqrt() for result in (one, both)]
    assert deviations[0][5] > 4 * deviations[0][3:5].max()
    assert deviations[1][5] < 2 * deviations[1][3:5].max() < deviations[0][5]
    gradient = register(attenuation(), CAMERA, xrays[0], truth(), stages=Stage("ncc", iterations=2))
    assert gradient.covariance is None
