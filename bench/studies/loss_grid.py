"""Every loss under every optimiser, in X-rays of another appearance, from the same starts.

Cases are those of the narrow protocol: a realistic X-ray (90 kV spectrum, beam hardening, area
pixels, photon noise, blur) of 64 x 64 pixels, a start within 10 degrees, 20 mm in plane and 50 mm
of depth of the truth about each axis. A cell of the grid is a loss, an optimiser and a shift:

    none        the X-ray as simulated, in line integrals
    gamma       mapped to [0, 1] and raised to a power U(0.7, 1.3)
    field       mapped to [0, 1], times a smooth field between 0.7 and 1.3
    inverted    mapped to [0, 1] and inverted
    shift       gamma and field
    shift-inverted  gamma, inversion and field
    shift-or-inverted  one of these two, each with probability 1/2: the appearance shift of the
                evaluations. Cases that have been run under both need not be run again for it.

Losses of intensities (unit_*) map both images to [0, 1]; the others are invariant to that or need
none. An optimiser has the same two stages, 32 x 32 and 64 x 64 pixels, for every loss.

Rows are kept in the folder --rows, one per registration, so that runs resume and add up (torchrun
shares them among processes); the tables are of all rows there: --report alone makes them again.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import drrkit
from bench.studies import study
from bench.studies.study import percent, recorded, wilson, write_json, write_text
from drrkit.evaluation import (
    PROTOCOLS,
    Case,
    Protocol,
    Row,
    Subject,
    evaluate,
    is_inverted,
    read_rows,
    shifted_appearance,
)
from drrkit.phantoms import torso
from drrkit.registration import CmaEs, Descent, Levenberg, Optimiser, Stage, TrustRegion
from drrkit.training import Processes

VOXEL_MM = 4.0
SIZE, PIXEL_MM = (64, 64), 4.352

LOSSES = (
    "mi",
    "unit_mse",
    "nmi",
    "mattes_mi",
    "ncc",
    "local_ncc",
    "gradient_ncc",
    "patch_gradient_ncc",
    "gradient_difference",
    "unit_l1",
    "unit_soft_dice",
    "unit_ssim",
    "unit_ssim_dice_l1",
    "unit_focal_frequency",
)
"""Every loss of drrkit.losses."""

# Keywords of shifted_appearance; None for the X-ray as it is.
SHIFTS: dict[str, dict[str, bool] | None] = {
    "none": None,
    "gamma": {"inversion": False, "field": False},
    "field": {"inversion": False, "gamma": False},
    "inverted": {"inversion": True, "gamma": False, "field": False},
    "shift": {"inversion": False},
    "shift-inverted": {"inversion": True},
    "shift-or-inverted": {},
}

_REACH = (math.radians(20.0),) * 3 + (40.0, 40.0, 100.0)  # twice that of the starts
_NEAR = (math.radians(5.0),) * 3 + (8.0, 8.0, 25.0)

OPTIONS: dict[str, tuple[tuple[Optimiser, int], tuple[Optimiser, int]]] = {
    "gradient": ((Descent(4.0, final_step=0.4), 80), (Descent(1.0, final_step=0.05), 60)),
    "levenberg": ((Levenberg(20.0, final_step=0.2), 40), (Levenberg(5.0, final_step=0.02), 30)),
    "trust_region": (
        (TrustRegion(12.0, _REACH, final_step=0.4), 30),
        (TrustRegion(2.0, _NEAR, final_step=0.05), 25),
    ),
    "cmaes": ((CmaEs(_REACH, final_step=0.5), 30), (CmaEs(_NEAR, final_step=0.05), 12)),
}
"""Settings and iterations of the two stages of an optimiser."""


_CASES: dict[tuple[str, int], Case] = {}


@dataclass(frozen=True)
class ShiftedProtocol(Protocol):
    """A protocol whose X-rays have one of the SHIFTS, drawn by the case's number."""

    shift: str = "none"

    def case(self, subject: Subject, number: int) -> Case:
        """The case of this number: poses, noise and random shift are the same for every shift."""
        key = subject.name, number
        if key not in _CASES:  # simulating an X-ray takes longer than most registrations here
            _CASES[key] = super().case(subject, number)
        xray, options = _CASES[key].xray, SHIFTS[self.shift]
        if options is not None:
            xray = shifted_appearance(xray, number, **options)
        return replace(_CASES[key], protocol=self, xray=xray)


def protocol(shift: str) -> ShiftedProtocol:
    """The narrow protocol on small X-rays of shifted appearance."""
    narrow = PROTOCOLS["narrow"]
    return ShiftedProtocol(shift, narrow.start, size=SIZE, pixel_mm=PIXEL_MM, shift=shift)


