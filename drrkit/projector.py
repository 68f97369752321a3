"""The projector: line integrals of voxel volumes along rays, and every derivative of them.

`project` and `backproject` are matched adjoints and know frames only; `render` adds cameras and
poses; `Projector` holds what a loop needs once; `project_with_jacobian`, and `with_jacobian` of a
Projector, serve Gauss-Newton.
Index coordinates are in the order (x, y, z); the mathematics stands in csrc/rays.

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

(1) Joseph's P* is gathered by voxel in a fixed order where that takes fewer operations; all else is
    atomic sums, and under torch.use_deterministic_algorithms(True) fixed-point sums
    (docs/derivatives.md). On the CPU all bits repeat over runs and numbers of threads.
(2) "line" is consistent in J, T and T*, but is not the derivative of the image it comes with.

J, T and T* of an image that was rendered with a gradient reuse the six numbers per ray that its
march kept: 24 bytes per ray and channel in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from drrkit._arguments import (
    as_volumes,
    check_scene,
    check_supersample,
    checked_frames,
    checked_shape,
    kind,
    make_spec,
    spec_of,
)
from drrkit._native import VOXELS, Backproject, Pack, Project, ProjectPacked, Spec, call
from drrkit._native import ops as _ops
from drrkit.geometry import Camera, GridConstants, batched_pose, frames_of_rays, grid_constants
from drrkit.volume import Volume


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
    volume = as_volumes(values)
    frames = checked_frames(frames, volume)
    if frames.shape[0] % max(volume.shape[0], 1):
        raise ValueError(
            f"values: the number of volumes must divide the number of views, got "
            f"{volume.shape[0]} volumes for {frames.shape[0]} views"
        )
    spec = make_spec(tuple(volume.shape[2:]), size, spacing, method, beam, step, derivative, anchor)
    if pixels is None:
        return _image(volume, frames, spec)
    return _integrals(volume, endpoints(frames, pixels, beam), spec)


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
    if not isinstance(images, Tensor) or images.dtype not in VOXELS:
        raise TypeError(f"images: expected a floating-point tensor, got {kind(images)}")
    dims = 4 if pixels is None else 3
    if images.dim() != dims:
        layout = "[B, C, rows, cols]" if pixels is None else "[B, C, P]"
        raise ValueError(f"images: expected {layout}, got shape {tuple(images.shape)}")
    if images.shape[1] == 0 or (pixels is None and 0 in images.shape[2:]):
        raise ValueError(f"images: expected at least one pixel, got shape {tuple(images.shape)}")
    frames = checked_frames(frames, images)
    if frames.shape[0] != images.shape[0]:
        raise ValueError(
            f"images: expected as many views as frames, {frames.shape[0]}, got {images.shape[0]}"
        )
    count, channels, grid = checked_shape(shape, frames.shape[0])
    if channels != images.shape[1]:
        raise ValueError(
            f"shape: expected {images.shape[1]} channels, as images have, got {tuple(shape)}"
        )
    size = images.shape[2:] if pixels is None else (1, 1)
    spec = make_spec(grid, size, spacing, method, beam, step, derivative, anchor)
    geometry = frames if pixels is None else endpoints(frames, pixels, beam)
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
    supersample      average n x n rays per pixel, as real pixels are areas; n = 1: the centre's ray
    extend           rays go on behind the detector until they leave the volume (see view_frames)
    method, step, derivative, anchor  as for `project`

    Differentiable in volume.values, world_to_camera, camera.K and camera.sdd.
    Raises ValueError for a volume in Hounsfield units; TypeError or ValueError naming the argument.
    """
    check_scene(volume, camera)
    check_supersample(supersample)
    options = {"method": method, "step": step, "derivative": derivative, "anchor": anchor}
    values = as_volumes(volume.values)
    spec = spec_of(values, camera, supersample, volume.spacing, options)
    rays = _fine_rays(camera, supersample, values.device)
    frames = _frames_of(grid_constants(volume), camera, rays, world_to_camera, extend)
    return _pooled(_image(values, frames, spec), supersample)


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
    check_scene(volume, camera)
    check_supersample(supersample)
    options = {"method": method, "step": step, "derivative": derivative, "anchor": anchor}
    with torch.no_grad():
        values = as_volumes(volume.values)
        spec = spec_of(values, camera, supersample, volume.spacing, options)
        rays = _fine_rays(camera, supersample, values.device)
        frames = _frames_of(grid_constants(volume), camera, rays, world_to_camera, extend)
        image, six = _ops.project(values, frames, True, spec)
        twists = _twist_constants(volume).tangents(frames, world_to_camera)
        return _image_and_jacobian(image, six, twists, spec, supersample)


def _image_and_jacobian(
    image: Tensor, six: Tensor, twists: Tensor, spec: Spec, supersample: int
) -> tuple[Tensor, Tensor]:
    """[B, C, rows, cols] and [B, C, 6, rows, cols] from a march and the tangents of its frames."""
    jacobian = _ops.tangents(six, twists, spec).unflatten(3, spec.size).flatten(1, 2)
    jacobian = _pooled(jacobian, supersample).unflatten(1, (-1, 6))
    return _pooled(image.unflatten(2, spec.size), supersample), jacobian


