"""How a registration came to its end: stages, their time, their losses, the way in mm."""

from __future__ import annotations

import html
import math
from typing import Any

from drrkit.report.charts import Line, line_chart
from drrkit.report.path import bone_like_points, distances, registration_path, stage_starts
from drrkit.volume import Volume

__all__ = ["convergence"]

COLUMNS = ("similarity", "optimiser", "downsample", "steps", "seconds", "stop_reason")
LEAST_MM = 0.01  # the way ends at the result: nothing nearer is drawn


def convergence(volume: Volume, result: dict[str, Any]) -> str:
    """A section of the page; empty where the result does not tell of stages."""
    stages = result.get("stages")
    if not stages:
        return ""
    charts = [*_way(volume, result), *_losses(stages)]
    return (
        f"<h2>Convergence</h2>{_stages(stages)}"
        f'<div class="charts" style="margin-top: 1rem">{"".join(charts)}</div>'
    )


def _stages(stages: list[dict[str, Any]]) -> str:
    """A row a stage, with a bar as long as its share of the time."""
    columns = [name for name in COLUMNS if any(name in stage for stage in stages)]
    head = "".join(f'<th scope="col">{name.replace("_", " ")}</th>' for name in columns)
    total = sum(stage.get("seconds") or 0.0 for stage in stages)
    rows = []
    for number, stage in enumerate(stages, 1):
        cells = (stage.get(name, "") for name in columns)
        texts = (f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells)
        share = (stage.get("seconds") or 0.0) / (total or 1.0)
        bar = f'<span class="share" style="width: {6 * share:.2f}rem"></span> {100 * share:.0f} %'
        told = "".join(f"<td>{html.escape(text)}</td>" for text in texts)
        rows.append(f'<tr><th scope="row">{number}</th>{told}<td>{bar}</td></tr>')
    return (
        f'<div class="wide"><table><thead><tr><th scope="col">stage</th>{head}'
        f'<th scope="col">share of the time</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
        "</div>"
    )


def _way(volume: Volume, result: dict[str, Any]) -> list[str]:
    """Distances from the result over all steps; none where the steps' poses are not known."""
    try:
        path = registration_path(result)
    except ValueError:
        return []
    away = distances(path, path[-1].world_to_camera, bone_like_points(volume))
    away = [max(value, LEAST_MM) for value in away]
    chart = line_chart(
        [Line(range(len(path)), away)],
        title="Way to the result",
        x_label="step, all stages",
        y_label="mm from the result (mTRE)",
        log=True,
        marks=[(first - 0.5, name) for first, name in stage_starts(path)],
        whole=True,
        size=(560, 240),
    )
    return [chart]


def _losses(stages: list[dict[str, Any]]) -> list[str]:
    """The lowest loss so far over the steps of every stage that has some."""
    charts = []
    for number, stage in enumerate(stages, 1):
        losses = [math.nan if v is None else float(v) for v in stage.get("best_loss") or ()]
        if sum(map(math.isfinite, losses)) < 2:
            continue
        name = str(stage.get("similarity", "loss"))
        charts.append(
            line_chart(
                [Line(range(1, len(losses) + 1), losses)],
                title=f"Stage {number}: {name} to {losses[-1]:.4g}",
                x_label="step",
                y_label="lowest loss",
                points=len(losses) <= 40,
                whole=True,
                size=(340, 240),
            )
        )
    return charts
