"""The projector: line integrals of voxel volumes along rays, and every derivative of them.

`project` and `backproject` are matched adjoints and know frames only; `render` adds cameras and
poses; `Projector` holds what a loop needs once; `project_with_jacobian` serves Gauss-Newton.
Index coordinates are in the order (x, y, z); the mathematics stands in csrc/joseph.h, siddon.h and
trilinear.h.

Which product exists for what (cone and parallel beam alike; frames, pixels and explicit rays alike;
"values" means float16, bfloat16, float32 and float64, computed in float64 for the last and in
float32 else; geometry is always float64):

    product                               joseph  siddon  trilinear  trilinear "line"  CPU  CUDA
                                                           exact     or "foot"
    P   image                             yes     yes     yes        yes               yes  yes
    P*  adjoint, volume gradient          yes     yes     yes        yes               yes  yes (1)
    J   frame cotangent                   yes     yes     yes        yes (2)           yes  yes
    T   image tangent (forward mode)      yes     yes     yes        yes (2)           yes  yes
    T*  adjoint of T in the volume        yes     yes     yes        yes (2)           yes  yes (1)
    K   twice in the geometry             yes     yes     yes        raises            yes  yes
    derivatives of K, forward over forward: raise

(1) Atomic sums; under torch.use_deterministic_algorithms(True) fixed-point sums at twice the
    marches and 8 bytes a voxel. On the CPU all bits repeat over runs and numbers of threads.
(2) "line" is consistent in J, T and T*, but is not the derivative of the image it comes with.

J, T and T* of an image that was rendered with a gradient reuse the six numbers a ray that its march
kept: 24 bytes a ray and channel in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from drrkit import _ops
from drrkit._ops import BEAMS, METHODS, Spec
from drrkit._products import Backproject, Project, call
from drrkit.geometry import Camera, GridConstants, grid_constants, view_frames
from drrkit.volume import Volume

VOXEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def project(
    values: Tensor,
    frames: Tensor,
    size: Sequence[int],
    *,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    method: str = "joseph",
    beam: str = "cone",
    step: float | None = None,
    pixels: Tensor | None = None,
    derivative: str | None = None,
    anchor: str | None = None,
) -> Tensor:
    """Line integrals of `values` along the rays of `frames`: [B, C, rows, cols].

    values      [D, H, W], [C, D, H, W] or [N, C, D, H, W]; float16, bfloat16, float32 or float64.
                N divides B, and view b reads volume b // (B / N).
    frames      [B, 4, 3], index coordinates (x, y, z): source s, centre o of pixel (0, 0), step u
                to the next column, step v to the next row; float32 or float64 (the rays are set up
                in float64 either way). Pixel (row i, column j) ends its ray at o + j u + i v.
    size        (rows, cols)
    spacing     voxel spacing (x, y, z) in mm: with values in 1/mm the result has no unit
    method      "joseph" (for poses), "siddon" (exact for piecewise constant voxels) or "trilinear"
    beam        "cone", or "parallel": the source moves with the pixel, to s + j u + i v
    step        trilinear only: distance of samples in mm, default half the smallest spacing
    pixels      [P, 2] or [B, P, 2] (row, col), fractions allowed: only these rays, -> [B, C, P]
    derivative  trilinear only: "exact" (default), or "line", which leaves out the sliding of the
                samples along the ray: better for poses, but not what finite differences give
    anchor      trilinear only: samples counted from the "source" (default) or from the "foot" of
                the perpendicular from the grid's centre

    Only the part of a ray between source and pixel counts; outside the grid the volume is zero.
    Differentiable in values, frames and pixels. float64 values give float64, all others float32.

    Raises TypeError or ValueError naming the argument. NaN in values or frames propagates.
    """
    volume = _as_volumes(values)
    frames = _checked_frames(frames, volume)
    if frames.shape[0] % max(volume.shape[0], 1):
        raise ValueError(
            f"values: the number of volumes must divide the number of views, got "
            f"{volume.shape[0]} volumes for {frames.shape[0]} views"
        )
    spec = _spec(tuple(volume.shape[2:]), size, spacing, method, beam, step, derivative, anchor)
    geometry = frames if pixels is None else _endpoints(frames, pixels, beam)
    keep_rays = (geometry.requires_grad and torch.is_grad_enabled()) or _is_dual(geometry)
    image = call(Project, volume, geometry, keep_rays, spec)[0]
    return image if pixels is not None else image.unflatten(2, (spec.rows, spec.cols))


def backproject(
    images: Tensor,
    frames: Tensor,
    shape: Sequence[int],
    *,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    method: str = "joseph",
    beam: str = "cone",
    step: float | None = None,
    pixels: Tensor | None = None,
    derivative: str | None = None,
    anchor: str | None = None,
) -> Tensor:
    """The matched adjoint of `project`: <project(v), g> = <v, backproject(g)>. No filtering.

    images  [B, C, rows, cols], or [B, C, P] with `pixels`; float16 and bfloat16 are computed in
            float32
    shape   of the result, any that project() takes: (D, H, W) with C = 1, (C, D, H, W) or
            (N, C, D, H, W) with N dividing B; images are summed over the views of a volume
    Other arguments, differentiability and errors as for `project`.
    """
    if not isinstance(images, Tensor) or images.dtype not in VOXEL_DTYPES:
        raise TypeError(f"images: expected a floating-point tensor, got {_kind(images)}")
    dims = 4 if pixels is None else 3
    if images.dim() != dims:
        layout = "[B, C, rows, cols]" if pixels is None else "[B, C, P]"
        raise ValueError(f"images: expected {layout}, got shape {tuple(images.shape)}")
    if images.shape[1] == 0 or (pixels is None and 0 in images.shape[2:]):
        raise ValueError(f"images: expected at least one pixel, got shape {tuple(images.shape)}")
    frames = _checked_frames(frames, images)
    if frames.shape[0] != images.shape[0]:
        raise ValueError(
            f"images: expected as many views as frames, {frames.shape[0]}, got {images.shape[0]}"
        )
    count, channels, grid = _checked_shape(shape, frames.shape[0])
    if channels != images.shape[1]:
        raise ValueError(
            f"shape: expected {images.shape[1]} channels, as images have, got {tuple(shape)}"
        )
    size = images.shape[2:] if pixels is None else (1, 1)
    spec = _spec(grid, size, spacing, method, beam, step, derivative, anchor)
    geometry = frames if pixels is None else _endpoints(frames, pixels, beam)
    if pixels is not None and geometry.shape[1] != images.shape[2]:
        raise ValueError(
            f"pixels: expected {images.shape[2]} of them, as images have, got {geometry.shape[1]}"
        )
    if images.dtype in (torch.float16, torch.bfloat16):
        images = images.float()
    return call(Backproject, images.flatten(2), geometry, count, spec).reshape(tuple(shape))


def render(
    volume: Volume,
    camera: Camera,
    world_to_camera: Tensor,
    *,
    supersample: int = 1,
    extend: bool = True,
    method: str = "joseph",
    step: float | None = None,
    derivative: str | None = None,
    anchor: str | None = None,
) -> Tensor:
    """Line integrals of a volume seen by a camera: [B, C, rows, cols], no unit.

    volume           in mu (1/mm): Volume.to_mu() converts Hounsfield units
    world_to_camera  [4, 4] or [B, 4, 4], world mm (LPS) to camera mm
    supersample      average n x n rays a pixel, as real pixels are areas; n = 1 is the centre's ray
    extend           rays go on behind the detector until they leave the volume (see view_frames)
    method, step, derivative, anchor  as for `project`

    Differentiable in volume.values, world_to_camera, camera.K and camera.sdd.
    Raises ValueError for a volume in Hounsfield units; TypeError or ValueError naming the argument.
    """
    _check_scene(volume, camera)
    options = {"method": method, "step": step, "derivative": derivative, "anchor": anchor}
    grid = grid_constants(volume)
    return _render(
        volume.values, volume.spacing, grid, camera, world_to_camera, supersample, extend, options
    )


def project_with_jacobian(
    volume: Volume,
    camera: Camera,
    world_to_camera: Tensor,
    *,
    supersample: int = 1,
    extend: bool = True,
    method: str = "joseph",
    step: float | None = None,
    derivative: str | None = None,
    anchor: str | None = None,
) -> tuple[Tensor, Tensor]:
    """`render`, and the derivative of every pixel in the pose, from one march.

    Returns the image [B, C, rows, cols] and d image / d xi [B, C, 6, rows, cols], both detached:
    xi = (omega rad, tau mm) in camera axes moves the volume about its centre c,
    M' = Trans(c) exp(xi) Trans(-c) M (see drrkit.perturb), at xi = 0. For Gauss-Newton and
    Levenberg-Marquardt. Arguments and errors as for `render`.
    """
    _check_scene(volume, camera)
    _check_supersample(supersample)
    options = {"method": method, "step": step, "derivative": derivative, "anchor": anchor}
    n, (rows, cols) = supersample, camera.size
    size = (rows * n, cols * n)
    with torch.no_grad():
        values = _as_volumes(volume.values)
        grid = grid_constants(volume)
        frames = _frames_of(grid, camera, world_to_camera, n, extend, values.device)
        spec = _spec(tuple(values.shape[2:]), size, volume.spacing, beam=camera.beam, **options)
        image, rays = _ops.project(values, frames, True, spec)
        jacobian = _ops.tangents(rays, _twist_tangents(frames, volume, world_to_camera), spec)
        image, jacobian = image.unflatten(2, size), jacobian.unflatten(3, size)
        if n > 1:
            image = nn.functional.avg_pool2d(image, n)
            jacobian = nn.functional.avg_pool2d(jacobian.flatten(1, 2), n).unflatten(1, (-1, 6))
    return image, jacobian


def _twist_tangents(frames: Tensor, volume: Volume, world_to_camera: Tensor) -> Tensor:
    """How frames move in a volume that moves by xi about its centre: [B, 6, 4, 3].

    In mm along the grid's axes a point q of the frame moves by -B' (tau + omega x B q) =
    -B' tau - det(B) (B' omega) x q, B the grid's axes in the camera; steps do not feel tau.
    """

    def constant(numbers: Any) -> Tensor:
        return torch.as_tensor(numbers, dtype=torch.float64, device=frames.device)

    spacing, direction = constant(volume.spacing), constant(volume.direction)
    rotation = world_to_camera.detach().to(torch.float64).reshape(-1, 4, 4)[:, :3, :3]
    axes = rotation @ direction  # B; its rows are B' e_k
    middle = [(n - 1) / 2 for n in reversed(volume.values.shape[-3:])]
    arms = (frames - constant([middle, middle, [0.0] * 3, [0.0] * 3])) * spacing  # [B, 4, 3]
    turns = torch.linalg.det(axes)[:, None, None] * axes  # [B, 3, 3]
    by_omega = torch.linalg.cross(arms[:, None], turns[:, :, None])  # -turn x arm: [B, 3, 4, 3]
    by_tau = -axes[:, :, None] * constant([1.0, 1.0, 0.0, 0.0])[:, None]
    return torch.cat((by_omega, by_tau), 1) / spacing


class Projector(nn.Module):
    """`render` with a fixed volume and camera: what a loop needs is checked and prepared once.

    volume, camera, options  as for `render`. The volume's values are the buffer `values`, so that
    `.to(device)` moves them; pass a Volume whose values are an nn.Parameter to train them.
    """

    def __init__(
        self,
        volume: Volume,
        camera: Camera,
        *,
        supersample: int = 1,
        extend: bool = True,
        method: str = "joseph",
        step: float | None = None,
        derivative: str | None = None,
        anchor: str | None = None,
    ) -> None:
        super().__init__()
        _check_scene(volume, camera)
        _check_supersample(supersample)
        # Beside the values: a copy from the host in every call would break CUDA graph capture.
        self.camera = camera.to(volume.values.device)
        self.spacing = tuple(volume.spacing)
        self.supersample = supersample
        self.extend = extend
        self.options = {"method": method, "step": step, "derivative": derivative, "anchor": anchor}
        shape = tuple(volume.values.shape[-3:])
        _spec(shape, camera.size, self.spacing, beam=camera.beam, **self.options)
        if isinstance(volume.values, nn.Parameter):
            self.values = volume.values
        else:
            self.register_buffer("values", volume.values)
        self._grid = grid_constants(volume)

    def _apply(self, fn: Any, recurse: bool = True) -> Projector:
        """Follow the values to another device; dtypes are theirs alone, geometry stays float64."""
        super()._apply(fn, recurse)
        self._grid = GridConstants(*(c.to(self.values.device) for c in self._grid))
        self.camera = self.camera.to(self.values.device)
        return self

    def forward(self, world_to_camera: Tensor) -> Tensor:
        """[4, 4] or [B, 4, 4] -> line integrals [B, C, rows, cols]."""
        return _render(
            self.values,
            self.spacing,
            self._grid,
            self.camera,
            world_to_camera,
            self.supersample,
            self.extend,
            self.options,
        )

    def extra_repr(self) -> str:
        shape = tuple(self.values.shape)
        return f"values={shape}, size={tuple(self.camera.size)}, method={self.options['method']!r}"


def _render(
    values: Tensor,
    spacing: Sequence[float],
    grid: GridConstants,
    camera: Camera,
    world_to_camera: Tensor,
    supersample: int,
    extend: bool,
    options: dict[str, Any],
) -> Tensor:
    _check_supersample(supersample)
    frames = _frames_of(grid, camera, world_to_camera, supersample, extend, values.device)
    rows, cols = camera.size
    fine = (rows * supersample, cols * supersample)
    image = project(values, frames, fine, spacing=spacing, beam=camera.beam, **options)
    return nn.functional.avg_pool2d(image, supersample) if supersample > 1 else image


def _frames_of(
    grid: GridConstants,
    camera: Camera,
    world_to_camera: Tensor,
    supersample: int,
    extend: bool,
    device: torch.device,
) -> Tensor:
    """Frames of all sub-pixel rays: [B, 4, 3]."""
    if isinstance(world_to_camera, Tensor) and world_to_camera.device != device:
        raise ValueError(
            f"world_to_camera: expected the volume's device {device}, got {world_to_camera.device}"
        )
    frames = view_frames(grid, camera, world_to_camera, extend=extend)
    return _finer(frames, supersample, camera.beam) if supersample > 1 else frames


def _finer(frames: Tensor, n: int, beam: str) -> Tensor:
    """Frames of n x n rays a pixel: steps shrink, pixel (0, 0) moves back to the first of them."""
    shift = -(n - 1) / (2 * n)
    moved = shift * torch.ones_like(frames[:, :1, :1])
    on_source = moved if beam == "parallel" else torch.zeros_like(moved)
    step = frames[:, 2:3] + frames[:, 3:4]
    return torch.cat(
        (frames[:, 0:1] + on_source * step, frames[:, 1:2] + moved * step, frames[:, 2:] / n), 1
    )


def _is_dual(geometry: Tensor) -> bool:
    """Whether forward mode follows the geometry: its tangent then comes from the same march."""
    if forward_ad._current_level < 0:
        return False
    return forward_ad.unpack_dual(geometry).tangent is not None


def _endpoints(frames: Tensor, pixels: Tensor, beam: str) -> Tensor:
    """Source and target of chosen pixels: [B, P, 2, 3]."""
    if not isinstance(pixels, Tensor) or not pixels.is_floating_point():
        raise TypeError(f"pixels: expected a floating-point tensor, got {_kind(pixels)}")
    if pixels.dim() not in (2, 3) or pixels.shape[-1] != 2:
        raise ValueError(
            f"pixels: expected [P, 2] or [B, P, 2] (row, col), got shape {tuple(pixels.shape)}"
        )
    if pixels.dim() == 3 and pixels.shape[0] not in (1, frames.shape[0]):
        raise ValueError(
            f"pixels: expected {frames.shape[0]} views, as frames have, got {pixels.shape[0]}"
        )
    if pixels.device != frames.device:
        raise ValueError(f"pixels: expected device {frames.device}, got {pixels.device}")
    # (row, col) times the steps (v, u): one small matrix product a view.
    offset = pixels.to(torch.float64) @ frames[:, 2:].flip(1)
    source, target = frames[:, 0:1], frames[:, 1:2]
    source = source + (offset if beam == "parallel" else torch.zeros_like(offset))
    return torch.stack((source, target + offset), 2)


# ---- checks: every public argument is looked at once, here


def _kind(value: Any) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def _as_volumes(values: Tensor) -> Tensor:
    """values as [N, C, D, H, W]."""
    if not isinstance(values, Tensor) or values.dtype not in VOXEL_DTYPES:
        names = "float16, bfloat16, float32 or float64"
        raise TypeError(f"values: expected a {names} tensor, got {_kind(values)}")
    if values.dim() not in (3, 4, 5):
        raise ValueError(
            "values: expected [D, H, W], [C, D, H, W] or [N, C, D, H, W], got shape "
            f"{tuple(values.shape)}"
        )
    if values.numel() == 0:
        raise ValueError(f"values: expected at least one voxel, got shape {tuple(values.shape)}")
    return values[(None,) * (5 - values.dim())]


def _checked_frames(frames: Tensor, like: Tensor) -> Tensor:
    """frames as float64 on `like`'s device, or an error."""
    if not isinstance(frames, Tensor) or frames.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"frames: expected a float32 or float64 tensor, got {_kind(frames)}")
    if frames.dim() != 3 or tuple(frames.shape[1:]) != (4, 3):
        raise ValueError(f"frames: expected [B, 4, 3], got shape {tuple(frames.shape)}")
    if frames.device != like.device:
        raise ValueError(f"frames: expected device {like.device}, got {frames.device}")
    return frames.to(torch.float64)


