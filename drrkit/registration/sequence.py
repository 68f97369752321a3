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

from drrkit.geometry import Camera
from drrkit.registration.pipeline import Registrar
from drrkit.registration.presets import FOLLOW, resolve_stages
from drrkit.registration.problem.bodies import Bodies
from drrkit.registration.progress import step_bar
from drrkit.registration.result import RegistrationResult
from drrkit.registration.stages import Search, Stage

__all__ = ["SequenceResult", "register_sequence"]

# An agreement below this is that of no agreement at all, whatever is usual.
_NOTHING = 0.1

# Options of `register` that are the same for all frames.
_FIXED = ("rig_to_camera", "center", "method", "formation", "gain", "xray_kind")

Pipeline = str | Stage | Search | Sequence[Stage | Search]


@dataclass(frozen=True, eq=False)
class SequenceResult:
    """The registrations of a sequence's frames, as many as were reached.

    Attributes:
        frames: a RegistrationResult per frame.
        attempts: [T] how many pipelines each frame took: 1 for one that was followed, more for one
            that was lost and searched again.
        lost: [T] bool, frames whose agreement stayed too low for all of them.
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
    follow: Pipeline = FOLLOW,
    recover: Sequence[Pipeline] = ("auto", "global"),
    extrapolate: bool = True,
    lost_below: float = 0.9,
    progress: bool = False,
    **options: Any,
) -> SequenceResult:
    """Register the frames of a sequence, each from where the last one ended.

    A frame starts from the last pose and, where motion is extrapolated, also from where the motion
    between the last two frames leads; the better one wins. A frame is lost when its agreement is
    below `lost_below` times the median of the frames that were not, or below 0.1; the pipelines of
    `recover` are tried then, in their order, from the last pose that was not lost. A frame that
    stays lost keeps its best attempt and does not guide the next one. Ctrl-C returns the frames so
    far.

    Args:
        volume, camera, init: as for `register`; init is where the first frame starts.
        xrays: [T, rows, cols] or [T, 1, rows, cols]; for several cameras a list of such, one a
            camera, with as many frames.
        first: stages of the first frame.
        follow: stages of the others.
        recover: stages for lost frames; () to leave them lost. A search is left out for Bodies.
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
    pipelines = [first, follow, *recover]
    searching = [isinstance(resolve_stages(stages)[0], Search) for stages in pipelines]
    if isinstance(volume, Bodies):  # no search finds several poses
        pipelines[2:] = itertools.compress(pipelines[2:], [not one for one in searching[2:]])
    fixed = {name: options.pop(name) for name in _FIXED if name in options}
    registrar = Registrar(volume, camera, stages=pipelines[0], **fixed)
    track = _Track(registrar, options, extrapolate, lost_below)
    bar = step_bar((), progress)
    bar.add(len(frames))
    reason = "finished"
    try:
        for number, frame in enumerate(frames):
            bar.set_description(f"frame {number + 1}/{len(frames)}")
            chosen = [pipelines[0] if number == 0 else pipelines[1], *pipelines[2:]]
            track.add(frame, init if number == 0 else None, chosen)
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


class _Track:
    """The frames registered so far, and where the next one starts."""

    def __init__(
        self, registrar: Registrar, options: dict[str, Any], extrapolate: bool, below: float
    ) -> None:
        self.registrar, self.options = registrar, options
        self.extrapolate, self.below = extrapolate, below
        self.frames: list[RegistrationResult] = []
        self.attempts: list[int] = []
        self.lost: list[bool] = []

    def add(self, frame: Any, init: Any, pipelines: Sequence[Pipeline]) -> None:
        """Register a frame by the first of the pipelines that it is not lost with."""
        start = self._starts() if init is None else init
        best = None
        for attempt, stages in enumerate(pipelines, 1):
            if attempt > 1 and self._last() is not None:
                start = self._last()
            result = self._register(frame, start, stages)
            stopped = result.stop_reason == "interrupted"
            if best is None or stopped or result.agreement > best.agreement:
                best = result
            if stopped or not self._is_lost(best):
                break
        assert best is not None  # there is at least one pipeline
        lost = self._is_lost(best)
        self.frames.append(best)
        self.attempts.append(attempt)
        self.lost.append(lost)

    def _register(self, frame: Any, start: Any, stages: Pipeline) -> RegistrationResult:
        options = self.options
        prior = options.get("prior")
        last = self._last()
        if prior is not None and prior.world_to_camera is None and last is not None:
            options = {**options, "prior": replace(prior, world_to_camera=last)}
        return self.registrar(frame, start, stages=stages, **options)

    def _is_lost(self, result: RegistrationResult) -> bool:
        if result.agreement < _NOTHING:
            return True
        usual = [f.agreement for f, lost in zip(self.frames, self.lost, strict=True) if not lost]
        return bool(usual) and result.agreement < self.below * median(usual)

    def _last(self) -> Tensor | None:
        """The last pose that is not lost."""
        followed = [f for f, lost in zip(self.frames, self.lost, strict=True) if not lost]
        return followed[-1].world_to_camera if followed else None

    def _starts(self) -> Tensor:
        """The last pose and the extrapolated one: [1 or 2, 4, 4], bodies alike."""
        last = self._last()
        poses = [self.frames[-1].world_to_camera if last is None else last]
        if self.extrapolate and len(self.frames) > 1 and not any(self.lost[-2:]):
            before = self.frames[-2].world_to_camera
            poses.append(poses[0] @ torch.linalg.inv(before) @ poses[0])
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
