"""Layer normalisation of channels, and images at a network's size."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ChannelNorm", "resized"]


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of every pixel: [B, C, rows, cols] -> the same."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, image: Tensor) -> Tensor:
        centred = image - image.mean(1, keepdim=True)
        variance = centred.square().mean(1, keepdim=True)
        weight, bias = self.weight[:, None, None], self.bias[:, None, None]
        return weight * centred / (variance + self.eps).sqrt() + bias


def resized(image: Tensor, size: int) -> Tensor:
    """[B, C, rows, cols] -> [B, C, size, size]: means of what each pixel covers, or bilinear."""
    rows, cols = image.shape[-2:]
    if (rows, cols) == (size, size):
        return image
    if min(rows, cols) >= size:
        return functional.adaptive_avg_pool2d(image, size)
    return functional.interpolate(image, (size, size), mode="bilinear", align_corners=False)
