"""mNeRF: a masked neural field of attenuation, which renders itself.

sigma(x) = M(x) scale softplus(f(gamma(x))), x in normalised coordinates of the mask's grid. M is
the trilinear interpolation of the eroded mask: one inside, continuous, and exactly zero at every
point whose nearest voxel is not in the mask. Source: arXiv 2308.00214 (its Eq. 7 for the encoding),
after NeRF (Mildenhall et al. 2020) without colour and view direction; sizes and M are drrkit's own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from drrkit.fields.masks import body_mask, dilated, eroded
from drrkit.fields.networks.encodings import (
    FeatureGrids,
    Perceptron,
    encoded_size,
    positional_encoding,
    trilinear,
)
from drrkit.fields.networks.ray_samples import Samples, samples_in_mask
from drrkit.geometry import Camera, view_frames, volume_center
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
        _check_mask(mask, grid)
        step = min(grid.spacing) if step is None else step
        cell = max(grid.spacing) if cell is None else cell
        _check_positive(scale=scale, step=step, cell=cell)
        if octaves < 0 or levels < 0 or samples_at_once < 1:
            raise ValueError(
                "octaves, levels, samples_at_once: expected >= 0, >= 0 and >= 1, got "
                f"{octaves}, {levels}, {samples_at_once}"
            )
        core = eroded(mask, (1, 1, 1))
        if not bool(core.any()):
            raise ValueError("mask: nothing is left of it when a border of one voxel is taken off")
        self.register_buffer("mask", mask.clone())
        self.register_buffer("core", core)
        self.register_buffer("occupied", dilated(mask, (1, 1, 1)))
        self.spacing, self.origin, self.direction = grid.spacing, grid.origin, grid.direction
        self.octaves, self.scale, self.step = octaves, float(scale), float(step)
        self.samples_at_once = samples_at_once
        shape = (mask.shape[0], mask.shape[1], mask.shape[2])
        self.features = FeatureGrids(shape, grid.spacing, cell, levels) if levels else None
        inputs = encoded_size(3, octaves) + (self.features.size if self.features else 0)
        self.network = Perceptron(inputs, width, depth, skip)
        nn.init.constant_(self.network.last.bias, _ONE)
        self.settings: dict[str, Any] = {
            "octaves": octaves,
            "width": width,
            "depth": depth,
            "skip": skip,
            "levels": levels,
            "cell": float(cell),
            "scale": float(scale),
            "step": float(step),
            "samples_at_once": samples_at_once,
        }

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
        rays = _rays(frames.double(), pixels.to(frames.device).double(), beam)
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


def _rays(frames: Tensor, pixels: Tensor, beam: str) -> Tensor:
    """Origin and direction of pixels: [B, P, 2, 3]; direction goes to the pixel's centre."""
    offset = pixels @ frames[:, 2:].flip(1)
    target = frames[:, 1:2] + offset
    source = frames[:, 0:1] + (offset if beam == "parallel" else torch.zeros_like(offset))
    return torch.stack((source, target - source), 2)


def _check_mask(mask: Tensor, grid: Volume) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        found = f"{mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask: expected a bool tensor [D, H, W], got {found}")
    if mask.shape != grid.values.shape[-3:]:
        raise ValueError(
            f"mask: expected the shape of the grid {tuple(grid.values.shape[-3:])}, "
            f"got {tuple(mask.shape)}"
        )


def _check_positive(**numbers: float) -> None:
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: expected a positive number, got {value!r}")
