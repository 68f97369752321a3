"""The record of a run as text: every workload with times, slowdowns, differences and bounds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bench.projectors.plan import Workload
from bench.projectors.record import WORKLOAD, rows_of

WHAT = {
    "forward": "forward",
    "pose": "forward + pose gradient",
    "volume": "forward + volume gradient",
    "double": "forward + pose gradient + its gradient",
    "adjoint": "matched adjoint",
}
CURVES = {
    "views": ("views", "views"),
    "detector": ("size", "rows and columns"),
    "volume": ("edge", "voxels along the longest side"),
    "threads": ("threads", "threads"),
}
"""Section: the key that changes, and what it is."""


def text(record: dict[str, Any]) -> str:
    """Everything, for a terminal."""
    lines = [*heading(record), ""]
    for workload in workloads_of(record, "main"):
        lines += [*_block(record, workload), ""]
    for section in CURVES:
        if any(rows_of(record, section=section)):
            lines += [*_curve(record, section), ""]
    return "\n".join([*lines, *_footnotes(record)]).rstrip() + "\n"


def heading(record: dict[str, Any]) -> list[str]:
    """Machine, versions, volume, geometry."""
    machine, load = record["machine"], record["load_average"]["before"]
    hardware = f"{machine['cpu']}, {record['threads']} of {machine['cores']} cores"
    if machine.get("gpu"):
        gpu = machine["gpu"]
        hardware = f"{gpu['name']}, driver {gpu['driver']}; {hardware}"
    elif machine.get("vector_instructions"):
        hardware += f", {machine['vector_instructions']}"
    place, xyz = record["geometry"], "x".join(str(n) for n in record["volume"]["xyz"])
    return [
        hardware + (f"; load average before {load[0]:.1f}" if load else ""),
        ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        + (f" at {record['revision']}" if record["revision"] else ""),
        f"{record['volume']['name']}, {xyz} voxels; sdd {place['sdd_mm']:.0f}, sod "
        f"{place['sod_mm']:.0f} mm; sampling tools take {place['samples']} samples per ray, "
        f"drrkit's trilinear steps of {place['drrkit_trilinear_step_mm']:.3g} mm",
        f"{record['utc']}, {record['seconds']:.0f} s: {record['command']}",
    ]


def workloads_of(record: dict[str, Any], section: str) -> list[dict[str, Any]]:
    """The workloads of a section in the order of the run, once each."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows_of(record, section=section):
        found.setdefault(tuple(row[k] for k in WORKLOAD), {k: row[k] for k in WORKLOAD})
    return list(found.values())


def label(workload: dict[str, Any]) -> str:
    return Workload(**workload).label


def duration(seconds: float) -> str:
    """Three digits and a unit: "32.1 ms"."""
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 1.0:
            return f"{_digits(seconds * scale)} {unit}"
    return f"{_digits(seconds * 1e6)} us"


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{_digits(ratio)}x"


def aligned(rows: Iterable[list[str]], first: str = "") -> list[str]:
    """Columns side by side, the first to the left, the others to the right, empty ones left out.

    The first row is the head; a column is empty when it has nothing below that.
    """
    table = [list(row) for row in rows]
    kept = [k for k in range(len(table[0])) if k == 0 or any(row[k] for row in table[1:])]
    table = [[row[k] for k in kept] for row in table]
    widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
    return [
        first + "  ".join(f"{c:<{w}}" if k == 0 else f"{c:>{w}}" for k, (c, w) in cells).rstrip()
        for cells in (list(enumerate(zip(row, widths, strict=True))) for row in table)
    ]


def _block(record: dict[str, Any], workload: dict[str, Any]) -> list[str]:
    graphs = {row["case"]: row for row in rows_of(record, **workload, mode="graph")}
    head = ["", "median", "quartiles", "slowdown", "same integral"]
    head += ["in a graph", "slowdown"] if graphs else []
    head += ["peak MB", "difference", "to reference", "x bandwidth bound", "x load bound"]
    table = [head]
    for row in rows_of(record, **workload, mode="eager"):
        cells = [row["case"], duration(row["seconds"]["median"]), _spread(row)]
        own = row["case"].startswith("drrkit ")
        cells += [times(row["ratio"]), "" if own else times(row["ratio_same_integral"])]
        graph = graphs.get(row["case"])
        if graphs:
            cells += (
                [duration(graph["seconds"]["median"]), times(graph["ratio"])] if graph else ["", ""]
            )
        best = min(r["seconds"]["median"] for r in (row, graph) if r)
        table.append([*cells, _megabytes(row), *_differences(row), *_distances(row, best)])
    return [f"{WHAT[workload['operation']]}, {label(workload)}", *aligned(table, "  ")]