def _checked_shape(shape: Sequence[int], views: int) -> tuple[int, int, tuple[int, ...]]:
    """(N, C, (D, H, W)) of a volume's shape."""
    expected = "(D, H, W), (C, D, H, W) or (N, C, D, H, W), positive integers"
    numbers = _counts("shape", shape, (3, 4, 5), expected)
    count, channels = (1, 1, *numbers)[-5:-3]
    if views % count:
        raise ValueError(f"shape: {count} volumes do not divide {views} views, got {numbers}")
    return count, channels, numbers[-3:]


def _spec(
    grid: tuple[int, ...],
    size: Sequence[int],
    spacing: Sequence[float],
    method: str,
    beam: str,
    step: float | None,
    derivative: str | None,
    anchor: str | None,
) -> Spec:
    """The op's constants, every one of them checked."""
    for name, word, words in (
        ("method", method, METHODS),
        ("beam", beam, BEAMS),
        ("derivative", derivative, (None, "exact", "line")),
        ("anchor", anchor, (None, "source", "foot")),
    ):
        if word not in words:
            choices = ", ".join(repr(w) for w in words if w is not None)
            raise ValueError(f"{name}: expected one of {choices}, got {word!r}")
    if method != "trilinear":
        for name, value in (("step", step), ("derivative", derivative), ("anchor", anchor)):
            if value is not None:
                raise ValueError(
                    f"{name}: only method 'trilinear' takes it, got {value!r} with {method!r}"
                )
    rows, cols = _counts("size", size, (2,), "(rows, cols), positive integers")
    expected = "three positive numbers (x, y, z) mm"
    sides = _sequence("spacing", spacing, expected)
    if len(sides) != 3:
        raise ValueError(f"spacing: expected {expected}, got {spacing!r}")
    for side in sides:
        _check_length("spacing", side, expected)
    if step is not None:
        _check_length("step", step, "a positive number of mm")
    sx, sy, sz = (float(side) for side in sides)
    distance = 0.5 * min(sx, sy, sz) if step is None else float(step)
    mode = _ops.mode_bits(method, beam, derivative == "line", anchor == "foot")
    return Spec(*grid, rows, cols, sx, sy, sz, mode, distance)


