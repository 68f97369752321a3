"""The loss about the pose that a registration found: along each axis, and over pairs of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drrkit.evaluation import AXES, axis_offsets, local_minima, losses_at, on_axes
from drrkit.geometry import Camera, perturb, volume_center
from drrkit.registration import Stage, mean_depth
from drrkit.report.charts import heat_map, line_chart
from drrkit.volume import Volume

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
