"""register() and Registrar: stages in order, the result of one starting the next."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from drrkit.geometry import Camera
from drrkit.registration.certainty import agreement, geometric_covariance, pose_covariance
from drrkit.registration.lengths import field_diagonal, mean_depth, motion_units, object_diagonal
from drrkit.registration.optimisers.optimiser import PoseEngine, PoseProblem
from drrkit.registration.presets import PART, PART_MARGIN, resolve_stages
from drrkit.registration.problem.formation import as_measured, gain_of, is_implant
from drrkit.registration.problem.inputs import (
    check_options,
    computing_place,
    self_rendering,
    start_poses,
)
from drrkit.registration.problem.landmarks import Landmarks
from drrkit.registration.problem.loss import StageLoss
from drrkit.registration.problem.motion import (
    Candidates,
    distinct_poses,
    neighbours,
    out_of_reach,
)
from drrkit.registration.problem.part import around
from drrkit.registration.problem.prior import PosePrior, PriorTerm
from drrkit.registration.problem.rendering import SceneRenderer
from drrkit.registration.problem.views import (
    View,
    downsamplings,
    make_views,
    negatives,
    within_fields,
)
from drrkit.registration.progress import (
    Watcher,
    count_steps,
    run,
    stacked,
    stage_record,
    step_bar,
)
from drrkit.registration.result import (
    DEPTH_LIMIT_MM,
    TRUSTED,
    RegistrationResult,
    RunnerUp,
    StageRecord,
    is_accepted,
)
from drrkit.registration.search.search import GlobalSearch, matched
from drrkit.registration.similarities import has_curvature
from drrkit.registration.stages import Search, Stage

__all__ = ["Registrar", "register"]

# A negative counts where the last stage's loss is below this: the gauntlet's right ends have at
# most 0.43, with one exception, those beyond 10 mm at least 0.57.
_FITTING = 0.5

# Farther turns than this, and shifts farther than the object's extent, are not what "auto" is for.
_FARTHEST_RAD = math.radians(60.0)


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
    formation: str = "auto",
    gain: float = 1.0,
    xray_kind: str = "line",
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
            A scene without render() whose `volume` is a Volume is taken for that.
        camera: the X-ray's camera, or a list for several views of one patient.
        xray: [1, 1, rows, cols] or [rows, cols], on the scale of line integrals: bright where the
            patient attenuates. Correlations ignore its offset and gain, "mi" any remapping.
            A list for several cameras.
        init: [4, 4] or [K, 4, 4] world_to_camera to start from (of the first camera); Landmarks,
            whose pose it is then; for n bodies [n, 4, 4] or [K, n, 4, 4], or [4, 4] for all. May be
            None where the first stage is a Search: it is then about an AP view of the volume.
        stages: "auto" (coarse to fine, from a start nearby; "part" where all volumes are mostly
            metal), "global" (a search comes first, about a start that may be far off), "part" (the
            volume is a part of what the X-ray shows, such as one bone: only its surroundings at
            the start are looked at), or Stages of your own; the first may be a Search.
        mask: float weights of the X-ray's shape; 0 leaves a pixel out, and exp(-xray) weighs pixels
            by their photons where those are few. A list for several cameras.
        rig_to_camera: [V, 4, 4] for several cameras: the fixed maps from the first camera's
            coordinates to each camera's; the first is the identity.
        prior: how far from the start the pose is expected: a term of every stage's loss.
        center: [3] world mm, the point that rotations turn about; default the volume's centre, or
            the scene's `center`. [n, 3] for n bodies.
        method: projector method, as in `render`.
        formation: "line" compares line integrals; "intensity" what a detector shows of them, the
            absorbed share of the beam 1 - exp(-gain L), in which metal is opaque; "auto" takes
            intensity where a volume of the scene is mostly metal.
        gain: of the rendered line integrals, for intensity.
        xray_kind: what `xray` holds, for intensity: "line" integrals x, of which 1 - exp(-x) is
            compared, or a "display", a picture in which the patient is bright, as it is.
        seed: of the starts that stages with several draw; the same seed gives the same result.
        progress: show a progress bar (needs tqdm; silently none without it); or a function that is
            called after every step with the best pose so far, [4, 4] ([n, 4, 4] for n bodies), and
            its loss in the current stage. What it returns is ignored; KeyboardInterrupt, raised in
            it, ends the registration with that pose, and any other exception passes through.

    Returns:
        a RegistrationResult; with a UserWarning where the images do not show the depth.

    Raises:
        TypeError, ValueError: an argument is not what is described here; a Volume in HU (convert it
            with to_mu) is one of them.
    """
    registrar = Registrar(
        volume,
        camera,
        stages=stages,
        rig_to_camera=rig_to_camera,
        center=center,
        method=method,
        formation=formation,
        gain=gain,
        xray_kind=xray_kind,
    )
    return registrar(xray, init, mask=mask, prior=prior, seed=seed, progress=progress)


