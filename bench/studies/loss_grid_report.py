"""Tables and plots of the rows of the study loss_grid: grid.json, table.md, *.png."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.studies import study
from bench.studies.study import percent, recorded, wilson, write_json, write_text
from drrkit.evaluation import Row, is_inverted, read_rows

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
    table = [described(cell, cells[cell]) for cell in sorted(cells, key=position)]
    duels = contests(cells)
    record = recorded(options, settings=settings, mi_against_mse=duels, cells=table)
    write_json(output / "grid.json", record)
    text = markdown(table, duels)
    write_text(output / "table.md", text)
    for subject in sorted({cell[0] for cell in cells}):
        draw_heat(table, subject, output / f"{subject}_success.png")
        draw_distributions(cells, subject, output / f"{subject}_angle.png")
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


def described(cell: Cell, rows: Sequence[Row]) -> dict[str, Any]:
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


def draw_heat(table: Sequence[dict[str, Any]], subject: str, path: Path) -> None:
    """Success at 10 mm of every loss, a panel a shift, a column an optimiser."""
    cells = [cell for cell in table if cell["subject"] == subject]
    shifts = [shift for shift in ORDER if any(cell["shift"] == shift for cell in cells)]
    losses = sorted({cell["loss"] for cell in cells})
    optimisers = sorted({cell["optimiser"] for cell in cells})
    size = (2.2 + 1.7 * len(shifts), 1.6 + 0.3 * len(losses))
    figure = study.figure(size)
    panels = figure.subplots(1, len(shifts), sharey=True, squeeze=False)[0]
    for panel, shift in zip(panels, shifts, strict=True):
        grid = np.full((len(losses), len(optimisers)), np.nan)
        for cell in cells:
            if cell["shift"] == shift:
                at = losses.index(cell["loss"]), optimisers.index(cell["optimiser"])
                grid[at] = 100 * cell["below_10_mm"]["rate"]
        panel.imshow(grid, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        for (row, column), value in np.ndenumerate(grid):
            if not np.isnan(value):
                colour = "black" if value > 60 else "white"
                panel.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour)
        panel.set_title(shift, fontsize=9)
        panel.set_xticks(range(len(optimisers)), optimisers, rotation=60, ha="right", fontsize=8)
        panel.set_yticks(range(len(losses)), losses, fontsize=8)
    figure.suptitle(f"{subject}: % of starts that end within 10 mm", fontsize=10)
    figure.savefig(path)


def draw_distributions(cells: dict[Cell, list[Row]], subject: str, path: Path) -> None:
    """Cumulative distributions of the angle error, a row an optimiser, a column a shift."""
    shown = ("mi", "unit_mse", "ncc", "gradient_ncc")
    shifts = ("none", *MIXTURE, MIXED)
    optimisers = sorted({cell[2] for cell in cells if cell[0] == subject})
    size = (3.0 * len(shifts), 2.3 * len(optimisers))
    figure = study.figure(size)
    grid = figure.subplots(len(optimisers), len(shifts), sharex=True, sharey=True, squeeze=False)
    for row, optimiser in zip(grid, optimisers, strict=True):
        for panel, shift in zip(row, shifts, strict=True):
            for loss in shown:
                rows = cells.get((subject, shift, optimiser, loss), [])
                angles = np.sort([row.rotation for row in rows])
                share = np.arange(1, len(angles) + 1) / max(1, len(angles))
                panel.step(angles, share, where="post", label=f"{loss} ({len(rows)})")
            panel.axhline(0.9, color="0.8", linewidth=0.8, zorder=0)
            panel.set_xscale("log")
            panel.legend(fontsize=6)
            panel.set_title(f"{optimiser}, {shift}", fontsize=8)
        row[0].set_ylabel("share of starts", fontsize=8)
    for panel in grid[-1]:
        panel.set_xlabel("angle error, degrees", fontsize=8)
    figure.savefig(path)
