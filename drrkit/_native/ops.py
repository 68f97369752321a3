"""The raw products of csrc/ops.cpp with their fake kernels; private, _products.py adds autograd.

Shapes: values [N, C, D, H, W]; geometry and its tangents either frames [B, 4, 3] or end points
[B, P, 2, 3], float64, index coordinates (x, y, z); images [B, C, P]; rays (six-vectors, image
derivatives in source and target) [B, C, 6, P]. View b reads volume b // (B / N).

Maps of poses (csrc/pose_map.h): "perturb" of (pose [B, 4, 4], xi [B, 6], center [B, 3]) and
"frames" of (pose, rays [B, 4, 3], grid [B, 8, 3]) with the flags (extend, parallel); float64, one
item a view or one for all.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

METHODS = ("joseph", "siddon", "trilinear")
BEAMS = ("cone", "parallel")


def _load() -> ModuleType:
    """Import the binary; where that fails, say what it was built for and what is here."""
    try:
        return import_module("drrkit._C")
    except ImportError as error:
        raise ImportError(_mismatch(error)) from error


def _mismatch(error: ImportError) -> str:
    here = f"torch {torch.__version__} (CUDA {torch.version.cuda or 'none'})"
    try:
        from drrkit import _build
    except ImportError:
        return (
            f"drrkit's compiled module drrkit._C is missing ({error}). Build it against {here}: "
            "pip install --no-build-isolation . in drrkit's source folder, and do not import "
            "drrkit from a source folder that was not built in place."
        )
    built = f"torch {_build.TORCH} (CUDA {_build.CUDA or 'none'}), Python {_build.PYTHON}"
    return (
        f"drrkit._C was built for {built} and does not load with {here}: {error}. Install the "
        "drrkit build that fits this torch, or rebuild with pip install --no-build-isolation ."
    )


_C = _load()
_torch_ops = torch.ops.drrkit


class Spec(NamedTuple):
    """The constants of a product: grid, image, spacing in mm, method. A plain tuple of numbers."""

    nz: int
    ny: int
    nx: int
    rows: int
    cols: int
    sx: float
    sy: float
    sz: float
    mode: int
    step: float


# Bits of the op's `mode` above the method's two; read by `Mode` in ops.cpp.
PARALLEL, LINE, FOOT = 4, 8, 16


def mode_bits(method: str, beam: str, line: bool, foot: bool) -> int:
    """The op's `mode`."""
    parallel = beam == "parallel"
    return METHODS.index(method) + PARALLEL * parallel + LINE * line + FOOT * foot


def is_parallel(mode: int) -> bool:
    return bool(mode & PARALLEL)


def project(values: Tensor, geometry: Tensor, with_rays: bool, spec: Spec) -> tuple[Tensor, Tensor]:
    """P: images, and the six-vectors (or an empty tensor)."""
    _, _, _, rows, cols, sx, sy, sz, mode, step = spec
    return _torch_ops.project(values, geometry, rows, cols, sx, sy, sz, mode, step, with_rays)


def project_packed(
    source: Tensor, geometry: Tensor, handle: int, with_rays: bool, spec: Spec
) -> tuple[Tensor, Tensor]:
    """P by what `handle` names, if that was made from `source`, values of 3, 4 or 5 dimensions."""
    _, _, _, rows, cols, sx, sy, sz, mode, step = spec
    return _torch_ops.project_packed(
        source, geometry, handle, rows, cols, sx, sy, sz, mode, step, with_rays
    )


def backproject(
    images: Tensor, geometry: Tensor, tangent: Tensor | None, n: int, spec: Spec
) -> Tensor:
    """P*, or with a tangent T*: volumes [n, C, D, H, W]."""
    fixed_order = torch.are_deterministic_algorithms_enabled()
    return _torch_ops.backproject(images, geometry, tangent, n, *spec, fixed_order)


def reduce_rays(rays: Tensor, images: Tensor | None, endpoints: bool, spec: Spec) -> Tensor:
    """J from six-vectors, weighted by images and summed over channels: a cotangent of geometry."""
    return _torch_ops.reduce_rays(rays, images, spec[4], endpoints, is_parallel(spec[8]))


def tangent(rays: Tensor, d_geometry: Tensor, spec: Spec) -> Tensor:
    """T from six-vectors: the images' tangent [B, C, P]."""
    one = d_geometry if d_geometry.dim() == 4 else d_geometry[:, None]
    return tangents(rays, one, spec).squeeze(2)  # not flatten: vmap over backward refuses it


def tangents(rays: Tensor, d_geometry: Tensor, spec: Spec) -> Tensor:
    """T for K tangents [B, K, 4, 3] of frames at a time: [B, C, K, P]."""
    return _torch_ops.tangent(rays, d_geometry, spec[3], spec[4], is_parallel(spec[8]))


def second(
    values: Tensor, geometry: Tensor, images: Tensor, d_geometry: Tensor, spec: Spec
) -> Tensor:
    """K a ray: [B, 1, 6, P] float64, to be reduced."""
    _, _, _, rows, cols, sx, sy, sz, mode, step = spec
    return _torch_ops.second(
        values, geometry, images, d_geometry, rows, cols, sx, sy, sz, mode, step
    )