class TwistConstants(NamedTuple):
    """How frames move in a volume that moves by xi about its centre: what the volume says of it."""

    spacing: Tensor  # [3] mm
    direction: Tensor  # [3, 3]
    middle: Tensor  # [3] the grid's centre
    points: Tensor  # [4, 1] 1 for the two points of a frame, 0 for its two steps

    def tangents(self, frames: Tensor, world_to_camera: Tensor) -> Tensor:
        """[B, 6, 4, 3] of frames [B, 4, 3] for poses [B, 4, 4] or [4, 4].

        In mm along the grid's axes a point q of the frame moves by -B' (tau + omega x B q) =
        -B' tau - det(B) (B' omega) x q, B the grid's axes in the camera; steps do not feel tau.
        """
        rotation = world_to_camera.detach().to(torch.float64).reshape(-1, 4, 4)[:, :3, :3]
        axes = rotation @ self.direction  # B; its rows are B' e_k
        arms = (frames - self.points * self.middle) * self.spacing  # [B, 4, 3]
        turns = torch.linalg.det(axes)[:, None, None] * axes  # [B, 3, 3]
        by_omega = torch.linalg.cross(arms[:, None], turns[:, :, None])  # -turn x arm: [B, 3, 4, 3]
        by_tau = -axes[:, :, None] * self.points
        return torch.cat((by_omega, by_tau), 1) / self.spacing


def _twist_constants(volume: Volume) -> TwistConstants:
    middle = [(n - 1) / 2 for n in reversed(volume.values.shape[-3:])]
    numbers = (volume.spacing, volume.direction, middle, [[1.0], [1.0], [0.0], [0.0]])
    as_constant = partial(torch.as_tensor, dtype=torch.float64, device=volume.values.device)
    return TwistConstants(*map(as_constant, numbers))


