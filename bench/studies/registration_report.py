"""Rows of the study registration as committed results: CSV, JSON and a Markdown table.

Written: cases.csv and starved.csv (a row per case, the confidence as it was when they ran),
ends.csv (the confidence before and now), summary.json, table.md. Process seconds in the table are
those of runs with one thread.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from bench.studies.study import markdown, read_json, recorded, write_json, write_text
from drrkit.evaluation import Row, auroc, read_rows, recall_at, summarise
from drrkit.registration import Search

FAILURE_MM = 10.0
FALSE_ALARMS = 0.05
# The definitions of confidence that "ends" measures, and below what it was, or is, not trusted.
SCORES = {"whole": 0.8, "patches": Search().trusted}
ORDER = ("pelvis", "chest", "torso", "all")
HEAD = ("starts, X-rays", "method", "patient", "cases", "start, median", "< 10 mm, %", "< 2 mm, %")
HEAD += ("median, mm", "95 %, mm", "process s", "wall s, 2 threads")
PUBLISHED = """\
Published on the authors' own data, successes below 10 mm: ProST protocol, single-start CMA-ES
28.5 %, ProST + CMA-ES 65.6 % (Gao et al. 2023, simulated pelvis); CDreg protocol, CMA-ES 22.0 %,
ProST 55.6 %, SOPI 58.4 %, CDreg 61.0 %, each + CMA-ES (Chen et al. 2024, spine).
"""


def report(options: argparse.Namespace) -> None:
    """Everything in --output, of the rows in --work; without those, of the rows in --output."""
    work, out = options.work, options.output
    before: dict[str, Any] = {}
    if (work / "rows").exists():
        rows, timed = read_rows(work / "rows"), read_rows(work / "timed")
        starved = [*read_rows(work / "failures"), *read_rows(work / "failures-again")]
        write_text(out / "cases.csv", as_csv(rows))
        write_text(out / "starved.csv", as_csv(starved))
        write_text(out / "ends.csv", (work / "ends.csv").read_text(encoding="utf-8"))
        spent = {name: times(group) for name, group in grouped(timed).items()}
    else:  # then the rows' machine and versions are those of the record that is there
        before = read_json(out / "summary.json")
        rows, starved = from_csv(out / "cases.csv"), from_csv(out / "starved.csv")
        spent = before["times"]
    ends = read_ends(out / "ends.csv")
    again = [row for row in starved if row.method.endswith("-again")]
    first = [row for row in starved if not row.method.endswith("-again")]
    record = {"notes": options.note, **recorded(options), **before}
    record |= {
        "protocols": {name: summarise(group) for name, group in grouped(rows).items()},
        "times": spent,
        "confidence": trust(ends, first, rows),
        "searched_again": rescued(first, again),
    }
    write_json(out / "summary.json", record)
    write_text(out / "table.md", table(record))
    print(table(record))


def read_ends(file: Path) -> list[dict[str, Any]]:
    """ends.csv, numbers as numbers."""
    with open(file, newline="", encoding="utf-8") as stream:
        found: list[dict[str, Any]] = list(csv.DictReader(stream))
    for end in found:
        end["number"] = int(end["number"])
        for name in ("mtre", *SCORES):
            end[name] = float(end[name])
        end["key"] = (end["method"], end["protocol"], end["subject"], end["number"])
    return found


def grouped(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by protocol, method and patient, and of all patients together."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        for patient in (row.subject, "all"):
            groups.setdefault(f"{row.protocol} {row.method} {patient}", []).append(row)
    kinds = list(dict.fromkeys(name.rpartition(" ")[0] for name in groups))
    names = [f"{kind} {patient}" for kind in kinds for patient in ORDER]
    return {name: groups[name] for name in names if name in groups}


def times(rows: Sequence[Row]) -> dict[str, float]:
    """Wall and process seconds per case; the latter count all threads."""
    wall = torch.tensor([row.seconds for row in rows], dtype=torch.float64)
    process = torch.tensor([row.cpu_seconds for row in rows], dtype=torch.float64)
    return {
        "cases": len(rows),
        "wall_median": float(wall.quantile(0.5)),
        "wall_max": float(wall.max()),
        "process_median": float(process.quantile(0.5)),
        "process_max": float(process.max()),
    }


def trust(
    ends: Sequence[dict[str, Any]], starved: Sequence[Row], rows: Sequence[Row]
) -> dict[str, Any]:
    """How both confidences separate failures from successes, by where the failures come from."""
    few = {row.key for row in starved}
    baseline = {row.key for row in rows if row.method == "cmaes"}
    groups = {
        "starved budgets": [end for end in ends if end["key"] in few],
        "CMA-ES baseline": [end for end in ends if end["key"] in baseline],
    }
    groups["both"] = [end for group in groups.values() for end in group]
    groups["both, photon-starved"] = [e for e in groups["both"] if "starved" in e["protocol"]]
    return {
        f"{name}, {score}": separation(group, score)
        for name, group in groups.items()
        for score in SCORES
        if group
    }


def separation(ends: Sequence[dict[str, Any]], score: str) -> dict[str, Any]:
    """Area under the curve, recall at few false alarms, and at the built-in threshold."""
    confidence = torch.tensor([end[score] for end in ends], dtype=torch.float64)
    failed = torch.tensor([not end["mtre"] < FAILURE_MM for end in ends])
    found: dict[str, Any] = {"failures": int(failed.sum()), "successes": int((~failed).sum())}
    if not found["failures"] or not found["successes"]:
        return found
    right, wrong = confidence[~failed], confidence[failed]
    bar = SCORES[score]
    return found | {
        "auroc": auroc(right, wrong),
        "recall at 5 % false alarms": recall_at(FALSE_ALARMS, right, wrong),
        "threshold": bar,
        "recall at the threshold": float((wrong < bar).double().mean()),
        "false alarms at the threshold": float((right < bar).double().mean()),
        "lowest of a success": float(right.min()),
        "highest of a failure": float(wrong.max()),
    }


def rescued(starved: Sequence[Row], again: Sequence[Row]) -> dict[str, Any]:
    """How many failed searches succeed when they search again, on the cases that both ran."""
    first = {row.key: row for row in starved}
    found: dict[str, Any] = {}
    for row in again:
        method = row.method.removesuffix("-again")
        before = first.get((method, *row.key[1:]))
        if before is None:
            continue
        count = found.setdefault(method, dict.fromkeys(("cases", "failed", "fail again"), 0))
        count["cases"] += 1
        count["failed"] += not before.mtre < FAILURE_MM
        count["fail again"] += not row.mtre < FAILURE_MM
    return found


def table(record: dict[str, Any]) -> str:
    """The results as Markdown."""
    rows = [_cells(n, group, record["times"].get(n)) for n, group in record["protocols"].items()]
    lines = [*markdown(HEAD, rows), "", PUBLISHED]
    rows = []
    for name, group in record["confidence"].items():
        if "auroc" in group:
            recall = f"{100 * group['recall at 5 % false alarms']:.1f} %"
            at_bar = f"{100 * group['recall at the threshold']:.1f} % below {group['threshold']}"
            counts = [group["failures"], group["successes"], f"{group['auroc']:.5f}"]
            rows.append([name, *counts, recall, at_bar])
    head = ["failures by, confidence", "failures", "successes", "AUROC", "recall at 5 %", "found"]
    lines += markdown(head, rows)
    for name, count in record["searched_again"].items():
        lines += [
            "",
            f"Searches of the kind {name!r}: {count['failed']} of {count['cases']} end wrong, "
            f"{count['fail again']} where they may search again by themselves.",
        ]
    cpu = record["machine"]
    lines += ["", f"{cpu['cores']} cores of {cpu['cpu']}, torch {record['versions']['torch']}."]
    return "\n".join([*lines, *record["notes"], ""])


def _cells(name: str, group: dict[str, Any], timed: dict[str, float] | None) -> list[Any]:
    rates = [
        f"{100 * rate['rate']:.1f} ({100 * rate['low']:.1f}-{100 * rate['high']:.1f})"
        for rate in group["success"].values()
    ]
    seconds = "" if timed is None else f"{timed['wall_median']:.2f}"
    cells = [*name.split(), group["cases"], f"{group['start_mtre']['50 %']:.0f}", *rates]
    cells += [f"{group['mtre']['50 %']:.3f}", f"{group['mtre']['95 %']:.3f}"]
    return [*cells, f"{group['cpu_seconds']['50 %']:.2f}", seconds]


def as_csv(rows: Sequence[Row]) -> str:
    """A row per case, six significant digits."""
    stream = StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([field.name for field in fields(Row)])
    for row in sorted(rows, key=lambda row: row.key):
        values = asdict(row).values()
        writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in values])
    return stream.getvalue()


def from_csv(path: Path) -> list[Row]:
    """The rows that `as_csv` wrote."""
    kinds = {
        field.name: {"str": str, "int": int}.get(str(field.type), float) for field in fields(Row)
    }
    with open(path, newline="", encoding="utf-8") as stream:
        found = csv.DictReader(stream)
        return [Row(**{name: kinds[name](value) for name, value in row.items()}) for row in found]