def _spread(row: dict[str, Any]) -> str:
    """Quartiles in the median's unit: "31.8-54.9"."""
    unit = duration(row["seconds"]["median"]).split()[1]
    scale = {"s": 1.0, "ms": 1e3, "us": 1e6}[unit]
    return "-".join(_digits(scale * q) for q in row["seconds"]["quartiles"])


def _differences(row: dict[str, Any]) -> tuple[str, str]:
    found = dict(row["difference"])
    fine = found.pop("image_to_fine", None)
    return " ".join(f"{d:.1e}" for d in found.values()), "" if fine is None else f"{fine:.1e}"


def _distances(row: dict[str, Any], seconds: float) -> tuple[str, str]:
    """The row's time relative to both bounds."""
    floors = row["floors"]
    if floors is None:
        return "", ""
    fetches = floors["fetches_s"]
    return _digits(seconds / floors["bytes_s"]), "" if not fetches else _digits(seconds / fetches)


def _megabytes(row: dict[str, Any]) -> str:
    return "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.1f}"


def _curve(record: dict[str, Any], section: str) -> list[str]:
    """A table of a scaling curve for every operation and mode: cases down, sizes across."""
    key, name = CURVES[section]
    lines = []
    rows = rows_of(record, section=section)
    for operation in dict.fromkeys(row["operation"] for row in rows):
        for mode in dict.fromkeys(row["mode"] for row in rows):
            chosen = [r for r in rows if (r["operation"], r["mode"]) == (operation, mode)]
            marks = sorted({row[key] for row in chosen})
            found = {(row["case"], row[key]): row["seconds"]["median"] for row in chosen}
            table = [["", *(str(mark) for mark in marks)]]
            for case in dict.fromkeys(row["case"] for row in chosen):
                cells = [found.get((case, mark)) for mark in marks]
                table.append([case, *("" if s is None else duration(s) for s in cells)])
            fixed = (
                {k: v for k, v in chosen[0].items() if k in WORKLOAD and k != key} if chosen else {}
            )
            lines += [
                f"{name} ({WHAT[operation]}, {fixed.get('view')}"
                + (f", {mode}" if mode != "eager" else "")
                + ")",
                *aligned(table, "  "),
            ]
    return lines


def _footnotes(record: dict[str, Any]) -> list[str]:
    limits = record["ceilings"]
    rates = [f"{limits['copy_bytes_per_s'] / 1e9:.1f} GB/s copied"]
    for name, unit in (("fetches", "loads"), ("lookups", "texture lookups")):
        if limits.get(f"{name}_per_s"):
            rate = f"{limits[f'{name}_per_s'] / 1e9:.0f} G {unit}/s"
            rates.append(f"{rate} ({limits[f'{name}_by']})")
    lines = [
        f"slowdown: time relative to {record['headline']}; same integral: relative to drrkit's "
        "method for the same integral; difference: relative L2 to that method (pose: rotation, "
        "translation)",
        f"bounds: {', '.join(rates)}",
    ]
    lines += [f"{case['case']}: {case['note']}" for case in record["cases"] if case["note"]]
    lines += [f"{tool}: absent ({reason})" for tool, reason in record["absent"].items()]
    reasons: dict[tuple[str, str], list[str]] = {}
    for entry in record["left_out"]:
        workload = {key: entry[key] for key in WORKLOAD}
        name = f"{entry['operation']} {label(workload)}"
        reasons.setdefault((entry["case"], entry["reason"]), []).append(name)
    for (case, reason), places in reasons.items():
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        lines.append(f"left out: {case} in {places[0]}{more}: {reason}")
    return lines


def _digits(number: float) -> str:
    """Three significant digits without an exponent."""
    if number >= 100:
        return f"{number:.0f}"
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}"
