"""Writes the measured tables of the README from bench/results/*.json, the results of drrkit bench.

    python bench/readme_table.py [--check]

--check writes nothing and fails when the README says something else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drrkit.bench import record as records
from drrkit.bench.record import rows_of
from drrkit.bench.table import KEYS, duration, label, times, workloads_of

ROOT = Path(__file__).resolve().parent.parent
RESULTS, README = ROOT / "bench" / "results", ROOT / "README.md"
BEGIN = "<!-- measured: written by python bench/readme_table.py -->"
END = "<!-- end of measured -->"
COLUMNS = {
    "forward": "forward",
    "pose": "+ pose gradient",
    "volume": "+ volume gradient",
    "double": "+ double backward",
}
SHORT = COLUMNS | {"adjoint": "matched adjoint"}
VIEWS = ("AP", "lateral")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    options = parser.parse_args(arguments)
    text = README.read_text(encoding="utf-8")
    renewed = replaced(text, block(results(RESULTS)))
    if options.check:
        if renewed != text:
            print("README.md is not what bench/results says: run bench/readme_table.py")
        return int(renewed != text)
    README.write_text(renewed, encoding="utf-8")
    return 0


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of drrkit bench in a folder by file name; other programs' results are passed."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        if records.KIND in path.read_text(encoding="utf-8"):
            found[path.name] = records.read(path)
    return found


def replaced(text: str, block: str) -> str:
    """The text with what stands between the two marks exchanged. Raises ValueError without them."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"README.md: expected one line {BEGIN!r} and one {END!r}")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{block}\n{END}{rest.split(END)[1]}"


def block(found: dict[str, dict[str, Any]]) -> str:
    """The Markdown of all records, GPUs first."""
    if not found:
        return "No results have been committed yet: `make bench` writes them.\n"
    ordered = sorted(found, key=lambda name: (found[name]["device"] != "cuda", name))
    return "\n".join(part for name in ordered for part in _parts(name, found[name]))


def _parts(name: str, record: dict[str, Any]) -> list[str]:
    size = _single_size(record)
    return [
        f"{_introduction(name, record, size)}\n",
        *_methods(record, size),
        "",
        f"How many times as long as {record['headline']} the others take, each with the fastest of "
        f"its methods{_modes(record)}:\n",
        *_workloads(record),
        "",
        *_floors(record),
    ]


def _introduction(name: str, record: dict[str, Any], size: int) -> str:
    machine = record["machine"]
    if record["device"] == "cuda":
        hardware = machine["gpu"]["name"]
    else:
        vectors = machine.get("vector_instructions")
        threads = record["threads"]
        hardware = f"{threads} thread{'s' * (threads > 1)} of {machine['cpu']}"
        hardware += f" ({vectors})" if vectors else ""
    xyz = " x ".join(str(n) for n in record["volume"]["xyz"])
    return (
        f"**{hardware}**, torch {record['versions']['torch']}: one view of {size} x {size} of "
        f"{record['volume']['name']} ({xyz} voxels), the same attenuation and rays for all; "
        f"medians{_modes(record)}, anteroposterior / lateral (`bench/results/{name}`, "
        f"{record['utc'][:10]}):"
    )


def _methods(record: dict[str, Any], size: int) -> list[str]:
    """A row a method: times of the single view, memory and image difference."""
    lines = _head(["", *COLUMNS.values(), "memory, pose gradient", "image difference"])
    for case in record["cases"]:
        cells = [_single(record, case["case"], operation, size) for operation in COLUMNS]
        if not any(cells):
            continue
        name = f"**{case['case']}**" if case["case"] == record["headline"] else case["case"]
        cells += [_memory(record, case["case"], size), _difference(record, case["case"], size)]
        lines.append(_line([name, *cells]))
    return lines


