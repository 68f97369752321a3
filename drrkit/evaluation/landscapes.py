"""Similarity landscapes: sweeps of the loss along each component of xi through the true pose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from drrkit.evaluation.protocols import Case, rad_and_mm
from drrkit.geometry import Camera, perturb, volume_center
from drrkit.metrics import mtre
from drrkit.registration import (
    Similarity,
    Stage,
    downsampling,
    extent_mm,
    make_views,
    objective,
    pixel_at,
)
from drrkit.volume import Volume

AXES = ("turn x", "turn y", "turn z", "shift x", "shift y", "depth")

WIDTHS = (30.0, 30.0, 30.0, 60.0, 60.0, 150.0)
"""Of sweeps to each side of the truth: degrees about x, y, z, mm along them."""

# Poses rendered in one call.
_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Landscape:
    """One similarity about the truth of a case.

    Attributes:
        name: of the similarity.
        offsets: [6, N] xi (rad, mm) of the sweeps, 0 in the middle.
        sweeps: [6, N] losses along them.
        distances, losses: [M] mTRE (mm) of random poses and the losses there.
    """

    name: str
    offsets: Tensor
    sweeps: Tensor
    distances: Tensor
    losses: Tensor

    @property
    def minima(self) -> list[int]:
        """Local minima of each sweep, 1 where the truth alone is one."""
        return [local_minima(sweep) for sweep in self.sweeps]

    @property
    def correlation(self) -> float:
        """Pearson correlation of loss and distance over the random poses; 1 would be ideal."""
        return float(torch.corrcoef(torch.stack((self.distances, self.losses)))[0, 1])


def landscape(case: Case, stage: Stage, **sweeps: Any) -> Landscape:
    """Sweep a stage's loss, at its resolution, about the truth of a case; see `landscapes_of`."""
    return landscapes_of(case, [stage.similarity], stage, **sweeps)[0]


def landscapes_of(
    case: Case,
    similarities: Sequence[str | Similarity],
    stage: Stage,
    *,
    widths: Sequence[float] = WIDTHS,
    count: int = 61,
    poses: int = 300,
    seed: int = 0,
) -> list[Landscape]:
    """The same for several similarities in place of the stage's, every pose rendered once.

    Args:
        widths: of the sweeps to each side of the truth, degrees and mm; the random poses are
            uniform within them.
        count: poses per sweep; odd, so that the truth is one of them.
        poses: random poses.
        seed: of those.

    Raises:
        ValueError: count is even or below 3, poses below 2, or widths are not six; a similarity
            prepares its own scene and is not alone.
    """
    if count < 3 or count % 2 == 0:
        raise ValueError(f"count: expected an odd number of at least 3, got {count!r}")
    if poses < 2 or len(widths) != 6:
        raise ValueError(f"poses, widths: expected at least 2 and six, got {poses}, {widths!r}")
    offsets = axis_offsets(widths, count)
    generator = torch.Generator().manual_seed(seed)
    random = (2 * torch.rand(poses, 6, generator=generator, dtype=torch.float64) - 1) * offsets[
        :, -1
    ]
    center = volume_center(case.subject.attenuation)
    truth = case.truth.to(center.device)
    moved = perturb(truth, torch.cat((on_axes(offsets), random)).to(center), center)
    distances = mtre(moved[-poses:].cpu(), case.truth, case.subject.points)
    stages = [replace(stage, similarity=similarity) for similarity in similarities]
    return [
        Landscape(one.name, offsets, row[: 6 * count].reshape(6, count), distances, row[-poses:])
        for one, row in zip(stages, _losses(case, stages, moved), strict=True)
    ]


def axis_offsets(widths: Sequence[float], count: int) -> Tensor:
    """Values of the six components of xi, 0 in the middle: [6, count] float64, rad and mm.

    widths: to each side, six in degrees and mm; count: odd.
    """
    half = count // 2
    return rad_and_mm(widths)[:, None] * torch.arange(-half, half + 1, dtype=torch.float64) / half


def on_axes(offsets: Tensor) -> Tensor:
    """xi [6 N, 6] of offsets [6, N], one component at a time, as `axis_offsets` returns them."""
    return torch.diag_embed(offsets.T).transpose(0, 1).flatten(0, 1)


def losses_at(
    volume: Volume,
    camera: Camera,
    xray: Tensor,
    stage: Stage,
    depth: float,
    world_to_camera: Tensor,
    *,
    mask: Tensor | None = None,
    method: str = "joseph",
) -> tuple[Tensor, float]:
    """A stage's losses at poses [B, 4, 4], a batch at a time: [B] float64 on the CPU.

    Of a similarity with several losses per pose, [S, B], all of them. depth: of the patient, mm
    from the source. Also returns the width in mm of the compared pixels at that depth.
    """
    views = make_views(camera, xray, mask, None, volume.values)
    stage = stage.in_mm(extent_mm(volume, camera, depth))
    factor = downsampling(stage, camera, depth)
    measure = objective(volume, views, stage, factor, method)
    with torch.no_grad():
        parts = [measure(part) for part in world_to_camera.split(_AT_ONCE)]
    return torch.cat(parts, -1).double().cpu(), factor * pixel_at(camera, depth)


def local_minima(sweep: Tensor) -> int:
    """How many valleys a sweep [N] has; a flat floor is one valley, and so is an end that rises."""
    steps = sweep.diff()
    signs = steps[steps != 0].sign()
    # Valleys within, and the ends where the way in leads up.
    within = int(((signs[:-1] < 0) & (signs[1:] > 0)).sum())
    if signs.numel() == 0:
        return 1
    return within + int(signs[0] > 0) + int(signs[-1] < 0)


def _losses(case: Case, stages: Sequence[Stage], world_to_camera: Tensor) -> Tensor:
    """Losses [S, B] float64 on the CPU of stages that differ by their similarity, at B poses."""
    together, measures = stages[0], [stage.measure for stage in stages]
    if len(measures) > 1:
        for stage, measure in zip(stages, measures, strict=True):
            if hasattr(measure, "prepare"):
                raise ValueError(
                    f"similarities: expected {stage.name} alone, which prepares scenes"
                )
        together = replace(together, similarity=partial(_stacked, measures))
    scene = case.subject.attenuation, case.camera, case.xray
    losses, _ = losses_at(*scene, together, case.protocol.sod, world_to_camera)
    return losses.reshape(len(stages), -1)


def _stacked(measures: Sequence[Similarity], *images: Tensor | None) -> Tensor:
    """What every similarity makes of the same images, [S, B]."""
    return torch.stack([measure(*images) for measure in measures])
