"""Intrinsics of X-ray views, and where world points fall on the detector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from drrkit._native import BEAMS
from drrkit.geometry.checks import (
    as_distance,
    batched_pose,
    check_distances,
    check_floating,
    check_intrinsics,
    checked_integer,
    checked_positive,
    checked_size,
    pair,
)


@dataclass(frozen=True)
class CameraSigma:
    """Standard deviations of a camera's intrinsics: how well they are known.

    focal           of the focal length over pixel pitch (what one view feels of sdd), relative
    col_px, row_px  of the principal point, pixels
    """

    focal: float
    col_px: float
    row_px: float

    def __post_init__(self) -> None:
        for name in ("focal", "col_px", "row_px"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and 0 <= value < math.inf):
                raise ValueError(f"{name}: expected a standard deviation >= 0, got {value!r}")

    def rescale(self, factor: float) -> CameraSigma:
        """The same where pixels are `factor` times larger."""
        return CameraSigma(self.focal, self.col_px / factor, self.row_px / factor)


ORIGINS = {
    "calibration": CameraSigma(0.0005, 0.5, 0.5),
    "header": CameraSigma(0.003, 2.0, 2.0),
    "user": CameraSigma(0.02, 5.0, 5.0),
    "assumed": CameraSigma(0.05, 5.0, 5.0),
}
"""Where a camera's numbers may come from, and how well they are known then: a calibration file, a
DICOM header, the user, a guess. Distances that a user types are as good as a C-arm's scale: 2 %."""


