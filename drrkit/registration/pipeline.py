"""register(): stages in order, the result of one starting the next."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from drrkit.geometry import Camera
from drrkit.registration.confidence import agreement
from drrkit.registration.covariance import pose_covariance
from drrkit.registration.optimisers.cmaes import CmaEs
from drrkit.registration.optimisers.curvature import has_curvature
from drrkit.registration.optimisers.descent import PoseDescent
from drrkit.registration.optimisers.directions import DirectionDescent
from drrkit.registration.optimisers.levenberg import LevenbergMarquardt, expansion, linearised
from drrkit.registration.optimisers.optimiser import PoseOptimiser
from drrkit.registration.optimisers.regressor import PoseRegression, proposals
from drrkit.registration.optimisers.trust_region import TrustRegion
from drrkit.registration.presets import resolve_stages
from drrkit.registration.problem.bodies import Bodies
from drrkit.registration.problem.inputs import check_options, check_scene, start_poses
from drrkit.registration.problem.landmarks import Landmarks
from drrkit.registration.problem.motion import mean_depth, motion_units, moved
from drrkit.registration.problem.prior import PosePrior, PriorTerm
from drrkit.registration.problem.views import View, downsamplings, make_views, negatives, objective
from drrkit.registration.progress import Watcher, count_steps, progress_bar, run
from drrkit.registration.result import DEPTH_LIMIT_MM, RegistrationResult, StageRecord
from drrkit.registration.search.candidates import distinct_poses
from drrkit.registration.search.search import GlobalSearch, viewed_alike
from drrkit.registration.stages import Search, Stage
from drrkit.volume import Volume

__all__ = ["register"]


def register(
    volume: Any,
    camera: Camera | Sequence[Camera],
    xray: Tensor | Sequence[Tensor],
    init: Tensor | Landmarks | None = None,
    *,
    stages: str | Stage | Search | Sequence[Stage | Search] = "auto",
    mask: Tensor | Sequence[Tensor | None] | None = None,
    rig_to_camera: Tensor | None = None,
    prior: PosePrior | None = None,
    center: Tensor | None = None,
    method: str = "joseph",
    seed: int = 0,
    progress: bool | Watcher = False,
) -> RegistrationResult:
    """Find the pose at which a rendered volume agrees with an X-ray image.

    Several starts, or the candidates of a search, are optimised as one batch; the one that ends
    with the lowest loss is returned, and where the others ended beside it. Ctrl-C returns the best
    so far.

    Args:
        volume: a Volume in mu; Bodies, which have poses [n, 4, 4] of their own; or another scene:
            anything with render(camera, world_to_camera) -> [B, C, rows, cols] and a `center`.
            A scene whose `volume` is a Volume is taken for that.
        camera: the X-ray's camera, or a list for several views of one patient.
        xray: [1, 1, rows, cols] or [rows, cols], on the scale of line integrals: bright where the
            patient attenuates. Correlations ignore its offset and gain, "mi" any remapping.
            A list for several cameras.
        init: [4, 4] or [K, 4, 4] world_to_camera to start from (of the first camera); Landmarks,
            whose pose it is then; for n bodies [n, 4, 4] or [K, n, 4, 4], or [4, 4] for all. May be
            None where the first stage is a Search: it is then about an AP view of the volume.
        stages: "auto" (coarse to fine, from a start nearby), "global" (a search comes first, about
            a start that may be far off), or Stages of your own; the first may be a Search.
        mask: float weights of the X-ray's shape; 0 leaves a pixel out, and exp(-xray) weighs pixels
            by their photons where those are few. A list for several cameras.
        rig_to_camera: [V, 4, 4] for several cameras: the fixed maps from the first camera's
            coordinates to each camera's; the first is the identity.
        prior: how far from the start the pose is expected: a term of every stage's loss.
        center: [3] world mm, the point that rotations turn about; default the volume's centre, or
            the scene's `center`. [n, 3] for n bodies.
        method: projector method, as in `render`.
        seed: of the starts that stages with several draw; the same seed gives the same result.
        progress: show a progress bar (needs tqdm; silently none without it); or a function that is
            told the best pose so far, [4, 4] ([n, 4, 4] for n bodies), and its loss in the current
            stage after every step. What it returns is ignored; KeyboardInterrupt, raised in it,
            ends the registration with that pose, and any other exception passes through.

    Returns:
        a RegistrationResult; with a UserWarning where the images do not show the depth.

    Raises:
        TypeError, ValueError: an argument is not what is described here; a Volume in HU (convert it
            with to_mu) is one of them.
    """
    began = time.perf_counter()
    resolved = resolve_stages(stages)
    check_options(prior, seed, progress)
    grid = getattr(volume, "volume", None)
    volume = grid if isinstance(grid, Volume) else volume
    like, middle = check_scene(volume, center)
    views = make_views(camera, xray, mask, rig_to_camera, like)
    pose = start_poses(init, resolved, views[0].camera, volume).to(middle)
    bar = progress_bar(resolved, progress)
    term = None if prior is None else prior.term(pose, middle)
    generator = torch.Generator().manual_seed(seed)
    work = Registration(volume, views, middle, method, generator, bar, term)
    try:
        found, confidence = work.until_trusted(resolved, Candidates.unjudged(pose))
    finally:
        bar.close()
    best = int(found.loss.argmin())
    result = RegistrationResult(
        world_to_camera=found.pose[best],
        loss=float(found.loss[best]),
        confidence=confidence,
        covariance=work.covariance(resolved[-1], found.pose[best : best + 1]),
        history=work.history,
        seconds=time.perf_counter() - began,
        stop_reason=work.history[-1].stop_reason,
        all_world_to_camera=found.pose,
        all_loss=found.loss,
    )
    if result.depth_observable is False and result.sigma is not None:
        warnings.warn(
            f"depth is not observable: standard deviation {float(result.sigma[5::6].max()):.3g} mm,"
            f" more than {DEPTH_LIMIT_MM:g} mm; a second view or a prior would tell it",
            stacklevel=2,
        )
    return result


@dataclass(frozen=True)
class Candidates:
    """Poses [K, 4, 4] float64 and their losses [K] in the stage they come from.

    [K, n, 4, 4] for n bodies.
    """

    pose: Tensor
    loss: Tensor

    @staticmethod
    def unjudged(pose: Tensor) -> Candidates:
        """Poses without a loss yet."""
        return Candidates(pose, pose.new_full((pose.shape[0],), torch.inf))


class Registration:
    """What the stages of one registration share; `through` runs them, `history` tells of them."""

    def __init__(
        self,
        scene: Any,
        views: Sequence[View],
        center: Tensor,
        method: str,
        generator: torch.Generator,
        bar: Any,
        prior: PriorTerm | None = None,
    ) -> None:
        self.scene, self.center, self.method, self.prior = scene, center, method, prior
        self.bodies = center.numel() // 3
        self.views = self.given_views = views
        self.generator, self.bar = generator, bar
        self.history: list[StageRecord] = []
        self._resampled: dict[float, Any] = {}
        self._evolution: CmaEs | None = None  # the last, for a stage that goes on with it

    def until_trusted(
        self, stages: Sequence[Stage | Search], start: Candidates
    ) -> tuple[Candidates, float]:
        """What the stages make of the poses, and how well the best of them agrees.

        Where they begin with a search whose outcome is not trusted, they begin again with a denser
        one; the better outcome counts.
        """
        found = self.through(stages, start)
        confidence = self._confidence(found)
        first = stages[0]
        if not isinstance(first, Search):
            return found, confidence
        for _ in range(first.repeats):
            if confidence >= first.trusted or self.history[-1].stop_reason == "interrupted":
                break
            first = first.denser()
            self.bar.add(count_steps(stages))
            views = self.views
            other = self.through((first, *stages[1:]), start)
            trust = self._confidence(other)
            if trust > confidence:
                found, confidence = other, trust
            else:
                self.views = views
        return found, confidence

    def covariance(self, stage: Stage | Search, pose: Tensor) -> Tensor | None:
        """Of one pose [1, 4, 4] that a stage found, where that stage has a Jacobian."""
        if isinstance(stage, Search) or stage.optimiser != "levenberg":
            return None
        if not has_curvature(stage.measure):
            return None
        scene = self._at_voxels(stage.voxel_mm)
        depth = mean_depth(pose, self.center)
        factors = downsamplings(stage, self.views, depth)
        linearise = linearised(scene, self.views, stage, factors, self.method, self.center)
        units = motion_units(self.views[0].camera, depth, self.bodies).to(pose)
        if self.prior is None:
            return pose_covariance(linearise(pose), units)
        added = self.prior.expand(pose)[2][0]
        return pose_covariance(linearise(pose), units, added, 1.0 - self.prior.weight)

    def _confidence(self, found: Candidates) -> float:
        best = found.pose[int(found.loss.argmin())][None]
        return agreement(self.scene, self.views, best, self.method)

    def through(self, stages: Sequence[Stage | Search], found: Candidates) -> Candidates:
        """What the stages make of the poses; after an interruption the best up to then."""
        depth = mean_depth(found.pose, self.center)
        for number, stage in enumerate(stages, 1):
            self.bar.set_description(f"stage {number}/{len(stages)} {stage.name}")
            units = motion_units(self.views[0].camera, depth, self.bodies).to(found.pose)
            if isinstance(stage, Search):
                found = self._search(stage, found, units)
                depth = mean_depth(found.pose[:1], self.center)
            else:
                found = self._improve(stage, found, units, depth)
            if self.history[-1].stop_reason == "interrupted":
                break
        return found

    def _search(self, stage: Search, found: Candidates, units: Tensor) -> Candidates:
        """The candidates of a search about every pose; from here on the views are no negatives."""
        began = time.perf_counter()
        self.views = negatives(self.given_views) if stage.inverted else self.given_views
        path: list[Tensor] = []
        searches, reason = self._searches(stage, found, units, path)
        traces = [torch.stack(search.trace) for search in searches]
        trace = torch.cat(traces) if traces else units.new_empty(0, 1)
        factor = max(1, round(max(self.views[0].camera.size) / stage.pixels))
        seconds = time.perf_counter() - began
        visited = _stacked(path, found.pose)
        self.history.append(
            StageRecord("search", factor, trace.cpu(), seconds, reason, "search", visited)
        )
        if not searches:
            return found
        pose, loss, inverted = _matched(searches)
        if inverted:
            self.views = negatives(self.given_views)
        chosen = distinct_poses(pose, loss, self.center, units, stage.apart, stage.keep)
        return Candidates(pose[chosen], loss[chosen])

    def _searches(
        self, stage: Search, found: Candidates, units: Tensor, path: list[Tensor]
    ) -> tuple[list[GlobalSearch], str]:
        """The searches in every view about every pose that have begun, and why they ended.

        A view of several that cannot be searched, such as one of a parallel beam, is left out.
        """
        scene, searches, problem = self._at_voxels(stage.voxel_mm), [], None
        reason = "converged"
        for view, start in itertools.product(self.views, found.pose):
            try:
                search = GlobalSearch(scene, view, start, self.center, units, stage, self.method)
            except ValueError as error:
                problem = problem or error
                continue
            self.bar.add(len(search.batches))
            reason = run(search, self.bar, path)
            searches += [search] if search.steps else []
            if reason == "interrupted":
                return searches, reason
        if problem is not None and not searches:
            raise problem
        return searches, reason

    def _improve(self, stage: Stage, found: Candidates, units: Tensor, depth: float) -> Candidates:
        """What a stage makes of the poses."""
        began = time.perf_counter()
        factors = downsamplings(stage, self.views, depth)
        cloud = _neighbours(found.pose, stage, self.center, self.generator)
        optimiser = self._optimiser(stage, cloud, units, factors)
        path: list[Tensor] = []
        reason = run(optimiser, self.bar, path)
        self.bar.update(stage.iterations - optimiser.steps)
        seconds = time.perf_counter() - began
        self.history.append(_record(optimiser, factors[0], reason, seconds, path))
        if optimiser.steps == 0:
            return found
        if stage.keep is None:
            return _best_of_each(optimiser, stage.starts)
        chosen = distinct_poses(
            optimiser.best_pose, optimiser.best_loss, self.center, units, stage.apart, stage.keep
        )
        return Candidates(optimiser.best_pose[chosen], optimiser.best_loss[chosen])

    def _optimiser(
        self, stage: Stage, pose: Tensor, units: Tensor, factors: list[int]
    ) -> PoseOptimiser:
        scene = self._at_voxels(stage.voxel_mm)
        if stage.optimiser == "levenberg":
            expand = expansion(
                scene, self.views, stage, factors, self.method, self.center, self.prior
            )
            return LevenbergMarquardt(expand, pose, self.center, units, stage)
        measure = objective(scene, self.views, stage, factors, self.method)
        if self.prior is not None:
            measure = self.prior.added_to(measure)
        if stage.optimiser == "gradient":
            return PoseDescent(measure, pose, self.center, units, stage)
        if stage.optimiser == "directions":
            return DirectionDescent(measure, pose, self.center, units, stage)
        if stage.optimiser == "trust_region":
            return TrustRegion(measure, pose, self.center, units, stage, self.generator)
        if stage.optimiser == "regressor":
            propose = proposals(self.scene, self.views, stage, pose, self.center, self.method)
            return PoseRegression(measure, propose, pose, self.center, units, stage)
        self._evolution = CmaEs(
            measure, pose, self.center, units, stage, self.generator, self._evolution
        )
        return self._evolution

    def _at_voxels(self, voxel_mm: float | None) -> Any:
        """The scene with voxels of at least this size; one without voxels stays as it is."""
        if voxel_mm is None or not isinstance(self.scene, (Volume, Bodies)):
            return self.scene
        if voxel_mm not in self._resampled:
            coarser = partial(_coarser, voxel_mm=voxel_mm)
            one = isinstance(self.scene, Volume)
            self._resampled[voxel_mm] = coarser(self.scene) if one else self.scene.map(coarser)
        return self._resampled[voxel_mm]


def _matched(searches: Sequence[GlobalSearch]) -> tuple[Tensor, Tensor, bool]:
    """Poses [N, 4, 4] and losses [N] of searches, and whether they are of negative X-rays."""
    if len({id(search.view) for search in searches}) > 1:
        scores = [sum(search.best_score(sign) for search in searches) for sign in (1.0, -1.0)]
        inverted = scores[1] > scores[0]
        return *viewed_alike(searches, inverted), inverted
    inverted = min(searches, key=lambda search: float(search.best_loss)).inverted
    alike = [search.candidates() for search in searches if search.inverted == inverted]
    pose, loss = (torch.cat(part) for part in zip(*alike, strict=True))
    return pose, loss, inverted


def _coarser(volume: Volume, voxel_mm: float) -> Volume:
    """A volume resampled to voxels of at least this size, if that makes it much smaller."""
    spacing = tuple(max(own, voxel_mm) for own in volume.spacing)
    if all(new < 1.25 * own for new, own in zip(spacing, volume.spacing, strict=True)):
        return volume
    return volume.resample(spacing)


def _neighbours(pose: Tensor, stage: Stage, center: Tensor, generator: torch.Generator) -> Tensor:
    """Every pose [K, ...] followed by random ones around it: [K * starts, ...]."""
    if stage.starts == 1:
        return pose
    bodies = pose[0].numel() // 16
    shape = (pose.shape[0], stage.starts, 2 * bodies, 3)
    direction = torch.randn(shape, generator=generator, dtype=torch.float64)
    direction = direction / direction.norm(dim=-1, keepdim=True)
    radius = torch.rand(shape[:3], generator=generator, dtype=torch.float64)[..., None]
    xi = direction * radius * stage.spreads.reshape(2, 3).repeat(bodies, 1)
    xi[:, 0] = 0.0
    repeated = pose.repeat_interleave(stage.starts, dim=0)
    return moved(repeated, xi.flatten(0, 1).flatten(1).to(pose), center)


def _best_of_each(optimiser: PoseOptimiser, starts: int) -> Candidates:
    """The best pose [K, ...] and loss [K] among the optimisations that belong to each pose."""
    loss = optimiser.best_loss.reshape(-1, starts)
    best = loss.argmin(dim=1)
    row = torch.arange(loss.shape[0], device=loss.device)
    return Candidates(optimiser.best_pose.unflatten(0, (-1, starts))[row, best], loss[row, best])


def _stacked(path: Sequence[Tensor], like: Tensor) -> Tensor:
    """Poses as one tensor [steps, ...] on the CPU; `like` [K, ...] says their shape."""
    return torch.stack(list(path)).cpu() if path else like[:0].cpu()


def _record(
    optimiser: PoseOptimiser, factor: int, reason: str, seconds: float, path: Sequence[Tensor]
) -> StageRecord:
    stage, count = optimiser.stage, optimiser.best_loss.shape[0]
    trace = optimiser.best_loss.new_empty(0, count)
    if optimiser.trace:
        trace = torch.stack(optimiser.trace)
    visited = _stacked(path, optimiser.best_pose)
    return StageRecord(stage.name, factor, trace.cpu(), seconds, reason, stage.optimiser, visited)
