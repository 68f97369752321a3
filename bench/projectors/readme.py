"""Writes the measured table of the README from bench/results/*.json.

python -m bench.projectors.readme
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.projectors import record as records
from bench.projectors.record import WORKLOAD, rows_of
from bench.projectors.table import duration, label, times, workloads_of

ROOT = Path(__file__).resolve().parents[2]
RESULTS, README = ROOT / "bench" / "results", ROOT / "README.md"
BEGIN = "<!-- measured: written by python -m bench.projectors.readme -->"
END = "<!-- end of measured -->"
COLUMNS = {
    "forward": "forward",
    "pose": "+ pose gradient",
    "volume": "+ volume gradient",
    "double": "+ double backward",
}
VIEWS = ("AP", "lateral")


def main() -> None:
    text = README.read_text(encoding="utf-8")
    README.write_text(replaced(text, block(results(RESULTS))), encoding="utf-8")


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """The benchmark's records in a folder by file name; the results of studies are ignored."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        if records.KIND in path.read_text(encoding="utf-8"):
            found[path.name] = records.read(path)
    return found


def replaced(text: str, block: str) -> str:
    """The text with another block between the two marks. Raises ValueError without them."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"README.md: expected one line {BEGIN!r} and one {END!r}")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{block}\n{END}{rest.split(END)[1]}"


def block(found: dict[str, dict[str, Any]]) -> str:
    """The Markdown of all records, GPUs first."""
    if not found:
        return "No results have been committed yet: `make bench` writes them.\n"
    ordered = sorted(found, key=lambda name: (found[name]["device"] != "cuda", name))
    return "\n".join(line for name in ordered for line in _lines(name, found[name]))


def _lines(name: str, record: dict[str, Any]) -> list[str]:
    """An introduction, a row for each method and the distance to the bounds."""
    size = next(w["size"] for w in workloads_of(record, "main") if w["views"] == 1)
    graphs = " [in a CUDA graph]" if rows_of(record, mode="graph") else ""
    xyz = " x ".join(str(n) for n in record["volume"]["xyz"])
    lines = [
        f"**{_hardware(record)}**, torch {record['versions']['torch']}: one view of "
        f"{size} x {size} pixels of {record['volume']['name']} ({xyz} voxels), the same "
        f"attenuation and rays for all; medians{graphs}, AP / lateral; slowdown of the forward "
        f"projection relative to {_case(record['headline'])} "
        f"(`bench/results/{name}`, {record['utc'][:10]}):\n",
        _line(["", *COLUMNS.values(), "slowdown", "memory, pose gradient", "image difference"]),
        "|" + "---|" * (len(COLUMNS) + 4),
    ]
    for case in (entry["case"] for entry in record["cases"]):

        def cells(operation: str, shown: Any, case: str = case) -> str:
            """AP / lateral, each with the CUDA graph's in brackets."""
            found = []
            for view in VIEWS:
                wanted = {"section": "main", "views": 1, "size": size, "view": view}
                rows = rows_of(record, case=case, operation=operation, **wanted)
                texts = {row["mode"]: shown(row) for row in rows}
                graph = f" [{texts['graph']}]" if texts.get("graph") else ""
                found += [texts.get("eager", "") + graph] if any(texts.values()) else []
            return " / ".join(found)

        timed = [cells(operation, lambda row: duration(_median(row))) for operation in COLUMNS]
        if any(timed):
            bold = "**" if case == record["headline"] else ""
            memory = cells("pose", _megabytes).split(" / ")[0].split(" [")[0]
            slower = cells("forward", lambda row: times(row["ratio"]))
            different = cells("forward", _difference)
            lines.append(_line([f"{bold}{case}{bold}", *timed, slower, memory, different]))
    return [*lines, "", *_bounds(record)]


def _hardware(record: dict[str, Any]) -> str:
    machine, threads = record["machine"], record["threads"]
    if record["device"] == "cuda":
        return machine["gpu"]["name"]
    vectors = f" ({machine['vector_instructions']})" if machine.get("vector_instructions") else ""
    return f"{threads} thread{'s' * (threads > 1)} of {machine['cpu']}{vectors}"


def _bounds(record: dict[str, Any]) -> list[str]:
    """How far the headline's forward projections are from the machine's bounds."""
    mode = "graph" if rows_of(record, mode="graph") else "eager"
    wanted = {"section": "main", "operation": "forward", "case": record["headline"], "mode": mode}
    found = []
    for row in rows_of(record, **wanted, view="AP"):
        floors = row["floors"]
        text = f"{times(_median(row) / floors['bytes_s'])} the memory-bandwidth bound"
        if floors.get("fetches_s"):
            text += f" and {times(_median(row) / floors['fetches_s'])} the load bound"
        found.append(f"{text} ({label({key: row[key] for key in WORKLOAD})})")
    if not found:
        return []
    return [f"Measured time of {_case(record['headline'])} is {'; '.join(found)}.\n"]


def _case(case: str) -> str:
    return {"drrkit joseph packed": "drrkit (packed Joseph)"}.get(case, case)


def _megabytes(row: dict[str, Any]) -> str:
    return "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.1f} MB"


def _difference(row: dict[str, Any]) -> str:
    shown = row["mode"] == "eager" and "image" in row["difference"]
    return f"{row['difference']['image']:.0e}" if shown else ""


def _median(row: dict[str, Any]) -> float:
    return row["seconds"]["median"]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