@dataclass(frozen=True, eq=False)
class Camera:
    """Intrinsics of an X-ray view, checked on creation; immutable, its tensors included.

    K     [3, 3] or [B, 3, 3], floating point, in pixels: [[fx, skew, cx], [0, fy, cy], [0, 0, 1]]
          with fx, fy > 0 and (col, row, 1) = K X_cam / z; pixel centres at integers
    size  (rows, cols)
    sdd   source-to-detector distance in mm, a number or a tensor [] or [B]: the rays end on the
          plane z = sdd
    beam  "cone", or "parallel": rays along +z from z = 0 to z = sdd, pixel pitch sdd / f
    origin  where the numbers come from, a key of ORIGINS: "calibration", "header", "user" or
          "assumed"
    sigma  their standard deviations; None: those usual for the origin

    K and sdd may require gradients. Raises TypeError or ValueError when something does not fit;
    values that cannot be read (inside torch.vmap, on the meta device) are not checked.
    """

    K: Tensor
    size: tuple[int, int]
    sdd: float | Tensor
    beam: str = "cone"
    origin: str = field(default="user", kw_only=True)
    sigma: CameraSigma = field(default=None, kw_only=True)  # ty: ignore[invalid-assignment]
    _rays: Tensor | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        check_intrinsics(self.K)
        object.__setattr__(self, "size", checked_size(self.size))
        if isinstance(self.sdd, Tensor):
            check_distances("sdd", self.sdd)
        else:
            object.__setattr__(self, "sdd", checked_positive("sdd", self.sdd))
        if self.beam not in BEAMS:
            raise ValueError(f"beam: expected one of {BEAMS}, got {self.beam!r}")
        if self.origin not in ORIGINS:
            raise ValueError(f"origin: expected one of {tuple(ORIGINS)}, got {self.origin!r}")
        if self.sigma is None:
            object.__setattr__(self, "sigma", ORIGINS[self.origin])
        elif not isinstance(self.sigma, CameraSigma):
            raise TypeError(f"sigma: expected a CameraSigma, got {type(self.sigma).__name__}")
        if len(set(self._batches()) - {1}) > 1:
            raise ValueError(
                f"K and sdd: expected one batch size, got K {list(self.K.shape)} and "
                f"sdd {list(torch.as_tensor(self.sdd).shape)}"
            )
        if not self.requires_grad:
            object.__setattr__(self, "_rays", self._frame_in_camera())

    @property
    def batch(self) -> int | None:
        """The number of cameras in K or sdd, None for a single one without a batch dimension."""
        return max(self._batches(), default=None)

    def _batches(self) -> list[int]:
        sdd = self.sdd
        return [*self.K.shape[:-2], *(sdd.shape if isinstance(sdd, Tensor) else ())]

    @property
    def requires_grad(self) -> bool:
        """Whether K or sdd requires a gradient."""
        return self.K.requires_grad or (isinstance(self.sdd, Tensor) and self.sdd.requires_grad)

    def pixel_rays(self) -> Tensor:
        """The frame in camera coordinates: [4, 3] or [B, 4, 3] float64 mm, rows as view_frames."""
        if self._rays is None or self.requires_grad:
            return self._frame_in_camera()
        return self._rays

    @property
    def pixel_spacing(self) -> tuple[float | Tensor, float | Tensor]:
        """(row, col) pitch at the detector, mm: sdd / fy, sdd / fx; tensors [B] for a batch."""
        row, col = self.sdd / self.K[..., 1, 1].double(), self.sdd / self.K[..., 0, 0].double()
        return (row, col) if row.dim() else (float(row.detach()), float(col.detach()))

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Camera:
        """The same camera with K and a tensor sdd on another device or in another dtype."""
        sdd = self.sdd.to(device=device, dtype=dtype) if isinstance(self.sdd, Tensor) else self.sdd
        return replace(self, K=self.K.to(device=device, dtype=dtype), sdd=sdd)

    def rescale(self, factor: float) -> Camera:
        """The camera whose pixels are `factor` times larger (below 1: smaller), same detector.

        Area-consistent: coarse pixel (0, 0) covers the first factor x factor fine pixels and its
        centre is the mean of theirs, as in an average-pooled image. A rest of the detector that is
        smaller than a coarse pixel is dropped. Raises TypeError or ValueError when
        factor is not a positive number or no pixel remains.
        """
        factor = checked_positive("factor", factor)
        # The small term keeps 200 / (1 / 3) and similar quotients whole.
        rows, cols = (math.floor(n / factor + 1e-6) for n in self.size)
        if rows < 1 or cols < 1:
            limit = min(self.size)
            raise ValueError(f"factor: expected <= {limit} for size {self.size}, got {factor}")
        scale = 1.0 / factor
        coarse_from_fine = self.K.new_tensor(
            ((scale, 0.0, (scale - 1.0) / 2), (0.0, scale, (scale - 1.0) / 2), (0.0, 0.0, 1.0))
        )
        sigma = self.sigma.rescale(factor)
        return replace(self, K=coarse_from_fine @ self.K, size=(rows, cols), sigma=sigma)

    def crop(self, row0: int, col0: int, rows: int, cols: int) -> Camera:
        """The camera of the window whose pixel (0, 0) is (row0, col0) here, rows x cols large.

        The window may reach beyond the detector and so widen it; row0 and col0 may be negative.
        Raises TypeError or ValueError when the four are not integers, the last two positive.
        """
        row, col = checked_integer("row0", row0), checked_integer("col0", col0)
        window_from_full = self.K.new_tensor(((1.0, 0.0, -col), (0.0, 1.0, -row), (0.0, 0.0, 1.0)))
        return replace(self, K=window_from_full @ self.K, size=(rows, cols))

    def _frame_in_camera(self) -> Tensor:
        # Columns: pixel (0, 0) for the source and for its own centre, the two steps.
        pixels = torch.zeros(3, 4, dtype=torch.float64, device=self.K.device)
        pixels[2, :2] = pixels[0, 2] = pixels[1, 3] = 1.0
        sdd = self.sdd
        if isinstance(sdd, Tensor):
            sdd = sdd.to(pixels).reshape(*sdd.shape, 1, 1)
        points = torch.linalg.solve_triangular(self.K.double(), pixels * sdd, upper=True).mT
        # The source is the origin; for a parallel beam it is pixel (0, 0) moved back to z = 0.
        keep = torch.ones(4, 3, dtype=torch.float64, device=self.K.device)
        keep[0, 2 if self.beam == "parallel" else slice(None)] = 0.0
        return points * keep


