"""Landscapes of every loss about the true pose: sweeps, local minima, correlation with distance.

About the truth of cases of the narrow protocol (realistic X-rays, 64 x 64 pixels, voxels of 4 mm),
every loss is swept along each of the six components of the pose, +-30 degrees, +-60 mm in plane and
+-150 mm of depth in 41 steps, and evaluated at 300 random poses within these bounds and at 300
within the narrow protocol's. Counted are the local minima of each sweep (1 is ideal), how far the
lowest point of each sweep is from the truth, and the Pearson correlation of loss and mTRE over the
random poses (published: 0.56 for a learned similarity, 0.23 for gradient correlation). Once in the
X-ray as simulated and once under the appearance shift (gamma and field) and its inversion.

Writes for every CT the numbers (NAME.json, NAME.md) and a figure per shift: the first case.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.studies import study
from bench.studies.loss_grid import LOSSES, PIXEL_MM, SIZE, VOXEL_MM, protocol, subject
from bench.studies.study import recorded, write_json, write_text
from drrkit.evaluation import AXES, Landscape, Subject, landscapes_of
from drrkit.registration import Stage

SHIFTS = ("none", "shift", "shift-inverted")
WIDTHS = (30.0, 30.0, 30.0, 60.0, 60.0, 150.0)  # degrees, mm
NARROW = protocol("none").start
COUNT, POSES = 41, 300


def options(add: Any) -> None:
    add("cts", nargs="*", type=Path, help="CTs in HU; default: the torso phantom")
    add("--losses", nargs="+", choices=LOSSES, default=LOSSES)
    add("--shifts", nargs="+", choices=SHIFTS, default=SHIFTS)
    add("--cases", type=int, default=3, help="X-rays of every CT (3)")


def run(options: argparse.Namespace) -> None:
    options.output.mkdir(parents=True, exist_ok=True)
    settings = {
        "size": SIZE,
        "pixel_mm": PIXEL_MM,
        "voxel_mm": VOXEL_MM,
        "widths_deg_mm": WIDTHS,
        "near_widths_deg_mm": NARROW,
        "poses_a_sweep": COUNT,
        "random_poses": POSES,
    }
    for path in options.cts or (None,):
        patient, found = subject(path), []
        for shift in options.shifts:
            rows, first = measured(patient, shift, options)
            found += rows
            title = f"{patient.name}, {shift}: losses about the truth of one case"
            draw(first, options.output / f"{patient.name}_{shift}.png", title)
        record = recorded(options, settings=settings, landscapes=found)
        write_json(options.output / f"{patient.name}.json", record)
        write_text(options.output / f"{patient.name}.md", markdown(found))
        print(markdown(found), flush=True)


def measured(
    patient: Subject, shift: str, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[Landscape]]:
    """The numbers of every loss, means over the cases, and the landscapes of the first case."""
    wide, near = [], []
    for number in range(options.cases):
        case = protocol(shift).case(patient, number)
        of = partial(landscapes_of, case, options.losses, Stage(), poses=POSES)
        wide.append(of(widths=WIDTHS, count=COUNT))
        near.append(of(widths=NARROW, count=3))
    rows = [
        numbers(patient.name, shift, loss, [found[k] for found in wide], [f[k] for f in near])
        for k, loss in enumerate(options.losses)
    ]
    return rows, wide[0]


def numbers(
    name: str, shift: str, loss: str, wide: Sequence[Landscape], near: Sequence[Landscape]
) -> dict[str, Any]:
    minima, lowest = shape_of(wide)
    return {
        "subject": name,
        "shift": shift,
        "loss": loss,
        "cases": len(wide),
        "minima": [round(count, 2) for count in minima],
        "minima_mean": round(statistics.mean(minima), 3),
        "lowest_off_deg_mm": [round(value, 2) for value in lowest],
        "correlation": correlation(wide),
        "correlation_near": correlation(near),
    }


def shape_of(found: Sequence[Landscape]) -> tuple[list[float], list[float]]:
    """Along each axis, means of the number of minima and of how far off the lowest point is."""
    unit = torch.tensor([180 / math.pi] * 3 + [1.0] * 3, dtype=torch.float64)[:, None]
    lowest = [(one.offsets * unit).gather(1, one.sweeps.argmin(1)[:, None]) for one in found]
    minima = torch.tensor([one.minima for one in found], dtype=torch.float64)
    return minima.mean(0).tolist(), torch.cat(lowest, 1).abs().mean(1).tolist()


def correlation(found: Sequence[Landscape]) -> float | None:
    """Mean over cases; None where a loss is the same everywhere."""
    mean = statistics.mean(one.correlation for one in found)
    return None if math.isnan(mean) else round(mean, 4)


def written(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def draw(landscapes: Sequence[Landscape], path: Path, title: str) -> None:
    """All losses in one figure: a panel per axis, each sweep scaled to [0, 1], and the scatter."""
    figure = study.figure((13.0, 1.05 * len(landscapes)))
    grid = figure.subplots(len(landscapes), 7, squeeze=False)
    for row, found in zip(grid, landscapes, strict=True):
        for axis, panel in enumerate(row[:-1]):
            scale = 180 / math.pi if axis < 3 else 1.0
            panel.plot(found.offsets[axis] * scale, found.sweeps[axis], linewidth=1.0)
            panel.axvline(0.0, color="0.7", linewidth=0.7)
            minima = found.minima[axis]
            words = "minimum" if minima == 1 else "minima"
            panel.text(
                0.98, 0.02, f"{minima} {words}", transform=panel.transAxes, ha="right", size=6
            )
        row[-1].scatter(found.distances, found.losses, s=1)
        words = f"r = {found.correlation:.2f}"
        row[-1].text(0.98, 0.02, words, transform=row[-1].transAxes, ha="right", size=6)
        row[0].set_ylabel(found.name.replace("_", "\n"), fontsize=6)
        for panel in row:
            panel.set_yticks([])
            panel.tick_params(labelsize=5, labelbottom=row is grid[-1])
    for axis, panel in enumerate(grid[0, :-1]):
        panel.set_title(f"{AXES[axis]}, {'degrees' if axis < 3 else 'mm'}", fontsize=7)
    grid[0, -1].set_title("loss against mTRE, mm", fontsize=7)
    figure.suptitle(title, fontsize=8)
    figure.savefig(path)


def markdown(found: Sequence[dict[str, Any]]) -> str:
    lines = ["# Landscapes of losses about the true pose", "", "Written by the study landscapes."]
    head = ["loss", "minima of a sweep", "turns x, y, z", "shifts x, y", "depth"]
    head += ["correlation", "within narrow starts"]
    groups: dict[str, list[list[str]]] = {}
    for row in found:
        title = f"{row['subject']}, {row['shift']} (means of {row['cases']} cases)"
        count = [f"{value:.1f}" for value in row["minima"]]
        columns = [row["loss"], f"{row['minima_mean']:.2f}", ", ".join(count[:3])]
        columns += [", ".join(count[3:5]), count[5]]
        columns += [written(row["correlation"]), written(row["correlation_near"])]
        groups.setdefault(title, []).append(columns)
    for title, rows in groups.items():
        lines += ["", f"## {title}", "", *study.markdown(head, rows)]
    return "\n".join(lines) + "\n"
