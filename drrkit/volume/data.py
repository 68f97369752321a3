"""The Volume: voxel values with their place in the patient, their unit and their labels."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from drrkit._native import VOXELS
from drrkit.volume import resampling
from drrkit.volume.attenuation import CT_ENERGY_KEV, water_attenuation

Unit = Literal["HU", "mu"]

AIR: dict[str, float] = {"HU": -1000.0, "mu": 0.0}
"""The value of nothing in each unit; select(), by_label() and resample(like=...) fill with it."""

BODY_THRESHOLD: dict[str, float] = {"HU": -500.0, "mu": 0.0}
"""crop_body() keeps what lies above this value in each unit."""

LABEL_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True, eq=False, repr=False)
class Volume:
    """A voxel grid in patient coordinates (LPS, mm), as ITK describes one. Checked on creation.

    Voxel (x, y, z) stands at ``values[..., z, y, x]``; its centre is at
    ``origin + direction @ (spacing * (x, y, z))``.

    Attributes:
        values: [D, H, W] or [C, D, H, W] = [..., z, y, x], floating, finite; may need a gradient.
        spacing: voxel size (x, y, z) in mm.
        origin: world position (x, y, z) in mm of the centre of voxel (0, 0, 0).
        direction: [3, 3], columns are the world directions of the index axes x, y, z. Orthonormal
            to 1e-3; oblique and left-handed are fine. Kept as float64 on the CPU.
        unit: "HU" or "mu" (1/mm).
        labels: integer tensor [D, H, W] on the device of ``values``, or None.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: a wrong shape, an empty tensor, values that are not finite, a spacing that is
            not positive and finite, a direction that is singular or not orthonormal, an unknown
            unit, labels of another shape or device.
    """

    values: Tensor
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: Tensor = field(
        default_factory=lambda: torch.eye(3, dtype=torch.float64, device="cpu")
    )
    unit: Unit = "HU"
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        _check_values(self.values)
        spacing = _three_floats("spacing", self.spacing)
        if min(spacing) <= 0:
            raise ValueError(f"spacing: expected three positive numbers in mm, got {spacing}")
        if not isinstance(self.unit, str) or self.unit not in AIR:
            raise ValueError(f'unit: expected "HU" or "mu", got {self.unit!r}')
        if self.labels is not None:
            _check_labels(self.labels, self.values)
        object.__setattr__(self, "spacing", spacing)
        object.__setattr__(self, "origin", _three_floats("origin", self.origin))
        object.__setattr__(self, "direction", _checked_direction(self.direction))

    def __repr__(self) -> str:
        shape = "x".join(str(n) for n in self.values.shape)
        spacing = ", ".join(f"{s:.4g}" for s in self.spacing)
        labels = "" if self.labels is None else ", labelled"
        kind = f"{self.values.dtype}".removeprefix("torch.")
        return f"Volume({shape} {kind}, {self.unit}, {spacing} mm{labels}, {self.values.device})"

    @property
    def shape_xyz(self) -> tuple[int, int, int]:
        """Number of voxels along the index axes, (x, y, z) = (W, H, D)."""
        depth, height, width = self.values.shape[-3:]
        return width, height, depth

    @cached_property
    def affine(self) -> Tensor:
        """[4, 4] float64, index (x, y, z, 1) to world mm (LPS), on the device of ``values``."""
        # Leaving inference mode: an inference tensor kept here would later break autograd.
        with torch.inference_mode(False):
            return _affine(self.spacing, self.origin, self.direction).to(self.values.device)

    def to(
        self,
        device: torch.device | str | int | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
    ) -> Volume:
        """The same volume on another device or with values of another floating dtype.

        ``volume.to("cuda")``, ``volume.to(torch.float64)`` and both together work as for tensors.
        """
        if isinstance(device, torch.dtype):
            if dtype is not None:
                raise TypeError("dtype: given twice, as the first argument and by name")
            device, dtype = None, device
        if dtype is not None and dtype not in VOXELS:
            raise TypeError(f"dtype: expected a floating dtype, got {dtype}")
        values = self.values.to(device=device, dtype=dtype)
        labels = None if self.labels is None else self.labels.to(device=device)
        return replace(self, values=values, labels=labels)

    def to_mu(self, energy_kev: float = CT_ENERGY_KEV, clamp: bool = True) -> Volume:
        """Linear attenuation mu = mu_water(E) (1 + HU / 1000) in 1/mm, the definition of HU.

        Args:
            energy_kev: effective energy, 40 to 120 keV; see ``water_attenuation``.
            clamp: raise negative mu (HU below -1000: noise, padding outside the scanner) to 0.

        Returns:
            a Volume with unit "mu" and the dtype of this one; gradients flow through.

        Raises:
            ValueError: the volume is already in mu, or the energy is outside the table.
        """
        if self.unit != "HU":
            raise ValueError('to_mu: expected a volume in "HU", this one is already in "mu"')
        dtype = self.values.dtype
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        # In this order -1000 HU gives exactly 0.
        mu = (1 + self.values.to(compute) / 1000) * water_attenuation(energy_kev)
        if clamp:
            mu = mu.clamp(min=0)
        return replace(self, values=mu.to(dtype), unit="mu")

    def select(self, labels: int | Iterable[int]) -> Volume:
        """The voxels carrying one of the labels; all others become air (-1000 HU, mu 0).

        Args:
            labels: a label or several. The label map itself is kept unchanged.

        Raises:
            ValueError: the volume has no label map, or a label does not occur in it.
        """
        outside = torch.full((), AIR[self.unit], dtype=self.values.dtype, device=self.values.device)
        return replace(self, values=torch.where(self._mask(labels), self.values, outside))

    def by_label(self, labels: Sequence[int | Sequence[int]]) -> Volume:
        """One channel a label (or group of labels), air elsewhere; [L, D, H, W].

        In mu the line integrals of the channels add up to those of ``select`` of all of them.

        Args:
            labels: labels or groups of labels, in the order of the channels.

        Raises:
            ValueError: as ``select``, or the volume has several channels already.
        """
        if self.values.ndim == 4 and self.values.shape[0] != 1:
            raise ValueError(
                f"by_label: expected values of one channel, got shape {tuple(self.values.shape)}"
            )
        if len(labels) == 0:
            raise ValueError("labels: expected at least one label, got none")
        values = self.values.reshape(self.values.shape[-3:])
        outside = torch.full((), AIR[self.unit], dtype=values.dtype, device=values.device)
        channels = [torch.where(self._mask(group), values, outside) for group in labels]
        return replace(self, values=torch.stack(channels))

    def _mask(self, labels: int | Iterable[int]) -> Tensor:
        """Boolean [D, H, W]: where the label map has one of ``labels``."""
        if self.labels is None:
            raise ValueError("labels: this volume has no label map to select from")
        wanted = [labels] if isinstance(labels, (int, numbers.Integral)) else list(labels)
        if not wanted:
            raise ValueError("labels: expected at least one label, got none")
        mask = torch.zeros_like(self.labels, dtype=torch.bool)
        for label in wanted:
            if not isinstance(label, numbers.Integral) or isinstance(label, bool):
                raise TypeError(f"labels: expected integers, got {label!r}")
            here = self.labels == int(label)
            if not bool(here.any()):
                present = torch.unique(self.labels).tolist()
                shown = ", ".join(str(p) for p in present[:20]) + (", ..." * (len(present) > 20))
                raise ValueError(f"labels: {label} is not in the label map, which has {shown}")
            mask |= here
        return mask

    def index_to_world(self, points: Tensor) -> Tensor:
        """World coordinates (LPS, mm) of index points.

        Args:
            points: [..., 3], (x, y, z) in voxels, voxel centres at integers.

        Returns:
            [..., 3] in the dtype of ``points`` (float64 for integers), computed in float64.
        """
        return _transform(self.affine, points)

    def world_to_index(self, points: Tensor) -> Tensor:
        """Index coordinates (x, y, z) in voxels of world points [..., 3] (LPS, mm).

        The inverse of ``index_to_world``, with the same dtypes.
        """
        return _transform(torch.linalg.inv(self.affine), points)

    def _world_of(self, index: Sequence[float]) -> tuple[float, float, float]:
        """World mm of one index point, as numbers."""
        x, y, z = self.index_to_world(
            torch.tensor(index, dtype=torch.float64, device="cpu")
        ).tolist()
        return x, y, z

    def resample(
        self, spacing: float | Sequence[float] | None = None, *, like: Volume | None = None
    ) -> Volume:
        """The volume on another grid; exactly one of the two arguments.

        A new voxel at least as large as an old one takes the average over its box
        (anti-aliasing); a smaller one is interpolated linearly. Labels take the nearest voxel.

        Args:
            spacing: new voxel size in mm, a number or (x, y, z). The centre of the volume and its
                axes stay where they are, its extent is kept to half a new voxel.
            like: take the grid of this volume, whatever its axes; air (-1000 HU, mu 0) outside.

        Returns:
            a Volume of the same dtype and unit; gradients with respect to the values flow through.

        Raises:
            ValueError: neither or both arguments, or a spacing that is not positive.
        """
        if (spacing is None) == (like is None):
            raise ValueError("resample: expected exactly one of spacing and like")
        if like is not None:
            if not isinstance(like, Volume):
                raise TypeError(f"like: expected a Volume, got {type(like).__name__}")
            shape, new, origin, direction = (
                like.shape_xyz,
                like.spacing,
                like.origin,
                like.direction,
            )
        else:
            new = _three_floats("spacing", (spacing,) * 3 if _is_number(spacing) else spacing)
            if min(new) <= 0:
                raise ValueError(f"spacing: expected positive numbers in mm, got {new}")
            shape, first = resampling.centred_grid(self.shape_xyz, self.spacing, new)
            origin, direction = self._world_of(first), self.direction
        to_old = torch.linalg.solve(self.affine.cpu(), _affine(new, origin, direction))
        values = resampling.resample_values(self.values, to_old, shape, AIR[self.unit])
        labels = None
        if self.labels is not None:
            labels = resampling.resample_labels(self.labels, to_old, shape)
        return Volume(values, new, origin, direction, self.unit, labels)

    def crop(self, start: Sequence[int], stop: Sequence[int]) -> Volume:
        """The voxels ``start <= (x, y, z) < stop``; the origin moves along, the world stays.

        Args:
            start: first voxel kept along (x, y, z), 0 or more.
            stop: first voxel dropped along (x, y, z), at most ``shape_xyz``.

        Raises:
            ValueError: an empty box, or one that leaves the volume.
        """
        x0, y0, z0 = first = _three_integers("start", start)
        x1, y1, z1 = last = _three_integers("stop", stop)
        if not all(0 <= a < b <= n for a, b, n in zip(first, last, self.shape_xyz, strict=True)):
            raise ValueError(
                f"start, stop: expected 0 <= start < stop <= {self.shape_xyz} (x, y, z), "
                f"got {first} and {last}"
            )
        values = self.values[..., z0:z1, y0:y1, x0:x1].contiguous()
        labels = self.labels
        if labels is not None:
            labels = labels[z0:z1, y0:y1, x0:x1].contiguous()
        return replace(self, values=values, labels=labels, origin=self._world_of(first))

    def crop_world(self, lower: Sequence[float], upper: Sequence[float]) -> Volume:
        """The smallest index box whose voxels cover a world box, as far as the volume reaches.

        Args:
            lower, upper: opposite corners (x, y, z) of the box in world mm, lower <= upper.

        Raises:
            ValueError: lower above upper, or the box does not touch the volume.
        """
        low, high = _three_floats("lower", lower), _three_floats("upper", upper)
        if any(a > b for a, b in zip(low, high, strict=True)):
            raise ValueError(f"lower, upper: expected lower <= upper, got {low} and {high}")
        corners = torch.cartesian_prod(
            *(
                torch.tensor(pair, dtype=torch.float64, device="cpu")
                for pair in zip(low, high, strict=True)
            )
        )
        index = self.world_to_index(corners.to(self.affine.device)).cpu()
        # 1e-6 voxel: a box face on a voxel face, up to rounding, does not take the next voxel.
        start = (index.amin(0) + 0.5 + 1e-6).floor().long().tolist()
        stop = (index.amax(0) + 0.5 - 1e-6).ceil().long().tolist()
        first = tuple(max(a, 0) for a in start)
        last = tuple(
            min(max(b, a + 1), n) for a, b, n in zip(start, stop, self.shape_xyz, strict=True)
        )
        if any(a >= b for a, b in zip(first, last, strict=True)):
            raise ValueError(
                f"lower, upper: the box {low} to {high} mm does not touch the volume; it spans "
                f"voxels {tuple(start)} to {tuple(stop)} of {self.shape_xyz} (x, y, z)"
            )
        return self.crop(first, last)

    def crop_body(self, threshold: float | None = None, *, margin: float = 0.0) -> Volume:
        """The smallest index box holding every voxel above a threshold.

        Args:
            threshold: in the unit of the volume; default -500 HU (the body with the table), or 0
                in mu (whatever attenuates).
            margin: mm kept around the box where the volume has them.

        Raises:
            ValueError: no voxel lies above the threshold, or a negative margin.
        """
        if threshold is None:
            threshold = BODY_THRESHOLD[self.unit]
        if not (_is_number(margin) and 0 <= margin < math.inf):
            raise ValueError(f"margin: expected a distance in mm, 0 or more, got {margin!r}")
        above = self.values > threshold
        if above.ndim == 4:
            above = above.any(0)
        first, last = [], []
        for axis, (count, step) in enumerate(zip(self.shape_xyz, self.spacing, strict=True)):
            across = [a for a in range(3) if a != 2 - axis]
            occupied = above.any(across[1]).any(across[0]).nonzero()
            if occupied.numel() == 0:
                highest = float(self.values.max())
                raise ValueError(
                    f"threshold: no voxel lies above {threshold:g} {self.unit}; "
                    f"the highest value is {highest:g}"
                )
            extra = math.ceil(margin / step)
            first.append(max(int(occupied[0]) - extra, 0))
            last.append(min(int(occupied[-1]) + 1 + extra, count))
        return self.crop(first, last)


def _affine(spacing: Sequence[float], origin: Sequence[float], direction: Tensor) -> Tensor:
    """[4, 4] float64 CPU, index to world."""
    affine = torch.eye(4, dtype=torch.float64, device="cpu")
    affine[:3, :3] = direction * torch.tensor(spacing, dtype=torch.float64, device="cpu")
    affine[:3, 3] = torch.tensor(origin, dtype=torch.float64, device="cpu")
    return affine


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _three_floats(name: str, value: Any) -> tuple[float, float, float]:
    """Three finite floats from any sequence, array or tensor of three."""
    try:
        found = [float(v) for v in value]
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected three numbers (x, y, z) in mm, got {value!r}") from None
    if len(found) != 3:
        raise ValueError(f"{name}: expected three numbers (x, y, z), got {len(found)}")
    if not all(math.isfinite(v) for v in found):
        raise ValueError(f"{name}: expected finite numbers in mm, got {tuple(found)}")
    return found[0], found[1], found[2]


def _three_integers(name: str, value: Any) -> tuple[int, int, int]:
    try:
        x, y, z = (int(v) for v in value)
        exact = all(int(v) == float(v) for v in value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected three integers (x, y, z), got {value!r}") from None
    if not exact:
        raise TypeError(f"{name}: expected three integers (x, y, z), got {value!r}")
    return x, y, z


def _check_values(values: Any) -> None:
    if not isinstance(values, Tensor):
        raise TypeError(
            f"values: expected a torch tensor, got {type(values).__name__}; "
            "torch.as_tensor() makes one from an array"
        )
    if values.dtype not in VOXELS:
        raise TypeError(
            f"values: expected a floating dtype (float16, bfloat16, float32 or float64), "
            f"got {values.dtype}; values.float() converts"
        )
    if values.ndim not in (3, 4):
        raise ValueError(
            f"values: expected shape [D, H, W] or [C, D, H, W], got {tuple(values.shape)}"
        )
    if values.numel() == 0:
        raise ValueError(f"values: expected at least one voxel, got shape {tuple(values.shape)}")
    # The sum of the extremes is NaN or infinite when any value is; one pass, nothing allocated.
    low, high = torch.aminmax(values.detach())
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        bad = ~torch.isfinite(values.detach())
        count, first = int(bad.sum()), tuple(bad.nonzero()[0].tolist())
        found = float(values.detach()[first])
        raise ValueError(
            f"values: expected finite numbers, got {count} that are not, "
            f"the first at index {first} ([..., z, y, x]): {found}"
        )


def _check_labels(labels: Any, values: Tensor) -> None:
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels: expected an integer tensor, got {type(labels).__name__}")
    if labels.dtype not in LABEL_DTYPES:
        raise TypeError(f"labels: expected an integer dtype, got {labels.dtype}")
    if labels.shape != values.shape[-3:]:
        raise ValueError(
            f"labels: expected the shape of the voxel grid {tuple(values.shape[-3:])}, "
            f"got {tuple(labels.shape)}"
        )
    if labels.device != values.device:
        raise ValueError(
            f"labels: expected the device of values, {values.device}, got {labels.device}"
        )


def _checked_direction(direction: Any) -> Tensor:
    """A float64 CPU copy of a [3, 3] direction, checked to be orthonormal to 1e-3."""
    with torch.inference_mode(False):
        try:
            matrix = torch.as_tensor(direction).detach().to("cpu", torch.float64, copy=True)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"direction: expected a 3x3 matrix, got {direction!r}") from None
    if matrix.shape != (3, 3):
        raise ValueError(f"direction: expected shape (3, 3), got {tuple(matrix.shape)}")
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError(f"direction: expected finite numbers, got {matrix.tolist()}")
    if abs(float(torch.linalg.det(matrix))) < 1e-6:
        raise ValueError(f"direction: the matrix is singular: {matrix.tolist()}")
    error = float((matrix.T @ matrix - torch.eye(3, dtype=torch.float64, device="cpu")).abs().max())
    if error > 1e-3:
        raise ValueError(
            f"direction: expected orthonormal columns (to 1e-3), got {matrix.tolist()}, off by "
            f"{error:.2g}; a sheared grid (gantry tilt) must be resampled first"
        )
    return matrix


def _transform(matrix: Tensor, points: Tensor) -> Tensor:
    """Applies an affine [4, 4] to points [..., 3] in float64, back in the points' dtype."""
    if not isinstance(points, Tensor):
        raise TypeError(f"points: expected a tensor [..., 3], got {type(points).__name__}")
    if points.ndim == 0 or points.shape[-1] != 3:
        raise ValueError(f"points: expected shape [..., 3], got {tuple(points.shape)}")
    matrix = matrix.to(points.device)
    moved = points.to(torch.float64) @ matrix[:3, :3].T + matrix[:3, 3]
    return moved.to(points.dtype) if points.is_floating_point() else moved
