"""The products of csrc/cuda on CPU tensors, called as torch.ops.drrkit is called."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from ctypes import c_bool, c_char_p, c_double, c_int, c_int64, c_uint64, c_void_p

import numpy as np
import pytest
import torch
from torch import Tensor

from drrkit._native import ops as _ops
from drrkit._native.ops import VOXELS

from .build import library


class Scene(ctypes.Structure):
    """SceneNumbers of products.cpp."""

    _fields_ = [
        *((n, c_int64) for n in ("nx", "ny", "nz", "n_views", "n_channels", "n_volumes")),
        *((n, c_int64) for n in ("cols", "rays", "endpoints", "flags", "voxel")),
        *((n, c_double) for n in ("sx", "sy", "sz", "step")),
    ]


class Counts(ctypes.Structure):
    """What the emulator has done (launches, blocks) and what exists now."""

    _fields_ = [
        *((n, c_uint64) for n in ("launches", "blocks")),
        *((n, c_int64) for n in ("allocations", "arrays", "textures", "surfaces")),
    ]


def pointer(tensor: Tensor | None) -> int | None:
    """The address of a dense CPU tensor's data, for a void*."""
    if tensor is None:
        return None
    assert tensor.is_contiguous() and tensor.device.type == "cpu"
    return tensor.data_ptr()


def call(name: str, *arguments: object) -> None:
    """Call a function that returns null or an error's text, which is raised."""
    function = getattr(library(), name)
    function.restype = c_char_p
    error = function(*arguments)
    if error is not None:
        raise RuntimeError(f"drrkit: CUDA launch failed: {error.decode()}")


