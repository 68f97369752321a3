"""How sure a pose is: how well images agree there, and how far it may be off by its residuals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from drrkit.registration.problem.loss import Linearised, StageLoss
from drrkit.registration.problem.rendering import SceneRenderer
from drrkit.registration.problem.views import View, blurred
from drrkit.registration.similarities import SIMILARITIES, has_curvature

__all__ = [
    "UNSEEN_MM",
    "Agreement",
    "agreement",
    "covariances",
    "dispersion",
    "geometric_covariance",
    "pose_covariance",
    "probability",
]

# Pixels along the X-ray's longer side: fine enough to tell neighbouring optima apart. A share of
# the X-ray and not of the patient at the pose: a wrong pose near the source would choose pixels so
# coarse that nothing much is left to differ.
_PIXELS = 128

# By the error's limit in mm: slope of the log-odds, z at even odds in whole images, and how much
# more that is for each halving of the number of pixels.
_CALIBRATED = {2.0: (8.4, 0.598, 0.082), 10.0: (11.0, 0.484, 0.041)}

# Correlations count as no closer to 1 than this.
_HIGHEST = 0.9999

# Fewer pixels than these are no evidence.
_FEWEST = 500

# Residuals may depend on each other within square blocks: this many along the longer side, none
# smaller than so many pixels.
_BLOCKS, _LEAST_SIDE = 12, 4

UNSEEN_MM = 1e4
"""Standard deviation, in mm of motion, of a direction that the images do not show at all."""

# Ratio of curvatures below which a direction is not shown: rounding leaves that much.
_UNSEEN = 1e-9

# A loss below this is that of a match.
_MATCHED = 1e-3


@dataclass(frozen=True)
class Agreement:
    """How well images agree, 0 to 1, and on how many pixels, of at most 128 x 128, that was seen.

    Of several views the mean, and the sum.
    """

    value: float
    pixels: int


def agreement(drawn: SceneRenderer, views: Sequence[View], world_to_camera: Tensor) -> Agreement:
    """How well the X-rays' patches agree with the scene at one pose [1, 4, 4].

    One minus `weighted_patch_gradient_ncc` on about 128 pixels along an X-ray's longer side, after
    a blur by one of them; of several views the mean. In patches, because one outline that is
    matched well would outweigh everything else in a correlation of whole images; weighed by the
    rendering's structure, because a patch of air agrees with nothing.
    """
    with torch.no_grad():
        found = [_agreement(drawn, view, world_to_camera) for view in views]
    mean = sum(value for value, _ in found) / len(found)
    return Agreement(min(max(mean, 0.0), 1.0), sum(pixels for _, pixels in found))


def _agreement(drawn: SceneRenderer, view: View, world_to_camera: Tensor) -> tuple[float, int]:
    longer, shorter = max(view.camera.size), min(view.camera.size)
    seen = view.downsampled(min(max(1, round(longer / _PIXELS)), shorter)).blurred(1.0)
    seen = drawn.cut.left_out(seen, world_to_camera)
    moving = drawn.renderer(seen.camera)(seen.pose(world_to_camera))
    moving = blurred(moving.sum(dim=1, keepdim=True), seen.mask, 1.0)
    mask = seen.mask
    if mask is not None:  # a derivative next to what is left out is none of the patient's
        mask = -functional.max_pool2d(-mask, 3, stride=1, padding=1)
    loss = SIMILARITIES["weighted_patch_gradient_ncc"](moving, seen.xray, mask)
    inside = torch.ones_like(seen.xray) if mask is None else mask
    inside = inside > 0
    flat = any(float(image[inside].std()) == 0.0 for image in (moving, seen.xray))
    return 1.0 - float(loss), 0 if flat or not inside.any() else int(inside.sum())


def probability(found: Agreement, limit_mm: float) -> float | None:
    """That a pose which agrees like this is off by less than 2 or 10 mm in the image plane.

    Logistic regressions on Fisher's z of the agreement over ends of "auto" and "global" on the
    gauntlet's choosing seeds, in whole images, behind masks and at fewer pixels, which agree more
    by chance: `python -m bench.studies.gauntlet.calibration` makes them from the rows in
    bench/results/gauntlet/calibration.csv. None where there are too few pixels.
    """
    if found.pixels < _FEWEST:
        return None
    slope, middle, per_halving = _CALIBRATED[limit_mm]
    halvings = max(0.0, math.log2(_PIXELS**2 / found.pixels))
    z = math.atanh(min(found.value, _HIGHEST))
    return 1.0 / (1.0 + math.exp(-slope * (z - middle - per_halving * halvings)))


def pose_covariance(
    parts: Iterable[Linearised],
    units: Tensor,
    added: Tensor | None = None,
    share: float = 1.0,
) -> Tensor:
    """Covariance [D, D] float64 of xi (rad, mm) about the centre at an optimum of a stage's loss.

    The sandwich H^-1 S H^-1 (Huber 1967): H is the Gauss-Newton matrix, S the covariance of the
    gradient. The gradient is a sum over pixels, and S the sum over blocks of pixels of the outer
    products of their shares, so that residuals may be correlated within a block (Liang and Zeger
    1986) as those of blurred noise and of wrong attenuations are. Errors that all blocks share,
    such as a wrong focal length, are not in it. A direction that changes no image, such as depth
    for parallel rays, gets a standard deviation of UNSEEN_MM.

    Args:
        parts: of every view, at one pose: see `linearised`.
        units: [D] the change of xi that counts as one mm of motion.
        added: [D, D] the matrix of a prior in the loss, weighted as there, or None. A prior's
            gradient varies as the prior says, so that what images do not show keeps its variance.
        share: weight of the images' loss beside it.
    """
    both = units.double()[:, None] * units.double()
    hessian, spread = _curvature_and_spread(parts, both)
    hessian, spread = hessian * share, spread * share**2
    if added is not None:
        narrow = _tempered(hessian, added * both)
        both, hessian, spread = both * narrow, hessian * narrow, spread * narrow
        hessian = hessian + added * both
        spread = spread + added * both * (1.0 - share)
    values, vectors = torch.linalg.eigh(hessian)
    seen = values > _UNSEEN * values[-1].clamp_min(0.0)
    inverse = torch.where(seen, 1.0 / torch.where(seen, values, 1.0), 0.0)
    inverse = (vectors * inverse) @ vectors.mT
    unseen = vectors[:, ~seen]
    return (inverse @ spread @ inverse + UNSEEN_MM**2 * unseen @ unseen.mT) * both


def covariances(
    loss: StageLoss | None, views: Sequence[View], pose: Tensor, units: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The covariance at a pose [1, ...] in a stage's loss, and the cameras' part of it.

    None where the stage has no Jacobian, or its similarity no curvature.
    """
    if (
        loss is None
        or loss.center is None
        or not loss.stage.optimiser.has_jacobian
        or not has_curvature(loss.stage.measure)
    ):
        return None, None
    parts = list(loss.linearise(pose))
    prior: tuple[Any, ...] = ()
    if loss.prior is not None:
        prior = (loss.prior.expand(pose)[2][0], 1.0 - loss.prior.weight)
    geometric = geometric_covariance(parts, views, pose, loss.center, units, *prior)
    return pose_covariance(parts, units, *prior) + geometric, geometric


