"""Random images that vary everywhere, as small as a test wants them."""

from __future__ import annotations

import torch


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Smooth, strictly varying random images."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(*shape, generator=generator, dtype=torch.float64)
    return torch.nn.functional.avg_pool2d(
        torch.nn.functional.pad(noise, (1, 1, 1, 1), mode="replicate"), 3, 1
    ).to(dtype)
