"""ProST: the projective spatial transformers' networks of 2020 and 2024.

Gao et al., "Generalizing Spatial Transformers to Projective Geometry with Applications to 2D/3D
Registration", MICCAI 2020, and "A Fully Differentiable Framework for 2D/3D Registration and the
Projective Spatial Transformers", IEEE TMI 2024. Both expand the moving volume by the same 3D
network; the first compares two convolutional encoders' features, the second reads both images with
one CrossViT.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from drrkit.similarity.networks.crossvit import CrossViT
from drrkit.similarity.networks.interfaces import Configuration, LearnedSimilarity
from drrkit.similarity.networks.layers import (
    VolumeExpansion,
    check_image_pair,
    normalisation,
    scaled,
)


class _Expanded(LearnedSimilarity):
    """The part that both share: the 3D network, and images on one scale.

    Args:
        expansion: widths of the 3D network, see VolumeExpansion.
        moving_scale, fixed_scale: see `layers.scaled`; ("none", "unit") are the published ones.
        threshold_hu, voxel_mm: see BoneNetwork.
    """

    def __init__(
        self,
        *,
        expansion: Sequence[int] = (4, 8, 16, 8, 3),
        moving_scale: str = "none",
        fixed_scale: str = "unit",
        **bone: Any,
    ) -> None:
        super().__init__(**bone)
        self.expansion = VolumeExpansion(expansion)
        self.moving_scale, self.fixed_scale = moving_scale, fixed_scale

    def channels(self, values: Tensor) -> Tensor:
        return self.expansion(values)

    def _images(self, moving: Tensor, fixed: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        check_image_pair(moving, fixed, self.expansion.count)
        fixed = fixed.to(moving.dtype)
        return scaled(moving, self.moving_scale, mask), scaled(fixed, self.fixed_scale, mask)


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


class EncoderProST(_Expanded):
    """The network of 2020: S = mean squared difference of two encoders' features.

    The encoders have weights of their own; images may have any size.

    Args:
        widths, norm: of the encoders, see ImageEncoder; "batch" is the published norm.
        **shared: expansion, moving_scale, fixed_scale, threshold_hu, voxel_mm, see _Expanded.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (16, 64, 128, 64),
        norm: str = "group",
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.moving_encoder = ImageEncoder(self.expansion.count, widths, norm)
        self.fixed_encoder = ImageEncoder(1, widths, norm)

    def forward(self, moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        moving, fixed = self._images(moving, fixed, mask)
        reduction = self.moving_encoder.reduction
        if min(moving.shape[-2:]) < reduction:
            raise ValueError(
                f"moving: expected images of {reduction} pixels at least, got {moving.shape[-2:]}"
            )
        square = (self.moving_encoder(moving) - self.fixed_encoder(fixed)).square().mean(1)
        if mask is None:
            return square.mean((1, 2))
        weight = functional.avg_pool2d(mask.to(square), reduction)[:, 0]
        return (weight * square).sum((1, 2)) / weight.sum((1, 2))


class TransformerProST(_Expanded):
    """The network of 2024: S read by a CrossViT from the channels and the X-ray together.

    Args:
        images, patches, dims, heads, depth, stages, mlp: see CrossViT; defaults as published.
        **shared: as for EncoderProST.
    """

    def __init__(
        self,
        *,
        images: Sequence[int] = (240, 224),
        patches: Sequence[int] = (12, 16),
        dims: Sequence[int] = (128, 256),
        heads: Sequence[int] = (4, 4),
        depth: Sequence[int] = (1, 3),
        stages: int = 3,
        mlp: Sequence[float] = (3.0, 3.0),
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.transformer = CrossViT(
            self.expansion.count + 1,
            images=images,
            patches=patches,
            dims=dims,
            heads=heads,
            depth=depth,
            stages=stages,
            mlp=mlp,
        )

    def forward(self, moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        moving, fixed = self._images(moving, fixed, mask)
        both = torch.cat((moving, fixed.expand(moving.shape[0], -1, -1, -1)), 1)
        return self.transformer(both)[:, 0]


KINDS: dict[str, type[nn.Module]] = {
    "prost-encoder": EncoderProST,
    "prost-transformer": TransformerProST,
}

_STANDARD = {"moving_scale": "standard", "fixed_scale": "standard"}

NETWORKS: dict[str, Configuration] = {
    "prost": Configuration("prost-transformer", {}),
    "prost-small": Configuration(
        "prost-transformer",
        {
            "images": (64, 64),
            "patches": (8, 16),
            "dims": (64, 96),
            "depth": (1, 2),
            "stages": 2,
            "mlp": (2.0, 2.0),
            **_STANDARD,
        },
    ),
    "prost-2020": Configuration("prost-encoder", {}),
    "prost-2020-small": Configuration(
        "prost-encoder", {"expansion": (4, 8, 3), "widths": (16, 32, 64, 32), **_STANDARD}
    ),
}
"""prost: the journal's network with CrossViT-9; prost-2020: the published code with group
normalisation; -small: for two cores and images of 64 x 64."""