_MAPS = {
    name: tuple(
        getattr(_torch_ops, name + suffix).default for suffix in ("", "_vjp", "_jvp", "_second")
    )
    for name in ("perturb", "frames")
}


def pose_map(name: str, flags: tuple[bool, ...], *inputs: Tensor) -> Tensor:
    """m(x): [B, rows, cols]."""
    return _MAPS[name][0](*inputs, *flags)


def pose_map_vjp(
    name: str, flags: tuple[bool, ...], *inputs_and_g: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Cotangents of the three inputs, one item a view, from that of m(x)."""
    return _MAPS[name][1](*inputs_and_g, *flags)


def pose_map_jvp(name: str, flags: tuple[bool, ...], *inputs_and_directions: Tensor | None):
    """The derivative of m(x) along a direction, None being zero."""
    return _MAPS[name][2](*inputs_and_directions, *flags)


def pose_map_second(
    name: str, flags: tuple[bool, ...], *inputs_g_and_directions: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The derivative of pose_map_vjp along a direction of the inputs."""
    return _MAPS[name][3](*inputs_g_and_directions, *flags)


# ---- fake kernels: shapes, dtypes and contiguous strides, as the real ones return them


def _scalar(values: Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def _n_rays(geometry: Tensor, rows: int, cols: int) -> int:
    return geometry.shape[1] if geometry.dim() == 4 else rows * cols


@torch.library.register_fake("drrkit::project")
def _(values, geometry, rows, cols, sx, sy, sz, mode, step, with_rays):
    views, channels, rays = geometry.shape[0], values.shape[1], _n_rays(geometry, rows, cols)
    dtype = _scalar(values)
    six = (views, channels, 6, rays) if with_rays else (0,)
    return values.new_empty(views, channels, rays, dtype=dtype), values.new_empty(six, dtype=dtype)


@torch.library.register_fake("drrkit::project_packed")
def _(source, geometry, handle, rows, cols, sx, sy, sz, mode, step, with_rays):
    channels = source.shape[-4] if source.dim() > 3 else 1
    views, rays = geometry.shape[0], _n_rays(geometry, rows, cols)
    dtype = _scalar(source)
    six = (views, channels, 6, rays) if with_rays else (0,)
    return source.new_empty(views, channels, rays, dtype=dtype), source.new_empty(six, dtype=dtype)


@torch.library.register_fake("drrkit::backproject")
def _(images, geometry, tangent, n, nz, ny, nx, rows, cols, sx, sy, sz, mode, step, deterministic):
    return images.new_empty(n, images.shape[1], nz, ny, nx)


@torch.library.register_fake("drrkit::reduce_rays")
def _(rays, images, cols, endpoints, parallel):
    shape = (rays.shape[0], rays.shape[3], 2, 3) if endpoints else (rays.shape[0], 4, 3)
    return rays.new_empty(shape, dtype=torch.float64)


@torch.library.register_fake("drrkit::tangent")
def _(rays, tangents, rows, cols, parallel):
    count = 1 if tangents.shape[2] == 2 else tangents.shape[1]
    return rays.new_empty(rays.shape[0], rays.shape[1], count, rays.shape[3])


@torch.library.register_fake("drrkit::second")
def _(values, geometry, images, tangent, rows, cols, sx, sy, sz, mode, step):
    rays = _n_rays(geometry, rows, cols)
    return values.new_empty(geometry.shape[0], 1, 6, rays, dtype=torch.float64)


def _views(*arguments: Any) -> int:
    """One item, or one a view: how many views there are."""
    tensors = (a for a in arguments if isinstance(a, Tensor))
    return next((t.shape[0] for t in tensors if t.shape[0] != 1), 1)


@torch.library.register_fake("drrkit::perturb")
@torch.library.register_fake("drrkit::perturb_jvp")
def _(pose, xi, center, *directions):
    return pose.new_empty(_views(pose, xi, center, *directions), 4, 4)


@torch.library.register_fake("drrkit::frames")
@torch.library.register_fake("drrkit::frames_jvp")
def _(pose, rays, grid, *directions_and_flags):
    return pose.new_empty(_views(pose, rays, grid, *directions_and_flags), 4, 3)


@torch.library.register_fake("drrkit::perturb_vjp")
@torch.library.register_fake("drrkit::perturb_second")
@torch.library.register_fake("drrkit::frames_vjp")
@torch.library.register_fake("drrkit::frames_second")
def _(x0, x1, x2, *cotangent_directions_and_flags):
    views = _views(x0, x1, x2, *cotangent_directions_and_flags)
    return tuple(x.new_empty(views, *x.shape[1:]) for x in (x0, x1, x2))


# ---- a CPU build refuses CUDA's tensors in words; the dispatcher would list its backends


def _refuse(*_: Any) -> None:
    raise ValueError(
        "expected CPU tensors, got CUDA tensors: this drrkit was built without CUDA. Move them to "
        "the CPU, or install a build for CUDA (docs/install.md; drrkit info tells what is here)"
    )


OPS = ("project", "project_packed", "backproject", "reduce_rays", "tangent", "second")
OPS += tuple(m + suffix for m in _MAPS for suffix in ("", "_vjp", "_jvp", "_second"))
if not _C.has_cuda:
    _refusals = torch.library.Library("drrkit", "IMPL", "CUDA")  # holds as long as it lives
    for _name in OPS:
        _refusals.impl(_name, _refuse)
