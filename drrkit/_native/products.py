"""The six products as autograd Functions, closed under differentiation up to K.

P project, P* backproject, J frame cotangent, T tangent, T* its adjoint, K second order; formulas in
the headers of csrc/. Rules of this file:

- The six-vectors of a march are a second, non-differentiable output of P. They travel beside
  (values, geometry), which carry the dependence, and only save J and T their march.
- K is terminal: its backward and jvp raise. Forward over forward would need a seventh product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd import Function

from drrkit import _C
from drrkit._native import ops as _ops
from drrkit._native.functions import asked, call, complete, keep, total
from drrkit._native.ops import Spec


class _Product(Function):
    """Argument positions that the vmap rule needs."""

    volume: int | None = None  # of the volumes that are read
    source: int | None = None  # of the tensor that they are a view of
    count: int | None = None  # of the number of volumes that come out

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.spec = inputs[-1]
        keep(ctx, *(x for x in inputs if isinstance(x, Tensor)))


class Project(_Product):
    """P(values, geometry): images [B, C, P] and six-vectors [B, C, 6, P] or nothing."""

    volume = 0

    @staticmethod
    def forward(values: Tensor, geometry: Tensor, with_six: bool, spec: Spec):
        return _ops.project(values, geometry, with_six, spec)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.spec = inputs[3]
        keep(ctx, inputs[0], inputs[1], output[1])

    @staticmethod
    def backward(ctx, g, _):
        values, geometry, six = ctx.saved_tensors
        if g is None:
            return None, None, None, None
        on_values, on_geometry, *_ = asked(ctx)
        return (
            call(Backproject, g, geometry, values.shape[0], ctx.spec).to(values.dtype)
            if on_values
            else None,
            call(GeometryVjp, values, geometry, g, six, ctx.spec) if on_geometry else None,
            None,
            None,
        )


def _project_jvp(ctx, d_values, d_geometry, *_):
    values, geometry, six = ctx.saved_tensors
    image = total(
        None if d_values is None else call(Project, d_values, geometry, False, ctx.spec)[0],
        None if d_geometry is None else call(Tangent, values, geometry, d_geometry, six, ctx.spec),
    )
    return image, None


class ProjectPacked(_Product):
    """P(values, geometry) by what was prepared from `source`, of which `values` is a view.

    Values that take part in a derivative do not come here (see pack.py), and geometry's
    derivatives are those of Project.
    """

    volume, source = 0, 1

    @staticmethod
    def forward(
        values: Tensor, source: Tensor, geometry: Tensor, handle: int, with_six: bool, spec: Spec
    ):
        return _ops.project_packed(source, geometry, handle, with_six, spec)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.spec = inputs[5]
        keep(ctx, inputs[0], inputs[2], output[1])

    @staticmethod
    def backward(ctx, g, _):
        values, geometry, six = ctx.saved_tensors
        if g is None:
            return None, None, None, None, None, None
        on_geometry = call(GeometryVjp, values, geometry, g, six, ctx.spec)
        return None, None, on_geometry, None, None, None


def _project_packed_jvp(ctx, d_values, d_source, d_geometry, *_):
    values, geometry, six = ctx.saved_tensors
    if d_geometry is None:
        return None, None
    return call(Tangent, values, geometry, d_geometry, six, ctx.spec), None


class Backproject(_Product):
    """P*(images, geometry): n volumes."""

    count = 2

    @staticmethod
    def forward(images: Tensor, geometry: Tensor, n: int, spec: Spec):
        return _ops.backproject(images, geometry, None, n, spec)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.n, ctx.spec = inputs[2], inputs[3]
        keep(ctx, inputs[0], inputs[1])

    @staticmethod
    def backward(ctx, w):
        images, geometry = ctx.saved_tensors
        if w is None:
            return None, None, None, None
        on_images, on_geometry, *_ = asked(ctx)
        image = six = None
        if on_images or on_geometry:
            image, six = call(Project, w, geometry, on_geometry, ctx.spec)
        return (
            image if on_images else None,
            call(GeometryVjp, w, geometry, images, six, ctx.spec) if on_geometry else None,
            None,
            None,
        )


def _backproject_jvp(ctx, d_images, d_geometry, *_):
    images, geometry = ctx.saved_tensors
    return total(
        None if d_images is None else call(Backproject, d_images, geometry, ctx.n, ctx.spec),
        None
        if d_geometry is None
        else call(TangentAdjoint, images, geometry, d_geometry, ctx.n, ctx.spec),
    )


class GeometryVjp(_Product):
    """J(values, geometry, g): a cotangent of geometry; `six` may be empty and are then marched."""

    volume = 0

    @staticmethod
    def forward(values: Tensor, geometry: Tensor, g: Tensor, six: Tensor, spec: Spec):
        if six.numel() == 0:
            six = _ops.project(values, geometry, True, spec)[1]
        return _ops.reduce(six, g, geometry.dim() == 4, spec)

    @staticmethod
    def backward(ctx, d_geometry):
        values, geometry, g, six = ctx.saved_tensors
        if d_geometry is None:
            return None, None, None, None, None
        wanted = asked(ctx)
        along = call(Tangent, values, geometry, d_geometry, six, ctx.spec) if wanted[2] else None
        return *_on_both(wanted, values, geometry, g, d_geometry, ctx.spec), along, None, None


def _geometry_vjp_jvp(ctx, d_values, d_geometry, d_g, *_):
    values, geometry, g, six = ctx.saved_tensors
    nothing = g.new_empty(0)
    return total(
        None if d_values is None else call(GeometryVjp, d_values, geometry, g, nothing, ctx.spec),
        # The Hessian is symmetric: K serves forward over reverse as well.
        None if d_geometry is None else call(Second, values, geometry, g, d_geometry, ctx.spec),
        None if d_g is None else call(GeometryVjp, values, geometry, d_g, six, ctx.spec),
    )


class Tangent(_Product):
    """T(values, geometry, d_geometry): images; `six` may be empty and are then marched."""

    volume = 0

    @staticmethod
    def forward(values: Tensor, geometry: Tensor, d_geometry: Tensor, six: Tensor, spec: Spec):
        if six.numel() == 0:
            six = _ops.project(values, geometry, True, spec)[1]
        return _ops.tangent(six, d_geometry, spec)

    @staticmethod
    def backward(ctx, h):
        values, geometry, d_geometry, six = ctx.saved_tensors
        if h is None:
            return None, None, None, None, None
        wanted = asked(ctx)
        back = call(GeometryVjp, values, geometry, h, six, ctx.spec) if wanted[2] else None
        return *_on_both(wanted, values, geometry, h, d_geometry, ctx.spec), back, None, None


def _on_both(
    wanted: tuple[bool, ...], values: Tensor, geometry: Tensor, g: Tensor, along: Tensor, spec: Spec
) -> tuple[Tensor | None, Tensor | None]:
    """Cotangents of values and geometry in <g, T(values, geometry, along)>, where wanted."""
    adjoint = second = None
    if wanted[0]:
        adjoint = call(TangentAdjoint, g, geometry, along, values.shape[0], spec).to(values.dtype)
    if wanted[1]:
        second = call(Second, values, geometry, g, along, spec)
    return adjoint, second


class TangentAdjoint(_Product):
    """T*(images, geometry, d_geometry): n volumes."""

    count = 3

    @staticmethod
    def forward(images: Tensor, geometry: Tensor, d_geometry: Tensor, n: int, spec: Spec):
        return _ops.backproject(images, geometry, d_geometry, n, spec)

    @staticmethod
    def backward(ctx, w):
        images, geometry, d_geometry = ctx.saved_tensors
        if w is None:
            return None, None, None, None, None
        on_images, on_geometry, on_tangent, *_ = asked(ctx)
        nothing = images.new_empty(0)
        return (
            call(Tangent, w, geometry, d_geometry, nothing, ctx.spec) if on_images else None,
            call(Second, w, geometry, images, d_geometry, ctx.spec) if on_geometry else None,
            call(GeometryVjp, w, geometry, images, nothing, ctx.spec) if on_tangent else None,
            None,
            None,
        )


class Second(_Product):
    """K(values, geometry, g, d_geometry): a cotangent of geometry. The last derivative there is."""

    volume = 0

    @staticmethod
    def forward(values: Tensor, geometry: Tensor, g: Tensor, d_geometry: Tensor, spec: Spec):
        if spec.flags & (_C.LINE | _C.FOOT):
            raise NotImplementedError(
                "drrkit.project: twice in the geometry exists for trilinear only with "
                "derivative='exact' and anchor='source'"
            )
        six = _ops.second(values, geometry, g, d_geometry, spec)
        return _ops.reduce(six, None, geometry.dim() == 4, spec)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, _):
        raise NotImplementedError(
            "drrkit.project: third derivatives do not exist; twice in the geometry is the last"
        )


def _no_jvp(ctx, *_):
    raise NotImplementedError(
        "drrkit.project: forward over forward does not exist; use jacfwd(jacrev(f))"
    )


# ---- vmap: one launch, and no copy of a volume


def _vmap_of(product: type[_Product]) -> Callable:
    """The rule of a product: fold the mapped axis into the views.

    The axis goes outside the views where volumes are mapped or come out, for view b reads volume
    b // (B / N); inside them, one set of volumes serves every slice.
    """
    # Dynamo of torch 2.10 cannot compare a Function's attributes with None.
    volume, source, count = product.volume, product.source, product.count

    def rule(function: type[_Product], info: Any, in_dims: tuple, *args: Any):
        size = info.batch_size
        mapped = volume is not None and in_dims[volume] is not None
        outside = count is not None or mapped
        axis = 0 if outside else 1
        folded = []
        for position, (arg, dim) in enumerate(zip(args, in_dims, strict=True)):
            if position == count:
                arg = arg * size
            elif isinstance(arg, Tensor) and arg.dim() > 1:
                arg = _fold(arg, dim, axis, size, keep=position in (volume, source))
            folded.append(arg)
        out = call(function, *folded)
        outputs = out if isinstance(out, tuple) else (out,)
        shape = (size, -1) if outside else (-1, size)
        split = tuple(o.unflatten(0, shape) if o.dim() > 1 else o for o in outputs)
        dims = tuple(axis if o.dim() > 1 else None for o in outputs)
        return (split, dims) if isinstance(out, tuple) else (split[0], dims[0])

    return rule


def _fold(arg: Tensor, dim: int | None, axis: int, size: int, keep: bool) -> Tensor:
    if dim is not None:
        return arg.movedim(dim, axis).flatten(0, 1)
    if keep:
        return arg
    shape = (*arg.shape[:axis], size, *arg.shape[axis:])
    return arg.unsqueeze(axis).expand(shape).flatten(0, 1)


for _product, _jvp in (
    (Project, _project_jvp),
    (ProjectPacked, _project_packed_jvp),
    (Backproject, _backproject_jvp),
    (GeometryVjp, _geometry_vjp_jvp),
    (Tangent, _no_jvp),
    (TangentAdjoint, _no_jvp),
    (Second, _no_jvp),
):
    complete(_product, _jvp, _vmap_of(_product))