def scalar_of(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _scene(
    geometry: Tensor,
    dtype: torch.dtype,
    volumes: tuple[int, ...],
    size: tuple[int, int],
    spacing: tuple[float, float, float],
    flags: int,
    step: float,
) -> Scene:
    """From frames [B, 4, 3] or end points [B, P, 2, 3], volumes (n, C, nz, ny, nx) and the op's
    own numbers."""
    endpoints = geometry.dim() == 4
    n, channels, nz, ny, nx = volumes
    return Scene(
        n_views=geometry.shape[0],
        n_volumes=n,
        n_channels=channels,
        rays=geometry.shape[1] if endpoints else size[0] * size[1],
        endpoints=endpoints,
        voxel=VOXELS.index(dtype),
        cols=size[1],
        flags=flags,
        step=step,
        **dict(zip(("nx", "ny", "nz", "sx", "sy", "sz"), (nx, ny, nz, *spacing), strict=True)),
    )


class EmulatedOps:
    """torch.ops.drrkit, with the CUDA kernels on the emulator behind it."""

    gathers = False
    """Whether the adjoint gathers by voxel wherever it can, not only where that pays."""
    most_workspace = 2**40
    """Bytes: with less than it asks for, the adjoint takes fewer views at a time."""

    def options(self, seed: int | None = 0, multiprocessors: int = 132) -> None:
        """In which order blocks and threads run, and how many multiprocessors the device claims.

        seed  0: from the first to the last; None: from the last to the first, so that of any two
              threads between two barriers the other one comes first; else: drawn from it
        """
        backwards = seed is None
        library().emulated_options(c_uint64(seed or 0), c_bool(backwards), c_int(multiprocessors))

    def counts(self) -> Counts:
        """Counters of the emulator."""
        counts = Counts()
        library().emulated_counts(ctypes.byref(counts))
        return counts

    @contextlib.contextmanager
    def in_place(self) -> Iterator[EmulatedOps]:
        """drrkit's own functions run on the emulator."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_ops, "_torch_ops", self)
            yield self

    def project(
        self, values, geometry, size, spacing, flags, step, with_six
    ) -> tuple[Tensor, Tensor]:
        channels = values.shape[1]
        values, geometry = values.contiguous(), geometry.contiguous()
        scene = _scene(geometry, values.dtype, values.shape, size, spacing, flags, step)
        dtype = scalar_of(values.dtype)
        image = torch.full((scene.n_views, channels, scene.rays), torch.nan, dtype=dtype)
        six = (scene.n_views, channels, 6, scene.rays) if with_six else (0,)
        rays = torch.full(six, torch.nan, dtype=dtype)
        if image.numel():
            call(
                "emulated_project",
                ctypes.byref(scene),
                c_void_p(pointer(geometry)),
                c_void_p(pointer(values)),
                c_void_p(pointer(image)),
                c_void_p(pointer(rays) if with_six else None),
            )
        return image, rays

    def backproject(
        self, images, geometry, tangent, volumes, size, spacing, flags, step, fixed
    ) -> Tensor:
        images, geometry = images.contiguous(), geometry.contiguous()
        tangent = None if tangent is None else tangent.contiguous()
        shape = volumes[0], images.shape[1], *volumes[1:]
        scene = _scene(geometry, images.dtype, shape, size, spacing, flags, step)
        # Numpy's zeros take no memory where nobody writes.
        values = torch.from_numpy(np.zeros(shape, str(images.dtype)[6:]))
        if not (images.numel() and values.numel()):
            return values
        bytes_ = min(self._workspace(scene, geometry, tangent, fixed), self.most_workspace)
        workspace = torch.full((bytes_,), 0xFF, dtype=torch.uint8)  # NaN, until it is written
        fixed = fixed and bytes_ == 0
        sums = torch.zeros(values.shape if fixed else 0, dtype=torch.int64)
        peak = torch.zeros(1, dtype=torch.int64)
        call(
            "emulated_backproject",
            ctypes.byref(scene),
            c_void_p(pointer(geometry)),
            c_void_p(pointer(tangent)),
            c_void_p(pointer(images)),
            c_void_p(pointer(values)),
            c_void_p(pointer(sums) if fixed else None),
            c_void_p(pointer(peak) if fixed else None),
            c_void_p(pointer(workspace) if bytes_ else None),
            c_int64(bytes_),
        )
        return values

    def _workspace(
        self, scene: Scene, geometry: Tensor, tangent: Tensor | None, fixed: bool
    ) -> int:
        function = library().emulated_gather_workspace
        function.restype = c_int64
        tensors = c_void_p(pointer(geometry)), c_void_p(pointer(tangent))
        return function(ctypes.byref(scene), *tensors, c_int(fixed or self.gathers))

    def gather_workspace(
        self, images: Tensor, geometry: Tensor, tangent: Tensor | None, n: int, spec, fixed: bool
    ) -> int:
        """Bytes that backproject asks for with the same arguments; 0 where it scatters."""
        shape = n, images.shape[1], *spec.grid
        scene = _scene(geometry, images.dtype, shape, *spec[1:])
        return self._workspace(scene, geometry, tangent, fixed)

    def reduce(self, six, images, cols, endpoints, flags) -> Tensor:
        six = six.contiguous()
        images = None if images is None else images.contiguous()
        views, channels, _, n = six.shape
        scene = Scene(
            n_views=views,
            n_channels=channels,
            rays=n,
            cols=cols,
            endpoints=endpoints,
            flags=flags,
            voxel=VOXELS.index(six.dtype),
        )
        shape = (views, n, 2, 3) if endpoints else (views, 4, 3)
        out = torch.full(shape, torch.nan, dtype=torch.float64)
        chunks = -(-n // library().emulated_reduce_chunk())
        partial = torch.full((views, chunks, 12), torch.nan, dtype=torch.float64)
        if six.numel() == 0:
            return out.zero_()
        arguments = (c_void_p(pointer(t)) for t in (six, images, partial, out))
        call("emulated_reduce", ctypes.byref(scene), *arguments)
        return out

    def tangent(self, six, tangents, size, flags) -> Tensor:
        six, tangents = six.contiguous(), tangents.contiguous()
        views, channels, _, n = six.shape
        endpoints = tangents.shape[2] == 2
        count = 1 if endpoints else tangents.shape[1]
        scene = Scene(
            n_views=views,
            n_channels=channels,
            rays=n,
            cols=size[1],
            endpoints=endpoints,
            flags=flags,
            voxel=VOXELS.index(six.dtype),
        )
        images = torch.full((views, channels, count, n), torch.nan, dtype=six.dtype)
        if images.numel():
            call(
                "emulated_tangent",
                ctypes.byref(scene),
                c_void_p(pointer(tangents)),
                c_int64(count),
                c_void_p(pointer(six)),
                c_void_p(pointer(images)),
            )
        return images

    def second(self, values, geometry, images, tangent, size, spacing, flags, step) -> Tensor:
        values, geometry, images, tangent = (
            t.contiguous() for t in (values, geometry, images, tangent)
        )
        scene = _scene(geometry, values.dtype, values.shape, size, spacing, flags, step)
        rays = torch.full((scene.n_views, 1, 6, scene.rays), torch.nan, dtype=torch.float64)
        if rays.numel():
            arguments = (c_void_p(pointer(t)) for t in (geometry, tangent, values, images, rays))
            call("emulated_second", ctypes.byref(scene), *arguments)
        return rays


@functools.cache
def emulated_ops() -> EmulatedOps:
    """The one emulator of this process; builds it on first use."""
    library()
    return EmulatedOps()