def CArm(
    sdd: float | Tensor,
    size: tuple[int, int],
    pixel_spacing: float | Tensor | Sequence[float | Tensor],
    principal_point: Sequence[float | Tensor] | Tensor | None = None,
    *,
    beam: str = "cone",
    origin: str = "user",
    sigma: CameraSigma | None = None,
) -> Camera:
    """A C-arm's camera: float64 K = [[sdd / col, 0, cx], [0, sdd / row, cy], [0, 0, 1]].

    sdd              source-to-detector distance in mm
    size             (rows, cols)
    pixel_spacing    pitch at the detector in mm, a number or (row, col)
    principal_point  (col, row) in pixels, the foot of the source on the detector;
                     default ((cols - 1) / 2, (rows - 1) / 2)
    beam             "cone" or "parallel"
    origin, sigma    how well the numbers are known, as for Camera

    The numbers may be tensors [] or [B]; K is differentiable in them. Raises TypeError or
    ValueError as Camera does.
    """
    rows, cols = checked_size(size)
    if principal_point is None:
        principal_point = ((cols - 1) / 2, (rows - 1) / 2)
    row, col = pair("pixel_spacing", pixel_spacing)
    place = pair("principal_point", principal_point)
    tensors = (value for value in (sdd, row, col, *place) if isinstance(value, Tensor))
    device = next((tensor.device for tensor in tensors), None)
    lengths = (("sdd", sdd), ("row spacing", row), ("col spacing", col))
    distance, row, col, cx, cy = torch.broadcast_tensors(
        *(as_distance(name, value, device) for name, value in lengths),
        *(torch.as_tensor(value, dtype=torch.float64, device=device) for value in place),
    )
    zero, one = torch.zeros_like(cx), torch.ones_like(cx)
    entries = (distance / col, zero, cx, zero, distance / row, cy, zero, zero, one)
    K = torch.stack(entries, -1).unflatten(-1, (3, 3))
    known = {"origin": origin, "sigma": sigma}
    return Camera(K, (rows, cols), sdd, beam, **known)  # ty: ignore[invalid-argument-type]


def project_points(camera: Camera, world_to_camera: Tensor, points: Tensor) -> Tensor:
    """Where world points fall on the detector, or beyond its edges: [B, P, 2] = (row, col).

    world_to_camera  [4, 4] or [B, 4, 4]
    points           [P, 3] or [B, P, 3], world mm

    Cone: K X_cam / z; parallel: K (x / sdd, y / sdd, 1). A point at or behind a cone's source has
    no image: NaN, with gradient zero. The result has the wider dtype of world_to_camera and points
    and is differentiable in both, in K and in sdd. Raises TypeError or ValueError for wrong shapes
    and dtypes.
    """
    pose = batched_pose(world_to_camera, camera.batch)
    check_floating("points", points, (3,))
    if points.dim() not in (2, 3):
        raise ValueError(f"points: expected [P, 3] or [B, P, 3], got {list(points.shape)}")
    dtype = torch.promote_types(pose.dtype, points.dtype)
    # float64 inside: autocast would round the matrix products of anything less.
    pose, points = pose.double(), points.to(pose.device, torch.float64)
    x, y, z = (points @ pose[:, :3, :3].mT + pose[:, None, :3, 3]).unbind(-1)
    visible = z > 0
    depth: float | Tensor = torch.where(visible, z, 1.0)
    if camera.beam == "parallel":
        visible = torch.ones_like(visible)
        depth = camera.sdd
        if isinstance(depth, Tensor):
            depth = depth.to(pose).reshape(-1, 1)
    x, y = x / depth, y / depth
    ray = torch.stack((x, y, torch.ones_like(x)), -1)
    pixel = ray @ camera.K.to(pose).mT
    return torch.where(visible.unsqueeze(-1), pixel[..., (1, 0)], math.nan).to(dtype)
