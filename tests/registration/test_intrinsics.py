"""Intrinsics refined with the pose, and whether covariances say how large errors are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import drrkit
from drrkit import CArm, Stage, perturb, register, render, simulate_xray
from drrkit.geometry import Camera, CameraSigma, volume_center
from drrkit.registration import Levenberg, refine_intrinsics, rig_of
from drrkit.registration.intrinsics import DEFAULT_STAGE, _Calibration, _Model, changed
from drrkit.registration.optimisers.optimiser import PoseProblem
from drrkit.registration.problem.inputs import computing_place
from drrkit.registration.problem.motion import motion_of
from drrkit.registration.problem.views import make_views
from tests.support.registered_torso import attenuation, box_mtre, phantom

CAMERA = CArm(1020.0, (96, 96), 2.9)


def truth() -> Tensor:
    xi = torch.tensor([0.05, -0.04, 0.03, 4.0, -3.0, 7.0], dtype=torch.float64)
    return perturb(drrkit.view_ap(phantom(), 780.0), xi, volume_center(phantom()))[0]


def off(camera: Camera, focal: float, col: float, row: float) -> Camera:
    """A camera of wrong intrinsics: the focal length relatively, the principal point in pixels."""
    wrong = changed(camera, torch.tensor([focal, col, row], dtype=torch.float64))
    return Camera(wrong.K, wrong.size, float(wrong.sdd), wrong.beam)


def biplane(degrees: float) -> Tensor:
    views = [drrkit.view_carm(phantom(), 780.0, primary=p)[0] for p in (0.0, math.radians(degrees))]
    return rig_of(torch.stack(views))


def error(found: Tensor) -> float:
    return float(box_mtre(found[None], truth()[None], volume_center(phantom())))


def shots(rig: Tensor) -> list[Tensor]:
    return [simulate_xray(phantom(), CAMERA, turn @ truth(), seed=i) for i, turn in enumerate(rig)]


def test_a_changed_camera_keeps_its_pitch_and_moves_its_principal_point():
    wrong = off(CAMERA, 0.02, 5.0, -3.0)
    assert wrong.sdd == pytest.approx(1.02 * 1020.0)
    assert wrong.pixel_spacing == pytest.approx(CAMERA.pixel_spacing)
    assert float(wrong.K[0, 2] - CAMERA.K[0, 2]) == pytest.approx(5.0)
    assert float(wrong.K[1, 2] - CAMERA.K[1, 2]) == pytest.approx(-3.0)


def test_the_gradient_in_pose_and_intrinsics_is_that_of_the_loss():
    exact = attenuation().to(torch.float64)
    like, center = computing_place(exact, None)
    rig = biplane(60.0)
    views = make_views([CAMERA] * 2, shots(rig), None, rig, like)
    sigma = torch.tensor([0.02, 5.0, 5.0] * 2, dtype=torch.float64)
    stage = DEFAULT_STAGE.in_mm(300.0)
    model = _Model(exact, views, stage, "joseph", center, sigma, truth()[None])
    start = torch.cat((truth().reshape(1, 16), torch.full((1, 6), 1e-3).double()), 1)
    problem = PoseProblem(center=center, units=model.units, expand=model.expand)
    optimiser = _Calibration(Levenberg(10.0), problem, start)
    gradient = model.expand(start).gradient[0]
    for i in range(12):
        step = torch.zeros(1, 12, dtype=torch.float64)
        step[0, i] = 1e-6 * model.units[i]
        ends = [model.expand(optimiser.moved(start, sign * step)).loss[0] for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2e-6 * model.units[i])
        assert float(slope) == pytest.approx(float(gradient[i]), rel=2e-3, abs=2e-8)


def test_a_wrong_focal_length_and_principal_point_are_found_beside_a_known_camera():
    rig = biplane(90.0)
    cameras, xrays = [off(CAMERA, 0.02, 5.0, -4.0), CAMERA], shots(rig)
    before = register(attenuation(), cameras, xrays, truth(), rig_to_camera=rig)
    found = refine_intrinsics(
        attenuation(),
        cameras,
        xrays,
        before.world_to_camera,
        rig_to_camera=rig,
        sigma_focal=(0.02, 1e-4),
        sigma_principal_px=(5.0, 0.05),
    )
    assert error(before.world_to_camera) > 5.0 and error(found.world_to_camera) < 0.6
    assert abs(float(found.cameras[0].K[0, 0] / CAMERA.K[0, 0]) - 1.0) < 0.002
    assert float((found.cameras[0].K - CAMERA.K)[:2, 2].abs().max()) < 0.5
    assert found.cameras[0].pixel_spacing == pytest.approx(CAMERA.pixel_spacing)
    assert bool(found.observable.all()) and found.covariance.shape == (12, 12)
    assert found.loss < before.loss and found.stop_reason in ("converged", "iterations")


def test_two_cameras_with_wrong_intrinsics_come_close_and_say_how_close():
    rig = biplane(90.0)
    cameras = [off(CAMERA, 0.02, 5.0, -4.0), off(CAMERA, -0.02, -5.0, 3.0)]
    before = register(attenuation(), cameras, shots(rig), truth(), rig_to_camera=rig)
    found = refine_intrinsics(
        attenuation(), cameras, shots(rig), before.world_to_camera, rig_to_camera=rig
    )
    assert error(before.world_to_camera) > 5.0
    assert error(found.world_to_camera) < 0.3 * error(before.world_to_camera)
    for new in found.cameras:
        assert abs(float(new.K[0, 0] / CAMERA.K[0, 0]) - 1.0) < 0.01
        assert float((new.K - CAMERA.K)[:2, 2].abs().max()) < 2.5
    assert float(found.sigma[3:6].max()) > 0.3  # mm: nearly degenerate, and it says so


def test_a_view_without_perspective_warns_that_focal_length_and_depth_are_one():
    far = CArm(20000.0, (64, 64), 4.352)
    pose = drrkit.view_ap(phantom(), 19000.0)
    generator = torch.Generator().manual_seed(0)
    xray = render(attenuation(), far, pose, supersample=2)
    xray = xray + 0.05 * torch.randn(xray.shape, generator=generator)
    with pytest.warns(UserWarning, match="intrinsics not observable: focal of camera 0"):
        found = refine_intrinsics(attenuation(), off(far, 0.02, 0.0, 0.0), xray, pose)
    assert not bool(found.observable[0, 0])
    assert float(found.sigma[6]) == pytest.approx(0.02, rel=0.35)
    assert float(found.sigma[5]) > 100.0  # mm of depth


def test_refinement_refuses_what_does_not_fit_and_may_be_interrupted(capsys):
    xray = render(attenuation(), CAMERA, truth())
    cases = [
        ({"sigma_focal": 0.0}, "sigma_focal: expected a positive number, or 1 of them"),
        ({"sigma_principal_px": (1.0, 2.0)}, "sigma_principal_px: expected a positive number"),
        ({"init": truth().repeat(2, 1, 1)}, "init: expected one pose, got 2"),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            refine_intrinsics(attenuation(), CAMERA, xray, **{"init": truth(), **changes})
    count = 0

    def interrupted(moving: Tensor, fixed: Tensor, mask: Tensor | None) -> Tensor:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return drrkit.losses.ncc(moving, fixed, mask)

    stage = Stage(interrupted, optimiser=Levenberg(5.0), iterations=10, downsample=2, mm=True)
    found = refine_intrinsics(
        attenuation(), off(CAMERA, 0.01, 1.0, 1.0), xray, truth(), stage=stage, progress=True
    )
    assert found.stop_reason == "interrupted" and found.world_to_camera.shape == (4, 4)
    assert "intrinsics" in capsys.readouterr().err


# ---- covariance


@pytest.mark.slow
def test_the_covariance_predicts_the_spread_of_poses_over_noise():
    stage = Stage("ncc", optimiser=Levenberg(2.0, final_step=1e-3), iterations=12, mm=True)
    exact = CameraSigma(0.0, 0.0, 0.0)  # what noise alone does
    camera = CArm(1020.0, (64, 64), 4.352, sigma=exact)
    center = volume_center(phantom())
    clean = render(attenuation(), camera, truth())
    generator = torch.Generator().manual_seed(0)
    xi, distances, predicted = [], [], []
    for _ in range(60):
        xray = clean + 0.1 * torch.randn(clean.shape, generator=generator)
        result = register(attenuation(), camera, xray, truth(), stages=stage)
        xi.append(motion_of(truth(), result.world_to_camera[None], center)[0])
        distances.append(float(xi[-1] @ torch.linalg.solve(result.covariance, xi[-1])))
        predicted.append(result.sigma)
    # chi-squared of six degrees of freedom: mean 6, 90 % below 10.6; over 60 draws the mean has a
    # standard deviation of 0.45, and the sandwich of 144 blocks a spread of its own.
    assert 4.5 < sum(distances) / 60 < 8.0
    assert sum(d < 10.6 for d in distances) / 60 >= 0.8
    ratio = torch.stack(xi).std(0) / torch.stack(predicted).mean(0)
    assert float(ratio.min()) > 0.7 and float(ratio.max()) < 1.4