class Projector(nn.Module):
    """`render` with a fixed volume and camera: what a loop needs is checked and prepared once.

    volume, camera, options  as for `render`. The volume's values are the buffer `values`, so that
    `.to(device)` moves them; pass a Volume whose values are an nn.Parameter to train them.

    pack  what is prepared from values that need no gradient (docs/performance.md):
          "auto"     what pays on the values' device, where it fits: on CUDA textures of 16 bits a
                     voxel for images (relative L2 difference to `render` below 5e-4, and
                     images that carry a derivative are exact), on the CPU what is known to be zero
          "int16", "float16", "float32"
                     for images without a derivative the values in this storage, on CUDA as
                     textures, or an error: ValueError where there can be none (float64 values; on
                     CUDA another method than "joseph", sides beyond 2048 voxels),
                     torch.OutOfMemoryError where there is no room
          None       nothing: every image is `render`'s

    Values may change in place: a call that finds them changed prepares again. Writes that torch
    does not count (through `.data` or NumPy) need `prepare()`, and so do CUDA graphs, for the
    change to reach what they read, and compiled functions, to be fast again.
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
        pack: str | None = "auto",
    ) -> None:
        super().__init__()
        check_scene(volume, camera)
        check_supersample(supersample)
        # Beside the values: a copy from the host in every call would break CUDA graph capture.
        self.camera = camera.to(volume.values.device)
        self.spacing = tuple(volume.spacing)
        self.supersample = supersample
        self.extend = extend
        self.options = {"method": method, "step": step, "derivative": derivative, "anchor": anchor}
        if isinstance(volume.values, nn.Parameter):
            self.values = volume.values
        else:
            self.register_buffer("values", volume.values)
        self._grid = grid_constants(volume)
        self._twists = _twist_constants(volume)
        self._pack = Pack(pack, method)
        self._follow()

    def prepare(self) -> Projector:
        """Prepare the values again as they are now, even if no change was counted; returns self.

        A call does this by itself where torch counted a change. The memory is filled again in
        place, so that CUDA graphs that were captured before render the new values.
        """
        self._pack.renew(self.values)
        return self

    def _follow(self) -> None:
        """What depends on the camera, on the device and on the volume."""
        values = as_volumes(self.values)
        self._spec = spec_of(values, self.camera, self.supersample, self.spacing, self.options)
        fixed = not self.camera.requires_grad
        self._rays = self._rays_now() if fixed else None
        self._pack.follow(self.values)

    def _rays_now(self) -> Tensor:
        return _fine_rays(self.camera, self.supersample, self.values.device)

    def _apply(self, fn: Any, recurse: bool = True) -> Projector:
        """Follow the values to another device; dtypes are theirs alone, geometry stays float64."""
        super()._apply(fn, recurse)
        self._grid = GridConstants(*(c.to(self.values.device) for c in self._grid))
        self._twists = TwistConstants(*(c.to(self.values.device) for c in self._twists))
        self.camera = self.camera.to(self.values.device)
        self._follow()
        return self

    def forward(self, world_to_camera: Tensor) -> Tensor:
        """[4, 4] or [B, 4, 4] -> line integrals [B, C, rows, cols]."""
        values, frames = self._seen_from(world_to_camera)
        handle = self._pack.handle_of(self.values)
        image = _image(values, frames, self._spec, self.values, handle)
        return _pooled(image, self.supersample)

    def with_jacobian(self, world_to_camera: Tensor) -> tuple[Tensor, Tensor]:
        """`project_with_jacobian` by what is prepared: image and d image / d xi, both detached.

        [4, 4] or [B, 4, 4] -> [B, C, rows, cols] and [B, C, 6, rows, cols]. Empty bricks are
        leapt over, and on CUDA the march reads the prepared copy of the exact values.
        """
        with torch.no_grad():
            values, frames = self._seen_from(world_to_camera)
            handle = self._pack.handle_of(self.values)
            if handle:
                image, six = _ops.project_packed(self.values, frames, handle, True, self._spec)
            else:
                image, six = _ops.project(values, frames, True, self._spec)
            twists = self._twists.tangents(frames, world_to_camera)
            return _image_and_jacobian(image, six, twists, self._spec, self.supersample)

    def _seen_from(self, world_to_camera: Tensor) -> tuple[Tensor, Tensor]:
        """The volumes [N, C, D, H, W] and the frames of poses."""
        values = as_volumes(self.values)
        if values.shape[2:] != self._spec.grid:
            raise ValueError(
                f"values: expected the shape {self._spec.grid} that the projector was made for, "
                f"got {tuple(values.shape[2:])}"
            )
        rays = self._rays
        if rays is None or self.camera.requires_grad:
            rays = self._rays_now()
        return values, _frames_of(self._grid, self.camera, rays, world_to_camera, self.extend)

    def extra_repr(self) -> str:
        shape = tuple(self.values.shape)
        return f"values={shape}, size={tuple(self.camera.size)}, method={self.options['method']!r}"


def _fine_rays(camera: Camera, n: int, device: torch.device) -> Tensor:
    """pixel_rays of n x n rays per pixel, [1, 4, 3] or one per camera: steps shrink, pixel (0, 0)
    moves back to the first of them."""
    rays = camera.pixel_rays().to(device)
    rays = rays if rays.dim() == 3 else rays.unsqueeze(0)
    if n == 1:
        return rays
    moved = -(n - 1) / (2 * n) * (rays[:, 2:3] + rays[:, 3:4])
    source = rays[:, 0:1] + moved if camera.beam == "parallel" else rays[:, 0:1]
    return torch.cat((source, rays[:, 1:2] + moved, rays[:, 2:] / n), 1)


def _frames_of(
    grid: GridConstants, camera: Camera, rays: Tensor, world_to_camera: Tensor, extend: bool
) -> Tensor:
    """Frames [B, 4, 3] of the rays of `_fine_rays`."""
    pose = batched_pose(world_to_camera, len(rays))
    if pose.device != rays.device:
        raise ValueError(
            f"world_to_camera: expected the volume's device {rays.device}, got {pose.device}"
        )
    return frames_of_rays(pose, rays, grid, camera.beam, extend)


def _image(
    values: Tensor, frames: Tensor, spec: Spec, source: Tensor | None = None, handle: int = 0
) -> Tensor:
    """The projection of volumes [N, C, D, H, W]: [B, C, rows, cols]."""
    integrals = _integrals(values, frames, spec, source, handle)
    return integrals.unflatten(2, spec.size)


def _integrals(
    values: Tensor, geometry: Tensor, spec: Spec, source: Tensor | None = None, handle: int = 0
) -> Tensor:
    """Line integrals of volumes [N, C, D, H, W] along frames or explicit rays: [B, C, P].

    handle  of what was prepared from `source`, of which `values` is a view; 0: nothing
    """
    with_six = (geometry.requires_grad and torch.is_grad_enabled()) or _is_dual(geometry)
    if handle:
        return call(ProjectPacked, values, source, geometry, handle, with_six, spec)[0]
    return call(Project, values, geometry, with_six, spec)[0]


def _pooled(image: Tensor, n: int) -> Tensor:
    """[B, C, rows n, cols n] -> [B, C, rows, cols]."""
    return nn.functional.avg_pool2d(image, n) if n > 1 else image


def _is_dual(geometry: Tensor) -> bool:
    """Whether forward mode follows the geometry: its tangent then comes from the same march."""
    if forward_ad._current_level < 0:
        return False
    return forward_ad.unpack_dual(geometry).tangent is not None


def endpoints(frames: Tensor, pixels: Tensor, beam: str) -> Tensor:
    """Source and target of chosen pixels: [B, P, 2, 3]."""
    if not isinstance(pixels, Tensor) or not pixels.is_floating_point():
        raise TypeError(f"pixels: expected a floating-point tensor, got {kind(pixels)}")
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
    # (row, col) times the steps (v, u): one small matrix product per view.
    offset = pixels.to(torch.float64) @ frames[:, 2:].flip(1)
    source, target = frames[:, 0:1], frames[:, 1:2]
    source = source + (offset if beam == "parallel" else torch.zeros_like(offset))
    return torch.stack((source, target + offset), 2)
