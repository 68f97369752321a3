"""The loss about the pose that a registration found: along each axis, and over pairs of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drrkit.evaluation import AXES, axis_offsets, local_minima, losses_at
from drrkit.geometry import Camera, perturb, volume_center
from drrkit.registration import Stage, downsampling, make_views, mean_depth
from drrkit.report.charts import Line, heat_map, line_chart
from drrkit.volume import Volume

__all__ = ["PAIRS", "PoseLandscape", "landscape_charts", "pose_landscape"]

WIDTHS = (10.0, 10.0, 10.0, 20.0, 20.0, 60.0)
"""To each side of the pose: degrees about x, y, z, mm along them."""

PAIRS = ((0, 4), (1, 3), (2, 5))
"""Of axes that maps are made of: a tilt looks like a shift down, a swing like one to the side."""


@dataclass(frozen=True, eq=False)
class PoseLandscape:
    """One similarity about one pose.

    Attributes:
        name: of the similarity.
        pixel_mm: width of the pixels that were compared, at the patient.
        offsets: [6, N] xi (rad, mm, camera axes) of the sweeps, 0 in the middle.
        sweeps: [6, N] losses along them.
        grids: [P, 2, M] xi of the maps' first and second axis.
        maps: [P, M, M] losses; rows are the second axis of PAIRS, columns the first. P may be 0.
    """

    name: str
    pixel_mm: float
    offsets: Tensor
    sweeps: Tensor
    grids: Tensor
    maps: Tensor

    @property
    def lowest(self) -> Tensor:
        """Where each sweep is lowest, [6] rad and mm: how far the found pose is from the bottom."""
        best = self.sweeps.argmin(1, keepdim=True)
        return self.offsets.gather(1, best)[:, 0]


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
        count: poses of a sweep, odd.
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
    views = make_views(camera, xray, mask, None, volume.values)
    center = volume_center(volume)
    pose = world_to_camera.detach().reshape(1, 4, 4).to(center)
    depth = mean_depth(pose, center)
    factor = downsampling(stage, camera, depth)
    offsets = axis_offsets(widths, count)
    grids, pairs = _grids(widths, map_count)
    on_axes = torch.diag_embed(offsets.T).transpose(0, 1).flatten(0, 1)  # [6 N, 6]
    poses = perturb(pose, torch.cat((on_axes, pairs)).to(center), center)
    losses = losses_at(volume, views, stage, factor, poses, method)
    maps = losses[6 * count :].reshape(len(grids), map_count, map_count)
    pitch = float(camera.rescale(factor).pixel_spacing[1]) * depth / float(camera.sdd)
    sweeps = losses[: 6 * count].reshape(6, count)
    return PoseLandscape(stage.name, pitch, offsets, sweeps, grids, maps)


def landscape_charts(found: PoseLandscape) -> list[str]:
    """A landscape as SVG: six curves, then the maps."""
    charts = []
    for axis, name in enumerate(AXES):
        x = [value * _scale(axis) for value in found.offsets[axis].tolist()]
        minima = local_minima(found.sweeps[axis])
        charts.append(
            line_chart(
                [Line(x, found.sweeps[axis].tolist())],
                title=f"{name}: {'one minimum' if minima == 1 else f'{minima} minima'}",
                x_label=f"{name}, {_unit(axis)}",
                y_label=found.name,
                marks=[(0.0, "")],
                size=(360, 200),
            )
        )
    for (first, second), grid, values in zip(PAIRS, found.grids, found.maps, strict=False):
        charts.append(
            heat_map(
                values,
                [value * _scale(first) for value in grid[0].tolist()],
                [value * _scale(second) for value in grid[1].tolist()],
                title=f"{AXES[first]} and {AXES[second]}",
                x_label=f"{AXES[first]}, {_unit(first)}",
                y_label=f"{AXES[second]}, {_unit(second)}",
                value_label=found.name,
                size=(360, 290),
            )
        )
    return charts


def _grids(widths: Sequence[float], count: int) -> tuple[Tensor, Tensor]:
    """The axes [P, 2, M] of the maps, and the xi [P M M, 6] of their poses, row by row."""
    if count == 0:
        return torch.empty(0, 2, 0), torch.empty(0, 6, dtype=torch.float64)
    ends = axis_offsets(widths, count)
    grids = torch.stack([ends[list(pair)] for pair in PAIRS])
    poses = torch.zeros(len(PAIRS), count, count, 6, dtype=torch.float64)
    for part, (first, second), (across, up) in zip(poses, PAIRS, grids, strict=True):
        part[..., first], part[..., second] = across[None], up[:, None]
    return grids, poses.reshape(-1, 6)


def _scale(axis: int) -> float:
    return 180.0 / math.pi if axis < 3 else 1.0


def _unit(axis: int) -> str:
    return "degrees" if axis < 3 else "mm"