class Registrar:
    """`register` for many X-rays of one volume in one camera or rig: what it prepares is kept.

    Resampled volumes, projectors and the wide images of a search (for starts of one rotation) are
    made by the first call that needs them. The volume's values must not change meanwhile.

    Args:
        volume, camera, stages, rig_to_camera, center, method, formation, gain, xray_kind: as for
            `register`.

    Raises:
        TypeError, ValueError: as `register`.
    """

    def __init__(
        self,
        volume: Any,
        camera: Camera | Sequence[Camera],
        *,
        stages: str | Stage | Search | Sequence[Stage | Search] = "auto",
        rig_to_camera: Tensor | None = None,
        center: Tensor | None = None,
        method: str = "joseph",
        formation: str = "auto",
        gain: float = 1.0,
        xray_kind: str = "line",
    ) -> None:
        scene = self_rendering(volume)
        if stages == "auto" and is_implant(scene):
            stages = "part"
        self.stages, self.named = resolve_stages(stages), stages
        self.like, self.center = computing_place(scene, center)
        self.camera, self.rig_to_camera = camera, rig_to_camera
        self.xray_kind = xray_kind
        self.gain = gain_of(scene, self.stages, formation, gain, xray_kind)
        self.drawn = SceneRenderer(scene, method, self.gain)
        self.diagonal = object_diagonal(scene)

    def __call__(
        self,
        xray: Tensor | Sequence[Tensor],
        init: Tensor | Landmarks | None = None,
        *,
        mask: Tensor | Sequence[Tensor | None] | None = None,
        prior: PosePrior | None = None,
        seed: int = 0,
        progress: bool | Watcher = False,
        stages: str | Stage | Search | Sequence[Stage | Search] | None = None,
    ) -> RegistrationResult:
        """The pose in an X-ray. Arguments, result, warnings and errors as for `register`.

        stages: others than the Registrar's for this X-ray.
        """
        began = time.perf_counter()
        check_options(prior, seed, progress)
        given = self.stages if stages is None else resolve_stages(stages)
        views = make_views(self.camera, xray, mask, self.rig_to_camera, self.like)
        views, found_field = within_fields(views)
        if self.gain:
            views = as_measured(views, self.xray_kind)
        camera = views[0].camera
        pose = start_poses(init, given, camera, self.drawn.scene).to(self.center)
        depth = mean_depth(pose, self.center)
        extent = min(field_diagonal(camera, depth), self.diagonal)
        if given is PART:
            views = around(views, self.drawn, pose, depth, PART_MARGIN * extent)
        resolved = [stage.in_mm(extent) for stage in given]
        bar = step_bar(resolved, progress)
        term = None if prior is None else prior.term(pose, self.center)
        generator = torch.Generator().manual_seed(seed)
        try:
            work = Registration(self.drawn, views, self.center, generator, bar, term)
            named = self.named if stages is None else stages
            work.hypotheses = isinstance(named, str) and given is not PART
            work.extent = extent
            work.inferred = ("field",) if found_field else ()
            found = work.until_trusted(resolved, Candidates.unjudged(pose))
        finally:
            bar.close()
        result = work.result(found, resolved[-1], extent, began)
        if result.depth_observable is False and result.sigma is not None:
            warnings.warn(
                "depth is not observable: standard deviation "
                f"{float(result.sigma[5::6].max()):.3g} mm, more than {DEPTH_LIMIT_MM:g} mm or a "
                "thirtieth of the object; a second view or a prior would determine it",
                stacklevel=2,
            )
        return result


@dataclass(frozen=True)
class Attempt:
    """What one run through the stages came to."""

    found: Candidates
    agreement: float
    views: Sequence[View]  # negated where the search found the X-ray to be a negative
    history: list[StageRecord]
    loss: StageLoss | None  # the last stage's

    @property
    def best(self) -> Tensor:
        """The pose of lowest loss, [1, 4, 4]."""
        return self.found.pose[int(self.found.loss.argmin())][None]

    @property
    def interrupted(self) -> bool:
        return self.history[-1].stop_reason == "interrupted"


