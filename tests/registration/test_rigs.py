"""Rigs, bodies, priors: several cameras, several poses, and what is expected of them."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from torch import Tensor

import drrkit
from drrkit import CArm, Stage, losses, perturb, register, render, simulate_xray
from drrkit.geometry import CameraSigma, volume_center
from drrkit.registration import (
    AUTO,
    FOLLOW,
    Bodies,
    CmaEs,
    Descent,
    Levenberg,
    PosePrior,
    Search,
    TrustRegion,
    rig_of,
)
from drrkit.registration.certainty import UNSEEN_MM
from drrkit.registration.problem.loss import StageLoss, objective
from drrkit.registration.problem.motion import motion_of, moved_by
from drrkit.registration.problem.rendering import SceneRenderer
from drrkit.registration.problem.views import downsamplings, make_views
from tests.support.registered_torso import attenuation, box_mtre, phantom, random_motions

CAMERA = CArm(1020.0, (64, 64), 4.352, sigma=CameraSigma(0.0, 0.0, 0.0))
STAGE = Stage("gradient_ncc", optimiser=Levenberg(5.0, final_step=0.01), iterations=15, mm=True)
HIPS = ([*range(18)], 18, 19)  # all but the femurs, and each of them


@lru_cache
def bodies() -> Bodies:
    return Bodies.from_labels(attenuation(), HIPS)


def frontal() -> Tensor:
    return drrkit.view_carm(phantom(), 780.0, primary=0.2, secondary=-0.15).reshape(4, 4)


def off(degrees: float, mm: float, seed: int) -> Tensor:
    return perturb(frontal(), random_motions(degrees, mm, seed), volume_center(phantom()))


def error(found: Tensor, truth: Tensor, center: Tensor, reach: float = 80.0) -> float:
    """mTRE mm of one pose [4, 4] over a box about a centre."""
    return float(box_mtre(found[None], truth[None], center, reach))


def biplane(degrees: float) -> Tensor:
    """rig_to_camera [2, 4, 4] of a second camera turned about the isocentre."""
    views = [drrkit.view_carm(phantom(), 780.0, primary=p)[0] for p in (0.0, math.radians(degrees))]
    return rig_of(torch.stack(views))


def moved_bodies() -> Tensor:
    """True poses [3, 4, 4] of pelvis and femurs, the femurs moved by 6 degrees and 6 mm."""
    motion = random_motions(6.0, 6.0, seed=1, count=3)
    return moved_by(frontal().expand(1, 3, 4, 4), motion.reshape(1, 18), bodies().center)[0]


def noisy(image: Tensor, sigma: float = 0.02) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return image + sigma * torch.randn(image.shape, generator=generator)


# ---- several cameras


def test_the_rig_of_calibrated_cameras_brings_each_its_own_pose():
    poses = torch.stack([off(30.0, 50.0, seed)[0] for seed in range(3)])
    rig = rig_of(poses)
    torch.testing.assert_close(rig @ poses[0], poses)
    assert torch.equal(rig[0], torch.eye(4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"world_to_camera: expected shape \[V, 4, 4\]"):
        rig_of(poses[0])


@pytest.mark.parametrize("degrees", [90.0, 30.0])
def test_two_views_find_the_depth_as_well_as_the_rest(degrees):
    rig, truth = biplane(degrees), off(5.0, 10.0, seed=1)
    xrays = [simulate_xray(phantom(), CAMERA, part @ truth, seed=i) for i, part in enumerate(rig)]
    result = register(attenuation(), [CAMERA] * 2, xrays, frontal(), rig_to_camera=rig)
    assert error(result.world_to_camera, truth[0], volume_center(phantom())) < 0.5
    assert result.depth_observable and float(result.sigma[5]) < 0.2
    alone = register(attenuation(), CAMERA, xrays[0], frontal())
    assert float(alone.sigma[5]) > 2.0 * float(result.sigma[5])


def test_cameras_of_unlike_resolution_see_pixels_of_one_size():
    fine = CArm(1020.0, (128, 128), 2.176)
    rig, truth = biplane(90.0), off(4.0, 8.0, seed=2)
    cameras = [CAMERA, fine]
    xrays = [
        simulate_xray(phantom(), camera, part @ truth)
        for camera, part in zip(cameras, rig, strict=True)
    ]
    like = torch.empty(0)
    views = make_views(cameras, xrays, None, rig, like)
    assert downsamplings(AUTO[0].in_mm(300.0), views, 780.0) == [2, 4]
    result = register(attenuation(), cameras, xrays, frontal(), rig_to_camera=rig)
    assert error(result.world_to_camera, truth[0], volume_center(phantom())) < 0.5


# ---- several bodies


def test_bodies_at_one_pose_are_the_volume_they_were_cut_from():
    together = bodies().render(CAMERA, frontal().expand(3, 4, 4))
    whole = render(attenuation(), CAMERA, frontal())
    torch.testing.assert_close(together, whole, atol=2e-5, rtol=0)
    assert all(b.shape_xyz < attenuation().shape_xyz for b in bodies().bodies[1:])
    draw = SceneRenderer(bodies()).renderer(CAMERA, supersample=2)
    poses = moved_bodies()
    torch.testing.assert_close(
        draw(poses[None]), bodies().render(CAMERA, poses, supersample=2), atol=1e-6, rtol=0
    )


def test_each_body_finds_its_own_pose_where_one_rigid_body_cannot():
    truth = moved_bodies()
    xray = noisy(bodies().render(CAMERA, truth, supersample=3))
    rigid = register(attenuation(), CAMERA, xray, frontal())
    joint = register(bodies(), CAMERA, xray, rigid.world_to_camera, stages=FOLLOW)
    assert joint.world_to_camera.shape == (3, 4, 4) and joint.covariance.shape == (18, 18)
    centers = bodies().center
    apart = [error(joint.world_to_camera[i], truth[i], centers[i], 30.0) for i in range(3)]
    as_one = [error(rigid.world_to_camera, truth[i], centers[i], 30.0) for i in range(3)]
    assert apart[0] < 0.3 and max(apart) < 3.0
    assert as_one[0] < 0.5 and apart[0] < as_one[0]  # the trunk outvotes the hips, which moved
    assert all(ours < 0.5 * other for ours, other in zip(apart[1:], as_one[1:], strict=True))
    assert 1 - joint.confidence < 0.5 * (1 - rigid.confidence)
    # Small bodies hardly show their depth; the covariance says so.
    shift = (joint.world_to_camera - truth)[:, 2, :3] @ centers.mT
    shift = shift.diagonal() + (joint.world_to_camera - truth)[:, 2, 3]
    assert bool((shift.abs() < 4.0 * joint.sigma[5::6]).all())


@pytest.mark.parametrize("optimiser", ["gradient", "cmaes", "trust_region"])
@pytest.mark.io
def test_every_optimiser_moves_every_body(optimiser):
    two = Bodies.from_labels(attenuation(), (HIPS[0], HIPS[1:]))
    truth = frontal().expand(2, 4, 4)
    xray = two.render(CAMERA, truth)
    start = moved_by(
        truth[None], random_motions(1.5, 3.0, seed=3, count=2).reshape(1, 12), two.center
    )[0]
    settings = {
        "gradient": Descent(1.0),
        "cmaes": CmaEs((0.03, 4.0), 16),
        "trust_region": TrustRegion(1.0, (0.03, 4.0)),
    }[optimiser]
    steps = 100 if optimiser == "cmaes" else 25
    stage = Stage("gradient_ncc", optimiser=settings, downsample=2, iterations=steps, mm=True)
    result = register(two, CAMERA, xray, start, stages=stage)
    for i in range(2):
        before, after = (
            error(p[i], truth[i], two.center[i], 30.0) for p in (start, result.world_to_camera)
        )
        assert after < 0.7 * before
    assert result.all_world_to_camera.shape == (1, 2, 4, 4)


def test_the_expansion_of_bodies_is_that_of_their_objective():
    truth = moved_bodies()[None].repeat(2, 1, 1, 1)
    poses = moved_by(
        truth, random_motions(1.0, 2.0, seed=4, count=6).reshape(2, 18), bodies().center
    )
    exact = bodies().map(lambda body: body.to(torch.float64))
    xray = exact.render(CAMERA, truth[0])
    rig = biplane(40.0)
    views = make_views([CAMERA] * 2, [xray] * 2, None, rig, torch.empty(0, dtype=torch.float64))
    found = StageLoss(SceneRenderer(exact), views, STAGE, 2, exact.center).expand(poses)
    xi = torch.zeros(2, 18, dtype=torch.float64, requires_grad=True)
    loss = objective(exact, views, STAGE, 2, "joseph")(moved_by(poses, xi, exact.center))
    torch.testing.assert_close(found.loss, loss.detach())
    (gradient,) = torch.autograd.grad(loss.sum(), xi)
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-6, atol=1e-9)
    assert found.matrix.shape == (2, 18, 18)
    assert bool((torch.linalg.eigvalsh(found.matrix) > -1e-9).all())


def test_bodies_refuse_what_does_not_fit():
    other = attenuation().to(torch.float64)
    cases = [
        (lambda: Bodies([]), ValueError, "bodies: expected at least one"),
        (lambda: Bodies([phantom()]), ValueError, r"bodies: .*'HU' in body 0"),
        (lambda: Bodies([3]), TypeError, "bodies: expected Volumes, got int"),
        (lambda: Bodies([attenuation(), other]), ValueError, "bodies: expected torch.float32"),
        (lambda: Bodies.from_labels(attenuation(), [99]), ValueError, "labels: 99 is not in"),
        (
            lambda: bodies().render(CAMERA, frontal()),
            ValueError,
            r"world_to_camera: expected shape \[3, 4, 4\]",
        ),
        (
            lambda: register(bodies(), CAMERA, torch.ones(64, 64), torch.eye(4).repeat(2, 1, 1)),
            ValueError,
            r"init: expected shape \[3, 4, 4\] or \[K, 3, 4, 4\], got \(2, 4, 4\)",
        ),
        (
            lambda: register(bodies(), CAMERA, torch.ones(64, 64), stages=Search()),
            ValueError,
            "stages: expected no Search and no Regressor for Bodies",
        ),
        (
            lambda: register(bodies(), CAMERA, torch.ones(64, 64), center=torch.zeros(3)),
            ValueError,
            r"center: expected a tensor \[3, 3\], one a body, in world mm, got \(3,\)",
        ),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()


# ---- priors


def test_the_motion_between_poses_is_what_perturb_takes():
    xi = random_motions(50.0, 80.0, seed=5, count=4)
    pose = perturb(frontal(), xi, volume_center(phantom()))
    torch.testing.assert_close(motion_of(frontal(), pose, volume_center(phantom())), xi)
    both = random_motions(30.0, 40.0, seed=6, count=6).reshape(2, 18)
    start, centers = moved_bodies(), bodies().center
    found = motion_of(start, moved_by(start.expand(2, 3, 4, 4), both, centers), centers)
    torch.testing.assert_close(found, both)


def test_the_expansion_of_a_prior_is_its_value_and_gradient():
    sigma = (0.1, 0.2, 0.3, 10.0, 20.0, math.inf)
    start = off(0.0, 0.0, seed=0)
    term = PosePrior(sigma, weight=0.3).term(start, volume_center(phantom()))
    xi = random_motions(20.0, 30.0, seed=7, count=3)
    pose = perturb(start, xi, volume_center(phantom()))
    expected = 0.15 * (xi / torch.tensor(sigma)).square().sum(-1)
    torch.testing.assert_close(term(pose), expected)
    value, gradient, matrix = term.expand(pose)
    torch.testing.assert_close(value, expected)
    step = torch.zeros(3, 6, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(term(moved_by(pose, step, term.center)).sum(), step)
    torch.testing.assert_close(gradient, slope)
    at_start = term.expand(start)[2][0]
    torch.testing.assert_close(at_start, torch.diag(0.3 / torch.tensor(sigma).double().square()))
    assert bool((torch.linalg.eigvalsh(matrix) > -1e-12).all())


@pytest.mark.parametrize("optimiser", ["gradient", "levenberg", "cmaes", "trust_region"])
@pytest.mark.io
def test_a_narrow_prior_holds_every_optimiser_at_the_start_and_a_wide_one_lets_go(optimiser):
    xray, start = render(attenuation(), CAMERA, frontal()), off(3.0, 8.0, seed=8)
    settings = {
        "gradient": Descent(1.0),
        "levenberg": Levenberg(10.0),
        "cmaes": CmaEs((0.05, 8.0), 20),
        "trust_region": TrustRegion(1.0, (0.05, 8.0)),
    }[optimiser]
    stage = Stage("ncc", optimiser=settings, downsample=2, iterations=25, mm=True)
    center = volume_center(phantom())
    ends = {}
    for name, prior in (("free", None), ("wide", (3.0, 1e3)), ("narrow", (1e-3, 0.1))):
        chosen = None if prior is None else PosePrior(prior, weight=0.1)
        result = register(attenuation(), CAMERA, xray, start, stages=stage, prior=chosen)
        ends[name] = motion_of(start[0], result.world_to_camera[None], center)[0, 3:].norm()
    assert ends["narrow"] < 0.5
    assert ends["free"] > 5.0 and ends["wide"] > 5.0


def test_a_prior_keeps_a_free_depth_within_its_deviation():
    parallel = replace(CAMERA, beam="parallel")
    xray, start = noisy(render(attenuation(), parallel, frontal())), off(2.0, 10.0, seed=9)
    with pytest.warns(UserWarning, match="depth is not observable"):
        free = register(attenuation(), parallel, xray, start, stages=STAGE)
    assert free.depth_observable is False and float(free.sigma[5]) >= UNSEEN_MM
    assert float(free.sigma[:5].max()) < 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prior = PosePrior((math.inf,) * 5 + (5.0,))
        held = register(attenuation(), parallel, xray, start, stages=STAGE, prior=prior)
    assert held.depth_observable and float(held.sigma[5]) == pytest.approx(5.0, rel=0.05)
    assert float(held.sigma[3]) < 0.5


def test_a_narrow_beam_hardly_shows_depth_and_says_so():
    far = CArm(20000.0, (64, 64), 4.352)
    truth = drrkit.view_carm(phantom(), 19000.0)
    xray = noisy(render(attenuation(), far, truth), 0.3)
    with pytest.warns(UserWarning, match="depth is not observable"):
        result = register(attenuation(), far, xray, truth, stages=STAGE)
    assert result.depth_observable is False
    assert result.as_dict()["depth_observable"] is False


def test_priors_refuse_what_does_not_fit():
    xray = torch.ones(64, 64)
    cases = [
        (lambda: PosePrior((0.1,)), r"sigma: expected \(rad, mm\), or six"),
        (lambda: PosePrior((0.1, -1.0)), r"sigma: expected .*positive, got"),
        (lambda: PosePrior(weight=1.0), "weight: expected a number between 0 and 1"),
        (
            lambda: register(
                attenuation(),
                CAMERA,
                xray,
                frontal().repeat(2, 1, 1),
                prior=PosePrior(),
            ),
            "prior: expected world_to_camera, the pose that it is about, as there are 2",
        ),
        (
            lambda: register(
                attenuation(),
                CAMERA,
                xray,
                frontal(),
                prior=PosePrior(world_to_camera=torch.eye(3)),
            ),
            r"prior: expected world_to_camera of shape \(4, 4\), got \(3, 3\)",
        ),
        (
            lambda: register(attenuation(), CAMERA, xray, frontal(), prior=PosePrior((1.0,) * 12)),
            "prior: expected 2, 6 or 6 sigmas, got 12",
        ),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_bodies_may_be_interrupted():
    count = 0

    def interrupted(moving: Tensor, fixed: Tensor, mask: Tensor | None) -> Tensor:
        nonlocal count
        count += 1
        if count > 4:
            raise KeyboardInterrupt
        return losses.ncc(moving, fixed, mask)

    xray = bodies().render(CAMERA, moved_bodies())
    stage = Stage(interrupted, optimiser=Levenberg(10.0), iterations=15, mm=True)
    result = register(bodies(), CAMERA, xray, frontal(), stages=[stage, STAGE])
    assert result.stop_reason == "interrupted" and len(result.history) == 1
    assert result.world_to_camera.shape == (3, 4, 4)
    assert not torch.equal(result.world_to_camera, frontal().expand(3, 4, 4))


def test_the_prior_of_default_weight_leaves_the_end_where_the_image_shows_it():
    truth, start = off(5.0, 10.0, seed=3), frontal()
    xray = simulate_xray(phantom(), CAMERA, truth)
    prior = PosePrior((math.radians(5.0), 20.0))
    result = register(attenuation(), CAMERA, xray, start, prior=prior)
    assert error(result.world_to_camera, truth[0], volume_center(phantom())) < 1.5
    strong = register(
        attenuation(), CAMERA, xray, start, prior=PosePrior((math.radians(5.0), 20.0), weight=0.1)
    )
    before = float(motion_of(start, truth, volume_center(phantom()))[0, 5].abs())
    after = float(
        motion_of(start, strong.world_to_camera[None], volume_center(phantom()))[0, 5].abs()
    )
    assert after < 0.7 * before  # pulled towards the start, as its covariance says
    assert float(strong.sigma[5]) > 5.0 * float(result.sigma[5])
