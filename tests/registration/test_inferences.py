"""What `register` finds out by itself: the open field, a negative; and what cameras' errors do."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from drrkit import CArm, register, simulate_xray, view_ap
from drrkit.geometry import CameraSigma, volume_center
from drrkit.registration import AUTO, PosePrior
from drrkit.registration.problem.views import View, within_fields
from drrkit.registration.trials import trials_of
from tests.support.registered_torso import box_mtre
from tests.xray.test_field import attenuation, behind, disc, lines

CAMERA = CArm(1020.0, (128, 128), 2.176)
KNOWN = CameraSigma(0.0, 0.0, 0.0)


def truth() -> Tensor:
    return view_ap(attenuation(), 800.0)


def start() -> Tensor:
    pose = truth().clone()
    pose[:, 0, 3] += 9.0
    pose[:, 1, 3] -= 7.0
    return pose


def error(pose: Tensor) -> float:
    return float(box_mtre(pose, truth(), volume_center(attenuation())))


def known(focal: float = 0.0, px: float = 0.0, camera=CAMERA):
    return replace(camera, sigma=CameraSigma(focal, px, px))


def test_a_field_is_found_where_no_mask_is_given():
    xray, opening = behind(disc(60, 70, 50), 1.0, lines())
    found = register(attenuation(), CAMERA, xray, start())
    assert found.inferred == ("field",) and found.accepted and error(found.world_to_camera) < 2.0
    given = register(attenuation(), CAMERA, xray, start(), mask=(opening > 0.97).float())
    assert given.inferred == () and error(given.world_to_camera) < 2.0
    assert register(attenuation(), CAMERA, lines(), start()).inferred == ()


def test_what_a_mask_leaves_out_is_filled_from_its_rim():
    image = torch.arange(12.0).repeat(10, 1)[None, None].clone()
    mask = torch.zeros_like(image)
    mask[..., 2:8, 3:9] = 1.0
    spoiled = torch.where(mask > 0, image, 1e6)
    (view,), inferred = within_fields([View(CAMERA, spoiled, mask, None)])
    assert not inferred and torch.equal(view.xray[mask > 0], image[mask > 0])
    assert float(view.xray.min()) >= 3.0 and float(view.xray.max()) <= 8.0


def test_a_negative_is_recognised_unless_stages_are_given():
    found = register(attenuation(), CAMERA, -lines(), start())
    assert found.inferred == ("negative",) and found.accepted
    assert error(found.world_to_camera) < 2.0
    as_it_is = [trial.stages for trial in trials_of("auto") if not trial.negative]
    assert sum(not record.counted for record in found.history) == sum(map(len, as_it_is))
    asked = register(attenuation(), CAMERA, -lines(), start(), stages=AUTO)
    assert asked.inferred == () and not asked.accepted


def test_an_end_out_of_reach_is_said_and_not_accepted():
    far = truth().clone()
    far[:, 2, 3] += 500.0  # the same rays, but for the distance
    found = register(attenuation(), CAMERA, lines(), far)
    moved = (found.world_to_camera - far[0])[:3, 3].norm()
    half_field = 0.5 * 128 * 2.176 * math.sqrt(2.0) * 1300.0 / 1020.0
    assert (float(moved) > half_field) == ("left_range" in found.reasons)
    assert found.accepted == (error(found.world_to_camera) < 10.0 and not found.reasons)


@pytest.mark.parametrize("change", [0.01, -0.02])
def test_a_wrong_focal_length_moves_depth_as_the_covariance_says(change):
    camera = replace(CAMERA, K=CAMERA.K * torch.tensor([[1 + change], [1 + change], [1.0]]))
    right = register(attenuation(), CAMERA, lines(), start())
    wrong = register(attenuation(), known(abs(change), camera=camera), lines(), start())
    center = torch.cat((volume_center(attenuation()), torch.ones(1).double()))
    moved = float(((wrong.world_to_camera - right.world_to_camera) @ center)[2])
    predicted = float(wrong.geometric_covariance[5, 5].sqrt())
    assert moved == pytest.approx(change / abs(change) * predicted, rel=0.1)
    exact = register(attenuation(), known(camera=camera), lines(), start())
    assert float(exact.geometric_covariance.abs().max()) == 0.0
    assert torch.allclose(exact.covariance + wrong.geometric_covariance, wrong.covariance)
    assert wrong.depth_observable == exact.depth_observable


def test_a_moved_principal_point_shifts_the_patient_as_the_covariance_says():
    camera = known(px=3.0, camera=CArm(1020.0, (128, 128), 2.176, (66.5, 63.5)))
    right = register(attenuation(), CAMERA, lines(), start())
    wrong = register(attenuation(), camera, lines(), start())
    center = torch.cat((volume_center(attenuation()), torch.ones(1).double()))
    moved = float(((wrong.world_to_camera - right.world_to_camera) @ center)[0])
    assert moved == pytest.approx(-float(wrong.geometric_covariance[3, 3].sqrt()), rel=0.1)


def test_a_prior_on_depth_holds_what_the_focal_length_leaves_open():
    prior = PosePrior(sigma=(1.0, 1.0, 1.0, 1e3, 1e3, 1.0))
    free = register(attenuation(), known(0.05), lines(), start())
    held = register(attenuation(), known(0.05), lines(), start(), prior=prior)
    assert float(free.geometric_covariance[5, 5].sqrt()) == pytest.approx(40.0, rel=0.02)
    assert float(held.geometric_covariance[5, 5].sqrt()) < 20.0


def test_two_views_share_a_wrong_focal_length_as_the_covariance_says():
    second = torch.eye(4, dtype=torch.float64)
    second[:3, :3] = torch.tensor([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    second[0, 3], second[2, 3] = 800.0, 800.0
    rig = torch.stack((torch.eye(4, dtype=torch.float64), second))
    poses = rig @ truth()
    views = [simulate_xray(attenuation_hu(), CAMERA, pose, photons=None) for pose in poses]
    wrong = replace(CAMERA, K=CAMERA.K * torch.tensor([[1.02], [1.02], [1.0]]))
    given = {"rig_to_camera": rig, "init": start()[0]}
    right = register(attenuation(), [known(), known()], views, **given)
    found = register(attenuation(), [known(0.02, camera=wrong), known()], views, **given)
    center = torch.cat((volume_center(attenuation()), torch.ones(1).double()))
    moved = ((found.world_to_camera - right.world_to_camera) @ center)[:3]
    predicted = found.geometric_covariance[3:, 3:]
    alone = 0.02 * 800.0
    assert float(predicted[2, 2].sqrt()) < 0.7 * alone
    assert float(moved[2]) == pytest.approx(float(predicted[2, 2].sqrt()), abs=0.25 * alone)


def attenuation_hu():
    from drrkit.phantoms import torso

    return torso(5.0)
