"""The tables of bench/prost_ablations.py, beside the published one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import datetime, timezone
from math import comb
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import train_prost as small

import drrkit
from drrkit import metrics
from drrkit.machine import machine, versions

SCHEMA = 1

PUBLISHED: dict[str, tuple[float | None, float | None]] = {
    "none:plain": (28.5, 36.0),
    "direction:plain": (65.6, 73.2),
    "randomised:plain": (65.6, 73.2),
    "full-ct:plain": (None, 59.4),
    "mse:plain": (27.9, 28.8),
    "direction-2020:plain": (45.0, 51.2),
    "deepim:plain": (59.6, 41.2),
    "direction:realistic": (None, 71.4),
    "randomised:realistic": (None, 73.2),
    "direction:tools": (None, 48.4),
    "deepim:tools": (None, 23.8),
    "direction:partial": (None, 45.8),
    "none:spine": (23.3, None),
    "spine:spine": (39.4, None),
}
"""Success (%) with CMA-ES, simulated and real X-rays: Gao et al., IEEE TMI 2024. Its baseline is
trained with domain randomisation; 71.4 is that of real X-rays without."""

NOTES = """\
The published baseline is trained with domain randomisation (65.4 / 71.4 without), the one here
without, and "domain randomisation" adds it. One training of each network: intervals and p are of
cases, not of trainings. Regressors have three times the steps (about as many minutes), as
they need no double backward pass; minutes are wall time of one thread on a machine with other
work. "Realistic" X-rays stand where the paper has real ones.
""".replace("\n", " ").strip()

WORDS = {
    "none": "CMA-ES only",
    "direction": "baseline",
    "no-3d": "no 3D network",
    "full-ct": "full CT",
    "randomised": "domain randomisation",
    "mse": "MSE objective",
    "direction-2020": "network of 2020",
    "deepim": "DeepIM",
    "dmw": "DMW",
    "spine": "trained on spines",
    "direction+femurs": "baseline, all bones by threshold",
    "deepim+femurs": "DeepIM, all bones by threshold",
}
KINDS = {
    "plain": "X-rays as trained with",
    "tools": "realistic X-rays with a wire, a screw and a rod in each",
    "partial": "patient 70 mm aside",
    "realistic": "realistic X-rays (spectra, scatter, noise, blur)",
    "corrupted": "realistic X-rays, and the paper's domain randomisation on them",
    "spine": "spines",
}

# What the paper orders, as (higher, lower) rows of success with CMA-ES; the last is not in it.
ORDERS = (
    ("baseline above CMA-ES only", "direction:plain", "none:plain"),
    ("3D network above none", "direction:plain", "no-3d:plain"),
    ("bone above full CT", "direction:plain", "full-ct:plain"),
    ("gradient objective above MSE", "direction:plain", "mse:plain"),
    ("transformer above the network of 2020", "direction:plain", "direction-2020:plain"),
    ("ProST above DeepIM", "direction:plain", "deepim:plain"),
    ("ProST above DMW", "direction:plain", "dmw:plain"),
    ("MSE no better than CMA-ES only", "none:plain", "mse:plain"),
    ("tools cost ProST", "direction:realistic", "direction:tools"),
    ("ProST above DeepIM with tools", "direction:tools", "deepim:tools"),
    ("partial views cost ProST", "direction:plain", "direction:partial"),
    ("randomisation helps realistic X-rays", "randomised:realistic", "direction:realistic"),
    ("randomisation helps corrupted X-rays", "randomised:corrupted", "direction:corrupted"),
    ("ProST above CMA-ES only on spines", "spine:spine", "none:spine"),
    ("the segment trained with above a threshold", "direction:plain", "direction+femurs:plain"),
)


def report(options: argparse.Namespace) -> dict[str, Any]:
    """Everything found so far as JSON and Markdown."""
    folder = options.work / "ablations"
    found = {}
    for path in sorted(folder.glob("*_*.jsonl")):
        name, kind = path.stem.rsplit("_", 1)
        found[f"{name}:{kind}"] = small.rows_of(path)
    rows = {
        f"{name}:{kind}": found[f"{name}:{kind}"]
        for kind in KINDS
        for name in WORDS
        if found.get(f"{name}:{kind}")
    }
    table = {row: {**summary(cases), **cosine_of(row, folder)} for row, cases in rows.items()}
    record = {
        "schema": SCHEMA,
        "command": f"python bench/prost_ablations.py all --steps {options.steps} "
        f"--batch {options.batch} --cases {options.cases}",
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(("torch", "numpy", "cma")) | {"drrkit": drrkit.__version__},
        "cmaes": {"population": small.CMAES.population, "generations": small.CMAES.iterations},
        "networks": networks(options.work),
        "rows": table,
        "published_percent_simulated_real": PUBLISHED,
        "orders": orders(rows),
        "cases": rows,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    small.write(options.output / "prost_ablations.json", record)
    text = markdown(record)
    (options.output / "README.md").write_text(text)
    print(text)
    return record


def summary(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Success (mTRE below 10 mm) and median errors of the network alone and with CMA-ES."""
    row: dict[str, Any] = {
        "cases": len(cases),
        "median_start_mm": median(c["start_mm"] for c in cases),
        "visible": mean(c["visible"] for c in cases),
    }
    for name, key in (("alone", "alone_mm"), ("cmaes", "mtre_mm")):
        errors = [c[key] for c in cases]
        good = metrics.success_rate(torch.tensor(errors), small.SUCCESS_MM)
        row[name] = {
            "success": good.rate,
            "interval": (good.low, good.high),
            "median_mtre_mm": median(errors),
        }
    return row


