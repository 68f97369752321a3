"""Levenberg-Marquardt on the pose Jacobian, for a batch of poses, each with its own damping."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from drrkit.geometry import perturb, volume_center
from drrkit.projector import project_with_jacobian
from drrkit.registration.optimisers.curvature import gauss_newton, ignores_gain
from drrkit.registration.optimisers.optimiser import PoseOptimiser
from drrkit.registration.problem.bodies import Bodies
from drrkit.registration.problem.prior import PriorTerm
from drrkit.registration.problem.views import View, blurred, prepared, renderer, scaled_views
from drrkit.registration.stages import Stage
from drrkit.volume import Volume

__all__ = [
    "Expansion",
    "LevenbergMarquardt",
    "Linearised",
    "expansion",
    "linearised",
    "linearised_view",
    "view_jacobian",
]

# Share of the mean diagonal that damping adds to every element of it: directions that the image
# hardly shows, such as depth, stay bounded.
_SHARED_DAMPING = 0.1

_FIRST_DAMPING = 1e-2
_DAMPING = (1e-7, 1e5)


class Expansion(NamedTuple):
    """A loss about poses: value [B], gradient [B, D] and Gauss-Newton matrix [B, D, D], float64.

    D is 6, or 6 n for n bodies.
    """

    loss: Tensor
    gradient: Tensor
    matrix: Tensor


class LevenbergMarquardt(PoseOptimiser):
    """Damped Gauss-Newton steps on SE(3), accepted where they lower the loss.

    Every step evaluates every moving pose once, image and Jacobian together. Damping follows the
    ratio of actual to predicted decrease (Nielsen 1999) and adds to the diagonal in proportion to
    it (Marquardt 1963). No step is longer than `stage.step` mm of motion. A pose rests when the
    step it would take is shorter than `stage.final_step`.

    Args:
        expand: poses [B, 4, 4] or [B, n, 4, 4] -> Expansion, its xi about `center`.
        world_to_camera, center, units, stage: as for PoseOptimiser.
    """

    def __init__(
        self,
        expand: Callable[[Tensor], Expansion],
        world_to_camera: Tensor,
        center: Tensor,
        units: Tensor,
        stage: Stage,
    ) -> None:
        super().__init__(world_to_camera, center, units, stage)
        count = world_to_camera.shape[0]
        self.expand = expand
        size = units.numel()
        self.gradient = world_to_camera.new_zeros(count, size)
        self.matrix = torch.eye(size).to(world_to_camera).repeat(count, 1, 1)
        self.damping = world_to_camera.new_full((count,), _FIRST_DAMPING)
        self.growth = world_to_camera.new_full((count,), 2.0)
        self.shift = world_to_camera.new_zeros(count, size)  # the next step, in mm of motion

    def advance(self, index: Tensor) -> Tensor:
        """Try the step of every pose, keep it where the loss falls, and plan the next."""
        step = self.shift[index]
        trial = self.best_pose[index]
        if self.steps > 0:
            trial = self.moved(trial, step * self.units)
        found = self.expand(trial)
        loss = torch.nan_to_num(found.loss, nan=torch.inf)
        gradient = found.gradient * self.units
        matrix = found.matrix * self.units * self.units[:, None]
        before = self.best_loss[index]
        finite = gradient.isfinite().all(-1) & matrix.isfinite().all(-1).all(-1)
        loss = torch.where(finite, loss, torch.inf)
        accepted = self.remember(index, trial, loss)
        if self.steps > 0:
            self._adapt(index, accepted, (before - loss) / self._predicted(index, step))
        chosen = index[accepted]
        self.gradient[chosen], self.matrix[chosen] = gradient[accepted], matrix[accepted]
        self._plan(index)
        return loss

    def _predicted(self, index: Tensor, step: Tensor) -> Tensor:
        """Decrease of the quadratic model along the steps, [A], positive."""
        linear = (self.gradient[index] * step).sum(-1)
        curved = (step[:, None] @ self.matrix[index] @ step[..., None])[:, 0, 0]
        return (-linear - 0.5 * curved).clamp_min(torch.finfo(step.dtype).tiny)

    def _adapt(self, index: Tensor, accepted: Tensor, ratio: Tensor) -> None:
        """Less damping after good steps, more and more after bad ones."""
        ratio = torch.nan_to_num(ratio, nan=0.0, neginf=0.0).clamp(0.0, 1.0)
        shrink = (1.0 - (2.0 * ratio - 1.0) ** 3).clamp_min(0.2)
        growth = self.growth[index]
        self.damping[index] *= torch.where(accepted, shrink, growth)
        self.growth[index] = torch.where(accepted, torch.full_like(growth, 2.0), 2.0 * growth)
        self.damping[index] = self.damping[index].clamp(*_DAMPING)

    def _plan(self, index: Tensor) -> None:
        """The next step of every pose; poses whose step would be too short rest."""
        matrix, damping = self.matrix[index], self.damping[index, None]
        diagonal = matrix.diagonal(dim1=-2, dim2=-1)
        diagonal = diagonal + _SHARED_DAMPING * diagonal.mean(-1, keepdim=True)
        diagonal = diagonal.clamp_min(torch.finfo(diagonal.dtype).tiny ** 0.5)
        damped = matrix + torch.diag_embed(damping * diagonal)
        step = -torch.linalg.solve_ex(damped, self.gradient[index])[0]
        step = torch.nan_to_num(step, nan=0.0, posinf=0.0, neginf=0.0)
        length = step.norm(dim=-1, keepdim=True)
        self.shift[index] = step * (self.stage.step / length.clamp_min(1e-12)).clamp_max(1.0)
        self.resting[index] = length[:, 0] < self.stage.final_step


class Linearised(NamedTuple):
    """One view's image and loss about poses: what a Gauss-Newton step is made of.

    loss [B], matrix [B, D, D] (Gauss-Newton), moving and slope = d loss / d moving
    [B, C, rows, cols], jacobian = d moving / d xi [B, C, D, rows, cols]; gain_free: whether the
    loss is known not to change with the gain and offset of `moving`.
    """

    loss: Tensor
    matrix: Tensor
    moving: Tensor
    slope: Tensor
    jacobian: Tensor
    gain_free: bool


def expansion(
    scene: Any,
    views: Sequence[View],
    stage: Stage,
    factor: int | Sequence[int],
    method: str,
    center: Tensor,
    prior: PriorTerm | None = None,
) -> Callable[[Tensor], Expansion]:
    """The stage's loss, gradient and Gauss-Newton matrix as a function of poses.

    The poses are [B, 4, 4], or [B, n, 4, 4] for Bodies; the loss is the mean over views, weighed
    against the prior where there is one. Arguments as for `objective`; center [3] or [n, 3] world
    mm is what xi turns about.
    """
    scale = 1.0 if prior is None else 1.0 - prior.weight
    linearise = linearised(scene, views, stage, factor, method, center)

    def expand(world_to_camera: Tensor) -> Expansion:
        parts = []
        for part in linearise(world_to_camera):
            gradient = (part.jacobian * part.slope.unsqueeze(2)).sum((1, 3, 4))
            parts.append((part.loss.double(), gradient.double(), part.matrix.double()))
        found = [scale * torch.stack(part).mean(0) for part in zip(*parts, strict=True)]
        if prior is not None:
            added = prior.expand(world_to_camera)
            found = [part + more for part, more in zip(found, added, strict=True)]
        return Expansion(*found)

    return expand


def linearised(
    scene: Any,
    views: Sequence[View],
    stage: Stage,
    factor: int | Sequence[int],
    method: str,
    center: Tensor,
) -> Callable[[Tensor], Iterator[Linearised]]:
    """What `expansion` adds up, view by view. Arguments as there."""
    scene = prepared(scene, stage.measure)
    scaled = scaled_views(views, stage, factor)
    drawn = [view_jacobian(scene, view, stage, method, center) for view in scaled]

    def linearise(world_to_camera: Tensor) -> Iterator[Linearised]:
        for view, draw in zip(scaled, drawn, strict=True):
            yield linearised_view(view, stage, *draw(world_to_camera))

    return linearise


def linearised_view(view: View, stage: Stage, moving: Tensor, jacobian: Tensor) -> Linearised:
    """One view's loss about poses, from its image [B, C, rows, cols] and Jacobian there.

    Args:
        view: at the stage's resolution and blur.
        jacobian: [B, C, D, rows, cols] in any D unknowns.
    """
    moving = blurred(moving, view.mask, stage.blur).requires_grad_()
    columns = jacobian.shape[1:3]
    jacobian = blurred(jacobian.flatten(1, 2), view.mask, stage.blur).unflatten(1, columns)
    with torch.enable_grad():
        loss = stage.measure(moving, view.xray, view.mask)
        (slope,) = torch.autograd.grad(loss.sum(), moving)
    loss, moving = loss.detach(), moving.detach()
    matrix = gauss_newton(stage.measure, loss, moving, jacobian, view.mask)
    return Linearised(loss, matrix, moving, slope, jacobian, ignores_gain(stage.measure))


def view_jacobian(
    scene: Any, view: View, stage: Stage, method: str, center: Tensor
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """world_to_camera -> image [B, C, rows, cols] and Jacobian [B, C, D, rows, cols] of a view."""
    if isinstance(scene, Bodies):
        return _of_bodies(scene, view, stage, method, center)
    if not isinstance(scene, Volume):
        return _by_forward_mode(scene, view, stage, method, center)
    offset = volume_center(scene) - center
    moved = bool((offset.abs() > 1e-9).any())

    def draw(world_to_camera: Tensor) -> tuple[Tensor, Tensor]:
        image, jacobian = project_with_jacobian(
            scene,
            view.camera,
            view.pose(world_to_camera),
            supersample=stage.supersample,
            method=method,
        )
        if view.rig_to_camera is None and not moved:
            return image, jacobian
        change = _change_of_twist(world_to_camera, view.rig_to_camera, offset).to(jacobian)
        rows = (change.mT @ jacobian.movedim(1, 2).flatten(2)).unflatten(
            2, (jacobian.shape[1], *jacobian.shape[3:])
        )
        return image, rows.movedim(2, 1)

    return draw


def _of_bodies(
    scene: Bodies, view: View, stage: Stage, method: str, center: Tensor
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The same for bodies with poses [B, n, 4, 4]: images add, Jacobians stand side by side."""
    draws = [
        view_jacobian(body, view, stage, method, own)
        for body, own in zip(scene.bodies, center, strict=True)
    ]

    def draw(world_to_camera: Tensor) -> tuple[Tensor, Tensor]:
        parts = [one(world_to_camera[:, i]) for i, one in enumerate(draws)]
        images, jacobians = zip(*parts, strict=True)
        return torch.stack(images).sum(0), torch.cat(jacobians, 2)

    return draw


