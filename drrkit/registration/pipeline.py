"""register() and Registrar: stages in order, the result of one starting the next."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from drrkit.geometry import Camera
from drrkit.registration.certainty import agreement, covariances, probability
from drrkit.registration.doubts import left_range, mirrored, out_of_room
from drrkit.registration.lengths import (
    field_diagonal,
    mean_depth,
    motion_units,
    object_diagonal,
    object_faces,
)
from drrkit.registration.optimisers.optimiser import PoseEngine, PoseProblem
from drrkit.registration.presets import FOLLOW, PART_MARGIN, is_part
from drrkit.registration.problem.formation import as_measured, gain_of, is_implant
from drrkit.registration.problem.inputs import (
    check_options,
    computing_place,
    self_rendering,
    start_poses,
)
from drrkit.registration.problem.landmarks import Landmarks
from drrkit.registration.problem.loss import StageLoss
from drrkit.registration.problem.motion import Candidates, distinct_poses, neighbours
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
from drrkit.registration.stages import Search, Stage
from drrkit.registration.trials import Attempt, Searched, Trial, trials_of

__all__ = ["Registrar", "register"]

# A mirrored image that agrees this much less, or better, leaves open which of the two it is.
_AS_WELL = 0.01


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
        self.trials = trials_of(stages)
        used = [stage for trial in self.trials for stage in trial.stages]
        self.like, self.center = computing_place(scene, center)
        self.camera, self.rig_to_camera, self.xray_kind = camera, rig_to_camera, xray_kind
        self.gain = gain_of(scene, used, formation, gain, xray_kind)
        self.part = is_part(self.trials[0].stages)
        self.drawn = SceneRenderer(scene, method, self.gain, self.part)
        self.diagonal, self.faces = object_diagonal(scene), object_faces(scene)

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
        trials = self.trials if stages is None else trials_of(stages)
        views = make_views(self.camera, xray, mask, self.rig_to_camera, self.like)
        if self.gain:
            views = as_measured(views, self.xray_kind)
        camera = views[0].camera
        pose = start_poses(init, trials[0].stages, camera, self.drawn.scene).to(self.center)
        depth, found_field = mean_depth(pose, self.center), False
        extent = min(field_diagonal(camera, depth), self.diagonal)
        if is_part(trials[0].stages):
            views, found_field = within_fields(views)
            views = around(views, self.drawn, pose, depth, PART_MARGIN * extent)
        trials = [trial.in_mm(extent) for trial in trials]
        bar = step_bar(trials[0].stages, progress)
        term = None if prior is None else prior.term(pose, self.center)
        generator = torch.Generator().manual_seed(seed)
        try:
            work = Registration(self.drawn, views, self.center, extent, generator, bar, term)
            work.inferred = ["field"] if found_field else []
            found = work.until_trusted(trials, Candidates.unjudged(pose))
            work.doubt(found, pose, trials[0], self.faces)
        finally:
            bar.close()
        result = work.result(found, began)
        if result.depth_observable is False and result.sigma is not None:
            warnings.warn(
                "depth is not observable: standard deviation "
                f"{float(result.sigma[5::6].max()):.3g} mm, more than {DEPTH_LIMIT_MM:g} mm or a "
                "thirtieth of the object; a second view or a prior would determine it",
                stacklevel=2,
            )
        return result


class Registration:
    """One registration: `until_trusted` runs the stages, `result` says what came of it."""

    def __init__(
        self,
        drawn: SceneRenderer,
        views: Sequence[View],
        center: Tensor,
        extent: float,
        generator: torch.Generator,
        bar: Any,
        prior: PriorTerm | None = None,
    ) -> None:
        self.drawn, self.center, self.extent, self.prior = drawn, center, extent, prior
        self.bodies = center.numel() // 3
        self.views = self.given_views = views
        self.generator, self.bar = generator, bar
        self.history: list[StageRecord] = []
        self.loss: StageLoss | None = None
        self.engine: PoseEngine | None = None  # the last, for a stage that goes on with it
        self.rejected: list[Attempt] = []
        self.inverted = False
        self.searched: dict[Any, Searched] = {}
        self.inferred: list[str] = []  # before any trial
        self.doubts: list[str] = []
        self.mirror: RunnerUp | None = None

    @cached_property
    def fields(self) -> tuple[list[View], bool]:
        """The views within their open fields, and whether one was found."""
        return within_fields(self.given_views)

    def until_trusted(self, trials: Sequence[Trial], start: Candidates) -> Attempt:
        """The best of what the trials make of the poses, up to the first that is trusted.

        The best is the one that agrees best. A negative counts only where it is trusted and within
        reach: nothing but a match may turn the images that were given.
        """
        best: Attempt | None = None
        for number, trial in enumerate(trials):
            if number > 0:
                self.bar.add(count_steps(trial.stages))
            attempt = self.through(trial, start)
            trusted = attempt.agreement >= trial.trusted
            if best is None or (trusted if trial.negative else attempt.agreement > best.agreement):
                best, attempt = attempt, best
            if attempt is not None:
                self.rejected.append(attempt)
            if best.interrupted or best.agreement >= trial.trusted:
                break
        assert best is not None  # there is at least one trial
        return best

    def doubt(
        self, attempt: Attempt, starts: Tensor, trial: Trial, faces: Sequence[Tensor | None]
    ) -> None:
        """Note what speaks against the pose though its image agrees; `trial` was the first."""
        if out_of_room(faces, attempt.views, attempt.best):
            self.doubts.append("out_of_room")
        if not trial.named or attempt.interrupted:
            return
        field = field_diagonal(self.given_views[0].camera, mean_depth(starts, self.center))
        if not isinstance(trial.stages[0], Search) and left_range(
            starts, attempt.best, self.center, field
        ):
            self.doubts.append("left_range")
        if self.bodies == 1 and attempt.agreement >= TRUSTED:
            self._check_mirrored(attempt, [stage.in_mm(self.extent) for stage in FOLLOW[:1]])

    def _check_mirrored(self, attempt: Attempt, stages: Sequence[Stage]) -> None:
        """Whether the mirrored X-ray agrees as well, about where a symmetric patient would be.

        A detector or a file that shows the image from behind gives no other sign.
        """
        views, pose = mirrored(attempt.views, attempt.best, self.center)
        kept = self.views, self.history, self.loss, self.engine, self.bar
        self.views, self.history, self.bar = views, [], step_bar((), False)
        found = Candidates.unjudged(pose)
        depth = mean_depth(pose, self.center)
        for stage in stages:
            found = self._improve(stage, found, self._units(depth).to(pose), depth)
        best = found.pose[int(found.loss.argmin())]
        agreed = agreement(self.drawn, views, best[None])
        self.views, self.history, self.loss, self.engine, self.bar = kept
        if agreed.value > attempt.agreement - _AS_WELL:
            self.doubts.append("handedness")
            self.mirror = RunnerUp(best, float(found.loss.min()), agreed.value, mirrored=True)

    def result(self, attempt: Attempt, began: float) -> RegistrationResult:
        """Everything about the attempt that counts."""
        interrupted = any(one.interrupted for one in (attempt, *self.rejected))
        reasons = []
        if any(view.camera.origin == "assumed" for view in self.views):
            reasons.append("depth_assumed")
        reasons += self.doubts
        if interrupted:
            reasons.append("interrupted")
        loss = float(attempt.found.loss.min())
        sure = probability(attempt.agreed, 10.0)
        reasons += [] if sure is not None else ["little_evidence"]
        units = self._units(mean_depth(attempt.best, self.center)).to(attempt.best)
        covariance, geometric = covariances(attempt.loss, attempt.views, attempt.best, units)
        return RegistrationResult(
            world_to_camera=attempt.best[0],
            loss=loss,
            accepted=is_accepted(sure, loss, reasons),
            confidence=probability(attempt.agreed, 2.0),
            confidence_10mm=sure,
            agreement=attempt.agreement,
            compared_pixels=attempt.agreed.pixels,
            reasons=tuple(reasons),
            runner_up=self.mirror or self._runner_up(attempt),
            covariance=covariance,
            geometric_covariance=geometric,
            inferred=attempt.inferred,
            history=[
                record if record in attempt.history else replace(record, counted=False)
                for record in self.history
            ],
            seconds=time.perf_counter() - began,
            stop_reason="interrupted" if interrupted else attempt.history[-1].stop_reason,
            all_world_to_camera=attempt.found.pose,
            all_loss=attempt.found.loss,
            extent_mm=self.extent,
        )

    def through(self, trial: Trial, found: Candidates) -> Attempt:
        """What a trial makes of the poses; after an interruption the best up to then."""
        stages, before = trial.stages, len(self.history)
        depth = mean_depth(found.pose, self.center)
        views, inferred = self.given_views, list(self.inferred)
        if trial.field and self.fields[1]:
            views, inferred = self.fields[0], ["field"]
        if trial.negative:
            inferred.append("negative")
        self.views, self.loss = negatives(views) if trial.negative else views, None
        for number, stage in enumerate(stages, 1):
            self.bar.set_description(f"stage {number}/{len(stages)} {stage.name}")
            units = self._units(depth).to(found.pose)
            if isinstance(stage, Search):
                found = self._search(stage, found, units)
                inferred += ["negative"] if self.inverted and not stage.inverted else []
                depth = mean_depth(found.pose[:1], self.center)
            else:
                found = self._improve(stage, found, units, depth)
            if self.history[-1].stop_reason == "interrupted":
                break
        best = found.pose[int(found.loss.argmin())][None]
        agreed = agreement(self.drawn, self.views, best)
        history = self.history[before:]
        return Attempt(
            found, agreed, self.views, tuple(inferred), history, self.loss, stages[-1].apart
        )

    def _units(self, depth: float) -> Tensor:
        return motion_units(self.given_views[0].camera, depth, self.bodies)

    def _runner_up(self, attempt: Attempt) -> RunnerUp | None:
        """The best candidate of the last stage that differs from the best."""
        found = attempt.found
        units = self._units(mean_depth(attempt.best, self.center)).to(found.pose)
        order = distinct_poses(found.pose, found.loss, self.center, units, attempt.apart, 2)
        if len(order) < 2:
            return None
        pose, loss = found.pose[order[1]], float(found.loss[order[1]])
        return RunnerUp(pose, loss, agreement(self.drawn, attempt.views, pose[None]).value)

    def _search(self, stage: Search, found: Candidates, units: Tensor) -> Candidates:
        """The candidates of a search about every pose; from here on the views are no negatives.

        What an earlier trial searched is not searched again.
        """
        key = (stage, *self.views)
        if key not in self.searched:
            self.searched[key] = self._searched(stage, found, units)
        known = self.searched[key]
        self.history.append(known.record)
        self.views, self.inverted = known.views, known.inverted
        return known.found

    def _searched(self, stage: Search, found: Candidates, units: Tensor) -> Searched:
        began = time.perf_counter()
        views, inverted = self.views, bool(stage.inverted)
        if stage.inverted:
            self.views = negatives(views)
        path: list[Tensor] = []
        searches, reason = self._searches(stage, found, units, path)
        traces = [torch.stack(search.trace) for search in searches]
        trace = torch.cat(traces) if traces else units.new_empty(0, 1)
        factor = max(1, round(max(self.views[0].camera.size) / stage.pixels))
        seconds = time.perf_counter() - began
        visited = stacked(path, found.pose)
        record = StageRecord("search", factor, trace.cpu(), seconds, reason, "search", path=visited)
        if not searches:
            return Searched(found, record, self.views, inverted)
        pose, loss, dark = matched(searches)
        chosen = distinct_poses(pose, loss, self.center, units, stage.apart, stage.keep)
        best = Candidates(pose[chosen], loss[chosen])
        return Searched(best, record, negatives(views) if dark else self.views, dark or inverted)

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
        alone = cloud if len(cloud) == 1 else None
        loss = StageLoss(self.drawn, self.views, stage, factors, self.center, self.prior, alone)
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