def _workloads(record: dict[str, Any]) -> list[str]:
    """A row a workload: drrkit's time, and the ratios of the other tools."""
    tools = list(dict.fromkeys(c["tool"] for c in record["cases"] if c["tool"] != "drrkit"))
    tool_of = {case["case"]: case["tool"] for case in record["cases"]}
    lines = _head(["", record["headline"], *tools])
    for workload in workloads_of(record, "main"):
        best: dict[tuple[str, str], dict[str, Any]] = {}
        for row in rows_of(record, **workload):
            key = (tool_of[row["case"]], row["mode"])
            own = key[0] == "drrkit"
            if own and row["ratio"] != 1.0:  # the headline case is the one that all are set against
                continue
            if key not in best or _median(row) < _median(best[key]):
                best[key] = row
        if all(tool == "drrkit" for tool, _ in best):  # nothing to compare with: it is in the JSON
            continue
        cells = [
            _two(best, "drrkit", lambda row: duration(_median(row))),
            *(_two(best, tool, lambda row: times(row["ratio"])) for tool in tools),
        ]
        lines.append(_line([f"{label(workload)} {SHORT[workload['operation']]}", *cells]))
    return lines


def _floors(record: dict[str, Any]) -> list[str]:
    """How far the headline's forward projections are from what the machine could do at most."""
    mode = "graph" if rows_of(record, mode="graph") else "eager"
    wanted = {"section": "main", "operation": "forward", "case": record["headline"], "mode": mode}
    found = []
    for row in rows_of(record, **wanted, view="AP"):
        floors = row["floors"]
        by_bytes = times(_median(row) / floors["bytes_s"])
        fetches = floors.get("fetches_s")
        by_fetches = f", {times(_median(row) / fetches)} the other" if fetches else ""
        found.append(f"{label({key: row[key] for key in KEYS})}: {by_bytes} the one{by_fetches}")
    if not found:
        return []
    what = "moving the bytes and of making the fetches that it cannot do without"
    return [f"{record['headline']} against the time of {what}: {'; '.join(found)}.\n"]


def _single_size(record: dict[str, Any]) -> int:
    """The detector of the first workload, which is the single anteroposterior view."""
    return next(w["size"] for w in workloads_of(record, "main") if w["views"] == 1)


def _rows(
    record: dict[str, Any], case: str, view: str, operation: str, size: int
) -> dict[str, Any]:
    """By mode."""
    wanted = {"section": "main", "views": 1, "size": size, "view": view, "operation": operation}
    return {row["mode"]: row for row in rows_of(record, case=case, **wanted)}


def _single(record: dict[str, Any], case: str, operation: str, size: int) -> str:
    cells = []
    for view in VIEWS:
        rows = _rows(record, case, view, operation, size)
        if rows:
            cells.append(_modal({mode: duration(_median(row)) for mode, row in rows.items()}))
    return " / ".join(cells)


def _memory(record: dict[str, Any], case: str, size: int) -> str:
    peaks = [row["peak_bytes"] for row in _rows(record, case, "AP", "pose", size).values()]
    return f"{peaks[0] / 1e6:.1f} MB" if peaks and peaks[0] is not None else ""


def _difference(record: dict[str, Any], case: str, size: int) -> str:
    found = [
        f"{row['difference']['image']:.0e}"
        for view in VIEWS
        for row in list(_rows(record, case, view, "forward", size).values())[:1]
        if "image" in row["difference"]
    ]
    return " / ".join(found)


def _two(best: dict[tuple[str, str], dict[str, Any]], tool: str, shown: Any) -> str:
    return _modal({mode: shown(row) for (name, mode), row in best.items() if name == tool})


def _modal(cells: dict[str, str]) -> str:
    """The eager cell, and that of a CUDA graph in brackets."""
    graph = f" [{cells['graph']}]" if "graph" in cells else ""
    return cells.get("eager", "") + graph


def _modes(record: dict[str, Any]) -> str:
    return " [in a CUDA graph]" if rows_of(record, mode="graph") else ""


def _median(row: dict[str, Any]) -> float:
    return row["seconds"]["median"]


def _head(cells: list[str]) -> list[str]:
    return [_line(cells), "|" + "---|" * len(cells)]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