def geometric_covariance(
    parts: Sequence[Linearised],
    views: Sequence[View],
    pose: Tensor,
    center: Tensor,
    units: Tensor,
    added: Tensor | None = None,
    share: float = 1.0,
) -> Tensor:
    """What the cameras' own uncertainty (`Camera.sigma`) adds to a pose's covariance: [D, D].

    A longer focal length looks like less depth in proportion, a moved principal point like a shift
    of as many pixels at the patient. Each view's error pulls the pose against that view's
    curvature, so that a second view from elsewhere, or a prior, holds what one view cannot: with
    H_v the Gauss-Newton matrix of view v, H all of it and T_v the errors as motions, the pose moves
    by H^-1 H_v T_v.

    Args:
        parts: of every view, at the pose, as for `pose_covariance`.
        pose: [1, 4, 4] of the first camera; [1, n, 4, 4] for n bodies.
        center: [3] or [n, 3] world mm, what xi turns about.
        units, added, share: as for `pose_covariance`.
    """
    poses, centers = pose.reshape(-1, 4, 4), center.reshape(-1, 3)
    scale = units.double()
    both = scale * scale[:, None]
    hessians = [part.matrix[0].double() * both * (share / len(parts)) for part in parts]
    whole = sum(hessians[1:], hessians[0])
    whole = whole if added is None else whole + added * both
    inverse = torch.linalg.pinv(whole, rtol=_UNSEEN, hermitian=True)
    alone = len(parts) == 1 and added is None  # then also where the image shows nothing
    total = torch.zeros_like(whole)
    for view, hessian in zip(views, hessians, strict=True):
        errors = torch.cat([_as_motions(view, *body) for body in zip(poses, centers, strict=True)])
        moved = errors / scale[:, None]
        moved = (moved if alone else inverse @ hessian @ moved) * scale[:, None]
        total = total + moved @ moved.mT
    return total


