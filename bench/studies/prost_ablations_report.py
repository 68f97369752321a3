"""The tables of the study prost_ablations, beside the published one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from math import comb
from pathlib import Path
from statistics import mean, median
from typing import Any

from bench.studies import prost_small as small
from bench.studies import study
from bench.studies.study import (
    origin,
    percent,
    read_json,
    read_rows,
    recorded,
    wilson,
    write_json,
    write_text,
)

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


def report(options: argparse.Namespace) -> None:
    """Everything found so far as JSON and Markdown, in --output."""
    folder = options.work / "ablations"
    found = {}
    for path in sorted(folder.glob("*_*.jsonl")):
        name, kind = path.stem.rsplit("_", 1)
        found[f"{name}:{kind}"] = read_rows(path)
    names = [f"{name}:{kind}" for kind in KINDS for name in WORDS]
    rows = {row: found[row] for row in names if found.get(row)}
    record = recorded(
        options,
        cmaes={
            "population": small.CMAES.optimiser.population,
            "generations": small.CMAES.iterations,
        },
        networks=networks(options.work),
        rows={
            row: summary(cases) | read_json(folder / f"{row.replace(':', '_')}.json")
            for row, cases in rows.items()
        },
        published_percent_simulated_real=PUBLISHED,
        orders=orders(rows),
    )
    write_json(options.output / "prost_ablations.json", record)
    text = markdown(record)
    write_text(options.output / "README.md", text)
    print(text)


def summary(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Success (mTRE below 10 mm) and median errors of the network alone and with CMA-ES."""
    row: dict[str, Any] = {
        "cases": len(cases),
        "median_start_mm": median(c["start_mm"] for c in cases),
        "visible": mean(c["visible"] for c in cases),
    }
    for name, key in (("alone", "alone_mm"), ("cmaes", "mtre_mm")):
        errors = [c[key] for c in cases]
        row[name] = {"success": wilson(errors, small.SUCCESS_MM), "median_mtre_mm": median(errors)}
    return row


def networks(work: Path) -> dict[str, Any]:
    """How each network was trained, in this study and in prost_small."""
    paths = [work / f"{name}.json" for name in small.RUNS]
    paths += [work / "ablations" / f"{name}.json" for name in WORDS]
    return {path.stem: read_json(path) for path in paths if path.exists()}


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
    cmaes = record["cmaes"]
    lines = [
        "# The ablations of the ProST paper, at a small scale",
        "",
        origin(record),
        f"Random pelves, 48^3 voxels, 64 x 64 pixels: {len(small.TRAINED)} trained on, "
        f"{len(small.HELD_OUT)} to choose the weights, {len(small.TESTED)} registered. "
        f"CMA-ES: {cmaes['population']} poses, {cmaes['generations']} generations. "
        "Success: mTRE below 10 mm, with 95 % Wilson intervals.",
        "",
        "The published success is with CMA-ES, simulated / real X-rays (private CTs, 1000 / 500 "
        "cases). " + NOTES,
    ]
    for kind, words in KINDS.items():
        own = {row: r for row, r in record["rows"].items() if row.endswith(f":{kind}")}
        if own:
            lines += table_of(words, own, record["networks"])
    head = ["order in the paper", "points there", "points here", "p", "", "closer alone", "p", ""]
    lines += ["", "## What is the same", ""]
    lines += study.markdown(head, [order_cells(order) for order in record["orders"]])
    lines += [
        "",
        "Points of success with CMA-ES, and the share of cases in which the first network alone "
        "ends closer (CMA-ES only: the start); p: two-sided sign tests of the cases that both "
        "rows have.",
        "",
        *summed_up(record["orders"]),
    ]
    return "\n".join(lines) + "\n"


def table_of(words: str, rows: dict[str, Any], networks: dict[str, Any]) -> list[str]:
    one, cells = next(iter(rows.values())), []
    for row, found in rows.items():
        name = row.split(":")[0]
        trained = networks.get(name.partition("+")[0])
        of = [WORDS[name], f"{trained['seconds'] / 60:.1f} min" if trained else "-"]
        of += [f"{found['cosine']:.3f}" if "cosine" in found else "-"]
        of += ["-", "-"] if name == "none" else success(found["alone"])
        cells.append([*of, *success(found["cmaes"]), found["cases"], pair_of(PUBLISHED.get(row))])
    head = ["", "training", "cosine", "alone: success", "median mTRE", "+ CMA-ES: success"]
    return [
        "",
        f"## {words[0].upper()}{words[1:]}",
        "",
        f"Median mTRE of the starts {one['median_start_mm']:.1f} mm; "
        f"{100 * one['visible']:.0f} % of the bone in view.",
        "",
        *study.markdown([*head, "median mTRE", "cases", "published"], cells),
    ]


def success(found: dict[str, Any]) -> list[str]:
    return [percent(found["success"], 1), f"{found['median_mtre_mm']:.1f} mm"]


def pair_of(pair: Sequence[float | None] | None) -> str:
    if pair is None:
        return "-"
    return " / ".join("-" if value is None else f"{value:.1f}" for value in pair)


def order_cells(order: dict[str, Any]) -> list[str]:
    return [
        order["order"],
        pair_of(order["published_points"]),
        f"{order['points']:+.1f}",
        f"{order['p']:.3f}",
        verdict(order["p"], order["points"] > 0),
        f"{100 * order['closer_alone']:.0f} %",
        f"{order['p_alone']:.3f}",
        verdict(order["p_alone"], order["closer_alone"] > 0.5),
    ]


def summed_up(found: Sequence[dict[str, Any]]) -> list[str]:
    """The verdicts in words, a line per kind."""
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
