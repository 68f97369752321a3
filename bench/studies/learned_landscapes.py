"""Similarity against pose distance: learned similarities beside classical ones.

--work is the folder of the study prost_small, and of prost_ablations if that has run, too. About
the true pose of one X-ray of each pelvis that no network was trained on, every similarity is
evaluated at 300 random poses and swept along each of the six components of the pose in 41 steps,
within the range that the networks were trained on (30 degrees, 50 mm). Counted are the
Pearson correlation of similarity and mTRE (of each subject, and of all subjects' poses together),
the local minima of each sweep (1 is ideal) and how far the lowest point of each sweep is from the
truth. Published (Gao et al., IEEE TMI 2024): correlation 0.56 for the network, 0.23 for gradient
NCC.

Writes learned_landscapes.json and README.md, sweeps.png (the first subject) and correlation.png.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.studies import prost_small as small
from bench.studies import study
from bench.studies.landscapes import draw, shape_of, written
from bench.studies.study import origin, recorded, write_json, write_text
from drrkit.evaluation import Landscape, Protocol, Subject, landscape
from drrkit.registration import Stage
from drrkit.similarity import load_similarity

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


def options(add: Any) -> None:
    add("--work", type=Path, default=small.WORK)
    add("--subjects", type=int, default=20, choices=range(2, 21), metavar="N")


def run(options: argparse.Namespace) -> None:
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
    report(found, options)


def report(found: dict[str, list[Landscape]], options: argparse.Namespace) -> None:
    """Numbers, tables and figures."""
    record = recorded(
        options,
        widths_deg_mm=WIDTHS,
        poses_a_sweep=COUNT,
        random_poses=POSES,
        published_correlation=PUBLISHED,
        similarities={name: numbers(own) for name, own in found.items()},
    )
    write_json(options.output / "learned_landscapes.json", record)
    text = markdown(record)
    write_text(options.output / "README.md", text)
    first = [own[0] for own in found.values()]
    title = "a pelvis never trained on, X-ray as simulated: losses about the truth of one case"
    draw(first, options.output / "sweeps.png", title)
    draw_correlations(record, options.output / "correlation.png")
    print(text)


def numbers(found: Sequence[Landscape]) -> dict[str, Any]:
    """Correlations, minima and offsets of one similarity on all subjects."""
    minima, lowest = shape_of(found)
    own = [one.correlation for one in found]
    together = [torch.cat([getattr(one, key) for one in found]) for key in ("distances", "losses")]
    return {
        "subjects": len(found),
        "correlation": statistics.mean(own),
        "correlation_sd": statistics.stdev(own) if len(own) > 1 else 0.0,
        "correlation_together": float(torch.corrcoef(torch.stack(together))[0, 1]),
        "correlations": own,
        "minima": minima,
        "minima_mean": statistics.mean(minima),
        "lowest_off_deg_mm": lowest,
    }


def markdown(record: dict[str, Any]) -> str:
    rows = []
    for name, own in record["similarities"].items():
        off = own["lowest_off_deg_mm"]
        columns = [WORDS[name], f"{own['correlation']:.2f} +- {own['correlation_sd']:.2f}"]
        columns += [f"{own['correlation_together']:.2f}", written(PUBLISHED.get(name))]
        columns += [f"{own['minima_mean']:.2f}", f"{statistics.mean(off[:3]):.1f} deg"]
        rows.append([*columns, f"{statistics.mean(off[3:5]):.1f} mm", f"{off[5]:.1f} mm"])
    head = ["similarity", "correlation with mTRE", "all subjects together", "published"]
    head += ["minima of a sweep", "lowest point off, turns", "shifts x, y", "depth"]
    within = f"{WIDTHS[0]:.0f} degrees and {WIDTHS[3]:.0f} mm of the truth on every axis"
    lines = [
        "# Similarity against pose distance",
        "",
        f"{origin(record)} Pelves never trained on, {POSES} poses each within {within}.",
        "",
        *study.markdown(head, rows),
        "",
        "Correlation: mean and deviation over subjects. ![sweeps](sweeps.png)",
        "![correlation](correlation.png)",
    ]
    return "\n".join(lines) + "\n"


def draw_correlations(record: dict[str, Any], path: Path) -> None:
    """Correlations as bars with their deviation over subjects, the published ones as lines."""
    figure = study.figure((6.4, 2.8))
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
