"""What is installed: versions, what drrkit was compiled for, and which devices are there."""

from __future__ import annotations

import platform
from typing import Any

import torch

from drrkit.machine import versions

__all__ = ["describe"]


def describe() -> dict[str, Any]:
    """Everything that `drrkit info` tells of an installation."""
    from drrkit import _C

    try:
        from drrkit import _build
    except ImportError:
        built: dict[str, Any] = {}
    else:
        names = ("torch", "cuda", "nvcc", "architectures", "python")
        built = {name: getattr(_build, name.upper(), None) for name in names}
    devices = [
        {
            "device": "cpu",
            "name": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "instructions": _C.cpu_capability(),
        }
    ]
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "device": f"cuda:{index}",
                "name": card.name,
                "capability": f"{card.major}.{card.minor}",
                "memory_gib": round(card.total_memory / 2**30, 1),
                "usable": bool(_C.has_cuda),
            }
        )
    return {
        "versions": versions(),
        "built_for": built,
        "cuda_kernels": bool(_C.has_cuda),
        "torch_cuda": torch.version.cuda,
        "platform": platform.platform(),
        "devices": devices,
    }
