"""Sequences: a moving patient, registered frame by frame."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from drrkit.geometry import Camera, perturb
from drrkit.registration.lengths import mean_depth, motion_units
from drrkit.registration.pipeline import Registrar
from drrkit.registration.presets import FOLLOW, FOLLOW_PART, resolve_stages
from drrkit.registration.problem.bodies import Bodies
from drrkit.registration.problem.motion import motion_between, motion_of
from drrkit.registration.progress import step_bar
from drrkit.registration.result import RegistrationResult
from drrkit.registration.stages import Search, Stage

__all__ = ["SequenceResult", "register_sequence", "smooth_poses"]

# An agreement below this is that of no agreement at all, whatever is usual.
_NOTHING = 0.1

# Two runs whose ends are closer than this share of the object's extent ended at one pose.
_ALIKE = 1 / 60

# Options of `register` that are the same for all frames.
_FIXED = ("rig_to_camera", "center", "method", "formation", "gain", "xray_kind")

Pipeline = str | Stage | Search | Sequence[Stage | Search]


@dataclass(frozen=True, eq=False)
class SequenceResult:
    """The registrations of a sequence's frames, as many as were reached.

    Attributes:
        frames: a RegistrationResult per frame.
        attempts: [T] how many pipelines each frame took: 1 for one that was followed, more for one
            that was lost and searched again, and for the first frame of a part.
        lost: [T] bool, frames that did not stand after all of them.
        seconds: wall time.
        stop_reason: "finished", or "interrupted" by the user.
    """

    frames: list[RegistrationResult] = field(repr=False)
    attempts: list[int]
    lost: list[bool]
    seconds: float
    stop_reason: str

    @property
    def world_to_camera(self) -> Tensor:
        """The poses [T, 4, 4] float64, [T, n, 4, 4] of n bodies."""
        return torch.stack([frame.world_to_camera for frame in self.frames])

    @property
    def confidence(self) -> list[float | None]:
        """Of every frame."""
        return [frame.confidence for frame in self.frames]


def register_sequence(
    volume: Any,
    camera: Camera | Sequence[Camera],
    xrays: Tensor | Sequence[Tensor],
    init: Any = None,
    *,
    first: Pipeline = "auto",
    follow: Pipeline | None = None,
    recover: Sequence[Pipeline] | None = None,
    extrapolate: bool = True,
    lost_below: float = 0.9,
    progress: bool = False,
    **options: Any,
) -> SequenceResult:
    """Register the frames of a sequence, each from where the last one ended.

    A frame starts from the last pose and, where motion is extrapolated, also from where the motion
    between the last two frames leads; the better one wins. A frame stands when its agreement is at
    least `lost_below` times the median of those that stand. Until there is one, each frame is a
    first one, registered from `init` and judged on its own: it stands when it is accepted. That
    judges whole patients; of a part (the first stages are "part") a frame also stands, and the
    first one only, when two runs from different random starts end at one pose. Below an agreement
    of 0.1 nothing stands. A frame that does not is lost; the pipelines of `recover` are tried then,
    in their order, from the last pose that stands. A frame that stays lost keeps its best attempt
    and does not guide the next one. Ctrl-C returns the frames so far.

    Args:
        volume, camera, init: as for `register`; init is where the first frame starts.
        xrays: [T, rows, cols] or [T, 1, rows, cols]; for several cameras a list of such, one a
            camera, with as many frames.
        first: stages of the first frame.
        follow: stages of the others; default FOLLOW, and FOLLOW_PART for a part.
        recover: stages for lost frames; () to leave them lost. A search is left out for Bodies.
            Default "auto", then "global"; "part" for a part.
        extrapolate: start from constant velocity, too.
        lost_below: share of the usual agreement, in [0, 1].
        progress: show a progress bar over frames (needs tqdm).
        options: mask, rig_to_camera, prior, center, method, formation, gain, xray_kind, seed: as
            for `register`. A prior without a pose of its own is about the last frame's.

    Returns:
        a SequenceResult.

    Raises:
        TypeError, ValueError: as `register`; frames that do not come in equal numbers.
    """
    began = time.perf_counter()
    frames = _frames(camera, xrays)
    if not isinstance(progress, bool):
        raise TypeError(f"progress: expected True or False, got {type(progress).__name__}")
    if not 0 <= lost_below <= 1:
        raise ValueError(f"lost_below: expected a number in [0, 1], got {lost_below!r}")
    fixed = {name: options.pop(name) for name in _FIXED if name in options}
    registrar = Registrar(volume, camera, stages=first, **fixed)
    part = registrar.part
    usual = [FOLLOW_PART, "part"] if part else [FOLLOW, "auto", "global"]
    others = [follow or usual[0], *(usual[1:] if recover is None else recover)]
    searching = [isinstance(resolve_stages(stages)[0], Search) for stages in others]
    if isinstance(volume, Bodies):  # no search finds several poses
        others[1:] = itertools.compress(others[1:], [not one for one in searching[1:]])
    track = _Track(registrar, others, init, options, extrapolate, lost_below)
    bar = step_bar((), progress)
    bar.add(len(frames))
    reason = "finished"
    try:
        for number, frame in enumerate(frames):
            bar.set_description(f"frame {number + 1}/{len(frames)}")
            track.add(frame)
            bar.update(1)
            if track.frames[-1].stop_reason == "interrupted":
                reason = "interrupted"
                break
    except KeyboardInterrupt:
        reason = "interrupted"
    finally:
        bar.close()
    return SequenceResult(
        track.frames, track.attempts, track.lost, time.perf_counter() - began, reason
    )


def smooth_poses(
    world_to_camera: Tensor, center: Tensor, frames: float, known: Tensor | None = None
) -> Tensor:
    """Poses [T, 4, 4] smoothed over time: local lines through the motion of frames about each.

    Weighted linear regression of xi over time (Cleveland 1979, of first order), which leaves
    constant velocity as it is, with Gaussian weights.

    Args:
        world_to_camera: [T, 4, 4] float64.
        center: [3] world mm, what xi turns about.
        frames: standard deviation of the weights, in frames.
        known: [T] bool; other frames have no weight and are filled in.

    Raises:
        ValueError: frames is not positive, or no frame is known.
    """
    if not frames > 0:
        raise ValueError(f"frames: expected a positive number, got {frames!r}")
    count = len(world_to_camera)
    kept = torch.arange(count) if known is None else known.cpu().nonzero().flatten()
    if len(kept) == 0:
        raise ValueError("known: expected at least one frame, got none")
    found = []
    for number in range(count):
        away = (kept - number).double()
        nearest = kept[away.abs().argmin()]
        weight = torch.softmax(-0.25 * (away / frames) ** 2, 0)[:, None]
        xi = motion_of(world_to_camera[nearest], world_to_camera[kept], center).cpu()
        line = torch.stack((torch.ones_like(away), away), 1)
        fitted = torch.linalg.lstsq(weight * line, weight * xi).solution[:1]
        found.append(perturb(world_to_camera[nearest][None], fitted.to(center), center))
    return torch.cat(found)


class _Track:
    """The frames registered so far, and where the next one starts."""

    def __init__(
        self,
        registrar: Registrar,
        pipelines: Sequence[Pipeline],
        init: Any,
        options: dict[str, Any],
        extrapolate: bool,
        below: float,
    ) -> None:
        self.registrar, self.init, self.options = registrar, init, options
        self.follow, self.recover = pipelines[0], list(pipelines[1:])
        self.extrapolate, self.below = extrapolate, below
        self.frames: list[RegistrationResult] = []
        self.attempts: list[int] = []
        self.lost: list[bool] = []

    def add(self, frame: Any) -> None:
        """Register a frame by the first of the pipelines after which it stands."""
        last = self._last()
        pipelines: list[Pipeline | None] = [None if last is None else self.follow, *self.recover]
        if last is None and self.registrar.part and not self.recover:
            pipelines.append(None)
        start = self.init if last is None else self._starts(last)
        best = self._register(frame, start, pipelines[0])
        stands, attempt = self._stands(best), 1
        while attempt < len(pipelines) and not stands and best.stop_reason != "interrupted":
            again = self._register(
                frame, self.init if last is None else last, pipelines[attempt], attempt
            )
            stands = self.registrar.part and self._alike(best, again)
            if again.stop_reason == "interrupted" or again.agreement > best.agreement:
                best = again
            stands = (stands and best.agreement >= _NOTHING) or self._stands(best)
            attempt += 1
        self.frames.append(best)
        self.attempts.append(attempt)
        self.lost.append(not stands)

    def _register(
        self, frame: Any, start: Any, stages: Pipeline | None, attempt: int = 0
    ) -> RegistrationResult:
        options = {**self.options, "seed": self.options.get("seed", 0) + attempt}
        prior = options.get("prior")
        last = self._last()
        if prior is not None and prior.world_to_camera is None and last is not None:
            options["prior"] = replace(prior, world_to_camera=last)
        return self.registrar(frame, start, stages=stages, **options)

    def _stands(self, result: RegistrationResult) -> bool:
        """Whether a result agrees as usual; where nothing is usual yet, by itself."""
        usual = [f.agreement for f, lost in zip(self.frames, self.lost, strict=True) if not lost]
        if not usual:
            return result.accepted and not self.registrar.part
        return result.agreement >= max(_NOTHING, self.below * median(usual))

    def _alike(self, one: RegistrationResult, other: RegistrationResult) -> bool:
        """Whether two runs ended at one pose."""
        camera, center = self.registrar.camera, self.registrar.center
        camera = camera if isinstance(camera, Camera) else camera[0]
        poses = one.world_to_camera[None], other.world_to_camera[None]
        units = motion_units(camera, mean_depth(poses[0], center), center.numel() // 3)
        return float(motion_between(*poses, center, units.to(center))) < _ALIKE * one.extent_mm

    def _last(self) -> Tensor | None:
        """The last pose that stands."""
        followed = [f for f, lost in zip(self.frames, self.lost, strict=True) if not lost]
        return followed[-1].world_to_camera if followed else None

    def _starts(self, last: Tensor) -> Tensor:
        """The last pose and the extrapolated one: [1 or 2, 4, 4], bodies alike."""
        poses = [last]
        if self.extrapolate and len(self.frames) > 1 and not any(self.lost[-2:]):
            before = self.frames[-2].world_to_camera
            poses.append(last @ torch.linalg.inv(before) @ last)
        return torch.stack(poses)


def _frames(camera: Any, xrays: Any) -> list[Any]:
    """What `register` takes as xray, for every frame."""
    if isinstance(camera, Camera):
        return list(_checked(xrays))
    if isinstance(xrays, Tensor) or not isinstance(xrays, Sequence):
        raise TypeError(
            f"xrays: expected a list of tensors, one a camera, got {type(xrays).__name__}"
        )
    views = [_checked(view) for view in xrays]
    counts = {len(view) for view in views}
    if len(counts) != 1:
        raise ValueError(
            f"xrays: expected as many frames of every camera, got {[len(v) for v in views]}"
        )
    return [list(frame) for frame in zip(*views, strict=True)]


def _checked(xrays: Any) -> Tensor:
    if not isinstance(xrays, Tensor):
        raise TypeError(f"xrays: expected a tensor [T, rows, cols], got {type(xrays).__name__}")
    if xrays.dim() not in (3, 4) or len(xrays) == 0 or (xrays.dim() == 4 and xrays.shape[1] != 1):
        raise ValueError(
            "xrays: expected shape [T, rows, cols] or [T, 1, rows, cols] with at least one frame, "
            f"got {tuple(xrays.shape)}"
        )
    broken = (~xrays.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if broken:
        raise ValueError(f"xrays: expected finite values, got others in the frames {broken}")
    return xrays
