"""The raw products of csrc/ops.cpp with their fake kernels; private, products.py adds autograd.

Shapes: values [N, C, D, H, W]; geometry and its tangents either frames [B, 4, 3] or end points
[B, P, 2, 3], float64, index coordinates (x, y, z); images [B, C, P]; six (six-vectors, image
derivatives in source and target) [B, C, 6, P]. View b reads volume b // (B / N).

Maps of poses (csrc/pose): "perturb" of (pose [B, 4, 4], xi [B, 6], center [B, 3]) and "frames" of
(pose, camera_frame [B, 4, 3], grid [B, 8, 3]); float64, one item per view or one for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor


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


Directions = Sequence[Tensor | None]
NONE: Directions = (None, None, None)

METHODS: tuple[str, ...] = _C.METHODS
BEAMS: tuple[str, ...] = _C.BEAMS
VOXELS = tuple(d for d in (getattr(torch, name) for name in _C.VOXELS) if d.is_floating_point)
"""What a volume's values can be stored in, in the order of csrc's VoxelType; int16 is its last."""


class Spec(NamedTuple):
    """The constants of a product. Nothing but tuples and numbers."""

    grid: tuple[int, ...]  # (nz, ny, nx)
    size: tuple[int, ...]  # (rows, cols)
    spacing: tuple[float, ...]  # (x, y, z) mm
    flags: int
    step: float  # mm


def flags_of(method: str, beam: str, *, line: bool = False, foot: bool = False) -> int:
    """The op's `flags` (csrc/params.h)."""
    bits = METHODS.index(method) | BEAMS.index(beam) << _C.BEAM_SHIFT
    return bits | _C.LINE * line | _C.FOOT * foot


def project(values: Tensor, geometry: Tensor, with_six: bool, spec: Spec) -> tuple[Tensor, Tensor]:
    """P: images, and the six-vectors (or an empty tensor)."""
    _, size, spacing, flags, step = spec
    return _torch_ops.project(values, geometry, size, spacing, flags, step, with_six)


def project_packed(
    source: Tensor, geometry: Tensor, handle: int, with_six: bool, spec: Spec
) -> tuple[Tensor, Tensor]:
    """P by what `handle` names, if that was made from `source`, values of 3, 4 or 5 dimensions."""
    _, size, spacing, flags, step = spec
    return _torch_ops.project_packed(source, geometry, handle, size, spacing, flags, step, with_six)


def backproject(
    images: Tensor, geometry: Tensor, tangent: Tensor | None, n: int, spec: Spec
) -> Tensor:
    """P*, or with a tangent T*: volumes [n, C, D, H, W]."""
    fixed_order = torch.are_deterministic_algorithms_enabled()
    grid, size, spacing, flags, step = spec
    return _torch_ops.backproject(
        images, geometry, tangent, (n, *grid), size, spacing, flags, step, fixed_order
    )


def reduce(six: Tensor, images: Tensor | None, endpoints: bool, spec: Spec) -> Tensor:
    """J from six-vectors, weighted by images and summed over channels: a cotangent of geometry."""
    return _torch_ops.reduce(six, images, spec.size[1], endpoints, spec.flags)


def tangent(six: Tensor, d_geometry: Tensor, spec: Spec) -> Tensor:
    """T from six-vectors: the images' tangent [B, C, P]."""
    one = d_geometry if d_geometry.dim() == 4 else d_geometry[:, None]
    return tangents(six, one, spec).squeeze(2)  # not flatten: vmap over backward refuses it


def tangents(six: Tensor, d_geometry: Tensor, spec: Spec) -> Tensor:
    """T for K tangents [B, K, 4, 3] of frames at a time: [B, C, K, P]."""
    return _torch_ops.tangent(six, d_geometry, spec.size, spec.flags)


def second(
    values: Tensor, geometry: Tensor, images: Tensor, d_geometry: Tensor, spec: Spec
) -> Tensor:
    """K per ray: [B, 1, 6, P] float64, to be reduced."""
    _, size, spacing, flags, step = spec
    return _torch_ops.second(values, geometry, images, d_geometry, size, spacing, flags, step)


# Bound once: a packet looks its overload up in every call, which takes a third of a map's time.
MAPS = {
    name: (getattr(_torch_ops, name).default, getattr(_torch_ops, name + "_vjp").default)
    for name in ("perturb", "frames")
}


def map_flags(beam: str, extend: bool) -> int:
    """The `flags` of the map "frames"."""
    return BEAMS.index(beam) << _C.BEAM_SHIFT | _C.EXTEND * extend


