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
    "SURE",
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

TRUSTED = 0.65
"""Agreement from which on a registration is trusted, and tries nothing else."""

SURE = 0.99
"""Probability of less than 10 mm of error from which on a registration is accepted."""

REASONS = {
    "left_range": "the pose is farther from its start than this pipeline is good for",
    "out_of_room": "the volume would reach behind the source or through the detector",
    "handedness": "the mirrored image agrees nearly as well",
    "polarity": "only the X-ray's negative agrees",
    "little_evidence": "too little of the X-ray has structure to compare",
    "depth_assumed": "the source-to-detector distance was assumed, and the depth depends on it",
    "interrupted": "the registration was stopped before its end",
}
"""What speaks against a result, by code."""

_BLOCKING = REASONS.keys() - {"depth_assumed"}


def is_accepted(
    confidence: float | None, loss: float, reasons: Sequence[str], least: float = SURE
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
    """The best other candidate: world_to_camera [4, 4], its loss and its agreement.

    mirrored: it is the pose of the mirrored X-ray.
    """

    world_to_camera: Tensor
    loss: float
    agreement: float
    mirrored: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class RegistrationResult:
    """The best pose found, and everything needed to judge it.

    Attributes:
        world_to_camera: [4, 4] float64, the pose of lowest loss in the last stage; [n, 4, 4] for
            Bodies.
        loss: its loss there, with the prior where there is one.
        accepted: whether to rely on it: `is_accepted` of confidence_10mm and the reasons.
        confidence: probability that the error is below 2 mm in the image plane at the object (for
            objects below 300 mm in proportion), as it was among registrations of the gauntlet's
            choosing seeds (docs/registration.md) that agreed as well as this one. It is of
            the image plane: what the images do not show of the depth is in `covariance`.
        confidence_10mm: the same for 10 mm.
        agreement: 0 to 1, how well the X-ray agrees with the volume rendered at `world_to_camera`:
            one minus the weighted patch gradient NCC with which "auto" ends, on 128 pixels along
            the X-ray; the mean over the views of several cameras.
        compared_pixels: of at most 128 x 128 per view, those that it was computed on: the mask's,
            without rays that pass a face at which the volume was cut off.
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
    compared_pixels: int = 128 * 128
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
            "compared_pixels": self.compared_pixels,
            "reasons": list(self.reasons),
            "runner_up": None
            if self.runner_up is None
            else {
                "world_to_camera": self.runner_up.world_to_camera.tolist(),
                "loss": self.runner_up.loss,
                "agreement": self.runner_up.agreement,
                "mirrored": self.runner_up.mirrored,
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
