"""What the rows of an evaluation say: success rates, percentiles, capture range, trust."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from drrkit.evaluation.running import Row
from drrkit.metrics import success_rate

SUCCESS_MM = (10.0, 2.0)
PERCENTILES = (25, 50, 75, 90, 95)
TOP = (50, 75, 95)


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """The numbers that the field reports, of rows that belong together.

    Success rates at 10 and 2 mm with Wilson 95 % intervals; mean and standard deviation of the
    lowest 50, 75 and 95 % of the mTRE; percentiles of mTRE, rotation and translation error and of
    the magnitude of its components; capture range; run time; and how well the confidence separates
    failures at 10 mm from successes, where there are both.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("rows: expected at least one, got none")
    errors = _column(rows, "mtre")
    start = _column(rows, "start_mtre")
    confidence = _column(rows, "confidence")
    summary: dict[str, Any] = {
        "cases": len(rows),
        "success": {f"{mm:g} mm": success_rate(errors, mm)._asdict() for mm in SUCCESS_MM},
        "start_mtre": _percentiles(start),
        "mtre": _percentiles(errors),
        "mtre_top": {f"{share} %": top_mean(errors, share / 100) for share in TOP},
        "rotation": _percentiles(_column(rows, "rotation")),
        "translation": _percentiles(_column(rows, "translation")),
    }
    for axis in "xyz":
        for kind in ("rotation", "translation"):
            name = f"{kind}_{axis}"
            summary[name] = _percentiles(_column(rows, name).abs())
    summary["image_difference"] = _percentiles(_column(rows, "image_difference"))
    summary["capture_range"] = capture_range(start, errors, SUCCESS_MM[1])
    summary["seconds"] = _percentiles(_column(rows, "seconds"))
    summary["cpu_seconds"] = _percentiles(_column(rows, "cpu_seconds"))
    failed = ~(errors < SUCCESS_MM[0])
    if bool(failed.any()) and not bool(failed.all()):
        summary["failures_flagged"] = {
            "auroc": auroc(confidence[~failed], confidence[failed]),
            "recall at 5 % false alarms": recall_at(0.05, confidence[~failed], confidence[failed]),
        }
    return summary


def top_mean(errors: Tensor, share: float) -> dict[str, float]:
    """Mean and standard deviation of the lowest int(share N) errors [N], at least one of them."""
    lowest = errors.sort().values[: max(1, int(share * errors.numel()))]
    return {"mean": float(lowest.mean()), "std": float(lowest.std(correction=0))}


def capture_range(start: Tensor, errors: Tensor, threshold: float, share: float = 0.95) -> float:
    """The largest initial error up to which at least `share` of the cases succeed.

    Cases are ordered by their initial error [N]; a success ends with an error [N] below threshold.
    0 when not even the nearest cases succeed.
    """
    order = start.argsort()
    succeeded = (errors[order] < threshold).double()
    rate = succeeded.cumsum(0) / torch.arange(1, len(order) + 1, dtype=torch.float64)
    enough = torch.nonzero(rate >= share).flatten()
    return float(start[order[enough[-1]]]) if enough.numel() else 0.0


def auroc(right: Tensor, wrong: Tensor) -> float:
    """Probability that a right case has more confidence than a wrong one; ties count a half.

    The area under the receiver operating characteristic, by comparing all pairs of [N] and [M].
    """
    difference = right[:, None] - wrong[None]
    return float((difference > 0).double().mean() + 0.5 * (difference == 0).double().mean())


def recall_at(false_alarms: float, right: Tensor, wrong: Tensor) -> float:
    """Share of the wrong cases that are flagged when at most this share of the right ones is.

    A case is flagged when its confidence is below a threshold, the highest that the right cases
    [N] allow.
    """
    allowed = int(false_alarms * right.numel())
    threshold = right.sort().values[allowed]
    return float((wrong < threshold).double().mean())


def _column(rows: Sequence[Row], name: str) -> Tensor:
    return torch.tensor([getattr(row, name) for row in rows], dtype=torch.float64)


def _percentiles(values: Tensor) -> dict[str, float]:
    shares = torch.tensor(PERCENTILES, dtype=torch.float64) / 100
    found = torch.quantile(values, shares).tolist()
    result = {f"{p} %": value for p, value in zip(PERCENTILES, found, strict=True)}
    return {**result, "max": float(values.max())}
