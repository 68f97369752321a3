"""How drrkit's autograd Functions fit into torch: which form to apply, what to save and compute.

Dynamo refuses a Function with a jvp, functorch wants forward and setup_context apart, and plain
eager mode is four times faster when they are one. So `complete` makes three forms of a Function,
and `call` applies the one that fits, or just its forward where nothing will be derived. A rule of
a Function (backward, jvp) calls Functions or torch operations, never a raw op of drrkit: that would
be silently wrong at second order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd import Function, forward_ad
from torch.torch_version import TorchVersion


def complete(function: Any, jvp: Callable, vmap: Callable) -> None:
    """Give a Function its other forms: `eager` with a jvp, and `undivided`, the same in one piece.

    function  a Function with forward, setup_context and backward; gains attributes
    vmap      (function, info, in_dims, *args) -> (outputs, out_dims)
    """

    def rule(info, in_dims, *args):
        return vmap(function, info, in_dims, *args)

    def forward(ctx, *args):
        output = function.forward(*args)
        function.setup_context(ctx, args, output)
        return output

    name = function.__name__
    function.vmap = staticmethod(rule)
    function.eager = type(name + "Eager", (function,), {"jvp": staticmethod(jvp)})
    one_piece = {"forward": staticmethod(forward), "setup_context": Function.setup_context}
    function.undivided = type(name + "Undivided", (function.eager,), one_piece)


# Before 2.12, if the graph breaks inside vjp, the function that vjp returns is compiled on its own
# and returns zeros; this affects every autograd Function, not only drrkit's.
LOSES_GRADIENTS = torch.__version__ < TorchVersion("2.12")


def _refuse_lost_gradients() -> None:
    """Raise where grad, vjp or jacrev is the outermost transform around compiled code, or in it."""
    transforms = torch._C._functorch.get_interpreter_stack()
    if transforms and transforms[0].key() == torch._C._functorch.TransformType.Grad:
        raise RuntimeError(
            f"torch {torch.__version__} can lose gradients where torch.compile meets grad, vjp or "
            "jacrev: they would be zero. Leave one of the two out, or use torch 2.12 or newer"
        )


@_disable_dynamo  # unlike torch._dynamo.disable it does not import dynamo: two seconds
def _eagerly(function: Any, *args: Any):
    if LOSES_GRADIENTS:
        _refuse_lost_gradients()
    return function.eager.apply(*args)


def call(function: Any, *args: Any):
    """Apply a Function in the form that the surrounding transforms support, if there are any."""
    transformed = torch._C._are_functorch_transforms_active()
    if torch.compiler.is_compiling():
        return _eagerly(function, *args) if transformed else function.apply(*args)
    if transformed:
        # Dynamo's callback is set in all that compiled code calls, also where dynamo gave up.
        if LOSES_GRADIENTS and torch._C._dynamo.eval_frame.get_eval_frame_callback() is not None:
            _refuse_lost_gradients()
        return function.eager.apply(*args)
    return function.undivided.apply(*args) if _followed(args) else function.forward(*args)


def _followed(args: tuple) -> bool:
    """Whether autograd or forward mode follows what is computed from these arguments."""
    if forward_ad._current_level >= 0:
        return True
    if torch.is_grad_enabled():
        for arg in args:
            if isinstance(arg, Tensor) and arg.requires_grad:
                return True
    return False


def keep(ctx: Any, *tensors: Tensor) -> None:
    """Save tensors for both modes; missing cotangents and tangents stay None."""
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def asked(ctx: Any) -> tuple[bool, ...]:
    """Which inputs the running backward really wants.

    needs_input_grad is fixed at forward time: autograd.grad(loss, pose) would still scatter into a
    volume that requires a gradient, so the engine is asked too, where there is a choice.
    """
    needed = ctx.needs_input_grad
    if (
        sum(needed) < 2
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
    ):
        return needed

    def executes(node: Any) -> bool:
        try:
            return torch._C._will_engine_execute_node(node)
        except RuntimeError:  # torch cannot tell for a leaf that autograd.grad names
            return True

    nodes = iter([node for node, _ in ctx.next_functions if node is not None])
    return tuple(need and executes(next(nodes)) for need in needed)


def total(*terms: Tensor | None) -> Tensor | None:
    """Sum of the terms that are not None."""
    present = [term for term in terms if term is not None]
    return sum(present[1:], present[0]) if present else None
