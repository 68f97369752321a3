"""Every loss as the similarity of a stage, under every optimiser; images on one intensity scale."""

from __future__ import annotations

from functools import lru_cache, partial

import pytest
import torch
from torch import Tensor

from drrkit import CArm, Stage, Volume, losses, perturb, register, render, view_ap
from drrkit.geometry import volume_center
from drrkit.phantoms import torso
from drrkit.registration import SIMILARITIES, CmaEs, Descent, Levenberg, TrustRegion
from drrkit.registration.similarities import UnitRange, gauss_newton, has_curvature
from tests.support.registered_torso import box_mtre
from tests.support.smooth_images import images

CAMERA = CArm(1020.0, (28, 28), 9.95)
NAMES = sorted({getattr(f, "__name__", name): name for name, f in SIMILARITIES.items()}.values())


@lru_cache
def attenuation() -> Volume:
    return torso(8.0).to_mu()


def truth() -> Tensor:
    return view_ap(attenuation(), 800.0)


@lru_cache
def drr() -> Tensor:
    return render(attenuation(), CAMERA, truth(), supersample=2)


def error(world_to_camera: Tensor) -> float:
    """mTRE mm over a box about the volume's centre."""
    return float(box_mtre(world_to_camera, truth(), volume_center(attenuation())))


