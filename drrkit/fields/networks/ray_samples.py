"""Samples along rays, inside a mask only: empty space costs one look-up per voxel and no sample.

Everything happens on the mask's device. A ray is marched in steps of one voxel through an occupancy
grid; its occupied steps, joined end to end, are what is sampled, in strata of equal length.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Samples(NamedTuple):
    """Samples of many rays in one list, ordered by ray: ray [S] int64, t [S] and share [S].

    A sample stands at origin + t direction; share is what the length of its stratum is of the
    direction's, so that the sum of density * share * |direction| over a ray is its integral.
    """

    ray: Tensor
    t: Tensor
    share: Tensor


def _clip_to_box(
    origin: Tensor, direction: Tensor, shape: tuple[int, int, int], farthest: float
) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave the box of a grid: t [R] and t [R], equal where they miss it.

    origin, direction [R, 3] in index coordinates (x, y, z); the box ends half a voxel beyond the
    outer voxel centres of a grid of `shape` (D, H, W). Only 0 <= t <= farthest counts.
    """
    last = origin.new_tensor(shape[::-1]) - 0.5
    slope = torch.where(direction == 0, 1e-30, direction)  # a quotient, not an infinity
    low, high = (-0.5 - origin) / slope, (last - origin) / slope
    enter = torch.minimum(low, high).amax(-1).clamp_min(0.0)
    leave = torch.maximum(low, high).amin(-1).clamp_max(farthest)
    return enter, torch.maximum(enter, leave)


@torch.no_grad()
def samples_in_mask(
    occupied: Tensor,
    rays: Tensor,
    spacing: tuple[float, float, float],
    step: float,
    *,
    farthest: float = math.inf,
    generator: torch.Generator | None = None,
) -> Samples:
    """Stratified samples of rays where a grid is occupied.

    Args:
        occupied: bool [D, H, W]; grown by a voxel over what must be sampled, since a step of the
            march looks at its middle only.
        rays: [R, 2, 3] float64, origin and direction in index coordinates (x, y, z), on the grid's
            device.
        spacing: voxel size (x, y, z) mm.
        step: longest stratum, mm.
        farthest: t at which rays end; 1 at the detector.
        generator: places every sample at random in its stratum; None: in the middle.

    Returns:
        Samples without gradients, t and share float64.
    """
    origin, direction = rays.unbind(1)
    shape = (occupied.shape[0], occupied.shape[1], occupied.shape[2])
    enter, leave = _clip_to_box(origin, direction, shape, farthest)
    # Marched in steps of one voxel, in the metric of the index coordinates.
    pace = 1.0 / direction.norm(dim=-1).clamp_min(1e-12)
    count = ((leave - enter) / pace).ceil().long()
    most = int(count.max()) if count.numel() else 0
    number = torch.arange(most, device=origin.device)
    inside = number < count[:, None]
    pace = (leave - enter) / count.clamp_min(1)
    middle = enter[:, None] + (number + 0.5) * pace[:, None]
    point = origin[:, None] + middle[..., None] * direction[:, None]
    inside &= _looked_up(occupied, point)
    segments = inside.sum(1)
    millimetre = (direction * direction.new_tensor(spacing)).norm(dim=-1)
    strata = (segments * pace * millimetre / step).ceil().long()
    strata = torch.where(segments > 0, strata.clamp_min(1), 0)
    ray = torch.repeat_interleave(torch.arange(len(strata), device=strata.device), strata)
    first = strata.cumsum(0) - strata
    order = torch.arange(len(ray), device=ray.device) - first[ray]
    offset = _offsets(order, generator)
    along = offset / strata[ray] * segments[ray]  # in steps of the march, empty ones left out
    whole = along.floor().long().minimum(segments[ray] - 1)
    starts = segments.cumsum(0) - segments
    marched = inside.nonzero()[:, 1][starts[ray] + whole]
    t = enter[ray] + (marched + along - whole) * pace[ray]
    return Samples(ray, t, (segments * pace / strata.clamp_min(1))[ray])


def _looked_up(occupied: Tensor, point: Tensor) -> Tensor:
    """Whether the voxel nearest to points [..., 3] (x, y, z) is occupied."""
    depth, height, width = occupied.shape
    x, y, z = point.round().long().unbind(-1)
    x, y, z = x.clamp(0, width - 1), y.clamp(0, height - 1), z.clamp(0, depth - 1)
    return occupied.flatten()[(z * height + y) * width + x]


def _offsets(order: Tensor, generator: torch.Generator | None) -> Tensor:
    """Where in units of strata the samples stand."""
    if generator is None:
        return order.double() + 0.5
    # Drawn on the CPU, so that one seed gives the same samples on every device.
    jitter = torch.rand(order.shape, generator=generator, dtype=torch.float64)
    return order + jitter.to(order.device)
