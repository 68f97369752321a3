"""Sums of hard or soft ellipsoids whose X-ray images are known in closed form.

The density of one ellipsoid is  value * (1 - |E (x - c)|^2)_+^k  with E = diag(1 / semi_axes) R'.
k = 0 is the classic hard ellipsoid, k = 2 a soft one whose images are twice differentiable. Along
a line the density is a polynomial, so its integral over any segment is exact, and autograd
through it gives exact derivatives with respect to pose, frame, camera and the phantom itself.
Over the full chord it is  l / |E d| sqrt(pi) Gamma(k + 1) / Gamma(k + 3/2) (1 - b^2)^(k + 1/2),
b the distance of the line from c in the metric of E.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from drrkit.geometry import (
    Camera,
    VolumeLike,
    batched_pose,
    check_counts,
    check_numbers,
    quaternion_rotation,
)
from drrkit.volume import Volume, water_attenuation

WATER_MU = water_attenuation()


@dataclass(frozen=True, eq=False)
class Ellipsoids:
    """A sum of E ellipsoids in the world (LPS, mm); where they overlap, their densities add.

    centers     [E, 3] mm.
    semi_axes   [E, 3] mm, positive.
    rotations   [E, 3, 3], orthonormal; the columns are the directions of the semi-axes.
    values      [E] density at the centre, 1/mm; may be negative.
    exponent    k, an integer from 0 (hard) to 8; 2 is soft enough for first derivatives to be
                smooth. Hard ellipsoids have unbounded derivatives at their silhouettes.

    Everything is kept and computed in float64. Raises TypeError and ValueError naming the field.
    """

    centers: Tensor
    semi_axes: Tensor
    rotations: Tensor
    values: Tensor
    exponent: int = 2

    def __post_init__(self) -> None:
        shapes = {"values": (), "centers": (3,), "semi_axes": (3,), "rotations": (3, 3)}
        for name, item in shapes.items():  # values first: they say how many
            tensor = getattr(self, name)
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
            tensor = tensor.to(torch.float64)
            object.__setattr__(self, name, tensor)
            count = max(len(self.values), 1) if self.values.ndim == 1 else 1
            if tensor.shape != (count, *item):
                wanted = ", ".join(map(str, ("E", *item)))
                raise ValueError(
                    f"{name}: expected [{wanted}] with E = {count}, got {list(tensor.shape)}"
                )
            if bad := int((~tensor.isfinite()).sum()):
                raise ValueError(f"{name}: contains {bad} non-finite numbers")
        if bool((self.semi_axes <= 0).any()):
            raise ValueError(f"semi_axes: expected positive mm, got {float(self.semi_axes.min())}")
        unit = self.rotations.detach() @ self.rotations.detach().mT
        error = float((unit - torch.eye(3).to(unit)).abs().max())
        if error > 1e-6:
            raise ValueError(f"rotations: expected orthonormal, got R R' off by {error:.1e}")
        check_counts(0, exponent=self.exponent)
        if self.exponent > 8:
            raise ValueError(f"exponent: expected 0 to 8, got {self.exponent}")

    def __len__(self) -> int:
        return self.values.shape[0]

    def _each(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Centre [3], map into the unit ball [3, 3] (row vectors times it) and value of each."""
        maps = self.rotations / self.semi_axes[:, None, :]
        for center, into_ball, value in zip(self.centers, maps, self.values, strict=True):
            yield center.to(device), into_ball.to(device), value.to(device)

    def sample(self, points: Tensor) -> Tensor:
        """Density (1/mm) at world `points` [..., 3] in mm; [...], float64."""
        points = _points(points, "points")
        density = points.new_zeros(points.shape[:-1])
        for center, into_ball, value in self._each(points.device):
            inside = 1.0 - ((points - center) @ into_ball).square().sum(-1)
            if self.exponent == 0:
                density = density + value * (inside >= 0)
            else:
                density = density + value * inside.clamp(min=0) ** self.exponent
        return density

    def line_integrals(self, source: Tensor, target: Tensor, *, extend: bool = False) -> Tensor:
        """Exact integrals along the segments from `source` to `target`, both [..., 3] world mm.

        A segment that ends inside an ellipsoid is cut there exactly, for every exponent, and the
        derivative contains the moving end. extend=True integrates on past the target. A segment
        of no length gives 0. Returns [...], float64, no unit.
        """
        source, target = _points(source, "source"), _points(target, "target")
        direction = target - source
        length = torch.linalg.vector_norm(direction, dim=-1)
        total = torch.zeros_like(length)
        for center, into_ball, value in self._each(source.device):
            u, w = (source - center) @ into_ball, direction @ into_ball
            square = w.square().sum(-1)
            square = torch.where(square > 0, square, 1.0)
            nearest = -(u * w).sum(-1) / square  # t of the point nearest to the centre
            across = u + nearest[..., None] * w
            chord2 = 1.0 - across.square().sum(-1)  # the half chord in the unit ball, squared
            hit = chord2 > 0
            chord2 = torch.where(hit, chord2, 1.0)
            chord, speed = chord2.sqrt(), square.sqrt()
            start = torch.maximum(torch.minimum(-nearest * speed, chord), -chord)
            stop = torch.maximum(torch.minimum((1.0 - nearest) * speed, chord), -chord)
            stop = chord if extend else stop
            within = self._antiderivative(stop, chord2) - self._antiderivative(start, chord2)
            total = total + torch.where(hit, value * within * length / speed, 0.0)
        return total

    def _antiderivative(self, tau: Tensor, chord2: Tensor) -> Tensor:
        """Integral of (chord2 - tau^2)^k from 0 to tau."""
        k = self.exponent
        total = torch.zeros_like(tau)
        for j in range(k + 1):
            factor = math.comb(k, j) * (-1.0) ** j / (2 * j + 1)
            total = total + factor * chord2 ** (k - j) * tau ** (2 * j + 1)
        return total

    def project(
        self,
        frames: Tensor,
        grid: VolumeLike,
        size: tuple[int, int] | None = None,
        *,
        beam: str = "cone",
        pixels: Tensor | None = None,
        extend: bool = False,
    ) -> Tensor:
        """Exact image of `frames` [B, 4, 3], index coordinates (x, y, z) of `grid`.

        The arguments mean what they mean in `drrkit.project`; `grid` (spacing, origin, direction)
        takes the place of its voxels. extend=True integrates on past the detector, as
        `drrkit.render` does. Returns [B, 1, rows, cols], or [B, 1, P] with `pixels` [P, 2] or
        [B, P, 2] (row, col), float64; differentiable in frames and pixels.
        """
        if frames.ndim != 3 or frames.shape[1:] != (4, 3):
            raise ValueError(f"frames: expected [B, 4, 3], got {list(frames.shape)}")
        if (size is None) == (pixels is None):
            raise ValueError(
                "size, pixels: expected exactly one of them, got "
                f"{'neither' if size is None else 'both'}"
            )
        frames = frames.to(torch.float64)
        if pixels is None:
            assert size is not None
            pixels = _pixel_centres(size, frames.device)
        row, col = pixels.to(frames).unbind(-1)
        s, o, u, v = frames[:, None].unbind(-2)
        offset = col[..., None] * u + row[..., None] * v
        source = s + offset if _is_parallel(beam) else s.expand_as(offset)
        columns, spacing, origin = (
            torch.as_tensor(numbers, dtype=frames.dtype, device=frames.device)
            for numbers in (grid.direction, grid.spacing, grid.origin)
        )
        to_world = (columns * spacing).mT
        image = self.line_integrals(
            origin + source @ to_world, origin + (o + offset) @ to_world, extend=extend
        )[:, None]
        return image if size is None else image.reshape(-1, 1, *size)

    def render(
        self,
        camera: Camera,
        world_to_camera: Tensor,
        *,
        supersample: int = 1,
        extend: bool = True,
    ) -> Tensor:
        """Exact image [B, 1, rows, cols] of `camera` at `world_to_camera` [B, 4, 4] or [4, 4].

        supersample=n averages n x n exact rays per pixel; extend=True lets rays run on past the
        detector, both as in `drrkit.render`. Differentiable in the pose, camera.K and camera.sdd.
        """
        check_counts(supersample=supersample)
        pose = batched_pose(world_to_camera).double()
        inverse_k = torch.linalg.inv(camera.K.to(pose)).mT
        sdd = torch.as_tensor(camera.sdd, dtype=pose.dtype, device=pose.device).reshape(-1, 1, 1)
        centres = _pixel_centres(camera.size, pose.device)
        shifts = (torch.arange(supersample).to(centres) + 0.5) / supersample - 0.5
        image = pose.new_zeros(())
        for row_shift in shifts:
            for col_shift in shifts:
                row, col = (centres + torch.stack([row_shift, col_shift])).unbind(-1)
                target = sdd * (torch.stack([col, row, torch.ones_like(row)], dim=-1) @ inverse_k)
                flat = torch.tensor([1.0, 1.0, 0.0]).to(pose)
                source = target * (flat if _is_parallel(camera.beam) else 0.0)
                # X = R' (x - t); a row vector times R is R' times the column.
                ends = [(end - pose[:, None, :3, 3]) @ pose[:, :3, :3] for end in (source, target)]
                image = image + self.line_integrals(ends[0], ends[1], extend=extend)
        image = image / supersample**2
        return image.reshape(-1, 1, *camera.size)

    def voxelize(
        self,
        shape: tuple[int, int, int],
        spacing: float | tuple[float, float, float],
        *,
        origin: tuple[float, float, float] | None = None,
        direction: Tensor | None = None,
        supersample: int = 1,
        dtype: torch.dtype = torch.float64,
    ) -> Volume:
        """Volume in mu of `shape` (D, H, W) = (z, y, x) voxels.

        spacing in mm, a number or (x, y, z). By default the grid is centred at the world's origin.
        A voxel holds the mean of supersample^3 densities within it (1: the density at its centre).
        """
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"shape: expected three positive numbers (D, H, W), got {shape}")
        check_counts(supersample=supersample)
        x, y, z = spacing if isinstance(spacing, tuple) else (spacing,) * 3
        pitch = (float(x), float(y), float(z))
        columns = torch.eye(3) if direction is None else direction
        axes = columns.to(torch.float64) * torch.tensor(pitch, dtype=torch.float64)
        if origin is None:
            last = torch.tensor(shape[::-1], dtype=torch.float64) - 1
            x, y, z = (-0.5 * (axes @ last)).tolist()
            origin = (x, y, z)
        start = torch.tensor(origin, dtype=torch.float64)
        shifts = (torch.arange(supersample, dtype=torch.float64) + 0.5) / supersample - 0.5
        offsets = torch.cartesian_prod(shifts, shifts, shifts).reshape(-1, 3)
        y, x = (torch.arange(n, dtype=torch.float64) for n in shape[1:])
        thickness = max(1, 500_000 // (shape[1] * shape[2]))  # slabs keep the memory small
        values = []
        for first in range(0, shape[0], thickness):
            z = torch.arange(first, min(first + thickness, shape[0]), dtype=torch.float64)
            index = torch.stack(torch.meshgrid(z, y, x, indexing="ij")[::-1], dim=-1)
            density = torch.zeros(index.shape[:-1], dtype=torch.float64)
            for offset in offsets:
                density = density + self.sample(start + (index + offset) @ axes.mT)
            values.append((density / len(offsets)).to(dtype))
        return Volume(torch.cat(values), pitch, origin, columns, unit="mu")


def _points(points: Tensor, name: str) -> Tensor:
    if points.ndim < 1 or points.shape[-1] != 3:
        raise ValueError(f"{name}: expected [..., 3], got {list(points.shape)}")
    return points.to(torch.float64)


def _is_parallel(beam: str) -> bool:
    if beam not in ("cone", "parallel"):
        raise ValueError(f"beam: expected 'cone' or 'parallel', got {beam!r}")
    return beam == "parallel"


def _pixel_centres(size: tuple[int, int], device: torch.device) -> Tensor:
    """(row, col) of every pixel, [rows * cols, 2]."""
    row, col = torch.arange(size[0]), torch.arange(size[1])
    return torch.cartesian_prod(row, col).to(device=device, dtype=torch.float64)


# A. C. Kak and M. Slaney, Principles of Computerized Tomographic Imaging (IEEE Press, 1988),
# p. 102: semi-axes a, b, c, centre x, y, z, rotation about z in degrees, density relative to water.
# The last column is the contrast of H. Yu, Y. Ye and G. Wang, Proc. SPIE 5535 (2004) 550-557.
_SHEPP_LOGAN = (
    (0.6900, 0.920, 0.900, 0.00, 0.000, 0.000, 0.0, 2.00, 1.0),
    (0.6624, 0.874, 0.880, 0.00, 0.000, 0.000, 0.0, -0.98, -0.8),
    (0.4100, 0.160, 0.210, -0.22, 0.000, -0.250, 108.0, -0.02, -0.2),
    (0.3100, 0.110, 0.220, 0.22, 0.000, -0.250, 72.0, -0.02, -0.2),
    (0.2100, 0.250, 0.500, 0.00, 0.350, -0.250, 0.0, 0.02, 0.2),
    (0.0460, 0.046, 0.046, 0.00, 0.100, -0.250, 0.0, 0.02, 0.2),
    (0.0460, 0.023, 0.020, -0.08, -0.650, -0.250, 0.0, 0.01, 0.1),
    (0.0460, 0.023, 0.020, 0.06, -0.650, -0.250, 90.0, 0.01, 0.1),
    (0.0560, 0.040, 0.100, 0.06, -0.105, 0.625, 90.0, 0.02, 0.2),
    (0.0560, 0.056, 0.100, 0.00, 0.100, 0.625, 0.0, -0.02, -0.2),
)


def shepp_logan_3d(
    size_mm: float = 200.0, soft: bool = False, *, high_contrast: bool = False, mu: float = WATER_MU
) -> Ellipsoids:
    """The 3D Shepp-Logan head phantom of Kak and Slaney (1988), p. 102.

    The table's cube [-1, 1]^3 becomes `size_mm` wide about the world's origin, its axes the world's
    x, y and z. Densities are multiplied by `mu` (1/mm; default water at 70 keV). soft=True keeps
    the ellipsoids and softens their edges (exponent 2). high_contrast=True takes the densities of
    Yu, Ye and Wang (2004), where the inner ellipsoids can be seen.
    """
    check_numbers(size_mm=size_mm)
    table = torch.tensor(_SHEPP_LOGAN, dtype=torch.float64)
    angle = torch.deg2rad(table[:, 6])
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    rows = [angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero, zero, zero, one]
    return Ellipsoids(
        centers=table[:, 3:6] * (size_mm / 2),
        semi_axes=table[:, :3] * (size_mm / 2),
        rotations=torch.stack(rows, dim=-1).reshape(-1, 3, 3),
        values=table[:, 8 if high_contrast else 7] * mu,
        exponent=2 if soft else 0,
    )


def random_soft_ellipsoids(
    seed: int = 0, count: int = 8, *, radius: float = 100.0, exponent: int = 2, mu: float = 0.04
) -> Ellipsoids:
    """`count` random ellipsoids within `radius` mm of the world's origin; the same for a seed.

    Semi-axes are 0.15 to 0.5 radius, peak densities 0.25 to 1 times `mu` (1/mm).
    """
    check_counts(count=count)
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        draw = torch.rand(shape, generator=generator, dtype=torch.float64)
        return low + (high - low) * draw

    axes = uniform(0.15, 0.5, count, 3)
    room = 1.0 - axes.amax(-1, keepdim=True)  # the whole ellipsoid stays in the ball
    toward = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    toward = toward / toward.norm(dim=-1, keepdim=True)
    quaternion = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return Ellipsoids(
        centers=radius * room * uniform(0.1, 1.0, count, 1) * toward,
        semi_axes=radius * axes,
        rotations=quaternion_rotation(quaternion),
        values=mu * uniform(0.25, 1.0, count),
        exponent=exponent,
    )
