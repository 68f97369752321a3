"""Prepared volumes of csrc/cuda on the emulator, in the place of drrkit._C's.

with emulated_packs() as ops: ...      Projectors of CPU tensors prepare what CUDA ones would
capture() -> Graph                     what is launched inside belongs to a graph
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Iterator, Sequence
from ctypes import c_bool, c_char_p, c_int, c_int32, c_int64, c_void_p
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from drrkit import _C
from drrkit._native import pack as _pack
from drrkit._native.ops import VOXELS

from .build import library
from .products import EmulatedOps, _scene, emulated_ops, pointer, scalar_of


def _call(name: str, *arguments: object) -> None:
    function = getattr(library(), name)
    function.restype = c_char_p
    error = function(*arguments)
    if error is not None:
        text = error.decode()
        raise MemoryError(text) if text == "no memory" else RuntimeError(text)


class CudaPackedVolume:
    """drrkit._C.CudaPackedVolume."""

    def __init__(
        self, device: int, shape: Sequence[int], voxel: int, texel: int, bricks: Sequence[int]
    ) -> None:
        self._made, self._kept = c_void_p(), []
        images, voxels = shape[0] * shape[1], math.prod(shape[2:])
        self._texels = voxels * (4 if _C.VOXELS[texel] == "float32" else 2)
        copy = images * voxels * VOXELS[voxel].itemsize
        self._bytes = (4 * images, copy, 32 * shape[0], shape[0] * math.prod(bricks))
        _call(
            "emulated_packed_new",
            ctypes.byref(self._made),
            (c_int64 * 5)(*shape),
            c_int(voxel),
            c_int(texel),
            (c_int32 * 3)(*bricks),
        )

    def __del__(self) -> None:
        if self._made:
            library().emulated_packed_delete(self._made)

    def _number(self, name: str) -> int:
        function = getattr(library(), name)
        function.restype = c_int64
        return function(self._made)

    @property
    def handle(self) -> int:
        return self._number("emulated_packed_handle")

    @property
    def bytes(self) -> int:
        return self._number("emulated_packed_bytes")

    @property
    def uses(self) -> int:
        return self._number("emulated_packed_uses")

    def fill_texture(self, image: int, axis: int, texels: int, stream: int) -> None:
        source = self._lasting(texels, self._texels)
        numbers = c_int64(image), c_int(axis), source, c_void_p(stream)
        _call("emulated_packed_fill_texture", self._made, *numbers)

    def fill(self, scale: int, copy: int, occupied: int, distance: int, stream: int) -> None:
        sources = zip((scale, copy, occupied, distance), self._bytes, strict=True)
        where = [self._lasting(*source) for source in sources]
        _call("emulated_packed_fill", self._made, *where, c_void_p(stream))

    def _lasting(self, address: int, size: int) -> Any:
        """The bytes as they are now, for copies that a stream puts off: torch frees a GPU's memory
        in the order of its streams, and that of the CPU at once."""
        self._kept.append(ctypes.create_string_buffer(ctypes.string_at(address, size), size))
        return self._kept[-1]

    def publish(self, data: int, version: int, textures: bool) -> None:
        library().emulated_packed_publish(
            self._made, c_void_p(data), c_int64(version), c_bool(textures)
        )


class PackedOps(EmulatedOps):
    """The emulator's ops with project_packed, and which of the two paths was taken."""

    def __init__(self) -> None:
        self.packed = self.plain = 0
        self.kept: list[object] = []
        self.stream = 0  # of packed launches and of fillings

    @contextlib.contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        """Packed launches and fillings inside go to this stream."""
        self.stream = stream.address
        yield
        self.stream = 0

    def project_packed(
        self, source, geometry, handle, size, spacing, flags, step, with_six
    ) -> tuple[Tensor, Tensor]:
        shape = _pack._shape(source)
        channels, geometry = shape[1], geometry.contiguous()
        scene = _scene(geometry, source.dtype, shape, size, spacing, flags, step)
        dtype = scalar_of(source.dtype)
        image = torch.full((scene.n_views, channels, scene.rays), torch.nan, dtype=dtype)
        six = (scene.n_views, channels, 6, scene.rays) if with_six else (0,)
        rays = torch.full(six, torch.nan, dtype=dtype)
        error = c_char_p()
        function = library().emulated_project_packed
        function.restype = c_bool
        served = source.is_contiguous() and function(
            ctypes.byref(scene),
            c_void_p(pointer(geometry)),
            c_void_p(source.data_ptr()),
            c_int64(source._version),
            c_int64(handle),
            c_void_p(pointer(image)),
            c_void_p(pointer(rays) if with_six else None),
            c_void_p(self.stream),
            ctypes.byref(error),
        )
        if error.value is not None:
            raise RuntimeError(f"drrkit: CUDA launch failed: {error.value.decode()}")
        if self.stream:  # the launch is yet to come
            self.kept.append((geometry, source, image, scene))
        self.packed += served
        self.plain += not served
        if served:
            return image, rays
        values = source.reshape(shape)
        return self.project(values, geometry, size, spacing, flags, step, with_six)


@contextlib.contextmanager
def emulated_packs() -> Iterator[PackedOps]:
    """drrkit on the emulator, preparing what it would on a GPU."""
    emulated_ops()
    ops = PackedOps()
    native = SimpleNamespace(**vars(_C))
    native.CudaPackedVolume, native.has_cuda = CudaPackedVolume, True
    with ops.in_place(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(_pack, "_C", native)
        patch.setattr(_pack, "_is_cuda", lambda values: True)
        patch.setattr(_pack, "_stream", lambda device: ops.stream)
        patch.setattr(_pack, "_free_bytes", lambda device: 1 << 40)
        patch.setattr(_pack, "_is_capturing", lambda: _capturing)
        yield ops


_capturing = False


class Graph:
    """A graph that was captured; keeps what its launches read until it is destroyed."""

    def __init__(self, address: int) -> None:
        self._address = address

    def destroy(self) -> None:
        library().emulated_graph_destroy(c_void_p(self._address))


@contextlib.contextmanager
def capture() -> Iterator[list[Graph]]:
    """Launches inside are captured; the list holds the graph afterwards."""
    global _capturing
    graphs: list[Graph] = []
    library().emulated_capture_begin()
    _capturing = True
    try:
        yield graphs
    finally:
        _capturing = False
        library().emulated_capture_end.restype = c_void_p
        graph = library().emulated_capture_end()
    if graph is None:
        raise RuntimeError("the capture was ended by a call that waits for the device")
    graphs.append(Graph(graph))


class Stream:
    """A stream whose work is put off until somebody waits for it."""

    def __init__(self) -> None:
        library().emulated_stream_new.restype = c_void_p
        self.address = library().emulated_stream_new()

    def synchronize(self) -> None:
        error = library().emulated_stream_synchronize(c_void_p(self.address))
        assert error == 0

    def __del__(self) -> None:
        library().emulated_stream_delete(c_void_p(self.address))