class Registration:
    """One registration: `until_trusted` runs the stages, `result` says what came of it."""

    def __init__(
        self,
        drawn: SceneRenderer,
        views: Sequence[View],
        center: Tensor,
        generator: torch.Generator,
        bar: Any,
        prior: PriorTerm | None = None,
    ) -> None:
        self.drawn, self.center, self.prior = drawn, center, prior
        self.bodies = center.numel() // 3
        self.views = self.given_views = views
        self.generator, self.bar = generator, bar
        self.history: list[StageRecord] = []
        self.loss: StageLoss | None = None
        self.engine: PoseEngine | None = None  # the last, for a stage that goes on with it
        self.rejected: list[Attempt] = []
        self.inferred: tuple[str, ...] = ()
        self.hypotheses = self.told_negative = self.left_range = False
        self.extent = math.inf  # of the object, mm

    def until_trusted(self, stages: Sequence[Stage | Search], start: Candidates) -> Attempt:
        """What the stages make of the poses.

        Where their outcome is not trusted, they are tried on the negative X-ray, which counts if
        it is trusted. Where they begin with a search, they begin again with a denser one then; the
        better outcome counts.
        """
        attempt, first = self.through(stages, start), stages[0]
        if self._may_be_negative(stages) and not self._is_trusted(attempt):
            self.bar.add(count_steps(stages))
            other = self.through(stages, start, negative=True)
            fits = float(other.found.loss.min()) < _FITTING
            if self._is_trusted(other) and fits and not self._left_range(start, other):
                attempt, other = other, attempt
            self.rejected.append(other)
        if not isinstance(first, Search):
            self.left_range = self.hypotheses and self._left_range(start, attempt)
            return attempt
        for _ in range(first.repeats):
            if attempt.agreement >= first.trusted or attempt.interrupted:
                break
            first = first.denser()
            self.bar.add(count_steps(stages))
            other = self.through((first, *stages[1:]), start)
            if other.agreement > attempt.agreement:
                attempt, other = other, attempt
            self.rejected.append(other)
        return attempt

    def _left_range(self, start: Candidates, attempt: Attempt) -> bool:
        """Whether the best pose is farther from every start than stages without a search reach."""
        return out_of_reach(start.pose, attempt.best, self.center, _FARTHEST_RAD, self.extent)

    def _may_be_negative(self, stages: Sequence[Stage | Search]) -> bool:
        """Whether nobody said how the X-ray is, and the stages' outcomes can be told apart."""
        first = stages[0]
        return self.hypotheses and not (isinstance(first, Search) and first.inverted is not False)

    @staticmethod
    def _is_trusted(attempt: Attempt) -> bool:
        return attempt.agreement >= TRUSTED or attempt.interrupted

    def result(
        self, attempt: Attempt, stage: Stage | Search, extent: float, began: float
    ) -> RegistrationResult:
        """Everything about the attempt that counts; `stage` is the last one."""
        interrupted = any(one.interrupted for one in (attempt, *self.rejected))
        reasons = []
        if any(view.camera.origin == "assumed" for view in self.views):
            reasons.append("depth_assumed")
        if self.left_range:
            reasons.append("left_range")
        if interrupted:
            reasons.append("interrupted")
        loss = float(attempt.found.loss.min())
        negative = attempt.views is not self.given_views and not self.told_negative
        covariance, geometric = self._covariances(attempt)
        return RegistrationResult(
            world_to_camera=attempt.best[0],
            loss=loss,
            accepted=is_accepted(attempt.agreement, loss, reasons),
            confidence=attempt.agreement,
            agreement=attempt.agreement,
            reasons=tuple(reasons),
            runner_up=self._runner_up(attempt, stage),
            covariance=covariance,
            geometric_covariance=geometric,
            inferred=(*self.inferred, *(("negative",) if negative else ())),
            history=[
                record if record in attempt.history else replace(record, counted=False)
                for record in self.history
            ],
            seconds=time.perf_counter() - began,
            stop_reason="interrupted" if interrupted else attempt.history[-1].stop_reason,
            all_world_to_camera=attempt.found.pose,
            all_loss=attempt.found.loss,
            extent_mm=extent,
        )

    def through(
        self, stages: Sequence[Stage | Search], found: Candidates, negative: bool = False
    ) -> Attempt:
        """What the stages make of the poses; after an interruption the best up to then."""
        depth, before = mean_depth(found.pose, self.center), len(self.history)
        self.views, self.loss = negatives(self.given_views) if negative else self.given_views, None
        for number, stage in enumerate(stages, 1):
            self.bar.set_description(f"stage {number}/{len(stages)} {stage.name}")
            units = self._units(depth).to(found.pose)
            if isinstance(stage, Search):
                found = self._search(stage, found, units)
                depth = mean_depth(found.pose[:1], self.center)
            else:
                found = self._improve(stage, found, units, depth)
            if self.history[-1].stop_reason == "interrupted":
                break
        best = found.pose[int(found.loss.argmin())][None]
        agreed = agreement(self.drawn, self.views, best)
        return Attempt(found, agreed, self.views, self.history[before:], self.loss)

    def _units(self, depth: float) -> Tensor:
        return motion_units(self.given_views[0].camera, depth, self.bodies)

    def _covariances(self, attempt: Attempt) -> tuple[Tensor | None, Tensor | None]:
        """Of the pose found, where the last stage has a Jacobian; and the cameras' part of it."""
        loss, pose = attempt.loss, attempt.best
        if (
            loss is None
            or not loss.stage.optimiser.has_jacobian
            or not has_curvature(loss.stage.measure)
        ):
            return None, None
        units = self._units(mean_depth(pose, self.center)).to(pose)
        parts = list(loss.linearise(pose))
        prior: tuple[Any, ...] = ()
        if self.prior is not None:
            prior = (self.prior.expand(pose)[2][0], 1.0 - self.prior.weight)
        geometric = geometric_covariance(parts, attempt.views, pose, self.center, units, *prior)
        return pose_covariance(parts, units, *prior) + geometric, geometric

    def _runner_up(self, attempt: Attempt, stage: Stage | Search) -> RunnerUp | None:
        """The best candidate of the last stage that differs from the best."""
        found = attempt.found
        units = self._units(mean_depth(attempt.best, self.center)).to(found.pose)
        order = distinct_poses(found.pose, found.loss, self.center, units, stage.apart, 2)
        if len(order) < 2:
            return None
        pose, loss = found.pose[order[1]], float(found.loss[order[1]])
        return RunnerUp(pose, loss, agreement(self.drawn, attempt.views, pose[None]))

    def _search(self, stage: Search, found: Candidates, units: Tensor) -> Candidates:
        """The candidates of a search about every pose; from here on the views are no negatives."""
        began = time.perf_counter()
        if stage.inverted:
            self.views, self.told_negative = negatives(self.given_views), stage.inverted
        path: list[Tensor] = []
        searches, reason = self._searches(stage, found, units, path)
        traces = [torch.stack(search.trace) for search in searches]
        trace = torch.cat(traces) if traces else units.new_empty(0, 1)
        factor = max(1, round(max(self.views[0].camera.size) / stage.pixels))
        seconds = time.perf_counter() - began
        visited = stacked(path, found.pose)
        self.history.append(
            StageRecord("search", factor, trace.cpu(), seconds, reason, "search", path=visited)
        )
        if not searches:
            return found
        pose, loss, inverted = matched(searches)
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
        searches, problem = [], None
        reason = "converged"
        for view, start in itertools.product(self.views, found.pose):
            try:
                search = GlobalSearch(self.drawn, view, start, self.center, units, stage)
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
        cloud = neighbours(found.pose, stage.starts, stage.spread, self.center, self.generator)
        loss = StageLoss(self.drawn, self.views, stage, factors, self.center, self.prior)
        problem = PoseProblem(
            center=self.center,
            units=units,
            objective=loss.objective,
            expand=loss.expand,
            propose=loss.proposals,
            iterations=stage.iterations,
            halve_every=stage.halve_every,
            keep=stage.keep or 1,
            generator=self.generator,
            previous=self.engine,
        )
        engine = stage.optimiser.begin(problem, cloud)
        self.loss, self.engine = loss, engine
        path: list[Tensor] = []
        reason = run(engine, self.bar, path)
        self.bar.update(stage.iterations - engine.steps)
        seconds = time.perf_counter() - began
        self.history.append(stage_record(engine, stage, factors[0], reason, seconds, path))
        if engine.steps == 0:
            return found
        if stage.keep is None:
            return Candidates.best_of_each(engine.best_pose, engine.best_loss, stage.starts)
        chosen = distinct_poses(
            engine.best_pose, engine.best_loss, self.center, units, stage.apart, stage.keep
        )
        return Candidates(engine.best_pose[chosen], engine.best_loss[chosen])
