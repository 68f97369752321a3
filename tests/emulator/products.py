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

from .build import library

VOXELS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Scene(ctypes.Structure):
    """SceneNumbers of products.cpp."""

    _fields_ = [
        *((n, c_int64) for n in ("nx", "ny", "nz", "n_views", "n_channels", "n_volumes")),
        *((n, c_int64) for n in ("cols", "rays", "endpoints", "mode", "voxel")),
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


def _scene(geometry: Tensor, dtype: torch.dtype, volumes: int, channels: int, **numbers) -> Scene:
    """From frames [B, 4, 3] or end points [B, P, 2, 3], and the ops' own numbers."""
    endpoints = geometry.dim() == 4
    rays = geometry.shape[1] if endpoints else numbers["rows"] * numbers["cols"]
    numbers.pop("rows")
    return Scene(
        n_views=geometry.shape[0],
        n_volumes=volumes,
        n_channels=channels,
        rays=rays,
        endpoints=endpoints,
        voxel=VOXELS.index(dtype),
        **numbers,
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
        self, values, geometry, rows, cols, sx, sy, sz, mode, step, with_rays
    ) -> tuple[Tensor, Tensor]:
        volumes, channels, nz, ny, nx = values.shape
        values, geometry = values.contiguous(), geometry.contiguous()
        numbers = {"rows": rows, "cols": cols, "sx": sx, "sy": sy, "sz": sz, "mode": mode}
        scene = _scene(
            geometry, values.dtype, volumes, channels, nx=nx, ny=ny, nz=nz, step=step, **numbers
        )
        dtype = scalar_of(values.dtype)
        image = torch.full((scene.n_views, channels, scene.rays), torch.nan, dtype=dtype)
        six = (scene.n_views, channels, 6, scene.rays) if with_rays else (0,)
        rays = torch.full(six, torch.nan, dtype=dtype)
        if image.numel():
            call(
                "emulated_project",
                ctypes.byref(scene),
                c_void_p(pointer(geometry)),
                c_void_p(pointer(values)),
                c_void_p(pointer(image)),
                c_void_p(pointer(rays) if with_rays else None),
            )
        return image, rays

    def backproject(
        self, images, geometry, tangent, n, nz, ny, nx, rows, cols, sx, sy, sz, mode, step, fixed
    ) -> Tensor:
        images, geometry = images.contiguous(), geometry.contiguous()
        tangent = None if tangent is None else tangent.contiguous()
        channels = images.shape[1]
        numbers = {"rows": rows, "cols": cols, "sx": sx, "sy": sy, "sz": sz, "mode": mode}
        scene = _scene(
            geometry, images.dtype, n, channels, nx=nx, ny=ny, nz=nz, step=step, **numbers
        )
        # Numpy's zeros take no memory where nobody writes.
        values = torch.from_numpy(np.zeros((n, channels, nz, ny, nx), str(images.dtype)[6:]))
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
        function = library().emulated_backproject_workspace
        function.restype = c_int64
        tensors = c_void_p(pointer(geometry)), c_void_p(pointer(tangent))
        return function(ctypes.byref(scene), *tensors, c_int(fixed or self.gathers))

    def backproject_workspace(
        self, images: Tensor, geometry: Tensor, tangent: Tensor | None, n: int, spec, fixed: bool
    ) -> int:
        """Bytes that backproject asks for with the same arguments; 0 where it scatters."""
        scene = _scene(geometry, images.dtype, n, images.shape[1], **spec._asdict())
        return self._workspace(scene, geometry, tangent, fixed)

    def reduce_rays(self, rays, images, cols, endpoints, parallel) -> Tensor:
        rays = rays.contiguous()
        images = None if images is None else images.contiguous()
        views, channels, _, n = rays.shape
        scene = Scene(
            n_views=views,
            n_channels=channels,
            rays=n,
            cols=cols,
            endpoints=endpoints,
            mode=_ops.PARALLEL * parallel,
            voxel=VOXELS.index(rays.dtype),
        )
        shape = (views, n, 2, 3) if endpoints else (views, 4, 3)
        out = torch.full(shape, torch.nan, dtype=torch.float64)
        chunks = -(-n // library().emulated_reduce_chunk())
        partial = torch.full((views, chunks, 12), torch.nan, dtype=torch.float64)
        if rays.numel() == 0:
            return out.zero_()
        arguments = (c_void_p(pointer(t)) for t in (rays, images, partial, out))
        call("emulated_reduce", ctypes.byref(scene), *arguments)
        return out

    def tangent(self, rays, tangents, rows, cols, parallel) -> Tensor:
        rays, tangents = rays.contiguous(), tangents.contiguous()
        views, channels, _, n = rays.shape
        endpoints = tangents.shape[2] == 2
        count = 1 if endpoints else tangents.shape[1]
        scene = Scene(
            n_views=views,
            n_channels=channels,
            rays=n,
            cols=cols,
            endpoints=endpoints,
            mode=_ops.PARALLEL * parallel,
            voxel=VOXELS.index(rays.dtype),
        )
        images = torch.full((views, channels, count, n), torch.nan, dtype=rays.dtype)
        if images.numel():
            call(
                "emulated_tangent",
                ctypes.byref(scene),
                c_void_p(pointer(tangents)),
                c_int64(count),
                c_void_p(pointer(rays)),
                c_void_p(pointer(images)),
            )
        return images

    def second(
        self, values, geometry, images, tangent, rows, cols, sx, sy, sz, mode, step
    ) -> Tensor:
        values, geometry, images, tangent = (
            t.contiguous() for t in (values, geometry, images, tangent)
        )
        volumes, channels, nz, ny, nx = values.shape
        numbers = {"rows": rows, "cols": cols, "sx": sx, "sy": sy, "sz": sz, "mode": mode}
        scene = _scene(
            geometry, values.dtype, volumes, channels, nx=nx, ny=ny, nz=nz, step=step, **numbers
        )
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
