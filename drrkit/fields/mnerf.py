"""mNeRF: a masked neural field of attenuation, which renders itself.

sigma(x) = M(x) scale softplus(f(gamma(x))), x in normalised coordinates of the mask's grid. M is
the trilinear interpolation of the eroded mask: one inside, continuous, and exactly zero at every
point whose nearest voxel is not in the mask. Source: arXiv 2308.00214 (its Eq. 7 for the encoding),
after NeRF (Mildenhall et al. 2020) without colour and view direction; sizes and M are drrkit's own.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from drrkit.fields.encodings import (
    FeatureGrids,
    Perceptron,
    encoded_size,
    positional_encoding,
    trilinear,
)
from drrkit.fields.masks import body_mask, dilated, eroded
from drrkit.geometry import Camera, check_counts, check_numbers, view_frames, volume_center
from drrkit.projector import endpoints
from drrkit.volume import Volume

# softplus(_ONE) = 1: an untrained field is about the scale everywhere in the mask.
_ONE = math.log(math.e - 1.0)


class MNeRF(nn.Module):
    """A neural attenuation field that is zero outside a mask.

    Args:
        mask: bool [D, H, W], where attenuation may be; of one patient.
        grid: a Volume whose grid the mask is on; its values do not matter.
        octaves: of the positional encoding.
        width, depth, skip: hidden layers, see Perceptron. 4 x 64 is for CPUs; the original NeRF
            has 8 x 256, skip 4 and 10 octaves.
        levels: of learned features beside the encoding, see FeatureGrids; 0 is the original's none.
            They learn fine structure in far fewer steps, for 16 bytes per voxel of the finest.
        cell: of the finest level, mm; default the largest voxel side.
        scale: mu (1/mm) of an untrained field, about water's.
        step: longest distance of samples in mm; default the smallest voxel side.
        samples_at_once: rays are taken in batches of at most about so many samples, which bounds
            the memory of images and of their gradients alike.

    Raises:
        TypeError, ValueError: the mask is not a bool grid of the volume's shape, or too thin to
            hold anything after erosion by a voxel, or a number makes no sense.
    """

    SETTINGS = (
        *("octaves", "width", "depth", "skip", "levels", "cell", "scale", "step"),
        "samples_at_once",
    )
    mask: Tensor
    core: Tensor
    occupied: Tensor

    def __init__(
        self,
        mask: Tensor,
        grid: Volume,
        *,
        octaves: int = 6,
        width: int = 64,
        depth: int = 4,
        skip: int | None = None,
        levels: int = 0,
        cell: float | None = None,
        scale: float = 0.02,
        step: float | None = None,
        samples_at_once: int = 1 << 18,
    ) -> None:
        super().__init__()
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"mask: expected a bool tensor [D, H, W], got {found}")
        shape = grid.shape_xyz[::-1]
        if mask.shape != shape:
            raise ValueError(
                f"mask: expected the shape of the grid {shape}, got {tuple(mask.shape)}"
            )
        step = min(grid.spacing) if step is None else step
        cell = max(grid.spacing) if cell is None else cell
        check_numbers(scale=scale, step=step, cell=cell)
        check_counts(0, octaves=octaves, levels=levels)
        check_counts(samples_at_once=samples_at_once)
        core = eroded(mask, (1, 1, 1))
        if not bool(core.any()):
            raise ValueError("mask: nothing is left of it when a border of one voxel is taken off")
        self.register_buffer("mask", mask.clone())
        self.register_buffer("core", core)
        self.register_buffer("occupied", dilated(mask, (1, 1, 1)))
        self.spacing, self.origin, self.direction = grid.spacing, grid.origin, grid.direction
        self.octaves, self.width, self.depth, self.skip = octaves, width, depth, skip
        self.levels, self.cell = levels, float(cell)
        self.scale, self.step, self.samples_at_once = float(scale), float(step), samples_at_once
        self.features = FeatureGrids(shape, grid.spacing, cell, levels) if levels else None
        inputs = encoded_size(3, octaves) + (self.features.size if self.features else 0)
        self.network = Perceptron(inputs, width, depth, skip)
        nn.init.constant_(self.network.last.bias, _ONE)

    @staticmethod
    def inside(
        volume: Volume, threshold: float | None = None, margin_mm: float = 5.0, **settings: Any
    ) -> MNeRF:
        """A field in the body of a CT: its mask is `body_mask` with a margin, see there.

        Args:
            volume: the CT, in HU or mu, one channel; only its mask is used.
            threshold, margin_mm: see `body_mask`; a voxel at least is added for the erosion.
            settings: of MNeRF.
        """
        mask = body_mask(volume, threshold, max(margin_mm, max(volume.spacing)))
        return MNeRF(mask, volume, **settings).to(volume.values.device)

    @property
    def grid(self) -> Volume:
        """The mask as a Volume (mu of 1 inside): the field's grid."""
        return Volume(self.mask.float(), self.spacing, self.origin, self.direction, unit="mu")

    @property
    def center(self) -> Tensor:
        """[3] float64 world mm: the centre of the mask's grid."""
        return volume_center(self.grid)

    def density(self, points: Tensor) -> Tensor:
        """Attenuation (1/mm) at world points [..., 3] mm, in the network's dtype: [...]."""
        index = self.grid.world_to_index(points.double())
        return self._density(index.reshape(-1, 3)).reshape(points.shape[:-1])

    def forward(
        self,
        frames: Tensor,
        pixels: Tensor,
        *,
        beam: str = "cone",
        extend: bool = True,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Line integrals [B, P] of chosen pixels of chosen views, differentiable in all.

        Args:
            frames: [B, 4, 3] of views in the index coordinates of the field's `grid`, as
                `drrkit.view_frames` gives them.
            pixels: [P, 2] or [B, P, 2] (row, col).
            beam: "cone" or "parallel".
            extend: let rays go on behind the detector.
            generator: places samples at random in their strata, for training.
        """
        source, target = endpoints(frames.double(), pixels.to(frames.device), beam).unbind(2)
        rays = torch.stack((source, target - source), 2)
        shape = rays.shape[:-2]
        rays = rays.reshape(-1, 2, 3)
        farthest = math.inf if extend else 1.0
        width = self._rays_at_once()
        bounded = torch.is_grad_enabled() and len(rays) > width
        parts = []
        for batch in rays.split(width):
            samples = samples_in_mask(
                self.occupied,
                batch.detach(),
                self.spacing,
                self.step,
                farthest=farthest,
                generator=generator,
            )
            if bounded:  # one batch's samples at a time are alive, in the backward pass too
                parts.append(checkpoint(self._integrals, batch, samples, use_reentrant=False))
            else:
                parts.append(self._integrals(batch, samples))
        return torch.cat(parts).reshape(shape)

    def render(
        self,
        camera: Camera,
        world_to_camera: Tensor,
        *,
        supersample: int = 1,
        extend: bool = True,
        **options: Any,
    ) -> Tensor:
        """Line integrals [B, 1, rows, cols], differentiable in the weights, pose and camera.

        Args:
            camera, world_to_camera, supersample, extend: as for `drrkit.render`.
            options: of voxel projectors (method, step, ...); a field ignores them.
        """
        fine = camera.rescale(1.0 / supersample) if supersample > 1 else camera
        frames = view_frames(self.grid, fine, world_to_camera)
        rows, cols = fine.size
        pixels = torch.cartesian_prod(torch.arange(rows), torch.arange(cols)).double()
        image = self(frames, pixels, beam=camera.beam, extend=extend)
        image = image.reshape(-1, 1, rows, cols)
        return functional.avg_pool2d(image, supersample) if supersample > 1 else image

    def bake(self, spacing: float | None = None) -> Volume:
        """The field on a voxel grid, a Volume in mu without gradient: for fast registration.

        spacing: voxel size in mm; default the mask's grid. An approximation: between voxels the
        projector interpolates, the field does not.
        """
        grid = self.grid if spacing is None else self.grid.resample(spacing)
        where = (grid.values > 0).nonzero()
        baked = torch.zeros_like(grid.values)
        with torch.no_grad():
            for chunk in where.split(self.samples_at_once):
                world = grid.index_to_world(chunk.flip(-1).double())
                baked[chunk.unbind(-1)] = self.density(world).to(baked.dtype)
        return Volume(baked, grid.spacing, grid.origin, grid.direction, unit="mu")

    def _integrals(self, rays: Tensor, samples: Samples) -> Tensor:
        """Integrals [R] of rays [R, 2, 3] (origin, direction) in index coordinates."""
        origin, direction = rays[:, 0], rays[:, 1]
        # t stays with the ray as it moves: exact for the integral, whose ends are in empty space.
        index = origin[samples.ray] + samples.t[:, None] * direction[samples.ray]
        length = (direction * direction.new_tensor(self.spacing)).norm(dim=-1)
        shares = (self._density(index) * samples.share).double()
        total = torch.zeros_like(length).index_add(0, samples.ray, shares)
        return (total * length).to(self.network.last.weight.dtype)

    def _density(self, index: Tensor) -> Tensor:
        """mu [S] at index coordinates [S, 3] (x, y, z) float64."""
        dtype = self.network.last.weight.dtype
        weight = trilinear(self.core, index)
        shape = index.new_tensor(self.core.shape[::-1])
        sides = shape * index.new_tensor(self.spacing)
        # [-1, 1] along the longest side, the same scale along the others.
        place = (index - (shape - 1) / 2) * (2.0 * index.new_tensor(self.spacing) / sides.max())
        code = positional_encoding(place.to(dtype), self.octaves)
        if self.features is not None:
            code = torch.cat((code, self.features(index)), -1)
        raw = self.network(code)[:, 0]
        return weight.to(dtype) * self.scale * functional.softplus(raw)

    def _rays_at_once(self) -> int:
        sizes = self.mask.shape[::-1]
        diagonal = math.hypot(*(n * s for n, s in zip(sizes, self.spacing, strict=True)))
        longest = max(diagonal / self.step, math.hypot(*sizes))  # samples, or look-ups of the march
        return max(1, int(self.samples_at_once / longest))


# ---- samples along rays, inside a mask only: empty space costs one look-up per voxel, no sample. A
# ray is marched in steps of one voxel through an occupancy grid; its occupied steps, joined end to
# end, are what is sampled, in strata of equal length.


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
