"""Rows of protocols.py and confidence.py as committed results: CSV, JSON and a Markdown table.

    python bench/registration/report.py --rows FOLDER ... --starved FOLDER --again FOLDER
        --ends FILE.csv [--timed FOLDER] [--note TEXT ...] [--out bench/results/registration]

--rows are folders of `protocols.py`, --starved and --again of `confidence.py` without and with
--again, --ends a file of `remeasure.py` about all of --starved and the CMA-ES baseline, --timed a
folder of `protocols.py --threads 2`: its seconds go into the table.

Written: cases.csv and starved.csv (a row a case, the confidence as it was when they ran), ends.csv
(the confidence before and now), targets.*.csv (the points of the errors, world mm), summary.json,
table.md. Process seconds in the table are those of runs with one thread.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from protocols import SUBJECTS

import drrkit
from drrkit.evaluation import Row, auroc, read_rows, recall_at, summarise
from drrkit.machine import machine, versions
from drrkit.registration import Search

SCHEMA = 1
FAILURE_MM = 10.0
FALSE_ALARMS = 0.05
PACKAGES = ("torch", "numpy", "SimpleITK", "cma")
# What remeasure.py measures, and below what it was, or is, not trusted.
SCORES = {"whole": 0.8, "patches": Search().trusted}
HEADER = (
    "| starts, X-rays | method | patient | cases | start, median | < 10 mm, % | < 2 mm, % | "
    "median, mm | 95 %, mm | process s | wall s, 2 threads |"
)
PUBLISHED = """\
Published on the authors' own data, successes below 10 mm: ProST protocol, single-start CMA-ES
28.5 %, ProST + CMA-ES 65.6 % (Gao et al. 2023, simulated pelvis); CDreg protocol, CMA-ES 22.0 %,
ProST 55.6 %, SOPI 58.4 %, CDreg 61.0 %, each + CMA-ES (Chen et al. 2024, spine).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    ends = [end for file in options.ends for end in read_ends(file)]
    rows = [row for folder in options.rows for row in read_rows(folder)]
    starved = read_rows(options.starved)
    again = read_rows(options.again)
    timed = read_rows(options.timed) if options.timed else []
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "command": "bench/registration: protocols.py, confidence.py, remeasure.py, report.py",
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(PACKAGES) | {"drrkit": drrkit.__version__},
        "notes": options.note,
        "protocols": {name: summarise(group) for name, group in grouped(rows).items()},
        "times": {name: times(group) for name, group in grouped(timed).items()},
        "confidence": trust(ends, starved, rows),
        "searched_again": rescued(starved, again),
    }
    write_csv(options.out / "cases.csv", rows)
    write_csv(options.out / "starved.csv", [*starved, *again])
    for number, file in enumerate(options.ends):
        name = "ends.csv" if number == 0 else f"ends.{number}.csv"
        shutil.copyfile(file, options.out / name)
    for folder in options.rows:
        for file in sorted(folder.glob("targets.*.csv")):
            shutil.copyfile(file, options.out / file.name)
    write_text(options.out / "summary.json", json.dumps(record, indent=1) + "\n")
    write_text(options.out / "table.md", table(record))
    print(table(record))
    return 0


def read_ends(file: Path) -> list[dict[str, Any]]:
    """What `remeasure.py` wrote, numbers as numbers."""
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
    order = {patient: number for number, patient in enumerate((*SUBJECTS, "all"))}
    kinds = list(dict.fromkeys(name.rpartition(" ")[0] for name in groups))
    names = sorted(
        groups,
        key=lambda name: (kinds.index(name.rpartition(" ")[0]), order[name.rpartition(" ")[2]]),
    )
    return {name: groups[name] for name in names}


def times(rows: Sequence[Row]) -> dict[str, float]:
    """Wall and process seconds a case; the latter count all threads."""
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
    """How both confidences tell failures from successes, by where the failures come from."""
    few = {row.key for row in starved}
    baseline = {row.key for row in rows if row.method == "cmaes"}
    groups = {
        "starved budgets": [end for end in ends if end["key"] in few],
        "CMA-ES baseline": [end for end in ends if end["key"] in baseline],
    }
    groups["both"] = [end for group in groups.values() for end in group]
    groups["both, photon-starved"] = [e for e in groups["both"] if "starved" in e["protocol"]]
    return {
        f"{name}, {score}": told_apart(group, score)
        for name, group in groups.items()
        for score in SCORES
        if group
    }


def told_apart(ends: Sequence[dict[str, Any]], score: str) -> dict[str, Any]:
    """Area under the curve, recall at few false alarms, and at the threshold that is built in."""
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
    """What searching again made of starved searches, on the cases that both have run."""
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
    lines = [HEADER, "|---|---|---|" + "---:|" * 8]
    for name, group in record["protocols"].items():
        lines.append(_line(name, group, record["times"].get(name)))
    lines += ["", PUBLISHED]
    lines += ["| failures by, confidence | failures | successes | AUROC | recall at 5 % | found |"]
    lines += ["|---|" + "---:|" * 5]
    for name, group in record["confidence"].items():
        if "auroc" in group:
            recall = 100 * group["recall at 5 % false alarms"]
            at_bar = f"{100 * group['recall at the threshold']:.1f} % below {group['threshold']}"
            counts = f"{group['failures']} | {group['successes']} | {group['auroc']:.5f}"
            lines.append(f"| {name} | {counts} | {recall:.1f} % | {at_bar} |")
    for name, count in record["searched_again"].items():
        lines += [
            "",
            f"Searches of the kind {name!r}: {count['failed']} of {count['cases']} end wrong, "
            f"{count['fail again']} where they may search again by themselves.",
        ]
    cpu = record["machine"]
    lines += ["", f"{cpu['cores']} cores of {cpu['cpu']}, torch {record['versions']['torch']}."]
    lines += [*record["notes"], ""]
    return "\n".join(lines)


def _line(name: str, group: dict[str, Any], timed: dict[str, float] | None) -> str:
    protocol, method, patient = name.split()
    rates = [
        f"{100 * rate['rate']:.1f} ({100 * rate['low']:.1f}-{100 * rate['high']:.1f})"
        for rate in group["success"].values()
    ]
    seconds = "" if timed is None else f"{timed['wall_median']:.2f}"
    cells = [protocol, method, patient, str(group["cases"]), f"{group['start_mtre']['50 %']:.0f}"]
    cells += [*rates, f"{group['mtre']['50 %']:.3f}", f"{group['mtre']['95 %']:.3f}"]
    cells += [f"{group['cpu_seconds']['50 %']:.2f}", seconds]
    return f"| {' | '.join(cells)} |"


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """A row a case, six significant digits."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([field.name for field in fields(Row)])
        for row in sorted(rows, key=lambda row: row.key):
            values = asdict(row).values()
            writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in values])
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=Path, nargs="+", required=True, help="of protocols.py")
    parser.add_argument("--starved", type=Path, required=True, help="of confidence.py")
    parser.add_argument("--again", type=Path, required=True, help="of confidence.py --again")
    parser.add_argument("--ends", type=Path, nargs="+", required=True, help="of remeasure.py")
    parser.add_argument("--note", nargs="*", default=[], help="sentences on how it was measured")
    parser.add_argument("--timed", type=Path, help="of protocols.py --threads 2")
    default = Path(__file__).parents[1] / "results" / "registration"
    parser.add_argument("--out", type=Path, default=default)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
