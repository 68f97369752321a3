"""A stage's loss of poses: the views at its resolution, compared with what is rendered there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from drrkit.registration.optimisers.optimiser import Expansion
from drrkit.registration.problem.prior import PriorTerm
from drrkit.registration.problem.rendering import Renderer, SceneRenderer
from drrkit.registration.problem.views import View, blurred, scaled_views
from drrkit.registration.similarities import gauss_newton, ignores_gain

if TYPE_CHECKING:
    from drrkit.registration.stages import Stage

__all__ = ["Linearised", "StageLoss", "linearised_view", "objective"]


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


class StageLoss:
    """The loss of poses [B, 4, 4] of the first camera, [B, n, 4, 4] for Bodies: a mean over views.

    With a prior it is weighed against that.

    Args:
        drawn: the scene.
        views: at full resolution.
        stage: similarity and resolution, lengths in mm.
        factor: how many pixels are averaged along each side, one number or one per view.
        center: [3] or [n, 3] world mm, what xi turns about; only `expand` needs it.
        about: a pose [1, ...]; rays that the volume does not answer for there are left out.
    """

    def __init__(
        self,
        drawn: SceneRenderer,
        views: Sequence[View],
        stage: Stage,
        factor: int | Sequence[int],
        center: Tensor | None = None,
        prior: PriorTerm | None = None,
        about: Tensor | None = None,
    ) -> None:
        self.drawn, self.stage, self.center, self.prior = drawn, stage, center, prior
        self.views = scaled_views(views, stage, factor)
        if about is not None:
            self.views = [drawn.cut.left_out(view, about) for view in self.views]

    @cached_property
    def renderers(self) -> list[Renderer]:
        """One per view, of the scene as the similarity wants it."""
        stage = self.stage
        return [
            self.drawn.renderer(view.camera, stage.voxel, stage.supersample, stage.measure)
            for view in self.views
        ]

    def objective(self, world_to_camera: Tensor) -> Tensor:
        """Losses [B], differentiable."""
        first = self.views[0].xray
        total = torch.zeros((), dtype=first.dtype, device=first.device)
        for view, draw in zip(self.views, self.renderers, strict=True):
            moving = blurred(draw(view.pose(world_to_camera)), view.mask, self.stage.blur)
            total = total + self.stage.measure(moving, view.xray, view.mask)
        loss = total / len(self.views)
        if self.prior is None:
            return loss
        return (1.0 - self.prior.weight) * loss + self.prior(world_to_camera).to(loss)

    def expand(self, world_to_camera: Tensor) -> Expansion:
        """Loss, gradient and Gauss-Newton matrix."""
        scale = 1.0 if self.prior is None else 1.0 - self.prior.weight
        found = mean_expansion(self.linearise(world_to_camera), scale)
        if self.prior is not None:
            added = self.prior.expand(world_to_camera)
            found = Expansion(*(part + more for part, more in zip(found, added, strict=True)))
        return found

    def linearise(self, world_to_camera: Tensor) -> Iterator[Linearised]:
        """What `expand` adds up, view by view, without the prior."""
        assert self.center is not None
        for view, draw in zip(self.views, self.renderers, strict=True):
            drawn = draw.with_jacobian(world_to_camera, view.rig_to_camera, self.center)
            yield linearised_view(view, self.stage, *drawn)

    def proposals(self, network: Any) -> Callable[[Tensor], Tensor]:
        """What a network makes of poses, from renderings of the volume that it prepares.

        Raises:
            ValueError: there are several views.
            TypeError: what the network's `prepare` raises for a scene that is no Volume.
        """
        if len(self.views) != 1:
            raise ValueError(f"camera: expected one for a Regressor, got {len(self.views)}")
        view = self.views[0]
        # Not of `stage.voxel`: the network resamples to what it was trained with.
        volume = network.prepare(self.drawn.scene)
        draw = SceneRenderer(volume, self.drawn.method).renderer(
            view.camera, None, self.stage.supersample
        )

        @torch.no_grad()
        def propose(pose: Tensor) -> Tensor:
            return network.update(draw(pose), view.xray, pose, volume)

        return propose


def mean_expansion(parts: Iterator[Linearised], scale: float) -> Expansion:
    """The mean over views, `scale` times."""
    terms = []
    for part in parts:
        gradient = (part.jacobian * part.slope.unsqueeze(2)).sum((1, 3, 4))
        terms.append((part.loss.double(), gradient.double(), part.matrix.double()))
    return Expansion(*(scale * torch.stack(term).mean(0) for term in zip(*terms, strict=True)))


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
    matrix = gauss_newton(stage.measure, loss, moving, jacobian, view.mask, view.xray)
    return Linearised(loss, matrix, moving, slope, jacobian, ignores_gain(stage.measure))


def objective(
    scene: Any, views: Sequence[View], stage: Stage, factor: int | Sequence[int], method: str
) -> Callable[[Tensor], Tensor]:
    """A stage's loss as a function of world_to_camera [B, 4, 4] -> [B], the mean over views.

    Args: as for StageLoss, with the scene and the projector method.
    """
    return StageLoss(SceneRenderer(scene, method), views, stage, factor).objective
