"""Large batches of views, compared a few at a time: intermediate results stay in the cache.

A comparison of one view makes ten to fifty intermediate images. Those of hundreds of candidate
poses do not fit the processor's cache and, kept for the gradient, fill the memory. So views are
compared in groups, and a group's backward pass repeats its comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import repeat

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

Comparison = Callable[..., Tensor]
"""compare(moving [b, ...], *parts) -> [b]; each part is [b, ...], [1, ...] or None."""

# Numbers in one intermediate result of a group. On the CPU a megabyte in float32: large enough to
# hide the cost of a call, small enough for the second or third level cache. A GPU wants full
# launches and has the bandwidth; only the memory limits a group.
_CPU_NUMBERS = 2**18
_GPU_NUMBERS = 2**24


def by_views(compare: Comparison, moving: Tensor, *parts: Tensor | None, images: int = 1) -> Tensor:
    """compare(moving, *parts) -> [B], in groups of views.

    Args:
        compare: a pure function whose result for a view depends on that view alone.
        moving: [B, ...].
        parts: [B, ...], [1, ...] (serves all views) or None.
        images: how many times as large as the image the largest intermediate result of a view is.
    """
    if moving.shape[0] == 0:
        return moving.flatten(1).sum(dim=1)  # no losses, yet a graph
    if _is_transformed():
        return compare(moving, *parts)
    budget = _CPU_NUMBERS if moving.device.type == "cpu" else _GPU_NUMBERS
    views = max(1, budget // (images * moving[:1].numel()))
    batch = moving.shape[0]
    if batch <= views:
        return compare(moving, *parts)
    tensors = [part for part in (moving, *parts) if part is not None]
    recompute = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    values = [
        checkpoint(compare, *group, use_reentrant=False, preserve_rng_state=False)
        if recompute
        else compare(*group)
        for group in _groups(views, batch, moving, *parts)
    ]
    return torch.cat(values)


def _groups(views: int, batch: int, *parts: Tensor | None) -> Iterator[tuple[Tensor | None, ...]]:
    """The parts of `views` views at a time; a part shared by all views goes to every group."""
    # split, not slices: its backward is one concatenation.
    return zip(
        *(
            part.split(views) if part is not None and part.shape[0] == batch else repeat(part)
            for part in parts
        ),
        strict=False,
    )


def _is_transformed() -> bool:
    """Whether a compiler, torch.func or forward mode is at work, which recompute by themselves."""
    if torch.compiler.is_compiling():
        return True
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