def random_images(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """An image [2, 2, 12, 13], its Jacobian [2, 2, 6, 12, 13] and weights with some zeros."""
    generator = torch.Generator().manual_seed(seed)
    moving = 3.0 + 5.0 * torch.rand(2, 2, 12, 13, generator=generator, dtype=torch.float64)
    jacobian = torch.randn(2, 2, 6, 12, 13, generator=generator, dtype=torch.float64)
    weight = torch.rand(1, 1, 12, 13, generator=generator, dtype=torch.float64)
    return moving, jacobian, torch.where(weight < 0.3, 0.0, weight)


def along(moving: Tensor, jacobian: Tensor, xi: Tensor) -> Tensor:
    """The images [2, C, rows, cols] that a motion xi [2, 6] makes of them, to first order."""
    return moving + torch.einsum("bk,bckij->bcij", xi, jacobian)


# ---- names


def test_every_loss_is_a_similarity_by_its_own_name():
    for name in losses.LOSSES:
        assert SIMILARITIES[name] is getattr(losses, name)
        assert Stage(name).measure is getattr(losses, name) and Stage(name).name == name
    for short, name in (("mi", "mutual_information"), ("nmi", "normalized_mutual_information")):
        assert SIMILARITIES[short] is SIMILARITIES[name]
    for name, function in SIMILARITIES.items():
        if name.startswith("unit_"):
            assert function.__name__ == name and function.similarity.__name__ == name[5:]


@pytest.mark.parametrize("optimiser", ["gradient", "levenberg", "trust_region"])
@pytest.mark.parametrize("similarity", NAMES)
def test_every_similarity_improves_a_pose_under_every_optimiser(similarity, optimiser):
    improves(similarity, optimiser)


@pytest.mark.io
@pytest.mark.parametrize("similarity", NAMES)
def test_every_similarity_improves_a_pose_under_cma_es(similarity):
    improves(similarity, "cmaes")


def improves(similarity: str, optimiser: str) -> None:
    # "levenberg" knows no steepness of most losses and finds it out in its first steps.
    steps = {"gradient": 25, "levenberg": 16, "trust_region": 8, "cmaes": 20}[optimiser]
    reach = (0.02, 0.02, 0.02, 3.0, 3.0, 6.0)
    settings = {
        "gradient": Descent(2.0, final_step=0.05),
        "levenberg": Levenberg(2.0, final_step=0.05),
        "trust_region": TrustRegion(2.0, reach, final_step=0.05),
        "cmaes": CmaEs(reach, 24, final_step=0.05),
    }[optimiser]
    stage = Stage(similarity, optimiser=settings, iterations=steps, mm=True)
    xi = torch.tensor([0.02, -0.015, 0.02, 2.5, -2.0, 3.0], dtype=torch.float64)
    start = perturb(truth(), xi, volume_center(attenuation()))
    result = register(attenuation(), CAMERA, drr(), start, stages=stage)
    assert error(result.world_to_camera) < 0.6 * error(start)
    assert result.history[0].similarity == similarity
    assert result.history[0].optimiser == optimiser
    if optimiser == "cmaes":  # steps that are used up are no convergence
        assert result.stop_reason == (
            "converged" if len(result.history[0].loss) < steps else "iterations"
        )


# ---- one intensity scale


@pytest.mark.parametrize("masked", [False, True])
def test_a_similarity_on_unit_ranges_ignores_gain_and_offset_of_either_image(masked):
    moving, fixed = random_images(0)[0], random_images(1)[0]
    mask = random_images(2)[2] if masked else None
    if masked:
        moving[..., mask[0, 0] == 0] = 1e3  # what is masked says nothing of the range
    unit = UnitRange(losses.mse)
    found = unit(moving, fixed, mask)
    torch.testing.assert_close(unit(0.2 * moving - 5.0, 7.0 * fixed + 1.0, mask), found)
    inside = slice(None) if mask is None else mask[0, 0] > 0
    pairs = []
    for image in (moving, fixed):
        seen = image[..., inside].flatten(2) if mask is None else image[..., inside]
        low, high = seen.amin(-1, keepdim=True), seen.amax(-1, keepdim=True)
        pairs.append((image - low[..., None]) / (high - low)[..., None])
    torch.testing.assert_close(found, losses.mse(*pairs, mask))
    assert unit(moving, moving, mask).abs().max() == 0.0
    assert bool(unit(torch.ones_like(fixed), fixed, mask).isfinite().all())


@pytest.mark.parametrize("masked", [False, True])
def test_the_jacobian_on_the_unit_range_is_the_derivative(masked):
    moving, jacobian, weight = random_images(3)
    mask = weight if masked else None
    unit = UnitRange(losses.mse)
    image, found = unit.linearised(moving, jacobian, mask)

    def mapped(xi: Tensor) -> Tensor:
        return unit.linearised(along(moving, jacobian, xi), jacobian, mask)[0]

    torch.testing.assert_close(image, mapped(torch.zeros(2, 6).double()))
    for k in range(6):
        step = 1e-6 * torch.eye(6).double()[k].expand(2, 6)
        slope = (mapped(step) - mapped(-step)) / 2e-6
        torch.testing.assert_close(found[:, :, k], slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("masked", [False, True])
def test_a_loss_on_the_unit_range_has_exact_gradients(masked):
    moving, _, weight = random_images(4)
    fixed = random_images(5)[0]
    mask = weight if masked else None

    def loss(moving: Tensor) -> Tensor:
        return SIMILARITIES["unit_ssim_dice_l1"](moving, fixed, mask)

    assert torch.autograd.gradcheck(loss, moving.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["mse", "unit_mse", "soft_dice", "unit_soft_dice"])
def test_the_matrix_is_the_second_derivative_where_both_images_agree(name, masked):
    moving, jacobian, weight = random_images(6)
    mask = weight if masked else None
    similarity = SIMILARITIES[name]
    matrix = gauss_newton(similarity, torch.zeros(2), moving, jacobian, mask)

    def loss(xi: Tensor) -> Tensor:
        return similarity(along(moving, jacobian, xi.expand(2, 6)), moving, mask)

    for view in range(2):
        hessian = torch.autograd.functional.hessian(
            lambda xi, v=view: loss(xi)[v], torch.zeros(6).double()
        )
        torch.testing.assert_close(matrix[view], hessian, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if has_curvature(SIMILARITIES[name])] + ["mi"]
)
def test_poses_with_masks_of_their_own_have_the_losses_and_matrices_of_each_alone(name):
    """The second image has another contrast, too: floors follow each image's own variance."""
    moving, jacobian, _ = random_images(7)
    moving[1] = 1e4 * moving[1] ** 2
    fixed, masks = random_images(8)[0][:1], random_images(9)[0][:, :1]
    masks[0, :, :, :4], masks[1, :, 7:] = 0.0, 0.0
    masks[1] *= 0.1
    similarity = SIMILARITIES[name]
    if name == "local_ncc":  # its own patches do not fit
        similarity = partial(losses.local_ncc, patch=5)

    def found(*which: int) -> tuple[Tensor, Tensor]:
        image, mask = moving[list(which)], masks[list(which)]
        loss = similarity(image, fixed, mask)
        return loss, gauss_newton(similarity, loss, image, jacobian[list(which)], mask)

    alone = [torch.cat(both) for both in zip(found(0), found(1), strict=True)]
    for both, each in zip(found(0, 1), alone, strict=True):
        torch.testing.assert_close(both, each, rtol=1e-9, atol=0.0)
    assert bool((alone[1].diagonal(dim1=1, dim2=2) > 0).all())


def test_a_robust_matrix_is_the_second_derivative_where_patches_match_or_not_at_all():
    """Half of the X-ray is another image: its patches have neither pull nor curvature."""
    moving, fixed = images(1, 1, 64, 96), images(1, 1, 64, 96)
    fixed[..., 48:] = images(1, 1, 64, 48, seed=3)
    jacobian = torch.stack([images(1, 1, 64, 96, seed=10 + k) for k in range(6)], 2)
    similarity = SIMILARITIES["robust_patch_gradient_ncc"]

    def loss(xi: Tensor) -> Tensor:
        return similarity(along(moving, jacobian, xi.expand(1, 6)), fixed)[0]

    hessian = torch.autograd.functional.hessian(loss, torch.zeros(6).double())
    value = similarity(moving, fixed)
    found = gauss_newton(similarity, value, moving, jacobian, fixed=fixed)[0]
    assert (found - hessian).norm() < 0.1 * hessian.norm()
    blind = gauss_newton(similarity, value, moving, jacobian)[0]  # as if all matched as well
    assert (blind - hessian).norm() > 0.3 * hessian.norm()


def test_a_covariance_needs_a_similarity_of_known_curvature():
    for name in ("mse", "unit_mse", "soft_dice", "ncc", "local_ncc", "patch_gradient_ncc"):
        assert has_curvature(SIMILARITIES[name]), name
    assert has_curvature(partial(losses.local_ncc, patch=5))
    for name in ("mi", "ssim", "unit_ssim", "gradient_difference", "l1", "unit_focal_frequency"):
        assert not has_curvature(SIMILARITIES[name]), name
    assert not has_curvature(lambda moving, fixed, mask: losses.mse(moving, fixed, mask))
    for name, known in (("unit_mse", True), ("mi", False)):
        stage = Stage(name, optimiser=Levenberg(), iterations=3)
        result = register(attenuation(), CAMERA, drr(), truth(), stages=stage)
        assert (result.covariance is not None) == known
