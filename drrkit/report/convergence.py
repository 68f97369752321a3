"""How a registration came to its end, and the loss about the pose that it found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from drrkit.evaluation import AXES, axis_offsets, local_minima, losses_at, on_axes
from drrkit.geometry import Camera, perturb, volume_center
from drrkit.metrics import mtre
from drrkit.registration import Stage, mean_depth
from drrkit.report.charts import Markup, can_draw, heat_map, line_chart, table
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


WIDTHS = (10.0, 10.0, 10.0, 20.0, 20.0, 60.0)
"""To each side of the pose: degrees about x, y, z, mm along them."""

MAPPED = ((0, 4), (1, 3), (2, 5))
"""Pairs of axes with maps. The first two look alike in an X-ray: a turn about the image's
horizontal and a shift down, a turn about its vertical and a shift to the side."""

UNITS = ("degrees",) * 3 + ("mm",) * 3
SCALES = (180 / math.pi,) * 3 + (1.0,) * 3


@dataclass(frozen=True, eq=False)
class PoseLandscape:
    """One similarity about one pose.

    Attributes:
        name: of the similarity.
        pixel_mm: width of the pixels that were compared, at the patient.
        offsets: [6, N] xi (rad, mm, camera axes) of the sweeps, 0 in the middle.
        sweeps: [6, N] losses along them.
        grid: [6, M] xi of the maps' axes.
        maps: [P, M, M] losses; rows are the second axis of MAPPED, columns the first. P may be 0.
    """

    name: str
    pixel_mm: float
    offsets: Tensor
    sweeps: Tensor
    grid: Tensor
    maps: Tensor

    @property
    def lowest(self) -> Tensor:
        """Where each sweep is lowest, [6] rad and mm: how far the found pose is from the bottom."""
        return self.offsets.gather(1, self.sweeps.argmin(1, keepdim=True))[:, 0]


def pose_landscape(
    volume: Volume,
    camera: Camera,
    xray: Tensor,
    world_to_camera: Tensor,
    stage: Stage | None = None,
    *,
    mask: Tensor | None = None,
    widths: Sequence[float] = WIDTHS,
    count: int = 41,
    map_count: int = 21,
    method: str = "joseph",
) -> PoseLandscape:
    """Sweep a stage's loss, at its resolution, about a pose.

    Args:
        volume: in mu.
        camera: the X-ray's.
        xray: [1, 1, rows, cols] or [rows, cols], bone bright.
        world_to_camera: [4, 4].
        stage: its similarity and pixels are taken; default gradient_ncc on the X-ray's own pixels.
        mask: float weights of the X-ray's shape, or None.
        widths: to each side of the pose, six in degrees and mm.
        count: poses per sweep, odd.
        map_count: poses along each side of a map, odd; 0 for no maps.
        method: projector method, as in `render`.

    Raises:
        TypeError, ValueError: as `register`, or an even count.
    """
    for name, number in (("count", count), ("map_count", map_count)):
        if (number < 3 or number % 2 == 0) and not (name == "map_count" and number == 0):
            raise ValueError(f"{name}: expected an odd number of at least 3, got {number!r}")
    if len(widths) != 6:
        raise ValueError(f"widths: expected six, got {widths!r}")
    stage = Stage() if stage is None else stage
    center = volume_center(volume)
    pose = world_to_camera.detach().reshape(1, 4, 4).to(center)
    offsets = axis_offsets(widths, count)
    grid = axis_offsets(widths, map_count) if map_count else offsets[:, :0]
    xi = torch.zeros(len(MAPPED), map_count, map_count, 6, dtype=torch.float64)
    for part, (first, second) in zip(xi, MAPPED, strict=True):
        part[..., first], part[..., second] = grid[first][None], grid[second][:, None]
    poses = perturb(pose, torch.cat((on_axes(offsets), xi.reshape(-1, 6))).to(center), center)
    scene, depth = (volume, camera, xray), mean_depth(pose, center)
    losses, pixel_mm = losses_at(*scene, stage, depth, poses, mask=mask, method=method)
    maps = losses[6 * count :].reshape(-1, map_count, map_count) if map_count else losses[:0]
    sweeps = losses[: 6 * count].reshape(6, count)
    return PoseLandscape(stage.name, pixel_mm, offsets, sweeps, grid, maps)


def landscape_charts(found: PoseLandscape) -> list[str]:
    """A landscape as SVG elements: six curves, then the maps. ImportError without matplotlib."""
    labels = [f"{name}, {unit}" for name, unit in zip(AXES, UNITS, strict=True)]
    charts = []
    for axis, sweep in enumerate(found.sweeps):
        minima = local_minima(sweep)
        charts.append(
            line_chart(
                (found.offsets[axis] * SCALES[axis]).tolist(),
                sweep.tolist(),
                title=f"{AXES[axis]}: {'one minimum' if minima == 1 else f'{minima} minima'}",
                x_label=labels[axis],
                y_label=found.name,
                marks=[(0.0, "")],
                size=(360, 200),
            )
        )
    for (first, second), values in zip(MAPPED, found.maps, strict=False):
        charts.append(
            heat_map(
                values,
                (found.grid[first] * SCALES[first]).tolist(),
                (found.grid[second] * SCALES[second]).tolist(),
                title=f"{AXES[first]} and {AXES[second]}",
                x_label=labels[first],
                y_label=labels[second],
                value_label=found.name,
            )
        )
    return charts
