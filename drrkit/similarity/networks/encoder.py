"""The 2D encoders of the 2020 network: convolutions, bottlenecks, pooling."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["NORMS", "Bottleneck", "ImageEncoder", "normalisation"]

NORMS = ("group", "batch", "none")


def normalisation(how: str, channels: int) -> nn.Module:
    """A normalisation of [B, channels, rows, cols].

    "group" (groups of 8 channels) judges every image by itself; "batch" is what was published, and
    in training mode couples the images of a batch; "none".
    """
    if how == "group":
        return nn.GroupNorm(max(1, channels // 8), channels)
    if how == "batch":
        return nn.BatchNorm2d(channels)
    if how == "none":
        return nn.Identity()
    raise ValueError(f"norm: expected one of {NORMS}, got {how!r}")


class Bottleneck(nn.Module):
    """ReLU(x + f(x)), f: convolutions 1x1, 3x3, 1x1 of one width, each with a normalisation.

    The block of He et al. (2016) with expansion 1.
    """

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels, 1, bias=False)
        self.spatial = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.expand = nn.Conv2d(channels, channels, 1, bias=False)
        self.norms = nn.ModuleList(normalisation(norm, channels) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.norms
        y = torch.relu(first(self.reduce(x)))
        y = torch.relu(second(self.spatial(y)))
        return torch.relu(x + third(self.expand(y)))


class ImageEncoder(nn.Module):
    """Features of an image: [B, C, rows, cols] -> [B, widths[-1], rows / 2^n, cols / 2^n].

    n stages of convolution 3x3, ReLU, bottleneck and 2x2 maximum, then a last convolution and ReLU.
    Widths (16, 64, 128, 64), n = 3, are the published ones.

    Args:
        channels: of the image.
        widths: of the convolutions.
        norm: see `normalisation`.
    """

    def __init__(
        self, channels: int, widths: Sequence[int] = (16, 64, 128, 64), norm: str = "group"
    ) -> None:
        super().__init__()
        sizes = (channels, *widths)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in itertools.pairwise(sizes)
        )
        self.bottlenecks = nn.ModuleList(Bottleneck(width, norm) for width in widths[:-1])
        self.pool = nn.MaxPool2d(2)

    @property
    def reduction(self) -> int:
        """How many pixels of the image make one of the features, along each side."""
        return 2 ** len(self.bottlenecks)

    def forward(self, image: Tensor) -> Tensor:
        features = image
        for convolution, bottleneck in zip(self.convolutions, self.bottlenecks, strict=False):
            features = self.pool(bottleneck(torch.relu(convolution(features))))
        return torch.relu(self.convolutions[-1](features))