def map_value(name: str, flags: int, inputs: Sequence[Tensor], along: Directions = NONE) -> Tensor:
    """m(x): [B, rows, cols]; or its derivative along a direction, whose missing parts are zero."""
    return MAPS[name][0](*inputs, *along, flags)


def map_vjp(
    name: str, flags: int, inputs: Sequence[Tensor], g: Tensor, along: Directions = NONE
) -> tuple[Tensor, Tensor, Tensor]:
    """Cotangents of the three inputs, one item per view, from that of m(x); or their derivatives
    along a direction of the inputs."""
    return MAPS[name][1](*inputs, g, *along, flags)


# ---- fake kernels: shapes, dtypes and contiguous strides, as the real ones return them


def _scalar(values: Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def _n_rays(geometry: Tensor, size: Sequence[int]) -> int:
    return geometry.shape[1] if geometry.dim() == 4 else size[0] * size[1]


def _images(source: Tensor, geometry: Tensor, channels: int, size: Sequence[int], with_six: bool):
    views, rays, dtype = geometry.shape[0], _n_rays(geometry, size), _scalar(source)
    six = (views, channels, 6, rays) if with_six else (0,)
    return source.new_empty(views, channels, rays, dtype=dtype), source.new_empty(six, dtype=dtype)


@torch.library.register_fake("drrkit::project")
def _(values, geometry, size, spacing, flags, step, with_six):
    return _images(values, geometry, values.shape[1], size, with_six)


@torch.library.register_fake("drrkit::project_packed")
def _(source, geometry, handle, size, spacing, flags, step, with_six):
    return _images(source, geometry, source.shape[-4] if source.dim() > 3 else 1, size, with_six)


@torch.library.register_fake("drrkit::backproject")
def _(images, geometry, tangent, volumes, size, spacing, flags, step, deterministic):
    return images.new_empty(volumes[0], images.shape[1], *volumes[1:])


@torch.library.register_fake("drrkit::reduce")
def _(six, images, cols, endpoints, flags):
    shape = (six.shape[0], six.shape[3], 2, 3) if endpoints else (six.shape[0], 4, 3)
    return six.new_empty(shape, dtype=torch.float64)


@torch.library.register_fake("drrkit::tangent")
def _(six, tangents, size, flags):
    count = 1 if tangents.shape[2] == 2 else tangents.shape[1]
    return six.new_empty(six.shape[0], six.shape[1], count, six.shape[3])


@torch.library.register_fake("drrkit::second")
def _(values, geometry, images, tangent, size, spacing, flags, step):
    rays = _n_rays(geometry, size)
    return values.new_empty(geometry.shape[0], 1, 6, rays, dtype=torch.float64)


def _views(*arguments: Any) -> int:
    """One item, or one per view: how many views there are."""
    tensors = (a for a in arguments if isinstance(a, Tensor))
    return next((t.shape[0] for t in tensors if t.shape[0] != 1), 1)


@torch.library.register_fake("drrkit::perturb")
def _(pose, xi, center, *directions_and_flags):
    return pose.new_empty(_views(pose, xi, center, *directions_and_flags), 4, 4)


@torch.library.register_fake("drrkit::frames")
def _(pose, camera_frame, grid, *directions_and_flags):
    return pose.new_empty(_views(pose, camera_frame, grid, *directions_and_flags), 4, 3)


@torch.library.register_fake("drrkit::perturb_vjp")
@torch.library.register_fake("drrkit::frames_vjp")
def _(x0, x1, x2, *cotangent_directions_and_flags):
    views = _views(x0, x1, x2, *cotangent_directions_and_flags)
    return tuple(x.new_empty(views, *x.shape[1:]) for x in (x0, x1, x2))


# ---- a CPU build refuses CUDA's tensors in words; the dispatcher would list its backends


def _refuse(*_: Any) -> None:
    raise ValueError(
        "expected CPU tensors, got CUDA tensors: this drrkit was built without CUDA. Move them to "
        "the CPU, or install a build for CUDA (docs/install.md; `drrkit info` prints what is here)"
    )


OPS = ("project", "project_packed", "backproject", "reduce", "tangent", "second")
OPS += tuple(name + suffix for name in MAPS for suffix in ("", "_vjp"))
if not _C.has_cuda:
    _refusals = torch.library.Library("drrkit", "IMPL", "CUDA")  # holds as long as it lives
    for _name in OPS:
        _refusals.impl(_name, _refuse)