def _as_motions(view: View, pose: Tensor, center: Tensor) -> Tensor:
    """One deviation of each of a camera's intrinsics as xi of the first camera, [6, 3]."""
    seen = view.pose(pose[None])[0]
    depth = float(seen[2, :3] @ center + seen[2, 3])
    camera, known = view.camera, view.camera.sigma
    pitch = [float(torch.as_tensor(p).mean()) for p in camera.pixel_spacing]
    if camera.beam != "parallel":
        pitch = [p * depth / float(torch.as_tensor(camera.sdd).mean()) for p in pitch]
    along = depth * known.focal if camera.beam != "parallel" else 0.0
    shift = pose.new_tensor([known.col_px * pitch[1], known.row_px * pitch[0], along]).diag()
    if view.rig_to_camera is not None:
        shift = view.rig_to_camera[:3, :3].to(shift).mT @ shift
    return torch.cat((torch.zeros_like(shift), shift))


def _tempered(hessian: Tensor, added: Tensor) -> Tensor:
    """Products [D, D] of scales that bring a prior's curvature down to that of the images.

    Beside a prior that holds one unknown very tightly, the others would count as not shown.
    """
    largest = torch.linalg.eigvalsh(hessian)[-1]
    if largest <= 0:
        return torch.ones_like(hessian)
    diagonal = (hessian + added).diagonal()
    scale = (largest / torch.maximum(diagonal, largest)).sqrt()
    return scale[:, None] * scale


def dispersion(parts: Iterable[Linearised], units: Tensor) -> float:
    """How much loss makes a unit of log-likelihood, at an optimum.

    Were the loss phi times a negative log-likelihood, its gradient's covariance S would be phi
    times its curvature H; phi is the mean of H^-1 S over the directions that images show, as in
    quasi-likelihood (Wedderburn 1974). It is the weight at which a prior's logarithm belongs beside
    the loss; 0 where the images show nothing. Arguments as for `pose_covariance`.
    """
    both = units.double()[:, None] * units.double()
    hessian, spread = _curvature_and_spread(parts, both)
    values, vectors = torch.linalg.eigh(hessian)
    seen = values > _UNSEEN * values[-1].clamp_min(0.0)
    if not bool(seen.any()):
        return 0.0
    along = (vectors.mT @ spread @ vectors).diagonal()
    return float((along[seen] / values[seen]).mean())


def _curvature_and_spread(parts: Iterable[Linearised], both: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss-Newton matrix of the mean loss of views, and its gradient's covariance: [D, D] each.

    both: [D, D] products of units: in mm of motion eigenvalues can be compared.
    """
    hessian, spread, count = torch.zeros_like(both), torch.zeros_like(both), 0
    for part in parts:
        count += 1
        if _says_nothing(part):
            continue
        hessian += part.matrix[0].double()
        shares = _shares_of_blocks(part)
        spread += shares @ shares.mT
    return hessian * both / count, spread * both / count**2


def _says_nothing(part: Linearised) -> bool:
    """Whether no change of the image would change the loss, as where the X-ray is constant.

    Its curvature is that of a match then, which there is none of. At a perfect match the slope
    vanishes as well, but so does the loss.
    """
    return not bool((part.slope != 0).any()) and float(part.loss.abs().max()) > _MATCHED


def _shares_of_blocks(part: Linearised) -> Tensor:
    """What every block of pixels adds to the gradient of one view's loss: [D, blocks] float64."""
    jacobian, slope = part.jacobian[0], part.slope[0]
    if part.gain_free:
        jacobian = _without_gain(jacobian, part.moving[0])
    share = (jacobian * slope[:, None]).sum(0)
    side = min(max(_LEAST_SIDE, max(share.shape[-2:]) // _BLOCKS), *share.shape[-2:])
    pooled = functional.avg_pool2d(share[None], side, ceil_mode=True, divisor_override=1)
    return pooled[0].flatten(1).double()


def _without_gain(jacobian: Tensor, moving: Tensor) -> Tensor:
    """The Jacobian [C, D, rows, cols] without what offset and gain of `moving` could do as well.

    A loss that does not change with these has a slope that is orthogonal to both: the gradient is
    the same with this Jacobian, and the blocks' shares of it are those of the pose alone. For other
    losses, such as mse, the gradient would be another one.
    """
    flat = jacobian.flatten(2)
    plain = torch.stack((torch.ones_like(moving.flatten(1)), moving.flatten(1)), 1)
    basis = torch.linalg.qr(plain.mT)[0]
    return (flat - (flat @ basis) @ basis.mT).reshape_as(jacobian)
