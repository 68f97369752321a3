"""SOPI's composite encoder: a leading and an assisting branch of cascade-fusion blocks.

Blocks after Zhang et al., "CFNet: cascade fusion network for dense prediction" (arXiv 2302.06052),
two branches joined as in Liu et al., "CBNet: a novel composite backbone network architecture for
object detection", AAAI 2020.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from drrkit.similarity.networks.encoder import normalisation
from drrkit.similarity.networks.norms import ChannelNorm
from drrkit.similarity.networks.splat import SplitBottleneck

__all__ = ["CascadeFusion", "CompositeEncoder", "FocalBlock"]


class FocalBlock(nn.Module):
    """Depthwise 7 x 7 convolutions, dense and dilated, then an MLP; a skip around each and all."""

    def __init__(self, channels: int, dilation: int = 2) -> None:
        super().__init__()

        def depthwise(spread: int) -> nn.Sequential:
            reach = nn.Conv2d(
                channels, channels, 7, padding=3 * spread, dilation=spread, groups=channels
            )
            return nn.Sequential(reach, ChannelNorm(channels), nn.GELU())

        self.dense, self.dilated = depthwise(1), depthwise(dilation)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, 4 * channels, 1, bias=False),
            nn.GELU(),
            nn.Conv2d(4 * channels, channels, 1, bias=False),
        )

    def forward(self, image: Tensor) -> Tensor:
        near = image + self.dense(image)
        return image + self.mlp(near + self.dilated(near))


class CascadeFusion(nn.Module):
    """Three scales of an image, fused from coarse to fine.

    [B, c3, r, c] -> p3 [B, c3, r, c], p4 [B, c3, r, c], p5 [B, c4, r / 2, c / 2] for widths
    (c3, c4, c5): the fine scale with all coarser ones added, and what was added to the first and to
    the second scale. r and c must be divisible by 4.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.fine = SplitBottleneck(fine)
        self.halve = nn.Conv2d(fine, middle, 3, stride=2, padding=1)
        self.middle = SplitBottleneck(middle)
        self.quarter = nn.Conv2d(middle, coarse, 3, stride=2, padding=1)
        self.coarse = FocalBlock(coarse)
        self.to_middle = nn.Conv2d(coarse, middle, 1, bias=False)
        self.to_fine = nn.Conv2d(middle, fine, 1, bias=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c3 = self.fine(image)
        c4 = self.middle(self.halve(c3))
        c5 = self.coarse(self.quarter(c4))
        p5 = _doubled(self.to_middle(c5))
        p4 = _doubled(self.to_fine(p5 + c4))
        return p4 + c3, p4, p5


class CompositeEncoder(nn.Module):
    """[B, 1, r, c] -> features l1, l2 [B, c3, r / 8, c / 8] and l3 [B, c4, r / 16, c / 16].

    A stem of two strided convolutions, a convolution with split attention, then blocks: three in
    the leading branch, whose last two outputs are added into the two of the assisting branch. r and
    c must be divisible by 32.

    Args:
        stem: channels of the stem's convolutions.
        widths: (c3, c4, c5) of every block.
    """

    def __init__(
        self, stem: Sequence[int] = (4, 16), widths: Sequence[int] = (64, 128, 256)
    ) -> None:
        super().__init__()
        first, second = stem
        fine = widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(1, first, 3, stride=2, padding=1),
            ChannelNorm(first),
            nn.GELU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            ChannelNorm(second),
            nn.GELU(),
        )
        self.entry = nn.Sequential(
            nn.Conv2d(second, fine, 3, padding=1), nn.LeakyReLU(), SplitBottleneck(fine)
        )
        self.halve = nn.Conv2d(fine, fine, 3, stride=2, padding=1)
        self.leading = nn.ModuleList(CascadeFusion(widths) for _ in range(3))
        self.assisting = nn.ModuleList(CascadeFusion(widths) for _ in range(2))
        self.links = nn.ModuleList(
            nn.Sequential(nn.Conv2d(fine, fine, 1, bias=False), normalisation("group", fine))
            for _ in range(2)
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        start = self.leading[0](self.halve(self.entry(self.stem(image))))[0]
        second = self.leading[1](start)[0]
        third = self.leading[2](second)[0]
        assisting = self.assisting[0](start + self.links[0](second))[0]
        return self.assisting[1](assisting + self.links[1](third))


def _doubled(image: Tensor) -> Tensor:
    return functional.interpolate(image, scale_factor=2, mode="bilinear", align_corners=True)
