"""The maps of poses of csrc/cuda on CPU tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_bool, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from .build import library
from .products import call

SIZES = {"perturb": (4, 4), "frames": (4, 3)}


class Operand(ctypes.Structure):
    """Operand of csrc/pose/pose_map.h."""

    _fields_ = [("data", c_void_p), *((n, c_int64) for n in ("view", "row", "col"))]


class MapInput(ctypes.Structure):
    """MapInput of csrc/pose/pose_map.h."""

    _fields_ = [("value", Operand), ("slope", Operand)]


class MapParams(ctypes.Structure):
    """MapParams of csrc/pose/pose_map.h."""

    _fields_ = [
        ("n_views", c_int64),
        ("inputs", MapInput * 3),
        ("g", Operand),
        ("out", c_void_p),
        ("on", c_void_p * 3),
        ("derivative", c_bool),
        ("extend", c_bool),
        ("beam", c_int),
    ]


def emulated_map(
    name: str,
    flags: Sequence[bool],
    inputs: Sequence[Tensor],
    g: Tensor | None = None,
    along: Sequence[Tensor | None] | None = None,
) -> Tensor | list[Tensor]:
    """The result of a map ("perturb" or "frames"), or with g the cotangents of its inputs; with
    directions `along`, the derivative of either."""
    assert library().emulated_map_params_bytes() == ctypes.sizeof(MapParams)
    views = max(len(x) for x in inputs)
    params = MapParams(n_views=views)
    for slot, value, slope in zip(params.inputs, inputs, along or (None,) * 3, strict=True):
        slot.value, slot.slope = _operand(value), _operand(slope)
    params.g = _operand(g)
    params.derivative = along is not None
    params.extend, params.beam = flags or (False, 0)
    if g is None:
        out = torch.full((views, *SIZES[name]), torch.nan, dtype=torch.float64)
        params.out = out.data_ptr()
    else:
        out = [torch.full((views, *x.shape[1:]), torch.nan, dtype=torch.float64) for x in inputs]
        params.on[:] = [on.data_ptr() for on in out]
    call(f"emulated_{name}", ctypes.byref(params))
    return out


def _operand(tensor: Tensor | None) -> Operand:
    if tensor is None:
        return Operand()
    assert tensor.dtype == torch.float64 and tensor.device.type == "cpu"
    view, row, *col = tensor.stride()
    return Operand(tensor.data_ptr(), 0 if len(tensor) == 1 else view, row, *col)
