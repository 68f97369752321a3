"""Counts the raw products that run, as torch's dispatcher sees them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {"project", "project_packed", "backproject", "reduce", "tangent", "second"}


class Launches(TorchDispatchMode):
    """`with Launches() as ran:` counts the products that run in it, in this thread or backward's.

    ran.counts   by what is computed: "project" (a march for the image), "project+six" (one that
                 keeps the six-vectors too), "backproject" (P*), "backproject+tangent" (T*),
                 "reduce" (J from six-vectors), "tangent" (T from six-vectors), "second" (K),
                 "reduce second" (K's sum over the rays)
    ran.volumes  how many volumes N each march, scatter and K saw, in order
    ran.largest  elements of the largest tensor that anything but a product allocated
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.volumes: list[int] = []
        self.largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "drrkit":
            if func._schema.name.split("::")[1] in PRODUCTS:
                self._count(func, args)
        elif isinstance(result, torch.Tensor) and not func.is_view:
            elements = result.untyped_storage().nbytes() // result.element_size()
            self.largest = max(self.largest, elements)
        return result

    def _count(self, func: Any, args: tuple) -> None:
        name = func._schema.name.split("::")[1].removesuffix("_packed")
        if name == "project" and args[-1]:
            name = "project+six"
        elif name == "backproject" and args[2] is not None:
            name = "backproject+tangent"
        elif name == "reduce":
            name = "reduce" if args[1] is not None else "reduce second"
        self.counts[name] += 1
        if name.startswith("backproject"):
            self.volumes.append(args[3][0])
        elif name.startswith(("project", "second")):
            self.volumes.append(args[0].shape[0] if args[0].dim() == 5 else 1)