def stages(loss: str, optimiser: str) -> tuple[Stage, Stage]:
    """The two stages of a cell."""
    (coarse, many), (fine, few) = OPTIONS[optimiser]
    first = Stage(loss, optimiser=coarse, downsample=2, supersample=2, iterations=many, mm=True)
    return first, Stage(loss, optimiser=fine, iterations=few, mm=True)


def subject(path: Path | None) -> Subject:
    """A CT, or the torso phantom, that is registered on voxels of 4 mm."""
    if path is None:
        found = Subject.of("torso", torso(2.0))
    else:
        ct = drrkit.read_volume(path).to(dtype=torch.float32)
        found = Subject.of(path.name.split(".")[0], ct)
    return found._replace(attenuation=found.attenuation.resample((VOXEL_MM,) * 3))


def options(add: Any) -> None:
    add("cts", nargs="*", type=Path, help="CTs in HU; default: the torso phantom")
    add("--losses", nargs="+", choices=LOSSES, default=LOSSES)
    add("--optimisers", nargs="+", choices=tuple(OPTIONS), default=tuple(OPTIONS))
    add("--shifts", nargs="+", choices=tuple(SHIFTS), default=tuple(SHIFTS))
    add("--cases", type=int, default=50, help="starts of each cell (50)")
    add("--report", action="store_true", help="run nothing")
    add("--rows", type=Path, default=Path("build/loss_grid_rows"))


def run(options: argparse.Namespace) -> None:
    for path in () if options.report else options.cts or (None,):
        patient = subject(path)
        for optimiser in options.optimisers:
            methods = {f"{loss}/{optimiser}": stages(loss, optimiser) for loss in options.losses}
            for shift in options.shifts:
                before = time.perf_counter()
                # Files that are written anew for each row stay short.
                folder = options.rows / f"{patient.name}.{shift}.{optimiser}"
                evaluate(methods, [protocol(shift)], [patient], options.cases, folder)
                spent = time.perf_counter() - before
                print(f"{patient.name} {optimiser} {shift}: {spent:.0f} s", flush=True)
    if Processes.of_environment().writes:
        print(write_report(options, described()))


def described() -> dict[str, object]:
    """What every cell has in common, for the record."""
    return {
        "protocol": {**vars(protocol("none")), "shift": list(SHIFTS)},
        "voxel_mm": VOXEL_MM,
        "optimisers": {
            name: [
                {"optimiser": repr(optimiser), "iterations": count, "downsample": 2 - k}
                for k, (optimiser, count) in enumerate(both)
            ]
            for name, both in OPTIONS.items()
        },
    }


# ---- the report

QUANTILES = (0.5, 0.75, 0.9)
SUCCESS_MM = (2.0, 10.0)
SMALL_ANGLE = 3.0  # degrees: a success of the publication that compares angles
MIXED = "shift-or-inverted"
MIXTURE = ("shift", "shift-inverted")
ORDER = ("none", "gamma", "field", "inverted", *MIXTURE, MIXED)
RESAMPLES = 2000

Cell = tuple[str, str, str, str]
"""Subject, shift, optimiser, loss."""


def write_report(options: argparse.Namespace, settings: dict[str, Any]) -> str:
    """Writes everything into --output; returns the table in Markdown.

    Raises ValueError: there are no rows.
    """
    rows, output = options.rows, options.output
    cells = grouped(rows)
    if not cells:
        raise ValueError(f"{rows}: expected files of rows in it, found none")
    table = [numbers_of(cell, cells[cell]) for cell in sorted(cells, key=position)]
    duels = contests(cells)
    record = recorded(options, settings=settings, mi_against_mse=duels, cells=table)
    write_json(output / "grid.json", record)
    text = markdown(table, duels)
    write_text(output / "table.md", text)
    return text


def grouped(rows: Path) -> dict[Cell, list[Row]]:
    """The rows of every cell by number, those of the mixture among them."""
    found: dict[Cell, dict[int, Row]] = defaultdict(dict)
    for folder in sorted({file.parent for file in rows.rglob("rows.*.csv")}):
        for row in read_rows(folder):
            loss, optimiser = row.method.split("/")
            found[row.subject, row.protocol, optimiser, loss][row.number] = row
    for subject, shift, optimiser, loss in list(found):
        plain, inverted = (found.get((subject, s, optimiser, loss), {}) for s in MIXTURE)
        mixed = {
            number: inverted[number] if is_inverted(number) else plain[number]
            for number in plain.keys() & inverted.keys()
        }
        if shift in MIXTURE and mixed:
            found[subject, MIXED, optimiser, loss].update(mixed)
    return {cell: [rows[n] for n in sorted(rows)] for cell, rows in found.items()}


def position(cell: Cell) -> tuple[Any, ...]:
    subject, shift, optimiser, loss = cell
    return subject, ORDER.index(shift), optimiser, loss