def _sequence(name: str, value: Any, expected: str) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)) and not hasattr(value, "__iter__"):
        raise TypeError(f"{name}: expected {expected}, got {value!r}")
    return tuple(value)


def _counts(name: str, value: Any, lengths: tuple[int, ...], expected: str) -> tuple[int, ...]:
    """A sequence of positive integers of an allowed length."""
    numbers = _sequence(name, value, expected)
    if len(numbers) not in lengths or not all(_is_count(n) for n in numbers):
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return numbers


def _is_count(n: Any) -> bool:
    whole = isinstance(n, (int, torch.SymInt, Integral))
    return whole and not isinstance(n, bool) and n > 0


def _check_length(name: str, x: Any, expected: str) -> None:
    if not isinstance(x, (int, float, Real)) or isinstance(x, bool):
        raise TypeError(f"{name}: expected {expected}, got {x!r}")
    if not 0 < x < math.inf:  # compared rather than asked: math.isfinite cannot be compiled
        raise ValueError(f"{name}: expected {expected}, got {x!r}")


def _check_supersample(n: Any) -> None:
    if not _is_count(n):
        raise ValueError(f"supersample: expected a positive integer, got {n!r}")


def _check_scene(volume: Any, camera: Any) -> None:
    if not isinstance(volume, Volume):
        raise TypeError(f"volume: expected a drrkit.Volume, got {type(volume).__name__}")
    if not isinstance(camera, Camera):
        raise TypeError(f"camera: expected a drrkit.Camera, got {type(camera).__name__}")
    if volume.unit != "mu":
        raise ValueError(
            f"volume: expected attenuation in 1/mm (unit 'mu'), got unit {volume.unit!r}; "
            "volume.to_mu() converts Hounsfield units"
        )
