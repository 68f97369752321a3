"""Weights of several losses that are learned with the network and cannot run away."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["UncertaintyWeights"]


class UncertaintyWeights(nn.Module):
    """sum_i L_i exp(-s_i) / 2 + s_i / 2 with learned log variances s_i = log sigma_i^2.

    Kendall, Gal, Cipolla, "Multi-task learning using uncertainty to weigh losses", CVPR 2018, with
    one change. Written with sigma itself, or with s unbounded, a loss that can become negative
    drives sigma to 0 and the sum to minus infinity. Here s_i = bound tanh(p_i / bound): no weight
    leaves [exp(-bound), exp(bound)] / 2, near 0 s_i is p_i, and the sum is bounded below wherever
    the losses are.

    Args:
        losses: how many.
        bound: the largest |s_i|.
    """

    def __init__(self, losses: int, bound: float = 3.0) -> None:
        super().__init__()
        if losses < 1 or not bound > 0:
            raise ValueError(
                f"losses, bound: expected positive numbers, got {losses!r} and {bound!r}"
            )
        self.bound = bound
        self.free = nn.Parameter(torch.zeros(losses))

    @property
    def log_variance(self) -> Tensor:
        """s_i, [losses]."""
        return self.bound * torch.tanh(self.free / self.bound)

    def forward(self, *losses: Tensor) -> Tensor:
        """The weighted sum [] of as many losses [] as there are weights."""
        if len(losses) != len(self.free):
            raise ValueError(f"losses: expected {len(self.free)} of them, got {len(losses)}")
        s = self.log_variance
        return 0.5 * (torch.stack(losses) * (-s).exp() + s).sum()
