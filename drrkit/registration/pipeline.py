"""register(): stages in order, the result of one starting the next."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drrkit.geometry import Camera, perturb, view_ap, volume_center
from drrkit.registration.candidates import distinct_poses
from drrkit.registration.cmaes import CmaEs
from drrkit.registration.confidence import agreement
from drrkit.registration.covariance import pose_covariance
from drrkit.registration.descent import PoseDescent
from drrkit.registration.levenberg import LevenbergMarquardt, expansion
from drrkit.registration.optimiser import PoseOptimiser
from drrkit.registration.presets import resolve_stages
from drrkit.registration.refine import TrustRegion
from drrkit.registration.regression import PoseRegression, proposals
from drrkit.registration.result import RegistrationResult, StageRecord
from drrkit.registration.search import GlobalSearch
from drrkit.registration.stages import Search, Stage
from drrkit.registration.views import (
    View,
    downsampling,
    make_views,
    negatives,
    objective,
    pixel_at,
)
from drrkit.volume import Volume

__all__ = ["register"]


def register(
    volume: Any,
    camera: Camera | Sequence[Camera],
    xray: Tensor | Sequence[Tensor],
    init: Tensor | None = None,
    *,
    stages: str | Stage | Search | Sequence[Stage | Search] = "auto",
    mask: Tensor | Sequence[Tensor | None] | None = None,
    rig_to_camera: Tensor | None = None,
    center: Tensor | None = None,
    method: str = "joseph",
    seed: int = 0,
    progress: bool = False,
) -> RegistrationResult:
    """Find the pose at which a rendered volume agrees with an X-ray image.

    Several starts, or the candidates of a search, are optimised as one batch; the one that ends
    with the lowest loss is returned, and where the others ended beside it. Ctrl-C returns the best
    so far.

    Args:
        volume: a Volume in mu, or a scene: anything with render(camera, world_to_camera) ->
            [B, C, rows, cols] and then `center`.
        camera: the X-ray's camera, or a list for several views of one patient.
        xray: [1, 1, rows, cols] or [rows, cols], on the scale of line integrals: bright where the
            patient attenuates. Correlations ignore its offset and gain, "mi" any remapping.
            A list for several cameras.
        init: [4, 4] or [K, 4, 4] world_to_camera to start from (of the first camera). May be None
            where the first stage is a Search: it is then about an AP view of the volume.
        stages: "auto" (coarse to fine, from a start nearby), "global" (a search comes first, about
            a start that may be far off), or Stages of your own; the first may be a Search.
        mask: float weights of the X-ray's shape; 0 leaves a pixel out, and exp(-xray) weighs pixels
            by their photons where those are few. A list for several cameras.
        rig_to_camera: [V, 4, 4] for several cameras: the fixed maps from the first camera's
            coordinates to each camera's; the first is the identity.
        center: [3] world mm, the point that rotations turn about; default the volume's centre.
        method: projector method, as in `render`.
        seed: of the starts that stages with several draw; the same seed gives the same result.
        progress: show a progress bar (needs tqdm; silently none without it).

    Returns:
        a RegistrationResult.

    Raises:
        TypeError, ValueError: an argument is not what is described here; a Volume in HU (convert it
            with to_mu) is one of them.
    """
    began = time.perf_counter()
    resolved = resolve_stages(stages)
    dtype, device = _check_scene(volume, center)
    views = make_views(
        camera, xray, mask, rig_to_camera, torch.empty(0, dtype=dtype, device=device)
    )
    middle = volume_center(volume) if center is None else center
    middle = middle.detach().to(device=device, dtype=torch.float64)
    pose = _start(init, resolved, views[0].camera, volume).to(device)
    bar = _progress_bar(resolved, progress)
    run = Registration(volume, views, middle, method, torch.Generator().manual_seed(seed), bar)
    try:
        found, confidence = run.until_trusted(resolved, Candidates.unjudged(pose))
    finally:
        bar.close()
    best = int(found.loss.argmin())
    return RegistrationResult(
        world_to_camera=found.pose[best],
        loss=float(found.loss[best]),
        confidence=confidence,
        covariance=run.covariance(resolved[-1], found.pose[best : best + 1]),
        history=run.history,
        seconds=time.perf_counter() - began,
        stop_reason=run.history[-1].stop_reason,
        all_world_to_camera=found.pose,
        all_loss=found.loss,
    )


@dataclass(frozen=True)
class Candidates:
    """Poses [K, 4, 4] float64 and their losses [K] in the stage they come from."""

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
    ) -> None:
        self.scene, self.center, self.method = scene, center, method
        self.views = self.given_views = views
        self.generator, self.bar = generator, bar
        self.history: list[StageRecord] = []
        self._resampled: dict[float, Any] = {}

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
            self.bar.add(_steps(stages))
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
        scene = self._at_voxels(stage.voxel_mm)
        factor = downsampling(stage, self.views[0].camera, mean_depth(pose, self.center))
        return pose_covariance(scene, self.views, stage, factor, self.method, self.center, pose)

    def _confidence(self, found: Candidates) -> float:
        best = found.pose[int(found.loss.argmin())][None]
        depth = mean_depth(best, self.center)
        return agreement(self.scene, self.views, best, depth, self.method)

    def through(self, stages: Sequence[Stage | Search], found: Candidates) -> Candidates:
        """What the stages make of the poses; after an interruption the best up to then."""
        depth = mean_depth(found.pose, self.center)
        for number, stage in enumerate(stages, 1):
            self.bar.set_description(f"stage {number}/{len(stages)} {stage.name}")
            units = motion_units(self.views[0].camera, depth).to(found.pose)
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
        scene, view = self._at_voxels(stage.voxel_mm), self.views[0]
        searches: list[GlobalSearch] = []
        for start in found.pose:
            search = GlobalSearch(scene, view, start, self.center, units, stage, self.method)
            self.bar.add(len(search.batches))
            reason = _run(search, self.bar)
            searches += [search] if search.steps else []
            if reason == "interrupted":
                break
        traces = [torch.stack(search.trace) for search in searches]
        trace = torch.cat(traces) if traces else units.new_empty(0, 1)
        factor = max(1, round(max(view.camera.size) / stage.pixels))
        seconds = time.perf_counter() - began
        self.history.append(StageRecord("search", factor, trace.cpu(), seconds, reason, "search"))
        if not searches:
            return found
        inverted = min(searches, key=lambda search: float(search.best_loss)).inverted
        if inverted:
            self.views = negatives(self.given_views)
        alike = [search.candidates() for search in searches if search.inverted == inverted]
        pose, loss = (torch.cat(part) for part in zip(*alike, strict=True))
        chosen = distinct_poses(pose, loss, self.center, units, stage.apart, stage.keep)
        return Candidates(pose[chosen], loss[chosen])

    def _improve(self, stage: Stage, found: Candidates, units: Tensor, depth: float) -> Candidates:
        """What a stage makes of the poses."""
        began = time.perf_counter()
        factor = downsampling(stage, self.views[0].camera, depth)
        cloud = _neighbours(found.pose, stage, self.center, self.generator)
        optimiser = self._optimiser(stage, cloud, units, factor)
        reason = _run(optimiser, self.bar)
        self.bar.update(stage.iterations - optimiser.steps)
        self.history.append(_record(optimiser, factor, reason, time.perf_counter() - began))
        if optimiser.steps == 0:
            return found
        if stage.keep is None:
            return _best_of_each(optimiser, stage.starts)
        chosen = distinct_poses(
            optimiser.best_pose, optimiser.best_loss, self.center, units, stage.apart, stage.keep
        )
        return Candidates(optimiser.best_pose[chosen], optimiser.best_loss[chosen])

    def _optimiser(self, stage: Stage, pose: Tensor, units: Tensor, factor: int) -> PoseOptimiser:
        scene = self._at_voxels(stage.voxel_mm)
        if stage.optimiser == "levenberg":
            expand = expansion(scene, self.views, stage, factor, self.method, self.center)
            return LevenbergMarquardt(expand, pose, self.center, units, stage)
        measure = objective(scene, self.views, stage, factor, self.method)
        if stage.optimiser == "gradient":
            return PoseDescent(measure, pose, self.center, units, stage)
        if stage.optimiser == "regressor":
            propose = proposals(self.scene, self.views, stage, pose, self.center, self.method)
            return PoseRegression(measure, propose, pose, self.center, units, stage)
        kind = {"cmaes": CmaEs, "trust_region": TrustRegion}[stage.optimiser]
        return kind(measure, pose, self.center, units, stage, self.generator)

    def _at_voxels(self, voxel_mm: float | None) -> Any:
        """The scene with voxels of at least this size; one that is no Volume stays as it is."""
        if voxel_mm is None or not isinstance(self.scene, Volume):
            return self.scene
        spacing = tuple(max(own, voxel_mm) for own in self.scene.spacing)
        # Not worth it for a volume that would hardly become smaller.
        if all(new < 1.25 * own for new, own in zip(spacing, self.scene.spacing, strict=True)):
            return self.scene
        if voxel_mm not in self._resampled:
            self._resampled[voxel_mm] = self.scene.resample(spacing)
        return self._resampled[voxel_mm]


def motion_units(camera: Camera, depth: float) -> Tensor:
    """How much of each component of xi moves the visible patient by about one mm.

    A rotation moves a point by angle times distance, so its unit is one mm over a quarter of the
    field of view's diagonal at the patient. A change of depth moves a point at that distance by the
    change of magnification, depth over distance to the source times as much; its unit is the
    geometric mean of that and one mm, a compromise between reach and stability.

    Args:
        camera: gives the field of view.
        depth: of the patient, mm from the source.

    Returns:
        [6] float64: three times rad, then x, y, z in mm.
    """
    lever = 0.25 * pixel_at(camera, depth) * math.hypot(*camera.size)
    along = math.sqrt(max(depth / lever, 1.0))
    return torch.tensor([1 / lever] * 3 + [1.0, 1.0, along], dtype=torch.float64)


def mean_depth(world_to_camera: Tensor, center: Tensor) -> float:
    """Mean camera z of a world point under poses [K, 4, 4]; 1 mm at least."""
    z = world_to_camera[:, 2, :3] @ center + world_to_camera[:, 2, 3]
    return float(z.mean().clamp_min(1.0))


def _neighbours(pose: Tensor, stage: Stage, center: Tensor, generator: torch.Generator) -> Tensor:
    """Every pose [K, 4, 4] followed by random ones around it: [K * starts, 4, 4]."""
    if stage.starts == 1:
        return pose
    shape = (pose.shape[0], stage.starts, 2, 3)
    direction = torch.randn(shape, generator=generator, dtype=torch.float64)
    direction = direction / direction.norm(dim=-1, keepdim=True)
    radius = torch.rand(shape[:3], generator=generator, dtype=torch.float64)[..., None]
    xi = direction * radius * stage.spreads.reshape(2, 3)
    xi[:, 0] = 0.0
    repeated = pose.repeat_interleave(stage.starts, dim=0)
    return perturb(repeated, xi.reshape(-1, 6).to(pose), center)


def _best_of_each(optimiser: PoseOptimiser, starts: int) -> Candidates:
    """The best pose [K, 4, 4] and loss [K] among the optimisations that belong to each pose."""
    loss = optimiser.best_loss.reshape(-1, starts)
    best = loss.argmin(dim=1)
    row = torch.arange(loss.shape[0], device=loss.device)
    return Candidates(optimiser.best_pose.reshape(-1, starts, 4, 4)[row, best], loss[row, best])


def _run(work: PoseOptimiser | GlobalSearch, bar: Any) -> str:
    """Step until the stage is finished or the user interrupts; the reason why it ended."""
    try:
        while not work.finished:
            work.step()
            bar.update(1)
            bar.set_postfix(loss=f"{float(work.best_loss.min()):.4f}", refresh=False)
    except KeyboardInterrupt:
        return "interrupted"
    return work.stop_reason


def _record(optimiser: PoseOptimiser, factor: int, reason: str, seconds: float) -> StageRecord:
    stage, count = optimiser.stage, optimiser.best_loss.shape[0]
    trace = optimiser.best_loss.new_empty(0, count)
    if optimiser.trace:
        trace = torch.stack(optimiser.trace)
    return StageRecord(stage.name, factor, trace.cpu(), seconds, reason, stage.optimiser)


def _check_scene(volume: Any, center: Tensor | None) -> tuple[torch.dtype, torch.device]:
    """The dtype and device to compute in, or an error that names the argument."""
    if center is not None and (not isinstance(center, Tensor) or center.shape != (3,)):
        found = tuple(center.shape) if isinstance(center, Tensor) else type(center).__name__
        raise ValueError(f"center: expected a tensor [3] in world mm, got {found}")
    unit = getattr(volume, "unit", None)
    if unit is not None:
        if unit != "mu":
            raise ValueError(
                f"volume: expected attenuation (unit 'mu'), got unit {unit!r}; "
                "volume.to_mu() converts Hounsfield units"
            )
        wide = volume.values.dtype == torch.float64
        return (torch.float64 if wide else torch.float32), volume.values.device
    if not callable(getattr(volume, "render", None)):
        raise TypeError(
            f"volume: expected a Volume or a scene with render(), got {type(volume).__name__}"
        )
    if center is None:
        raise ValueError("center: expected a tensor [3] in world mm for a scene, got None")
    return torch.float32, center.device


def _start(init: Any, stages: Sequence[Stage | Search], camera: Camera, volume: Any) -> Tensor:
    """The poses [K, 4, 4] to start from; for a search without any, an AP view of the volume."""
    if init is not None:
        return _check_init(init)
    if not isinstance(stages[0], Search):
        raise TypeError("init: expected a tensor [K, 4, 4], got NoneType and no Search to find one")
    if not isinstance(volume, Volume):
        raise TypeError("init: expected a tensor [K, 4, 4] for a scene, got NoneType")
    nearest, farthest = stages[0].between
    sdd = float(torch.as_tensor(camera.sdd).mean())
    return view_ap(volume, math.sqrt(nearest * farthest) * sdd)


def _check_init(init: Any) -> Tensor:
    """Starts as float64 [K, 4, 4], or an error that says what is wrong with them."""
    if not isinstance(init, Tensor):
        raise TypeError(f"init: expected a tensor [K, 4, 4], got {type(init).__name__}")
    if init.dim() not in (2, 3) or init.shape[-2:] != (4, 4) or init.numel() == 0:
        raise ValueError(f"init: expected shape [4, 4] or [K, 4, 4], got {tuple(init.shape)}")
    pose = init.detach().reshape(-1, 4, 4).to(torch.float64)
    if not bool(pose.isfinite().all()):
        raise ValueError("init: expected finite poses, got values that are not")
    rotation = pose[:, :3, :3]
    error = (rotation @ rotation.mT - torch.eye(3, dtype=pose.dtype, device=pose.device)).abs()
    if float(error.max()) > 1e-3 or bool((torch.linalg.det(rotation) < 0).any()):
        raise ValueError(
            f"init: expected rotations, got matrices off by {float(error.max()):.2g} "
            "or of negative determinant"
        )
    return pose


class _NoBar:
    """Stands in for a progress bar."""

    def set_description(self, text: str) -> None: ...
    def set_postfix(self, **values: Any) -> None: ...
    def update(self, steps: int) -> None: ...
    def add(self, steps: int) -> None: ...
    def close(self) -> None: ...


def _progress_bar(stages: Sequence[Stage | Search], wanted: bool) -> Any:
    """A bar over the steps of the stages; those of a search are added when it begins."""
    if not wanted:
        return _NoBar()
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _NoBar()

    class Bar(tqdm):
        def add(self, steps: int) -> None:
            self.total += steps
            self.refresh()

    return Bar(total=_steps(stages), unit="step")


def _steps(stages: Sequence[Stage | Search]) -> int:
    return sum(stage.iterations for stage in stages if isinstance(stage, Stage))
