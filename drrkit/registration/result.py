"""What a registration returns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "DEPTH_LIMIT_MM",
    "REASONS",
    "TRUSTED",
    "RegistrationResult",
    "RunnerUp",
    "StageRecord",
    "is_accepted",
]

SCHEMA_VERSION = 1

DEPTH_LIMIT_MM = 10.0
"""A depth of a larger standard deviation counts as one that the images do not show; in proportion
less for objects below 300 mm."""

TRUSTED = 0.7
"""Confidence below which a registration is not trusted.

In simulated X-rays all of 110 wrong ends have less, up to 0.618, and all of 258 right ones more,
from 0.776 on: bench/results/registration, whose ends.csv has every one of them (`patches`).
"""

REASONS = {
    "left_range": "the pose is farther from its start than this pipeline is good for",
    "handedness": "the mirrored image agrees nearly as well",
    "little_evidence": "too little of the X-ray has structure to compare",
    "depth_assumed": "the source-to-detector distance was assumed, and the depth depends on it",
    "interrupted": "the registration was stopped before its end",
}
"""What speaks against a result, by code."""

_BLOCKING = REASONS.keys() - {"depth_assumed"}


def is_accepted(
    confidence: float | None, loss: float, reasons: Sequence[str], least: float = TRUSTED
) -> bool:
    """Whether to rely on a result: confidence of at least `least` and no reason that forbids it."""
    if confidence is None or not math.isfinite(loss):
        return False
    return confidence >= least and not _BLOCKING.intersection(reasons)


@dataclass(frozen=True, eq=False)
class StageRecord:
    """What happened in one stage.

    Attributes:
        similarity: the Stage's, by name.
        downsample: pixels averaged along each side.
        loss: [steps, K * starts] float64 loss of every pose at every step, the descents of one
            start side by side; NaN for a pose that rested.
        seconds: wall time.
        stop_reason: "converged", "iterations" or "interrupted".
        counted: False for a stage of an attempt that a better one replaced.
        path: [steps, 4, 4] float64, the best pose so far after every step, [steps, n, 4, 4] of n
            bodies; of a search about several starts or in several views, in each in turn.
    """

    similarity: str
    downsample: int
    loss: Tensor
    seconds: float
    stop_reason: str
    optimiser: str = "gradient"
    counted: bool = True
    path: Tensor = field(default_factory=lambda: torch.empty(0, 4, 4, dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class RunnerUp:
    """The best other candidate: world_to_camera [4, 4], its loss and its agreement."""

    world_to_camera: Tensor
    loss: float
    agreement: float


@dataclass(frozen=True, eq=False, kw_only=True)
class RegistrationResult:
    """The best pose found, and everything needed to judge it.

    Attributes:
        world_to_camera: [4, 4] float64, the pose of lowest loss in the last stage; [n, 4, 4] for
            Bodies.
        loss: its loss there, with the prior where there is one.
        accepted: whether to rely on it: `is_accepted` of the confidence and the reasons.
        confidence: None where there is too little evidence, which is not accepted either; otherwise
            the agreement, until a calibrated probability of an error below 2 mm takes its place.
        confidence_10mm: the same for 10 mm; None until it is calibrated.
        agreement: 0 to 1, how well the X-ray agrees with the volume rendered at `world_to_camera`:
            the mean correlation of derivatives in patches a quarter of the X-ray wide, on 64 pixels
            along it and blurred, so that noise hardly counts; the mean over the views of several
            cameras. Not a probability. In simulated X-rays 0.7 separates right ends from wrong
            ones; in X-rays that show more than the volume does, compare it between registrations of
            the same kind.
        reasons: codes of REASONS that speak against the result.
        runner_up: the best pose that differs from this one, where the last stage had several.
        covariance: [6, 6] float64 of xi (rad, mm) about the volume's centre, in camera axes, from
            the last stage's residuals; None where its optimiser has no Jacobian, or its similarity
            (other than mse, soft_dice and correlations) no known curvature. Accounts for noise,
            block-independent model error and the cameras' `sigma`, not for other errors shared by
            the whole image. A direction that changes no image has 10 m. [6 n, 6 n] for n bodies.
        geometric_covariance: the part of it that comes from the cameras' `sigma`.
        inferred: what was read from the X-ray and not given: "field" (a mask of the open field),
            "negative" (it is dark where the patient attenuates).
        history: one record per stage; those of attempts that were replaced do not count.
        seconds: wall time.
        stop_reason: of the last stage that counted: "converged", "iterations", or "interrupted"
            when the user stopped it, in which case the pose is the best one up to then.
        all_world_to_camera: [K, 4, 4] float64, where every start ended.
        all_loss: [K] float64, their losses in the last stage.
        extent_mm: of the object in the image: what the stages' lengths are shares of.
    """

    world_to_camera: Tensor
    loss: float
    accepted: bool
    confidence: float | None
    agreement: float
    covariance: Tensor | None
    history: list[StageRecord] = field(repr=False)
    seconds: float
    stop_reason: str
    all_world_to_camera: Tensor = field(repr=False)
    all_loss: Tensor = field(repr=False)
    geometric_covariance: Tensor | None = field(default=None, repr=False)
    confidence_10mm: float | None = None
    inferred: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    runner_up: RunnerUp | None = None
    extent_mm: float = 300.0

    @property
    def sigma(self) -> Tensor | None:
        """Standard deviations of xi (rad, mm), [6] float64 or [6 n]; None without covariance."""
        return None if self.covariance is None else self.covariance.diagonal().sqrt()

    @property
    def depth_observable(self) -> bool | None:
        """Whether the images show the depth, to DEPTH_LIMIT_MM; None without covariance.

        Of Bodies, whether they do for every one of them.
        """
        if self.covariance is None:
            return None
        variance = self.covariance.diagonal()
        if self.geometric_covariance is not None:  # not of the images
            variance = variance - self.geometric_covariance.diagonal()
        limit = DEPTH_LIMIT_MM * min(1.0, self.extent_mm / 300.0)
        return bool((variance[5::6] <= limit**2).all())

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, ready for JSON; losses of the history summarised."""
        return {
            "schema_version": SCHEMA_VERSION,
            "world_to_camera": self.world_to_camera.tolist(),
            "loss": self.loss,
            "accepted": self.accepted,
            "confidence": self.confidence,
            "confidence_10mm": self.confidence_10mm,
            "agreement": self.agreement,
            "reasons": list(self.reasons),
            "runner_up": None
            if self.runner_up is None
            else {
                "world_to_camera": self.runner_up.world_to_camera.tolist(),
                "loss": self.runner_up.loss,
                "agreement": self.runner_up.agreement,
            },
            "covariance": None if self.covariance is None else self.covariance.tolist(),
            "geometric_covariance": None
            if self.geometric_covariance is None
            else self.geometric_covariance.tolist(),
            "inferred": list(self.inferred),
            "depth_observable": self.depth_observable,
            "extent_mm": self.extent_mm,
            "seconds": self.seconds,
            "stop_reason": self.stop_reason,
            "starts": [
                {"world_to_camera": pose, "loss": loss}
                for pose, loss in zip(
                    self.all_world_to_camera.tolist(), self.all_loss.tolist(), strict=True
                )
            ],
            "stages": [
                {
                    "similarity": record.similarity,
                    "downsample": record.downsample,
                    "optimiser": record.optimiser,
                    "counted": record.counted,
                    "steps": record.loss.shape[0],
                    "best_loss": _best_so_far(record.loss),
                    "best_world_to_camera": record.path.tolist(),
                    "seconds": record.seconds,
                    "stop_reason": record.stop_reason,
                }
                for record in self.history
            ],
        }


def _best_so_far(loss: Tensor) -> list[float]:
    """The lowest loss of all poses up to each step of [steps, poses]."""
    if loss.numel() == 0:
        return []
    lowest = loss.nan_to_num(nan=torch.inf).amin(1)
    return lowest.cummin(0).values.tolist()
