"""Landscapes of every loss about the true pose: sweeps, local minima, correlation with distance.

    python bench/landscapes.py [CT ...] [--losses NAME ...] [--shifts NAME ...] [--cases 3]
                               [--output FOLDER]

About the truth of cases of the narrow protocol (realistic X-rays, 64 x 64 pixels, voxels of 4 mm),
every loss is swept along each of the six components of the pose, +-30 degrees, +-60 mm in plane and
+-150 mm of depth in 41 steps, and evaluated at 300 random poses within these bounds and at 300
within the narrow protocol's. Counted are the local minima of each sweep (1 is ideal), how far the
lowest point of each sweep is from the truth, and the Pearson correlation of loss and mTRE over the
random poses (published: 0.56 for a learned similarity, 0.23 for gradient correlation). Once in the
X-ray as simulated and once under the appearance shift (gamma and field) and its inversion.

Writes for every CT the numbers (NAME.json, NAME.md) and a figure a shift: the first case.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from loss_grid import LOSSES, PIXEL_MM, SIZE, VOXEL_MM, protocol, subject
from loss_grid_report import whole

import drrkit
from drrkit.evaluation import Landscape, Subject, landscapes_of
from drrkit.machine import machine, versions
from drrkit.registration import Stage

SCHEMA = 1
SHIFTS = ("none", "shift", "shift-inverted")
WIDTHS = (30.0, 30.0, 30.0, 60.0, 60.0, 150.0)  # degrees, mm
NARROW = protocol("none").start
COUNT, POSES = 41, 300


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()
    found = []
    for path in options.cts or (None,):
        patient = subject(path)
        for shift in options.shifts:
            rows, first = measured(patient, shift, options)
            found += rows
            draw(first, options.output / f"{patient.name}_{shift}.png", patient.name, shift)
            print("\n".join(line(row) for row in rows), flush=True)
    record = {
        "schema": SCHEMA,
        "command": f"python bench/landscapes.py {' '.join(described(options))}",
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "load_average": {"before": load, "after": os.getloadavg()},
        "versions": versions(("torch", "numpy", "SimpleITK")) | {"drrkit": drrkit.__version__},
        "settings": {
            "size": SIZE,
            "pixel_mm": PIXEL_MM,
            "voxel_mm": VOXEL_MM,
            "widths_deg_mm": WIDTHS,
            "near_widths_deg_mm": NARROW,
            "poses_a_sweep": COUNT,
            "random_poses": POSES,
        },
    }
    for name in sorted({row["subject"] for row in found}):
        own = [row for row in found if row["subject"] == name]
        text = json.dumps(record | {"landscapes": own}, indent=1) + "\n"
        whole(options.output / f"{name}.json", text)
        whole(options.output / f"{name}.md", markdown(own))
    return 0


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
    unit = torch.tensor([180 / math.pi] * 3 + [1.0] * 3, dtype=torch.float64)[:, None]
    lowest = [(found.offsets * unit).gather(1, found.sweeps.argmin(1)[:, None]) for found in wide]
    minima = torch.tensor([found.minima for found in wide], dtype=torch.float64)
    return {
        "subject": name,
        "shift": shift,
        "loss": loss,
        "cases": len(wide),
        "minima": [round(float(count), 2) for count in minima.mean(0)],
        "minima_mean": round(float(minima.mean()), 3),
        "lowest_off_deg_mm": [round(float(v), 2) for v in torch.cat(lowest, 1).abs().mean(1)],
        "correlation": correlation(wide),
        "correlation_near": correlation(near),
    }


def correlation(found: Sequence[Landscape]) -> float | None:
    """Mean over cases; None where a loss is the same everywhere."""
    mean = statistics.mean(one.correlation for one in found)
    return None if math.isnan(mean) else round(mean, 4)


def written(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def draw(landscapes: Sequence[Landscape], path: Path, name: str, shift: str) -> None:
    """All losses in one figure: a panel an axis, each sweep scaled to [0, 1], and the scatter."""
    from matplotlib.figure import Figure

    from drrkit.evaluation.landscapes import AXES

    figure = Figure(figsize=(13.0, 1.05 * len(landscapes)), layout="constrained", dpi=70)
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
    figure.suptitle(f"{name}, {shift}: losses about the truth of one case", fontsize=8)
    figure.savefig(path)


def line(row: dict[str, Any]) -> str:
    minima = ", ".join(f"{count:.1f}" for count in row["minima"])
    return (
        f"{row['subject']} {row['shift']} {row['loss']}: minima {minima}; correlation "
        f"{written(row['correlation'])}, near {written(row['correlation_near'])}"
    )


def markdown(found: Sequence[dict[str, Any]]) -> str:
    lines = ["# Landscapes of losses about the true pose", "", "Written by bench/landscapes.py."]
    group = None
    for row in found:
        if group != (row["subject"], row["shift"]):
            group = row["subject"], row["shift"]
            lines += ["", f"## {group[0]}, {group[1]} (means of {row['cases']} cases)", ""]
            lines += ["| loss | minima of a sweep | turns x, y, z | shifts x, y | depth | "]
            lines[-1] += "correlation | within narrow starts |"
            lines += ["|---|---|---|---|---|---|---|"]
        count = [f"{value:.1f}" for value in row["minima"]]
        columns = [row["loss"], f"{row['minima_mean']:.2f}", ", ".join(count[:3])]
        columns += [", ".join(count[3:5]), count[5]]
        columns += [written(row["correlation"]), written(row["correlation_near"])]
        lines.append("| " + " | ".join(columns) + " |")
    return "\n".join(lines) + "\n"


def described(options: argparse.Namespace) -> list[str]:
    """The command line, without the folders of this machine."""
    words = [path.name for path in options.cts]
    if options.losses != LOSSES:
        words += ["--losses", *options.losses]
    if options.shifts != SHIFTS:
        words += ["--shifts", *options.shifts]
    return [*words, f"--cases {options.cases}"]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cts", nargs="*", type=Path, help="CTs in HU; default: the torso phantom")
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=LOSSES)
    parser.add_argument("--shifts", nargs="+", choices=SHIFTS, default=SHIFTS)
    parser.add_argument("--cases", type=int, default=3, help="X-rays of every CT (default 3)")
    results = Path(__file__).parent / "results" / "landscapes"
    parser.add_argument("--output", type=Path, default=results)
    options = parser.parse_args(arguments)
    if options.cases < 1:
        parser.error("--cases must be at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
