"""register(): stages in order, the result of one starting the next."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from drrkit import losses
from drrkit.geometry import Camera, perturb, volume_center
from drrkit.registration.descent import PoseDescent
from drrkit.registration.result import RegistrationResult, StageRecord
from drrkit.registration.stages import Stage, resolve_stages
from drrkit.registration.views import (
    View,
    downsampling,
    make_views,
    objective,
    pixel_at,
    renderer,
)

__all__ = ["register"]


def register(
    volume: Any,
    camera: Camera | Sequence[Camera],
    xray: Tensor | Sequence[Tensor],
    init: Tensor,
    *,
    stages: str | Stage | Sequence[Stage] = "auto",
    mask: Tensor | Sequence[Tensor | None] | None = None,
    rig_to_camera: Tensor | None = None,
    center: Tensor | None = None,
    method: str = "joseph",
    seed: int = 0,
    progress: bool = False,
) -> RegistrationResult:
    """Find the pose at which a rendered volume agrees with an X-ray image.

    Several starts are optimised as one batch; the one that ends with the lowest loss is returned,
    and where the others ended beside it. Ctrl-C returns the best so far.

    Args:
        volume: a Volume in mu, or a scene: anything with render(camera, world_to_camera) ->
            [B, C, rows, cols] and then `center`.
        camera: the X-ray's camera, or a list for several views of one patient.
        xray: [1, 1, rows, cols] or [rows, cols], on the scale of line integrals: bright where the
            patient attenuates. Correlations ignore its offset and gain, "mi" any remapping.
            A list for several cameras.
        init: [4, 4] or [K, 4, 4] world_to_camera to start from (of the first camera).
        stages: "auto" (coarse to fine), or Stages of your own.
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
    start = time.perf_counter()
    resolved = resolve_stages(stages)
    dtype, device = _check_scene(volume, center)
    views = make_views(
        camera, xray, mask, rig_to_camera, torch.empty(0, dtype=dtype, device=device)
    )
    pose = _check_init(init).to(device)
    middle = volume_center(volume) if center is None else center
    middle = middle.detach().to(device=device, dtype=torch.float64)
    depth = _depth(pose, middle)
    units = motion_units(views[0].camera, depth).to(pose)
    loss = pose.new_full((pose.shape[0],), torch.inf)
    generator = torch.Generator().manual_seed(seed)
    history: list[StageRecord] = []
    bar = _progress_bar(resolved, progress)
    try:
        for number, stage in enumerate(resolved, 1):
            began = time.perf_counter()
            bar.set_description(f"stage {number}/{len(resolved)} {stage.name}")
            factor = downsampling(stage, views[0].camera, depth)
            measure = objective(volume, views, stage, factor, method)
            cloud = _neighbours(pose, stage, middle, generator)
            descent = PoseDescent(measure, cloud, middle, units, stage)
            reason = _run(descent, bar)
            history.append(_record(descent, factor, reason, time.perf_counter() - began))
            if descent.steps > 0:
                pose, loss = _best_of_each(descent, stage.starts)
            if reason == "interrupted":
                break
    finally:
        bar.close()
    best = int(loss.argmin())
    return RegistrationResult(
        world_to_camera=pose[best],
        loss=float(loss[best]),
        confidence=_agreement(volume, views, pose[best : best + 1], method),
        covariance=None,
        history=history,
        seconds=time.perf_counter() - start,
        stop_reason=history[-1].stop_reason,
        all_world_to_camera=pose,
        all_loss=loss,
    )


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


def _depth(world_to_camera: Tensor, center: Tensor) -> float:
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
    xi = direction * radius * torch.tensor(stage.spread, dtype=torch.float64)[:, None]
    xi[:, 0] = 0.0
    repeated = pose.repeat_interleave(stage.starts, dim=0)
    return perturb(repeated, xi.reshape(-1, 6).to(pose), center)


def _best_of_each(descent: PoseDescent, starts: int) -> tuple[Tensor, Tensor]:
    """The best pose [K, 4, 4] and loss [K] among the descents that belong to each pose."""
    loss = descent.best_loss.reshape(-1, starts)
    best = loss.argmin(dim=1)
    row = torch.arange(loss.shape[0], device=loss.device)
    return descent.best_pose.reshape(-1, starts, 4, 4)[row, best], loss[row, best]


def _run(descent: PoseDescent, bar: Any) -> str:
    """Step until the stage is finished or the user interrupts; the reason why it ended."""
    try:
        while not descent.finished:
            descent.step()
            bar.update(1)
            bar.set_postfix(loss=f"{float(descent.best_loss.min()):.4f}", refresh=False)
    except KeyboardInterrupt:
        return "interrupted"
    bar.update(descent.stage.iterations - descent.steps)
    return descent.stop_reason


def _record(descent: PoseDescent, factor: int, reason: str, seconds: float) -> StageRecord:
    count = descent.best_loss.shape[0]
    trace = torch.stack(descent.trace) if descent.trace else descent.best_loss.new_empty(0, count)
    return StageRecord(descent.stage.name, factor, trace.cpu(), seconds, reason)


def _agreement(scene: Any, views: Sequence[View], pose: Tensor, method: str) -> float:
    """Gradient correlation of the X-rays with the scene at one pose [1, 4, 4], 0 to 1."""
    total = 0.0
    with torch.no_grad():
        for view in views:
            moving = renderer(scene, view.camera, 1, method)(view.pose(pose))
            moving = moving.sum(dim=1, keepdim=True)
            total += 1.0 - float(losses.gradient_ncc(moving, view.xray, view.mask))
    return min(max(total / len(views), 0.0), 1.0)


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
    def close(self) -> None: ...


def _progress_bar(stages: Sequence[Stage], wanted: bool) -> Any:
    if wanted:
        try:
            from tqdm.auto import tqdm
        except ImportError:
            return _NoBar()
        return tqdm(total=sum(stage.iterations for stage in stages), unit="step")
    return _NoBar()
