"""Similarity against pose distance: learned similarities beside classical ones.

    python bench/learned_landscapes.py --work FOLDER [--subjects 20] [--output FOLDER]

FOLDER is that of train_prost.py, and of prost_ablations.py if that has run, too. About the true
pose of one X-ray of each pelvis that no network was trained on, every similarity is evaluated at
300 random poses and swept along each of the six components of the pose in 41 steps, within the
range that the networks were trained on (30 degrees, 50 mm). Counted are the Pearson correlation of
similarity and mTRE (of each subject, and of all subjects' poses together), the local minima of each
sweep (1 is ideal) and how far the lowest point of each sweep is from the truth. Published (Gao et
al., IEEE TMI 2024): correlation 0.56 for the network, 0.23 for gradient NCC.

Writes learned_landscapes.json and README.md, sweeps.png (the first subject) and correlation.png.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import train_prost as small
from landscapes import draw

import drrkit
from drrkit.evaluation import Landscape, Protocol, Subject, landscape
from drrkit.machine import machine, versions
from drrkit.registration import Stage
from drrkit.similarity import load_similarity

SCHEMA = 1
WIDTHS = small.SAMPLING.moving  # degrees, mm
COUNT, POSES = 41, 300
VIEWS = Protocol(
    "learned landscapes",
    WIDTHS,
    size=small.CAMERA.size,
    pixel_mm=2.176 * 2,
    target=small.SAMPLING.target,
    seed=6,
)
CLASSICAL = ("gradient_ncc", "patch_gradient_ncc", "mi")
WHOLE = (*CLASSICAL, "full-ct")  # compare with the whole CT
LEARNED = ("direction", "direction-2020", "mse", "ablations/no-3d", "ablations/full-ct")
WORDS = {
    "direction": "ProST (CrossViT)",
    "direction-2020": "ProST, network of 2020",
    "mse": "ProST, MSE objective",
    "no-3d": "ProST, no 3D network",
    "full-ct": "ProST, full CT",
    "gradient_ncc": "gradient NCC",
    "patch_gradient_ncc": "patch gradient NCC",
    "mi": "mutual information",
}
PUBLISHED = {"direction": 0.56, "gradient_ncc": 0.23}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(1)
    similarities: dict[str, Any] = {
        Path(name).name: load_similarity(path)
        for name in LEARNED
        if (path := options.work / f"{name}.pt").exists()
    }
    similarities |= {name: name for name in CLASSICAL}
    found: dict[str, list[Landscape]] = {name: [] for name in similarities}
    for seed in small.TESTED[: options.subjects]:
        ct = small.subject(seed, options.work)
        case = VIEWS.case(Subject.of(f"pelvis {seed}", ct), 0)
        # What moving volumes were made of in training.
        bone = case.subject._replace(attenuation=ct.select(small.BONE).to_mu())
        for name, similarity in similarities.items():
            seen = case.subject if name in WHOLE else bone
            stage = Stage(similarity)
            one = landscape(
                replace(case, subject=seen),
                stage,
                widths=WIDTHS,
                count=COUNT,
                poses=POSES,
                seed=seed,
            )
            found[name].append(replace(one, name=WORDS[name].replace(", ", "\n")))
        line = ", ".join(f"{name} {own[-1].correlation:.2f}" for name, own in found.items())
        print(f"pelvis {seed}: {line}", flush=True)
    write(found, options)
    return 0


def write(found: dict[str, list[Landscape]], options: argparse.Namespace) -> None:
    """Numbers, tables and figures."""
    record = {
        "schema": SCHEMA,
        "command": f"python bench/learned_landscapes.py --subjects {options.subjects}",
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "load_average": os.getloadavg(),
        "versions": versions(("torch", "numpy")) | {"drrkit": drrkit.__version__},
        "widths_deg_mm": WIDTHS,
        "poses_a_sweep": COUNT,
        "random_poses": POSES,
        "published_correlation": PUBLISHED,
        "similarities": {name: numbers(own) for name, own in found.items()},
    }
    options.output.mkdir(parents=True, exist_ok=True)
    small.write(options.output / "learned_landscapes.json", record)
    text = markdown(record)
    (options.output / "README.md").write_text(text)
    first = [own[0] for own in found.values()]
    draw(first, options.output / "sweeps.png", "a pelvis never trained on", "X-ray as simulated")
    draw_correlations(record, options.output / "correlation.png")
    print(text)


def numbers(found: Sequence[Landscape]) -> dict[str, Any]:
    """Correlations, minima and offsets of one similarity on all subjects."""
    unit = torch.tensor([180 / math.pi] * 3 + [1.0] * 3, dtype=torch.float64)[:, None]
    lowest = [(one.offsets * unit).gather(1, one.sweeps.argmin(1)[:, None]) for one in found]
    minima = torch.tensor([one.minima for one in found], dtype=torch.float64)
    own = [one.correlation for one in found]
    together = [torch.cat([getattr(one, key) for one in found]) for key in ("distances", "losses")]
    return {
        "subjects": len(found),
        "correlation": statistics.mean(own),
        "correlation_sd": statistics.stdev(own) if len(own) > 1 else 0.0,
        "correlation_together": float(torch.corrcoef(torch.stack(together))[0, 1]),
        "correlations": own,
        "minima": minima.mean(0).tolist(),
        "minima_mean": float(minima.mean()),
        "lowest_off_deg_mm": torch.cat(lowest, 1).abs().mean(1).tolist(),
    }


def markdown(record: dict[str, Any]) -> str:
    lines = [
        "# Similarity against pose distance",
        "",
        f"`{record['command']}` on {record['machine']['cpu']}, torch "
        f"{record['versions']['torch']}, {record['utc'][:10]}. Pelves never trained on, "
        f"{POSES} poses each within {WIDTHS[0]:.0f} degrees and {WIDTHS[3]:.0f} mm of the truth "
        "on every axis.",
        "",
        "| similarity | correlation with mTRE | all subjects together | published "
        "| minima of a sweep | lowest point off, turns | shifts x, y | depth |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, own in record["similarities"].items():
        off = own["lowest_off_deg_mm"]
        published = PUBLISHED.get(name)
        columns = [
            WORDS[name],
            f"{own['correlation']:.2f} +- {own['correlation_sd']:.2f}",
            f"{own['correlation_together']:.2f}",
            "-" if published is None else f"{published:.2f}",
            f"{own['minima_mean']:.2f}",
            f"{statistics.mean(off[:3]):.1f} deg",
            f"{statistics.mean(off[3:5]):.1f} mm",
            f"{off[5]:.1f} mm",
        ]
        lines.append("| " + " | ".join(columns) + " |")
    lines += ["", "Correlation: mean and deviation over subjects. ![sweeps](sweeps.png)"]
    lines += ["![correlation](correlation.png)"]
    return "\n".join(lines) + "\n"


def draw_correlations(record: dict[str, Any], path: Path) -> None:
    """Correlations as bars with their deviation over subjects, the published ones as lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 2.8), layout="constrained", dpi=80)
    panel = figure.subplots()
    for place, (name, own) in enumerate(record["similarities"].items()):
        colour = "tab:orange" if name in CLASSICAL else "tab:blue"
        spread = own["correlation_sd"]
        panel.barh(place, own["correlation"], xerr=spread, color=colour, height=0.7, capsize=2)
        if name in PUBLISHED:
            at = PUBLISHED[name]
            panel.plot([at, at], [place - 0.45, place + 0.45], color="black", linewidth=1.5)
    names = list(record["similarities"])
    panel.set_yticks(range(len(names)), [WORDS[name] for name in names], fontsize=7)
    panel.invert_yaxis()
    panel.set_xlabel("correlation of similarity and mTRE (black: published)", fontsize=7)
    panel.tick_params(axis="x", labelsize=7)
    figure.savefig(path)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/prost_small"))
    parser.add_argument("--subjects", type=int, default=20, choices=range(2, 21), metavar="N")
    default = Path(__file__).parent / "results" / "learned_landscapes"
    parser.add_argument("--output", type=Path, default=default)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