def cosine_of(row: str, folder: Path) -> dict[str, float]:
    path = folder / f"{row.replace(':', '_')}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def networks(work: Path) -> dict[str, Any]:
    """How each network was trained: those of train_prost.py and those of this bench."""
    paths = [work / f"{name}.json" for name in small.RUNS]
    paths += [work / "ablations" / f"{name}.json" for name in WORDS]
    return {path.stem: json.loads(path.read_text()) for path in paths if path.exists()}


def orders(rows: dict[str, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Whether the paper's orders are found, in the cases that both rows have.

    By points of success with CMA-ES, and by how often the network alone ends closer. p: the exact
    two-sided sign test of the cases in which the rows differ (McNemar's, for success).
    """
    found = []
    for words, above, below in ORDERS:
        if not {above, below} <= rows.keys():
            continue
        both = list(zip(rows[above], rows[below], strict=False))
        won = [
            (a["mtre_mm"] < small.SUCCESS_MM) - (b["mtre_mm"] < small.SUCCESS_MM) for a, b in both
        ]
        alone = [(a["alone_mm"], b["alone_mm"]) for a, b in both]
        closer, farther = sum(a < b for a, b in alone), sum(a > b for a, b in alone)
        there = (PUBLISHED.get(row, (None, None)) for row in (above, below))
        found.append(
            {
                "order": words,
                "cases": len(both),
                "published_points": [
                    None if None in pair else round(pair[0] - pair[1], 1)
                    for pair in zip(*there, strict=True)
                ],
                "points": round(100 * sum(won) / len(both), 1),
                "p": sign_test(won.count(1), won.count(-1)),
                "closer_alone": closer / len(both),
                "p_alone": sign_test(closer, farther),
            }
        )
    return found


def sign_test(wins: int, losses: int) -> float:
    """Two-sided probability of a split at least as uneven, each side as likely."""
    n = wins + losses
    return min(1.0, 2 * sum(comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n)


# ---- Markdown


def markdown(record: dict[str, Any]) -> str:
    lines = [
        "# The ablations of the ProST paper, at a small scale",
        "",
        f"`{record['command']}` on {record['machine']['cpu']}, {record['machine']['cores']} cores, "
        f"torch {record['versions']['torch']}, {record['utc'][:10]}.",
        f"Random pelves, 48^3 voxels, 64 x 64 pixels: {len(small.TRAINED)} trained on, "
        f"{len(small.HELD_OUT)} to choose the weights, {len(small.TESTED)} registered. "
        f"CMA-ES: {record['cmaes']['population']} poses, {record['cmaes']['generations']} "
        "generations. Success: mTRE below 10 mm, with 95 % Wilson intervals.",
        "",
        "The published success is with CMA-ES, simulated / real X-rays (private CTs, 1000 / 500 "
        "cases). " + NOTES,
    ]
    for kind, words in KINDS.items():
        own = {row: r for row, r in record["rows"].items() if row.endswith(f":{kind}")}
        if own:
            lines += table_of(kind, words, own, record["networks"])
    lines += ["", "## What is the same", ""]
    lines += ["| order in the paper | points there | points here | p | | closer alone | p | |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    lines += [order_line(order) for order in record["orders"]]
    lines += [
        "",
        "Points of success with CMA-ES, and the share of cases in which the first network alone "
        "ends closer (CMA-ES only: the start); p: two-sided sign tests of the cases that both "
        "rows have.",
        "",
        *summed_up(record["orders"]),
    ]
    return "\n".join(lines) + "\n"


def table_of(kind: str, words: str, rows: dict[str, Any], networks: dict[str, Any]) -> list[str]:
    one = next(iter(rows.values()))
    lines = ["", f"## {words[0].upper()}{words[1:]}", ""]
    lines += [
        f"Median mTRE of the starts {one['median_start_mm']:.1f} mm; "
        f"{100 * one['visible']:.0f} % of the bone in view.",
        "",
        "| | training | cosine | alone: success | median mTRE | + CMA-ES: success | median mTRE "
        "| cases | published |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row, found in rows.items():
        name = row.split(":")[0]
        trained = networks.get(name.partition("+")[0])
        cells = [WORDS[name]]
        cells += [f"{trained['seconds'] / 60:.1f} min" if trained else "-"]
        cells += [f"{found['cosine']:.3f}" if "cosine" in found else "-"]
        cells += ["-", "-"] if name == "none" else success(found["alone"])
        cells += [*success(found["cmaes"]), str(found["cases"]), percents(PUBLISHED.get(row))]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def success(found: dict[str, Any]) -> list[str]:
    low, high = found["interval"]
    return [
        f"{100 * found['success']:.1f} % ({100 * low:.0f} to {100 * high:.0f})",
        f"{found['median_mtre_mm']:.1f} mm",
    ]


def percents(pair: Sequence[float | None] | None) -> str:
    if pair is None:
        return "-"
    return " / ".join("-" if value is None else f"{value:.1f}" for value in pair)


def order_line(order: dict[str, Any]) -> str:
    cells = [order["order"], percents(order["published_points"])]
    cells += [f"{order['points']:+.1f}", f"{order['p']:.3f}"]
    cells += [verdict(order["p"], order["points"] > 0)]
    cells += [f"{100 * order['closer_alone']:.0f} %", f"{order['p_alone']:.3f}"]
    cells += [verdict(order["p_alone"], order["closer_alone"] > 0.5)]
    return "| " + " | ".join(cells) + " |"


def summed_up(found: Sequence[dict[str, Any]]) -> list[str]:
    """The verdicts in words, a line a kind."""
    lines = []
    for title, p, ahead in (
        ("Success with CMA-ES", "p", lambda order: order["points"] > 0),
        ("Closer alone", "p_alone", lambda order: order["closer_alone"] > 0.5),
    ):
        said: dict[str, list[str]] = {}
        for order in found:
            said.setdefault(verdict(order[p], ahead(order)), []).append(order["order"])
        for word in ("the same", "the opposite", "undecided"):
            if word in said:
                lines.append(f"- {title}, {word}: {'; '.join(said[word])}.")
    return lines


def verdict(p: float, same: bool) -> str:
    if p >= 0.05:
        return "undecided"
    return "the same" if same else "the opposite"
