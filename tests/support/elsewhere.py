"""A device that is one in name only: it shows, without a GPU, which tensors are on the wrong one.

Inside `with Elsewhere():` tensors that are made on DEVICE or moved there, and all that is computed
from them, say that they are there; their numbers stay in the CPU's memory. Where torch would refuse
a GPU's tensors beside the CPU's, so does this. What torch takes (numbers without dimensions,
indices, copies) passes. Neither backward passes nor forward-mode derivatives are looked at: what
torch's engine hands out bears no mark.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils import _pytree as pytree

DEVICE = torch.device("xpu", 0)
"""No kernel of drrkit knows it: what asks for CUDA takes the way of all other devices."""
CPU = torch.device("cpu")
_MARK = "_is_elsewhere"
_TAKES_BOTH = {"copy_", "__getitem__", "__setitem__", "data.__set__", "grad.__set__"} | {
    f"{name}_as" for name in ("expand", "view", "reshape", "type")
}
_ASKS = {"_parse_to", "_has_compatible_shallow_copy_type"}
_MOVES = {"to", "cpu", "type_as"}
_READS = {"numpy", "__array__", "numpy.__get__"}
_BACKWARD = {"torch.autograd.grad", "torch.autograd.backward", "backward"}


def is_elsewhere(tensor: Tensor) -> bool:
    return _MARK in tensor.__dict__


class Elsewhere(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = (resolve_name(func) or getattr(func, "__name__", str(func))).removeprefix(
            "torch.Tensor."
        )
        if name in _ASKS:
            return func(*args, **kwargs)
        tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        marked = [t for t in tensors if is_elsewhere(t)]
        if name in ("device.__get__", "is_cpu.__get__") and marked:
            return DEVICE if name == "device.__get__" else False
        if name in _READS and marked:
            raise TypeError(f"{name} of a tensor that is on {DEVICE}")
        others = [t for t in tensors if not is_elsewhere(t) and t.dim() > 0]
        others = [t for t in others if not torch._C._functorch.is_functorch_wrapped_tensor(t)]
        free = name in _BACKWARD | _TAKES_BOTH | _MOVES or forward_ad._current_level >= 0
        if marked and others and not free:
            shapes = [tuple(t.shape) for t in others]
            raise RuntimeError(f"{name}: tensors on {DEVICE} beside the CPU's of shapes {shapes}")
        there = bool(marked)
        if name == "__getitem__" or (func is torch.tensor and isinstance(args[0], list | tuple)):
            there = name == "__getitem__" and is_elsewhere(args[0])
        given = list(_devices(args, kwargs, name in _MOVES))
        if given:
            there = given[0] == DEVICE
        elif name == "cpu":
            there = False
        here = pytree.tree_map(lambda x: CPU if _is_there(x) else x, (args, kwargs))
        result = func(*here[0], **here[1])
        if name == "data.__set__" and is_elsewhere(args[1]):
            setattr(args[0], _MARK, True)
        return pytree.tree_map(lambda x: _placed(x, there) if isinstance(x, Tensor) else x, result)


def _is_there(x: Any) -> bool:
    return isinstance(x, torch.device | str) and str(x) in (str(DEVICE), DEVICE.type)


def _devices(args: Any, kwargs: Any, moves: bool) -> Iterator[torch.device]:
    """The devices that a call names, or those of a tensor whose device it wants."""
    if kwargs.get("device") is not None:
        yield torch.device(kwargs["device"])
    for arg in args[1:]:
        if isinstance(arg, torch.device):
            yield arg
        elif moves and isinstance(arg, str):
            yield torch.device(arg)
        elif moves and isinstance(arg, Tensor):
            yield DEVICE if is_elsewhere(arg) else CPU


def _placed(tensor: Tensor, there: bool) -> Tensor:
    if there:
        setattr(tensor, _MARK, True)
    elif is_elsewhere(tensor):
        return torch.ops.aten.alias(tensor)
    return tensor
