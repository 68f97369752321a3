"""How a registration came to its end: the pose after every step, stages, time, losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from drrkit.metrics import mtre
from drrkit.report.charts import Markup, can_draw, line_chart, table
from drrkit.volume import Volume

COLUMNS = ("similarity", "optimiser", "downsample", "steps", "seconds", "stop_reason")
LEAST_MM = 0.01  # the path ends at the result: nothing nearer is drawn


class PathStep(NamedTuple):
    """Where a registration was after a step."""

    world_to_camera: Tensor
    """[4, 4] float64, the best pose so far."""
    loss: float | None
    """The lowest so far, comparable within a stage only; None before the first."""
    stage: int
    """From 1; 0 for the start."""
    step: int
    """Of the stage, from 1; 0 for the start."""
    similarity: str
    """Of the stage."""


def registration_path(result: dict[str, Any]) -> list[PathStep]:
    """The start, where it is known, and the steps of all stages that counted.

    Args:
        result: what `drrkit register` writes or RegistrationResult.as_dict returns.

    Raises:
        ValueError: there are no poses of steps in it, or they are those of several bodies.
    """
    steps = []
    if result.get("initial_world_to_camera") is not None:
        steps.append(PathStep(_pose(result["initial_world_to_camera"]), None, 0, 0, ""))
    for number, stage in enumerate(result.get("stages") or (), 1):
        if stage.get("counted") is False:
            continue
        poses = stage.get("best_world_to_camera") or ()
        losses = [*(stage.get("best_loss") or ()), *[None] * len(poses)]
        for step, (pose, loss) in enumerate(zip(poses, losses, strict=False), 1):
            name = str(stage.get("similarity", ""))
            steps.append(PathStep(_pose(pose), loss, number, step, name))
    if not any(step.stage for step in steps):
        raise ValueError(
            "result: expected the poses of its steps (stages[..].best_world_to_camera); it was "
            "written by an older version: register again"
        )
    return steps


def bone_like_points(volume: Volume, count: int = 500, seed: int = 0) -> Tensor:
    """Random voxels of the 5 % that attenuate most: [count or fewer, 3] float64 world mm."""
    values = volume.values.detach().cpu()
    values = values.sum(0) if values.dim() == 4 else values
    flat = values.flatten()
    least = torch.quantile(flat[:: max(1, flat.numel() // 1_000_000)].float(), 0.95)
    dense = torch.nonzero(values >= float(least))
    order = torch.randperm(len(dense), generator=torch.Generator().manual_seed(seed))
    index = dense[order[:count]].flip(-1).double()
    return volume.index_to_world(index.to(volume.direction.device)).cpu()


def distances(path: Sequence[PathStep], reference: Tensor, points: Tensor) -> list[float]:
    """Mean distances in mm of points [P, 3] from where a reference pose [4, 4] puts them (mTRE)."""
    poses = torch.stack([step.world_to_camera for step in path])
    return mtre(poses, reference.detach().double().cpu().reshape(1, 4, 4), points).tolist()


def convergence(volume: Volume, result: dict[str, Any]) -> str:
    """A section of the page; empty where the result has no stages."""
    stages = result.get("stages")
    if not stages:
        return ""
    if can_draw():
        charts = "".join((*_path_chart(volume, result), *_loss_charts(stages)))
    else:
        charts = "<p>Charts need matplotlib: pip install 'drrkit[plots]'.</p>"
    return (
        f"<h2>Convergence</h2>{_stages(stages)}"
        f'<div class="charts" style="margin-top: 1rem">{charts}</div>'
    )


def _stages(stages: list[dict[str, Any]]) -> str:
    """One row per stage, with a bar as long as its share of the time."""
    columns = [name for name in COLUMNS if any(name in stage for stage in stages)]
    total = sum(stage.get("seconds") or 0.0 for stage in stages)
    rows = []
    for number, stage in enumerate(stages, 1):
        cells = [stage.get(name, "") for name in columns]
        if stage.get("counted") is False:
            cells[-1] = f"{cells[-1]} (replaced by a later attempt)"
        texts = (f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells)
        share = (stage.get("seconds") or 0.0) / (total or 1.0)
        bar = f'<span class="share" style="width: {6 * share:.2f}rem"></span> {100 * share:.0f} %'
        rows.append([str(number), *texts, Markup(bar)])
    head = (name.replace("_", " ") for name in columns)
    return table(rows, ("stage", *head, "share of the time"))


def _path_chart(volume: Volume, result: dict[str, Any]) -> list[str]:
    """Distances from the result over all steps; none where the steps' poses are not known."""
    try:
        path = registration_path(result)
    except ValueError:
        return []
    away = distances(path, path[-1].world_to_camera, bone_like_points(volume))
    marks = [(n - 0.5, str(step.stage)) for n, step in enumerate(path) if step.step == 1]
    return [
        line_chart(
            range(len(path)),
            [max(value, LEAST_MM) for value in away],
            title="Distance from the result",
            x_label="step, all stages (numbered)",
            y_label="mm (mTRE)",
            log=True,
            marks=marks,
            whole=True,
            size=(560, 240),
        )
    ]


def _loss_charts(stages: list[dict[str, Any]]) -> list[str]:
    """The lowest loss so far over the steps of every stage that has some."""
    charts = []
    for number, stage in enumerate(stages, 1):
        losses = [math.nan if v is None else float(v) for v in stage.get("best_loss") or ()]
        if sum(map(math.isfinite, losses)) < 2:
            continue
        charts.append(
            line_chart(
                range(1, len(losses) + 1),
                losses,
                title=f"Stage {number}: {stage.get('similarity', 'loss')} to {losses[-1]:.4g}",
                x_label="step",
                y_label="lowest loss",
                whole=True,
                size=(340, 240),
            )
        )
    return charts


def _pose(rows: Any) -> Tensor:
    pose = torch.as_tensor(rows, dtype=torch.float64).cpu()
    if pose.shape != (4, 4):
        raise ValueError(f"result: expected poses [4, 4] of one body, got {tuple(pose.shape)}")
    return pose
