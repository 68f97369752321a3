"""Bounded refinement without derivatives: quadratic models of the loss in a trust region.

In the place of BOBYQA (Powell 2009), for a batch of poses: where BOBYQA exchanges one point of its
interpolation set at a time, every step here evaluates a whole cross of points a pose in one render
call and fits the model to all recent points by weighted least squares.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from drrkit.registration.lengths import Share, check_spread, spread_in_mm
from drrkit.registration.optimisers.optimiser import Optimiser, PoseEngine, PoseProblem

__all__ = ["TrustRegion", "TrustRegionEngine", "box_minimum"]

# Steps whose points a model remembers, besides the first design.
_REMEMBERED = 4

# Ridge on the second-order coefficients, in the units of the points' weights.
_RIDGE = 1e-6

_SWEEPS = 20


@dataclass(frozen=True)
class TrustRegion(Optimiser):
    """Quadratic models in a shrinking box, without derivatives and within bounds.

    For losses with steps: they need to be smooth only at the scale of the box.

    Attributes:
        step: half the width of the first box.
        final_step: a pose rests when its box is smaller than this.
        bounds: of xi about each start, (rad, length) or three of each, beyond which no pose is
            rendered.
    """

    step: float = Share(1 / 300)
    bounds: tuple[float, ...] = (0.3, Share(2 / 15))

    name: ClassVar[str] = "trust_region"
    lengths: ClassVar[tuple[str, ...]] = ("step", "final_step")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_spread("bounds", self.bounds)

    def begin(self, problem: PoseProblem, world_to_camera: Tensor) -> TrustRegionEngine:
        return TrustRegionEngine(self, problem, world_to_camera)

    def in_mm(self, extent: float, mm: bool) -> TrustRegion:
        found = super().in_mm(extent, mm)
        assert isinstance(found, TrustRegion)
        return replace(found, bounds=spread_in_mm(self.bounds, extent, mm))


class TrustRegionEngine(PoseEngine):
    """Minimises a quadratic model in a box about the best pose.

    A step evaluates 13 points for every pose (the first one 28, which determine a quadratic; both
    more for several bodies): the model's minimum and a cross of random orientation about it. The
    box grows where the model predicted the loss well and shrinks where it did not.
    """

    def __init__(
        self, settings: TrustRegion, problem: PoseProblem, world_to_camera: Tensor
    ) -> None:
        super().__init__(problem, world_to_camera)
        count, size = world_to_camera.shape[0], self.units.numel()
        self.settings = settings
        self.start = world_to_camera.clone()
        self.bound = self.per_component(settings.bounds) / self.units
        self.radius = world_to_camera.new_full((count,), settings.step)
        memory = _coefficients(size) + _REMEMBERED * (2 * size + 1)
        self.best = world_to_camera.new_zeros(count, size)
        # All points evaluated lately, newest last: [K, memory, D] and their losses, inf where none.
        self.points = world_to_camera.new_zeros(count, memory, size)
        self.losses = world_to_camera.new_full((count, memory), torch.inf)

    def advance(self, index: Tensor) -> Tensor:
        """One box of every pose; the losses of the models' minima."""
        middle, predicted = self.best[index], None
        if self.steps > 0:
            middle, predicted = self._model_minimum(index)
        points = self._design(index, middle)
        loss = self._evaluate(index, points)
        if predicted is not None:
            self._resize(index, loss[:, 0], predicted)
        self._memorise(index, points, loss)
        row = torch.arange(index.numel(), device=index.device)
        lowest = loss.argmin(1)
        chosen = points[row, lowest]
        pose = self.moved(self.start[index], chosen * self.units)
        better = self.remember(index, pose, loss[row, lowest])
        self.best[index[better]] = chosen[better]
        self.resting[index] = self.radius[index] < self.settings.final_step
        return loss[:, 0]

    def _evaluate(self, index: Tensor, points: Tensor) -> Tensor:
        """Losses [A, P] at points [A, P, D], in one call."""
        start = self.start[index].repeat_interleave(points.shape[1], 0)
        pose = self.moved(start, points.flatten(0, 1) * self.units)
        with torch.no_grad():
            loss = self.problem.objective(pose).double()
        return torch.nan_to_num(loss, nan=torch.inf).unflatten(0, points.shape[:2])

    def _design(self, index: Tensor, middle: Tensor) -> Tensor:
        """Points [A, P, D] to evaluate about `middle` [A, D], which comes first."""
        if self.steps == 0:
            axes = torch.eye(middle.shape[1]).to(middle)
            pairs = torch.combinations(torch.arange(len(axes), device=middle.device))
            offsets = torch.cat((axes, -axes, axes[pairs[:, 0]] + axes[pairs[:, 1]]))
            offsets = offsets.expand(index.numel(), -1, -1)
        else:
            size = middle.shape[1]
            random = torch.randn(index.numel(), size, size, generator=self.problem.generator).to(
                middle
            )
            turned = torch.linalg.qr(random)[0]
            offsets = torch.cat((turned, -turned), 1)
        points = middle[:, None] + offsets * self.radius[index, None, None]
        return torch.cat((middle[:, None], points), 1).clamp(-self.bound, self.bound)

    def _memorise(self, index: Tensor, points: Tensor, loss: Tensor) -> None:
        count = points.shape[1]
        self.points[index] = torch.cat((self.points[index][:, count:], points), 1)
        self.losses[index] = torch.cat((self.losses[index][:, count:], loss), 1)

    def _resize(self, index: Tensor, loss: Tensor, predicted: Tensor) -> None:
        """Wider boxes where the model's minimum fell as predicted, smaller ones where not."""
        before = self.best_loss[index]
        ratio = torch.nan_to_num((before - loss) / predicted.clamp_min(1e-15), nan=0.0)
        factor = torch.where(ratio > 0.7, 1.5, torch.where(ratio < 0.25, 0.4, 0.8))
        self.radius[index] = (self.radius[index] * factor).clamp_max(self.settings.step)

    def _model_minimum(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Where [A, D] the models are lowest in box and bounds, and by how much [A]."""
        middle, radius = self.best[index], self.radius[index, None]
        gradient, matrix = self._fit(index)
        low = ((-self.bound - middle) / radius).clamp(-1.0, 0.0)
        high = ((self.bound - middle) / radius).clamp(0.0, 1.0)
        step = box_minimum(gradient, matrix, low, high)
        curved = (step[:, None] @ matrix @ step[..., None])[:, 0, 0]
        return middle + step * radius, -(gradient * step).sum(-1) - 0.5 * curved

    def _fit(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient [A, D] and matrix [A, D, D] of the model about the best point, box units."""
        size = self.units.numel()
        offset = (self.points[index] - self.best[index, None]) / self.radius[index, None, None]
        loss = self.losses[index] - self.best_loss[index, None]
        usable = loss.isfinite()
        offset = torch.where(usable[..., None], offset, 0.0)
        # Points far outside the box say little about it.
        weight = usable / (1.0 + offset.square().sum(-1) / 4.0) ** 3
        first, second = torch.triu_indices(size, size, device=offset.device)
        terms = offset[..., first] * offset[..., second] * torch.where(first == second, 0.5, 1.0)
        columns = torch.cat((torch.ones_like(offset[..., :1]), offset, terms), -1)
        weighed = columns * weight[..., None]
        ridge = torch.ones(_coefficients(size)).to(columns) * _RIDGE
        ridge[: size + 1] *= 1e-3
        normal = weighed.mT @ columns + torch.diag(ridge)
        target = weighed.mT @ torch.where(usable, loss, 0.0)[..., None]
        solution = torch.linalg.solve_ex(normal, target)[0][..., 0]
        matrix = offset.new_zeros(index.numel(), size, size)
        matrix[:, first, second] = solution[:, size + 1 :]
        matrix[:, second, first] = solution[:, size + 1 :]
        return solution[:, 1 : size + 1], matrix


def _coefficients(size: int) -> int:
    """Of a quadratic in so many variables."""
    return (size + 1) * (size + 2) // 2


def box_minimum(gradient: Tensor, matrix: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """A minimum of g.s + s' H s / 2 over low <= s <= high by coordinate descent: [A, N].

    The minimum for a positive semidefinite matrix, a point no coordinate can improve for others.

    Args:
        gradient: [A, N]; matrix: [A, N, N] symmetric; low <= 0 <= high: [A, N].
    """
    step = torch.zeros_like(gradient)
    for _ in range(_SWEEPS):
        for i in range(gradient.shape[1]):
            curvature = matrix[:, i, i]
            slope = gradient[:, i] + (matrix[:, i] * step).sum(-1) - curvature * step[:, i]
            convex = curvature > 1e-12
            inner = -slope / torch.where(convex, curvature, 1.0)
            ends = torch.stack((low[:, i], high[:, i]), -1)
            value = slope[:, None] * ends + 0.5 * curvature[:, None] * ends.square()
            end = ends.gather(1, value.argmin(1, keepdim=True))[:, 0]
            inner = torch.minimum(torch.maximum(inner, low[:, i]), high[:, i])
            step[:, i] = torch.where(convex, inner, end)
    return step
