"""The maps perturb and frames as autograd Functions, closed under two derivatives.

A map m(x0, x1, x2) takes one item per view or one for all views and is computed by one native op
(csrc/pose). So are its adjoint and the derivatives of both along a direction: a rule calls these
Functions, so every derivative up to the second is one op. The last, MapSecond, is terminal, and
forward over forward would need the second derivative along two directions: both raise.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from drrkit._native import ops as _ops
from drrkit._native.functions import asked, call, complete, keep, total

INPUTS = 3


def apply_map(name: str, flags: int, *inputs: Tensor) -> Tensor:
    """m(x): [B, rows, cols] float64. name: "perturb" or "frames"; inputs as in ops.py."""
    return call(MapValue, name, flags, *inputs)


class _Map(Function):
    """Functions of a map's name, its flags, and tensors."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.map = inputs[:2]
        keep(ctx, *inputs[2:])


class MapValue(_Map):
    """m(x)."""

    @staticmethod
    def forward(name: str, flags: int, x0: Tensor, x1: Tensor, x2: Tensor):
        return _ops.map_value(name, flags, (x0, x1, x2))

    @staticmethod
    def backward(ctx, g):
        inputs = ctx.saved_tensors
        if g is None:
            return (None,) * (2 + INPUTS)
        cotangents = call(MapVjp, *ctx.map, *inputs, g)
        return None, None, *_for_inputs(asked(ctx)[2:], cotangents, inputs)


def _value_jvp(ctx, _name, _flags, *directions):
    return call(MapJvp, *ctx.map, *ctx.saved_tensors, *directions)


class MapVjp(_Map):
    """Cotangents of x, one item per view, from the cotangent g of m(x)."""

    @staticmethod
    def forward(name: str, flags: int, x0: Tensor, x1: Tensor, x2: Tensor, g: Tensor):
        return _ops.map_vjp(name, flags, (x0, x1, x2), g)

    @staticmethod
    def backward(ctx, *directions):
        *inputs, g = ctx.saved_tensors
        if all(d is None for d in directions):
            return (None,) * (3 + INPUTS)
        *on_inputs, on_g = asked(ctx)[2:]
        second = [None] * INPUTS
        if any(on_inputs):
            cotangents = call(MapSecond, *ctx.map, *inputs, g, *directions)
            second = _for_inputs(on_inputs, cotangents, inputs)
        return None, None, *second, call(MapJvp, *ctx.map, *inputs, *directions) if on_g else None


def _vjp_jvp(ctx, _name, _flags, *directions):
    *inputs, g = ctx.saved_tensors
    *along, d_g = directions
    none = [None] * INPUTS
    # MapSecond derivatives commute: MapSecond serves forward over reverse as well.
    still = all(d is None for d in along)
    second = none if still else call(MapSecond, *ctx.map, *inputs, g, *along)
    first = none if d_g is None else call(MapVjp, *ctx.map, *inputs, d_g)
    return tuple(map(total, second, first))


class MapJvp(_Map):
    """The derivative of m(x) along d, whose missing parts are None."""

    @staticmethod
    def forward(name: str, flags: int, x0: Tensor, x1: Tensor, x2: Tensor, d0, d1, d2):
        return _ops.map_value(name, flags, (x0, x1, x2), (d0, d1, d2))

    @staticmethod
    def backward(ctx, g):
        inputs, directions = ctx.saved_tensors[:INPUTS], ctx.saved_tensors[INPUTS:]
        if g is None:
            return (None,) * (2 + 2 * INPUTS)
        wanted = asked(ctx)[2:]
        on_inputs = on_directions = [None] * INPUTS
        if any(wanted[:INPUTS]):
            cotangents = call(MapSecond, *ctx.map, *inputs, g, *directions)
            on_inputs = _for_inputs(wanted[:INPUTS], cotangents, inputs)
        if any(wanted[INPUTS:]):
            cotangents = call(MapVjp, *ctx.map, *inputs, g)
            on_directions = _for_inputs(wanted[INPUTS:], cotangents, directions)
        return None, None, *on_inputs, *on_directions


class MapSecond(_Map):
    """The derivative of MapVjp along d. The last there is."""

    @staticmethod
    def forward(name: str, flags: int, x0: Tensor, x1: Tensor, x2: Tensor, g: Tensor, d0, d1, d2):
        return _ops.map_vjp(name, flags, (x0, x1, x2), g, (d0, d1, d2))

    @staticmethod
    def backward(ctx, *_):
        raise NotImplementedError(f"drrkit.{ctx.map[0]}: third derivatives do not exist")


def _no_jvp(ctx, name, *_):
    raise NotImplementedError(
        f"drrkit.{name}: forward over forward does not exist; use jacfwd(jacrev(f))"
    )


def _for_inputs(wanted: Any, cotangents: Any, inputs: Any) -> list[Tensor | None]:
    """The cotangents that are wanted, summed over the views that share an item."""
    return [
        (on.sum(0, keepdim=True) if len(x) == 1 != len(on) else on) if wants else None
        for wants, on, x in zip(wanted, cotangents, inputs, strict=True)
    ]


def _vmap(function: type[Function], info: Any, in_dims: tuple, name: str, flags: int, *args: Any):
    """Fold the mapped axis into the views; what is neither mapped nor a view's stays shared."""
    pairs = [
        (arg if dim is None else arg.movedim(dim, 0), dim)
        for arg, dim in zip(args, in_dims[2:], strict=True)
    ]
    items = [arg.shape[0 if dim is None else 1] for arg, dim in pairs if arg is not None]
    shape = info.batch_size, next((n for n in items if n != 1), 1)
    folded = [_fold(arg, dim, shape) for arg, dim in pairs]
    out = call(function, name, flags, *folded)
    if isinstance(out, tuple):
        return tuple(o.unflatten(0, shape) for o in out), (0,) * len(out)
    return out.unflatten(0, shape), 0


def _fold(arg: Tensor | None, dim: int | None, shape: tuple[int, int]) -> Tensor | None:
    """[size, b, ...] if mapped, else [b, ...]: as [size * views, ...], or [1, ...] for all."""
    if arg is None or (dim is None and len(arg) == 1):
        return arg
    arg = arg if dim is not None else arg.unsqueeze(0)
    return arg.expand(*shape, *arg.shape[2:]).flatten(0, 1)


for _function, _jvp in (
    (MapValue, _value_jvp),
    (MapVjp, _vjp_jvp),
    (MapJvp, _no_jvp),
    (MapSecond, _no_jvp),
):
    complete(_function, _jvp, _vmap)