def numbers_of(cell: Cell, rows: Sequence[Row]) -> dict[str, Any]:
    """The numbers of one cell, flat."""
    numbers: dict[str, Any] = dict(
        zip(("subject", "shift", "optimiser", "loss"), cell, strict=True)
    )
    numbers["starts"] = len(rows)
    errors = {"mtre": [row.mtre for row in rows], "angle": [row.rotation for row in rows]}
    for name, unit in (("mtre", "mm"), ("angle", "deg")):
        for share in QUANTILES:
            value = float(np.quantile(errors[name], share))
            numbers[f"{name}_q{100 * share:.0f}_{unit}"] = round(value, 3)
    checks = [(f"below_{mm:g}_mm", errors["mtre"], mm) for mm in SUCCESS_MM]
    checks += [(f"below_{SMALL_ANGLE:g}_deg", errors["angle"], SMALL_ANGLE)]
    for name, values, limit in checks:
        numbers[name] = wilson(values, limit)
    numbers["seconds_q50"] = round(float(np.median([row.seconds for row in rows])), 3)
    numbers["cpu_seconds_q50"] = round(float(np.median([row.cpu_seconds for row in rows])), 3)
    return numbers


def contests(cells: dict[Cell, list[Row]]) -> list[dict[str, Any]]:
    """The 90 % quantiles of the angle of MI and MSE over the cases that both have.

    The interval of the difference MSE - MI is that of a bootstrap over cases, 95 %.
    """
    found = []
    for subject, shift, optimiser, loss in sorted(cells, key=position):
        rival = cells.get((subject, shift, optimiser, "unit_mse"))
        if loss != "mi" or rival is None:
            continue
        ours = {row.number: row.rotation for row in cells[subject, shift, optimiser, loss]}
        theirs = {row.number: row.rotation for row in rival}
        pairs = np.array([[ours[n], theirs[n]] for n in sorted(ours.keys() & theirs.keys())])
        draw = np.random.default_rng(0).integers(len(pairs), size=(RESAMPLES, len(pairs)))
        quantiles = np.quantile(pairs[draw], 0.9, axis=1)
        low, high = np.quantile(quantiles[:, 1] - quantiles[:, 0], (0.025, 0.975))
        mi, mse = np.quantile(pairs, 0.9, axis=0)
        found.append(
            {
                "subject": subject,
                "shift": shift,
                "optimiser": optimiser,
                "starts": len(pairs),
                "mi_q90_deg": round(float(mi), 3),
                "mse_q90_deg": round(float(mse), 3),
                "difference_95_deg": [round(float(low), 3), round(float(high), 3)],
                "mi_median_deg": round(float(np.median(pairs[:, 0])), 3),
                "mse_median_deg": round(float(np.median(pairs[:, 1])), 3),
            }
        )
    return found


def markdown(table: Sequence[dict[str, Any]], duels: Sequence[dict[str, Any]]) -> str:
    lines = ["# Losses, optimisers and appearance shifts", "", "Written by the study loss_grid."]
    lines += ["", "## Mutual information against MSE: 90 % quantile of the angle error", ""]
    head = ["subject", "shift", "optimiser", "starts", "MI", "MSE", "MSE - MI, 95 % interval"]
    rows = []
    for duel in duels:
        low, high = duel["difference_95_deg"]
        angles = [f"{duel['mi_q90_deg']:.2f}", f"{duel['mse_q90_deg']:.2f}"]
        rows.append([*(duel[k] for k in head[:4]), *angles, f"{low:.2f} to {high:.2f}"])
    lines += [*study.markdown(head, rows), "", "## All cells", ""]
    lines += ["mTRE in mm and angles in degrees: median / 75 % / 90 %; shares with Wilson 95 %."]
    groups: dict[tuple[str, ...], list[list[Any]]] = {}
    for cell in table:
        group = cell["subject"], cell["shift"], cell["optimiser"]
        groups.setdefault(group, []).append(columns(cell))
    head = ["loss", "starts", "mTRE", "angle", "< 2 mm", "< 10 mm", "CPU s"]
    for group, rows in groups.items():
        lines += ["", f"### {', '.join(group)}", "", *study.markdown(head, rows)]
    return "\n".join(lines) + "\n"


def columns(cell: dict[str, Any]) -> list[Any]:
    quantiles = [
        " / ".join(f"{cell[f'{name}_q{q}_{unit}']:.2f}" for q in (50, 75, 90))
        for name, unit in (("mtre", "mm"), ("angle", "deg"))
    ]
    rates = [percent(cell[name]) for name in ("below_2_mm", "below_10_mm")]
    return [cell["loss"], cell["starts"], *quantiles, *rates, f"{cell['cpu_seconds_q50']:.2f}"]
