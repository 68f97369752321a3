"""Split attention and the convolution blocks of SOPI's two networks.

Zhang et al., "ResNeSt: split-attention networks", CVPR Workshops 2022, as SOPI uses it: radix 2,
kernel 1. Groups of channels are normalised where the published code has batches.
"""

from __future__ import annotations

from torch import Tensor, nn

from drrkit.similarity.networks.encoder import normalisation

__all__ = ["ConvolutionPair", "SplitAttention", "SplitBottleneck"]

RADIX = 2


class SplitAttention(nn.Module):
    """Two 1 x 1 convolutions of the image, weighed against each other channel by channel.

    The weights come from the means of both over the image: [B, C, rows, cols] -> the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = max(channels * RADIX // 4, 32)
        self.branches = nn.Conv2d(channels, RADIX * channels, 1, groups=RADIX)
        self.squeeze = nn.Conv2d(channels, narrow, 1)
        self.excite = nn.Conv2d(narrow, RADIX * channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        branches = self.branches(image).relu().unflatten(1, (RADIX, -1))
        mean = branches.sum(1).mean((2, 3), keepdim=True)
        attention = self.excite(self.squeeze(mean).relu()).unflatten(1, (RADIX, -1)).softmax(1)
        return (attention * branches).sum(1)


class SplitBottleneck(nn.Module):
    """A residual bottleneck around split attention: [B, C, rows, cols] -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False),
            normalisation("group", channels),
            nn.ReLU(),
            SplitAttention(channels),
            normalisation("group", channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1, bias=False),
            normalisation("group", channels),
        )

    def forward(self, image: Tensor) -> Tensor:
        return (image + self.body(image)).relu()


class ConvolutionPair(nn.Module):
    """Two 3 x 3 (x 3) convolutions, each with norm, ReLU and dropout; then means of 2 x 2 (x 2).

    Both norms share their weights, as published.

    Args:
        dims: 2 for images, 3 for volumes.
        inside, outside: channels.
        dropout: of whole channels, in training.
    """

    def __init__(self, dims: int, inside: int, outside: int, dropout: float = 0.2) -> None:
        super().__init__()
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        bias = dims == 3
        self.first = convolution(inside, outside, 3, padding=1, bias=bias)
        self.second = convolution(outside, outside, 3, padding=1, bias=bias)
        self.norm = normalisation("group", outside)
        self.drop = {2: nn.Dropout2d, 3: nn.Dropout3d}[dims](dropout)
        self.pool = {2: nn.AvgPool2d, 3: nn.AvgPool3d}[dims](2)

    def forward(self, image: Tensor) -> Tensor:
        image = self.drop(self.norm(self.first(image)).relu())
        return self.pool(self.drop(self.norm(self.second(image)).relu()))
