"""Covariances of poses against the scatter of poses that are found in noisy images."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from torch import Tensor

import drrkit
from drrkit import CArm, Stage, Volume, register, render
from drrkit.geometry import CameraSigma, volume_center
from drrkit.phantoms import torso
from drrkit.registration import Levenberg
from drrkit.registration.certainty import pose_covariance
from drrkit.registration.lengths import motion_units
from drrkit.registration.problem.loss import StageLoss
from drrkit.registration.problem.motion import motion_of
from drrkit.registration.problem.rendering import SceneRenderer
from drrkit.registration.problem.views import make_views
from drrkit.registration.similarities import SIMILARITIES, ignores_gain

CAMERA = CArm(1020.0, (64, 64), 4.352, sigma=CameraSigma(0.0, 0.0, 0.0))


@lru_cache
def attenuation() -> Volume:
    return torso(5.0).to_mu().to(dtype=torch.float32)


def truth() -> Tensor:
    return drrkit.view_carm(attenuation(), 780.0, primary=0.2, secondary=-0.15).reshape(4, 4)


@lru_cache
def clean() -> Tensor:
    return render(attenuation(), CAMERA, truth())


def noisy(seed: int, sigma: float = 0.1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return clean() + sigma * torch.randn(clean().shape, generator=generator)


@pytest.mark.parametrize("similarity", ["mse", "ncc", "gradient_ncc"])
def test_the_covariance_of_a_loss_predicts_the_scatter_over_noise(similarity):
    count, center = 50, volume_center(attenuation())
    stage = Stage(similarity, optimiser=Levenberg(2.0, final_step=1e-3), iterations=12, mm=True)
    results = [
        register(attenuation(), CAMERA, noisy(n), truth(), stages=stage) for n in range(count)
    ]
    xi = motion_of(truth(), torch.stack([r.world_to_camera for r in results]), center)
    covariance = torch.stack([result.covariance for result in results])
    squared = (xi * torch.linalg.solve(covariance, xi)).sum(-1)
    # Chi-squared of six degrees of freedom, mean 6 with a standard deviation of 0.49 over 50 draws;
    # blocks of pixels as independent leave gradient correlations on the safe side.
    least = 3.0 if similarity == "gradient_ncc" else 4.5
    assert least < float(squared.mean()) < 7.8
    ratio = xi.square().mean(0).sqrt() / covariance.diagonal(dim1=1, dim2=2).mean(0).sqrt()
    assert float(ratio.min()) > 0.6 and float(ratio.max()) < 1.35


@lru_cache
def rod() -> Volume:
    """A soft rod that lies aslant to the beam: a turn changes how bright it is, like a gain."""
    axis = 4.0 * (torch.arange(40) - 19.5)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    along, across = (y + z) / 2**0.5, (y - z) / 2**0.5
    values = 0.02 * torch.exp(-0.5 * ((along / 35) ** 2 + (across / 12) ** 2 + (x / 12) ** 2))
    bead = 0.02 * torch.exp(-0.5 * (((x - 40) / 9) ** 2 + ((y + 30) / 9) ** 2 + (z / 9) ** 2))
    return Volume(values + bead, (4.0, 4.0, 4.0), (-78.0, -78.0, -78.0), unit="mu")


def of_formula(similarity: str, seed: int) -> Tensor:
    """Deviations by blocks over those of least squares in white noise: sigma^2 (sum J J')^-1."""
    camera, pose, sigma = CArm(1020.0, (60, 60), 4.0), drrkit.view_ap(rod(), 780.0), 0.02
    generator = torch.Generator().manual_seed(seed)
    image = render(rod(), camera, pose)
    xray = image + sigma * torch.randn(image.shape, generator=generator)
    stage = Stage(similarity, optimiser=Levenberg())
    views = make_views(camera, xray, None, None, torch.empty(0))
    loss = StageLoss(SceneRenderer(rod()), views, stage, 1, volume_center(rod()))
    parts = list(loss.linearise(pose))
    found = pose_covariance(parts, motion_units(camera, 780.0))
    flat = parts[0].jacobian[0, 0].flatten(1).double()
    if similarity == "ncc":
        known = torch.stack((torch.ones(flat.shape[1]).double(), image.flatten().double()))
        basis = torch.linalg.qr(known.mT)[0]
        flat = flat - (flat @ basis) @ basis.mT
    return found.diagonal().sqrt() / (sigma * torch.linalg.inv(flat @ flat.mT).diagonal().sqrt())


@pytest.mark.parametrize("similarity", ["mse", "ncc"])
def test_the_covariance_in_white_noise_is_that_of_least_squares(similarity):
    ratio = torch.stack([of_formula(similarity, seed) for seed in range(5)]).mean(0)
    assert float((ratio - 1.0).abs().max()) < 0.2


def test_gain_and_offset_are_free_for_losses_only_that_ignore_them():
    names = ("ncc", "gradient_ncc", "local_ncc", "patch_gradient_ncc", "unit_mse")
    for name in names:
        assert ignores_gain(SIMILARITIES[name]), name
        moving, fixed = clean(), noisy(0)
        changed = SIMILARITIES[name](0.5 * moving + 3.0, fixed)
        torch.testing.assert_close(changed, SIMILARITIES[name](moving, fixed), atol=1e-3, rtol=0)
    for name in ("mse", "soft_dice", "l1", "ssim"):
        assert not ignores_gain(SIMILARITIES[name]), name