def _change_of_twist(pose: Tensor, rig: Tensor | None, offset: Tensor) -> Tensor:
    """[B, 6, 6] from twists about a point in the first camera to twists about another in its own.

    offset: [3] world mm from the first point to the second. A turn omega about the one moves the
    other by omega x d, d = R offset.
    """
    d = (pose[:, :3, :3] @ offset.to(pose)[:, None])[..., 0]
    change = torch.eye(6).to(pose).repeat(pose.shape[0], 1, 1)
    x, y, z = d.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack((zero, z, -y, -z, zero, x, y, -x, zero), -1).unflatten(-1, (3, 3))
    change[:, 3:, :3] = cross  # omega x d = -d x omega
    if rig is None:
        return change
    turn = torch.block_diag(rig[:3, :3], rig[:3, :3])
    return turn.to(change) @ change


def _by_forward_mode(
    scene: Any, view: View, stage: Stage, method: str, center: Tensor
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The same for a scene that renders itself: six tangents by forward-mode differentiation."""
    render = renderer(scene, view.camera, stage.supersample, method)

    def draw(world_to_camera: Tensor) -> tuple[Tensor, Tensor]:
        count = world_to_camera.shape[0]
        pose = world_to_camera.repeat_interleave(6, 0)
        axes = torch.eye(6).to(pose).repeat(count, 1)
        with torch.no_grad(), forward_ad.dual_level():
            xi = forward_ad.make_dual(torch.zeros_like(axes), axes)
            image, tangent = forward_ad.unpack_dual(render(view.pose(perturb(pose, xi, center))))
        if tangent is None:
            tangent = torch.zeros_like(image)
        return image[::6], tangent.unflatten(0, (count, 6)).movedim(1, 2)

    return draw
