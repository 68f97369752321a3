"""A record of the benchmark with round numbers, for tests of what is made of records."""

from __future__ import annotations

from typing import Any

from bench.projectors import record as records
from bench.projectors.contest import with_ratios
from bench.projectors.plan import Workload
from bench.projectors.timing import statistics_of

CASES = {
    "drrkit joseph": ("drrkit", "joseph", 0.010),
    "drrkit siddon": ("drrkit", "siddon", 0.020),
    "rival trilinear": ("rival", "joseph", 0.100),
    "rival siddon": ("rival", "siddon", 0.050),
    "other exact": ("other", "siddon", 0.005),
}
"""Case: tool, integral, seconds of one view of 100 x 100."""
WORKLOADS = (
    Workload("main", "AP", 1, 100, "forward"),
    Workload("main", "lateral", 1, 100, "forward"),
    Workload("main", "AP", 1, 100, "pose"),
    Workload("main", "AP", 4, 100, "volume"),
    *(Workload("views", "AP", n, 128, "forward") for n in (1, 4, 16)),
    *(Workload("threads", "AP", 1, 100, "forward", threads=n) for n in (1, 2)),
)


def example(device: str = "cpu", **changes: Any) -> dict[str, Any]:
    """A record; "other" has no gradients, and on CUDA every row comes in a graph, too."""
    rows = []
    for work in WORKLOADS:
        for case, (tool, _, seconds) in CASES.items():
            if tool == "other" and work.operation != "forward":
                continue
            for mode in ("eager", "graph") if device == "cuda" else ("eager",):
                scale = work.rays / 100**2 / (work.threads or 1) / (2 if mode == "graph" else 1)
                row: dict[str, Any] = work.as_dict() | {"case": case, "mode": mode}
                row |= {"seconds": statistics_of([seconds * scale * k for k in (0.9, 1.0, 1.2)])}
                row |= {"peak_bytes": None if tool == "other" else 2_500_000, "floors": None}
                row["difference"] = {} if tool == "drrkit" else {"image": 1.2e-4}
                if tool == "drrkit":
                    row["floors"] = {"bytes_s": seconds / 4, "fetches_s": seconds / 8}
                rows.append(row)
    with_ratios(rows, "drrkit joseph", {case: f"drrkit {row[1]}" for case, row in CASES.items()})
    machine: dict[str, Any] = {"cpu": "a CPU", "cores": 2, "torch_threads": 2, "system": "Linux"}
    if device == "cuda":
        machine["gpu"] = {"name": "A Card 100", "driver": "1.2.3"}
    left = WORKLOADS[3].as_dict() | {"case": "rival siddon", "reason": "too large"}
    return records.check(
        {
            "schema": records.SCHEMA,
            "kind": records.KIND,
            "command": "python -m bench.projectors --quick",
            "utc": "2030-01-02T03:04:05+00:00",
            "revision": None,
            "device": device,
            "threads": 2,
            "quick": True,
            "seconds": 12.0,
            "machine": machine,
            "load_average": {"before": [0.1, 0.1, 0.1], "after": None},
            "versions": {"python": "3.11", "torch": "2.13.0", "drrkit": "0.1.0", "rival": "7"},
            "volume": {"name": "a box", "xyz": [64, 64, 16], "spacing_mm": [1.0, 1.0, 4.0]},
            "geometry": {
                "sdd_mm": 1200.0,
                "sod_mm": 800.0,
                "samples": 62,
                "drrkit_trilinear_step_mm": 1.0,
            },
            "ceilings": {"copy_bytes_per_s": 2e10, "fetches_per_s": 1e11, "fetches_by": "magic"},
            "effort": {"rounds": 2, "minutes": 1.0},
            "headline": "drrkit joseph",
            "cases": [
                {"case": case, "tool": tool, "method": case.split()[1], "integral": integral}
                | {"note": "its own clock" if tool == "other" else ""}
                for case, (tool, integral, _) in CASES.items()
            ],
            "absent": {"third": "not installed"},
            "rows": rows,
            "left_out": [left],
        }
        | changes
    )
