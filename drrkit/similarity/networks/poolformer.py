"""CDreg's shared encoder: a convolutional stem and four stages of pooling transformers.

A transformer block whose token mixer is a global mean instead of attention, after Yu et al.,
"MetaFormer is actually what you need for vision", CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from drrkit.similarity.networks.norms import ChannelNorm

__all__ = ["PoolformerEncoder"]


class GlobalMean(nn.Module):
    """The mean of every channel, laid over the image by a learned map: one for all channels."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        self.spread = nn.Linear(1, side * side)

    def forward(self, image: Tensor) -> Tensor:
        return self.spread(image.mean((2, 3))[..., None]).unflatten(-1, (self.side, self.side))


class PoolingBlock(nn.Module):
    """x + (global mean + identity) of its norm, then x + MLP of its norm."""

    def __init__(self, channels: int, side: int, dropout: float) -> None:
        super().__init__()
        self.mixing_norm, self.mlp_norm = ChannelNorm(channels, 1e-6), ChannelNorm(channels, 1e-6)
        self.mean = GlobalMean(side)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 1),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Conv2d(2 * channels, channels, 1),
            nn.Dropout(dropout),
        )

    def forward(self, image: Tensor) -> Tensor:
        normal = self.mixing_norm(image)
        image = image + self.mean(normal) + normal
        return image + self.mlp(self.mlp_norm(image))


class PoolformerEncoder(nn.Module):
    """[B, channels, side, side] -> [B, features[-1], side / 2^n, side / 2^n], n stages.

    Args:
        channels: of the image.
        side: of the square image, divisible by 2^n.
        features: of the stem and of every stage.
        dropout: of the MLPs, in training.
    """

    def __init__(self, channels: int, side: int, features: Sequence[int], dropout: float) -> None:
        super().__init__()
        stem, stages = features[0], features[1:]
        if side % 2 ** len(stages):
            raise ValueError(f"side: expected a multiple of {2 ** len(stages)}, got {side}")
        layers: list[nn.Module] = []
        for inside in (channels, stem):
            convolution = nn.Conv2d(inside, stem, 3, padding=1)
            layers += [convolution, nn.InstanceNorm2d(stem), nn.ReLU()]
        inside = stem
        for wide in stages:
            side //= 2
            layers += [nn.Conv2d(inside, wide, 2, stride=2), ChannelNorm(wide)]
            layers += [PoolingBlock(wide, side, dropout) for _ in range(2)]
            inside = wide
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)
