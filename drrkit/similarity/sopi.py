"""SOPI's similarity, which refines a pose: two composite encoders of cascade-fusion blocks.

Chen, Zhang, Gu, Kong, "Embedded feature similarity optimization with specific parameter
initialization for 2D/3D medical image registration", ICASSP 2024 (arXiv 2305.06252). Its other
network, which guesses the pose, is `regressors.PoseInitialiser`. Blocks after Zhang et al.,
"CFNet: cascade fusion network for dense prediction" (arXiv 2302.06052), two branches joined as in
Liu et al., "CBNet", AAAI 2020; split attention after Zhang et al., "ResNeSt: split-attention
networks", CVPR Workshops 2022, as SOPI uses it: radix 2, kernel 1. Groups of channels are
normalised where the published code has batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from drrkit.similarity.networks import (
    ChannelNorm,
    LearnedSimilarity,
    check_image_pair,
    normalisation,
    resized,
    scaled,
)

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


class SopiSimilarity(LearnedSimilarity):
    """S = sum_i <M_i, (e_i(moving) - f_i(fixed))^2> / sum M_i over three scales of features.

    There is no 3D network: the second channel of the prepared volume is the segmentation (1 where
    the moving volume is not 0), and its projection, at its brightest 1 and constant for
    derivatives, is the mask M: differences count where the bones are. The squared differences are
    means over channels. Encoders have weights of their own for projections and for X-rays.

    Args:
        image: side of the square images that the encoders see, divisible by 32; others are resized.
        stem, widths: of the encoders, see CompositeEncoder.
        **bone: threshold_hu, voxel_mm, see BoneNetwork.
    """

    def __init__(
        self,
        *,
        image: int = 256,
        stem: Sequence[int] = (4, 16),
        widths: Sequence[int] = (64, 128, 256),
        **bone: Any,
    ) -> None:
        super().__init__(**bone)
        if image % 32:
            raise ValueError(f"image: expected a multiple of 32, got {image}")
        self.image = image
        self.moving_encoder = CompositeEncoder(stem, widths)
        self.fixed_encoder = CompositeEncoder(stem, widths)

    def channels(self, values: Tensor) -> Tensor:
        """Values [D, H, W] and where they are not 0: [2, D, H, W]."""
        return torch.stack((values, (values > 0).to(values)))

    def forward(self, moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        check_image_pair(moving, fixed, 2)
        weight = moving[:, 1:].detach()
        if mask is not None:
            weight = weight * mask
        weight = weight / weight.amax((1, 2, 3), keepdim=True).clamp_min(1e-6)
        moving = resized(scaled(moving[:, :1], "standard", mask), self.image)
        fixed = resized(scaled(fixed.to(moving.dtype), "standard", mask), self.image)
        total = moving.new_zeros(len(moving))
        encoded = zip(self.moving_encoder(moving), self.fixed_encoder(fixed), strict=True)
        for of_moving, of_fixed in encoded:
            count = resized(weight, of_moving.shape[-1])[:, 0]
            difference = (of_moving - of_fixed).square().mean(1)
            total = total + (count * difference).sum((1, 2)) / (count.sum((1, 2)) + 1e-6)
        return total
