"""Refining a camera's focal length and principal point together with the pose."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from drrkit.geometry import Camera, perturb
from drrkit.registration.certainty import dispersion, pose_covariance
from drrkit.registration.lengths import extent_mm, mean_depth, motion_units
from drrkit.registration.optimisers.levenberg import Levenberg, LevenbergEngine
from drrkit.registration.optimisers.optimiser import Expansion, PoseProblem
from drrkit.registration.problem.bodies import Bodies
from drrkit.registration.problem.inputs import computing_place, self_rendering, start_poses
from drrkit.registration.problem.loss import Linearised, linearised_view, mean_expansion
from drrkit.registration.problem.rendering import SceneRenderer, renderer
from drrkit.registration.problem.views import View, downsamplings, make_views, scaled_views
from drrkit.registration.progress import run, step_bar
from drrkit.registration.stages import Stage

__all__ = ["CalibrationResult", "refine_intrinsics"]

UNKNOWNS = ("focal", "col", "row")
"""Of every camera: relative change of the focal length, shifts of the principal point in pixels."""

DEFAULT_STAGE = Stage(
    "gradient_ncc",
    pixel=1 / 176,
    optimiser=Levenberg(1 / 30, final_step=1 / 30000),
    blur=1.0,
    iterations=40,
)

# First weight of the priors beside the similarity; then the residuals tell it.
_WEIGHT = 1e-4

# An unknown of whose prior's deviation this much is left was not shown by the images.
_LEFT = 0.7


@dataclass(frozen=True, eq=False)
class CalibrationResult:
    """Cameras and pose that agree best with the images, and how sure that is.

    Attributes:
        cameras: the refined ones, a list as long as the cameras given; pixel pitches stay, so that
            a camera's sdd changes with its focal length.
        world_to_camera: [4, 4] float64 of the first camera.
        intrinsics: [V, 3] float64: relative change of the focal length, changes of the principal
            point (col, row) in pixels.
        covariance: [6 + 3 V, 6 + 3 V] float64 of xi (rad, mm) and these numbers, with the priors.
        observable: [V, 3] bool: whether the images narrowed an unknown's prior by a third or more,
            or the prior was narrower than a tenth of a pixel already. What is neither stays near
            the prior, with the prior's error.
        loss: of the images, without the priors.
        seconds: wall time.
        stop_reason: "converged", "iterations" or "interrupted".
    """

    cameras: list[Camera]
    world_to_camera: Tensor
    intrinsics: Tensor
    covariance: Tensor = field(repr=False)
    observable: Tensor
    loss: float
    seconds: float
    stop_reason: str

    @property
    def sigma(self) -> Tensor:
        """Standard deviations of xi (rad, mm) and the intrinsics, [6 + 3 V]."""
        return self.covariance.diagonal().sqrt()


def refine_intrinsics(
    volume: Any,
    camera: Camera | Sequence[Camera],
    xray: Tensor | Sequence[Tensor],
    init: Tensor,
    *,
    sigma_focal: float | Sequence[float] = 0.02,
    sigma_principal_px: float | Sequence[float] = 5.0,
    stage: Stage = DEFAULT_STAGE,
    mask: Tensor | Sequence[Tensor | None] | None = None,
    rig_to_camera: Tensor | None = None,
    method: str = "joseph",
    progress: bool = False,
) -> CalibrationResult:
    """Find focal lengths and principal points together with the pose, by Levenberg-Marquardt.

    In one view depth and focal length nearly do the same, and so do a shift and the principal
    point: only perspective tells them apart. A view from another direction, whose place relative
    to the first is known, helps, and most so when its own intrinsics are known. Normal priors on
    the intrinsics hold what the images do not show, and a warning names it. The priors' weight is
    found from the residuals at a first optimum (see `dispersion`), from which a second run starts.

    Args:
        volume: a Volume in mu.
        camera, xray, mask, rig_to_camera, method, progress: as for `register`; every camera has
            intrinsics of its own.
        init: [4, 4] world_to_camera, best the outcome of `register` with these cameras.
        sigma_focal: standard deviation of the focal length, relative; one for all or one a camera,
            a tiny one for a camera that is known.
        sigma_principal_px: of each coordinate of the principal point, pixels, likewise.
        stage: similarity, resolution and iterations; its optimiser is a Levenberg.

    Returns:
        a CalibrationResult; with a UserWarning where intrinsics are not observable.

    Raises:
        TypeError, ValueError: as `register`; several starts, or deviations that are not positive.
    """
    began = time.perf_counter()
    if isinstance(volume, Bodies):
        raise TypeError("volume: expected a Volume in mu, got Bodies; all bodies as one will do")
    if not isinstance(progress, bool):
        raise TypeError(f"progress: expected True or False, got {type(progress).__name__}")
    if not isinstance(stage.optimiser, Levenberg):
        raise TypeError(f"stage: expected Levenberg as its optimiser, got {stage.optimiser!r}")
    volume = self_rendering(volume)
    like, center = computing_place(volume, None)
    views = make_views(camera, xray, mask, rig_to_camera, like)
    pose = start_poses(init, (stage,), views[0].camera, volume).to(center)
    if len(pose) != 1:
        raise ValueError(f"init: expected one pose, got {len(pose)}")
    extent = extent_mm(volume, views[0].camera, mean_depth(pose, center))
    stage = stage.in_mm(extent)
    focal = _per_camera("sigma_focal", sigma_focal, len(views))
    point = _per_camera("sigma_principal_px", sigma_principal_px, len(views))
    sigma = torch.stack((focal, point, point), 1).flatten()
    model = _Model(volume, views, stage, method, center, sigma, pose)
    state = torch.cat((pose.flatten(1), pose.new_zeros(1, 3 * len(views))), 1)
    bar = step_bar((stage, stage), progress)
    bar.set_description("intrinsics")
    try:
        state, reason = _optimised(model, state, stage, bar)
        if reason != "interrupted":
            phi = dispersion(model.linearise(state), model.units)
            model.weight = phi / (1.0 + phi) if phi > 0 else _WEIGHT
            state, reason = _optimised(model, state, stage, bar)
    finally:
        bar.close()
    result = model.result(state, reason, began)
    _warn(result)
    return result


def _optimised(model: _Model, state: Tensor, stage: Stage, bar: Any) -> tuple[Tensor, str]:
    """The best state and why the search for it ended."""
    problem = PoseProblem(
        center=model.center, units=model.units, expand=model.expand, iterations=stage.iterations
    )
    assert isinstance(stage.optimiser, Levenberg)
    engine = _Calibration(stage.optimiser, problem, state)
    reason = run(engine, bar)
    bar.update(stage.iterations - engine.steps)
    return engine.best_pose, reason


def _per_camera(name: str, value: float | Sequence[float], count: int) -> Tensor:
    """Positive numbers, one a camera: [count] float64."""
    single = isinstance(value, (int, float))
    many = isinstance(value, (list, tuple)) and all(isinstance(n, (int, float)) for n in value)
    numbers = [value] * count if single else list(value) if many else []
    if len(numbers) != count or not all(0 < number < math.inf for number in numbers):
        raise ValueError(
            f"{name}: expected a positive number, or {count} of them, one a camera, got {value!r}"
        )
    return torch.tensor(numbers, dtype=torch.float64)


class _Calibration(LevenbergEngine):
    """Levenberg-Marquardt on states [B, 16 + 3 V]: a pose's elements, then the intrinsics."""

    def moved(self, pose: Tensor, xi: Tensor) -> Tensor:
        turned = perturb(pose[:, :16].unflatten(1, (4, 4)), xi[:, :6], self.center)
        return torch.cat((turned.flatten(1), pose[:, 16:] + xi[:, 6:]), 1)


