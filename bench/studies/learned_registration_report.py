"""The table of the study learned_registration, beside the published ones."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.studies import study
from bench.studies.study import recorded, wilson, write_json, write_text
from drrkit.evaluation import Row, top_mean

SHARES = (0.95, 0.75, 0.5)
SUCCESS_MM = 10.0

Cells = tuple[tuple[float, float], ...]
PUBLISHED: dict[str, tuple[Cells, float | None]] = {
    "initial": (((225.7, 89.7), (188.6, 64.5), (148.0, 47.3)), None),
    "initial + cmaes": (((98.6, 98.6), (55.7, 49.9), (24.2, 14.7)), 22.0),
    "prost": (((185.7, 90.2), (151.2, 65.8), (114.3, 46.3)), None),
    "prost + cmaes": (((38.3, 55.5), (12.8, 19.7), (2.6, 1.3)), 55.6),
    "sopi": (((163.6, 78.9), (133.1, 56.9), (101.3, 39.9)), None),
    "sopi + cmaes": (((34.7, 55.8), (9.1, 13.7), (2.2, 1.0)), 58.4),
    "cdreg": (((155.7, 69.6), (127.2, 43.8), (95.1, 30.1)), None),
    "cdreg + cmaes": (((32.0, 51.9), (7.9, 11.9), (2.2, 0.9)), 61.0),
}
"""Mean and standard deviation of the mTRE (mm) of the best 95, 75 and 50 %, success rate (%):
Chen et al., ISBI 2024, spines, private CTs, 500 simulated X-rays."""

SUCCESS_PUBLISHED = {"initial + cmaes": 28.5, "prost + cmaes": 65.6, "deepim + cmaes": 59.6}
"""Success rate (%) in simulation, pelves: Gao et al., IEEE TMI 2024. DMW is below ProST there."""


def write_report(rows: Sequence[Row], options: argparse.Namespace) -> None:
    """learned_registration.json and .md beside --output, and the table on the screen."""
    found = {name: numbers(errors) for name, errors in by_method(rows).items()}
    plain = {k: v for k, v in vars(options).items() if not isinstance(v, Path)}
    record = recorded(
        options,
        options=plain,
        subjects=sorted({row.subject for row in rows}),
        methods=found,
        published=PUBLISHED,
        findings=findings(found),
    )
    text = markdown(found, options.command)
    write_json(options.output.with_suffix(".json"), record)
    write_text(options.output.with_suffix(".md"), text)
    print(text)


def by_method(rows: Sequence[Row]) -> dict[str, Tensor]:
    """mTRE [cases] of every method, and of the starts as "initial"."""
    cases = {(row.subject, row.number): row.start_mtre for row in rows}
    found = {"initial": torch.tensor(list(cases.values()), dtype=torch.float64)}
    for name in dict.fromkeys(row.method for row in rows):
        errors = [row.mtre for row in rows if row.method == name]
        found[name] = torch.tensor(errors, dtype=torch.float64)
    return found


def numbers(errors: Tensor) -> dict[str, Any]:
    """What the poster reports of a method, with Wilson's interval of the success rate."""
    return {
        "cases": len(errors),
        "median": float(errors.median()),
        "top": [top_mean(errors, share) for share in SHARES],
        "success": wilson(errors.tolist(), SUCCESS_MM),
    }


def markdown(found: dict[str, dict[str, Any]], command: str) -> str:
    """Measured rows beside published numbers, then which orderings are the same."""
    rows = []
    for name, of in found.items():
        cells = [f"{top['mean']:.1f}±{top['std']:.1f}" for top in of["top"]]
        success = of["success"]
        interval = f"{100 * success['low']:.0f}-{100 * success['high']:.0f}"
        rows.append([name, *cells, f"{100 * success['rate']:.1f}", interval, published(name)])
    tops = [f"top {share:.0%} mTRE" for share in SHARES]
    head = ["method", *tops, "success", "95 % interval", "published"]
    said = [f"- {finding}" for finding in findings(found)]
    return "\n".join([f"`{command}`", "", *study.markdown(head, rows), "", *said, ""])


def published(name: str) -> str:
    if name in PUBLISHED:
        cells, success = PUBLISHED[name]
        shown = " / ".join(f"{mean:.1f}" for mean, _ in cells)
        return shown + ("" if success is None else f"; {success} %")
    if name in SUCCESS_PUBLISHED:
        return f"{SUCCESS_PUBLISHED[name]} % (pelvis)"
    return ""


def findings(found: dict[str, dict[str, Any]]) -> list[str]:
    """Which published orderings the measured success rates and errors have, and which not."""
    rate = {name: 100 * of["success"]["rate"] for name, of in found.items()}
    error = {name: of["top"][1]["mean"] for name, of in found.items()}
    chains = {
        "success with CMA-ES (%)": (
            rate,
            ("initial + cmaes", "prost + cmaes", "sopi + cmaes", "cdreg + cmaes"),
        ),
        "mTRE of the best 75 %, networks alone (mm)": (
            {name: -value for name, value in error.items()},
            ("initial", "prost", "sopi", "cdreg"),
        ),
        "success with CMA-ES (%), ProST's table": (
            rate,
            ("initial + cmaes", "deepim + cmaes", "prost + cmaes"),
        ),
        "success with CMA-ES (%), DMW below ProST": (rate, ("dmw + cmaes", "prost + cmaes")),
    }
    said = []
    for title, (value, chain) in chains.items():
        for worse, better in pairwise(name for name in chain if name in value):
            gap = value[better] - value[worse]
            verdict = "as published" if gap > 0 else "not as published"
            said.append(f"{title}: gain of {better} over {worse} {gap:+.1f}, {verdict}")
    return said