class _Model:
    """Images and priors as functions of a state [B, 16 + 3 V]."""

    def __init__(
        self,
        scene: Any,
        views: Sequence[View],
        stage: Stage,
        method: str,
        center: Tensor,
        sigma: Tensor,
        pose: Tensor,
    ) -> None:
        self.scene = SceneRenderer(scene, method).prepared_for(stage.measure)
        self.stage, self.method, self.center = stage, method, center
        self.sigma, self.weight = sigma.to(pose), _WEIGHT
        self.given = [view.camera for view in views]
        depth = mean_depth(pose, center)
        self.factors = downsamplings(stage, views, depth)
        self.views = scaled_views(views, stage, self.factors)
        # A pixel, and a focal length that moves the image's edge by one: as much as a mm.
        own = [[2.0 / max(c.size), 1.0, 1.0] for c in self.given]
        self.units = torch.cat((motion_units(self.given[0], depth), torch.tensor(own).flatten()))
        self.units = self.units.to(pose)

    def expand(self, state: Tensor) -> Expansion:
        """The mean loss over the views plus the weighted priors, and their derivatives."""
        loss, gradient, matrix = mean_expansion(self.linearise(state), 1.0 - self.weight)
        residual = state[:, 16:] / self.sigma
        loss = loss + 0.5 * self.weight * residual.square().sum(-1)
        gradient[:, 6:] += self.weight * residual / self.sigma
        return Expansion(loss, gradient, matrix + self.prior_matrix)

    @property
    def prior_matrix(self) -> Tensor:
        """What the priors add to the Gauss-Newton matrix, [6 + 3 V, 6 + 3 V]."""
        free = self.sigma.new_zeros(6)
        return torch.diag(torch.cat((free, self.weight / self.sigma.square())))

    def linearise(self, state: Tensor) -> Iterator[Linearised]:
        """Every view with its Jacobian in all 6 + 3 V unknowns; one state at a time."""
        pose = state[:, :16].unflatten(1, (4, 4))
        for number, view in enumerate(self.views):
            change = state[0, 16 + 3 * number : 19 + 3 * number]
            seen = replace(view, camera=changed(self.given[number], change))
            factor = self.factors[number]
            seen = replace(seen, camera=seen.camera.rescale(factor))
            draw = renderer(self.scene, seen.camera, self.stage.supersample, self.method)
            moving, of_pose = draw.with_jacobian(pose, view.rig_to_camera, self.center)
            own = self._of_intrinsics(number, view.pose(pose), change)
            jacobian = torch.zeros_like(of_pose[:, :, :1]).repeat(1, 1, len(self.units), 1, 1)
            jacobian[:, :, :6] = of_pose
            jacobian[:, :, 6 + 3 * number : 9 + 3 * number] = own
            yield linearised_view(seen, self.stage, moving, jacobian)

    def _of_intrinsics(self, number: int, pose: Tensor, change: Tensor) -> Tensor:
        """d image / d intrinsics of one view at a pose [1, 4, 4]: [1, C, 3, rows, cols]."""
        axes = torch.eye(3).to(change)
        with torch.no_grad(), forward_ad.dual_level():
            step = forward_ad.make_dual(change.expand(3, 3).clone(), axes)
            camera = changed(self.given[number], step).rescale(self.factors[number])
            draw = renderer(self.scene, camera, self.stage.supersample, self.method)
            tangent = forward_ad.unpack_dual(draw(pose.expand(3, 4, 4))).tangent
        return tangent.movedim(0, 1)[None]

    def result(self, state: Tensor, reason: str, began: float) -> CalibrationResult:
        parts = list(self.linearise(state))
        covariance = pose_covariance(parts, self.units, self.prior_matrix, 1.0 - self.weight)
        intrinsics = state[0, 16:].unflatten(0, (-1, 3))
        left = covariance.diagonal()[6:].sqrt() / self.sigma
        shown = (left < _LEFT) | (self.sigma < 0.1 * self.units[6:])
        return CalibrationResult(
            cameras=[
                replace(new, sdd=float(new.sdd)) for new in map(changed, self.given, intrinsics)
            ],
            world_to_camera=state[0, :16].reshape(4, 4),
            intrinsics=intrinsics,
            covariance=covariance,
            observable=shown.unflatten(0, (-1, 3)),
            loss=float(sum(part.loss[0] for part in parts) / len(parts)),
            seconds=time.perf_counter() - began,
            stop_reason=reason,
        )


def changed(camera: Camera, change: Tensor) -> Camera:
    """A camera with a longer focal length and a moved principal point.

    Args:
        change: [3] or [B, 3]: relative change of the focal length, of col and row in pixels. The
            pixel pitch stays: sdd grows with the focal length.
    """
    K = camera.K.double().to(change.device)
    focal, col, row = (part[..., None, None] for part in change.unbind(-1))
    stretch = torch.zeros_like(K)
    stretch[:2, :2] = K[:2, :2]
    across, down = torch.zeros_like(K), torch.zeros_like(K)
    across[0, 2] = down[1, 2] = 1.0
    K = K + focal * stretch + col * across + row * down
    return replace(camera, K=K, sdd=camera.sdd * (1.0 + change[..., 0]))


def _warn(result: CalibrationResult) -> None:
    hidden = [
        f"{UNKNOWNS[i]} of camera {number}"
        for number, row in enumerate(result.observable.tolist())
        for i in range(3)
        if not row[i]
    ]
    if hidden:
        warnings.warn(
            f"intrinsics not observable: {', '.join(hidden)}; they stay near their priors, and "
            "depth and shift are as uncertain; views from other directions would show them",
            stacklevel=3,
        )
