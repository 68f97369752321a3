"""ProST: the projective spatial transformers' networks of 2020 and 2024.

Gao et al., "Generalizing Spatial Transformers to Projective Geometry with Applications to 2D/3D
Registration", MICCAI 2020, and "A Fully Differentiable Framework for 2D/3D Registration and the
Projective Spatial Transformers", IEEE TMI 2024. Both expand the moving volume by the same 3D
network; the first compares two convolutional encoders' features, the second reads both images with
one CrossViT.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from drrkit.similarity.networks import (
    LearnedSimilarity,
    VolumeExpansion,
    check_image_pair,
    normalisation,
    scaled,
)

# Standard deviation of fresh position embeddings, class tokens and linear layers, as in ViT.
_INITIAL = 0.02


class _Expanded(LearnedSimilarity):
    """The part that both share: the 3D network, and images on one scale.

    Args:
        expansion: widths of the 3D network, see VolumeExpansion.
        moving_scale, fixed_scale: see `scaled`; ("none", "unit") are the published ones.
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
            nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(sizes)
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
        self, *, widths: Sequence[int] = (16, 64, 128, 64), norm: str = "group", **shared: Any
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
        count = self.expansion.count + 1
        self.transformer = CrossViT(count, 1, images, patches, dims, heads, depth, stages, mlp)

    def forward(self, moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        moving, fixed = self._images(moving, fixed, mask)
        both = torch.cat((moving, fixed.expand(moving.shape[0], -1, -1, -1)), 1)
        return self.transformer(both)[:, 0]


class CrossViT(nn.Module):
    """[B, channels, rows, cols] -> [B, outputs], the mean of both branches' heads.

    A branch resizes the image to its own size, cuts it into patches, adds a class token and
    position embeddings. `stages` times, each branch runs its blocks, and then its class token
    attends to the other branch's patches.

    Args:
        channels, outputs: of the image and of the heads.
        images: side length of the image that each branch reads; any image is resized to it.
        patches: side length of each branch's patches; divides its image.
        dims, heads: width and attention heads of each branch.
        depth: blocks of each branch in a stage.
        stages: how many stages.
        mlp: ratio of the width inside each branch's blocks.

    Raises:
        ValueError: patches do not divide images, heads do not divide dims, or not two of each.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        images: Sequence[int],
        patches: Sequence[int],
        dims: Sequence[int],
        heads: Sequence[int],
        depth: Sequence[int],
        stages: int,
        mlp: Sequence[float],
    ) -> None:
        super().__init__()
        given = {"images": images, "patches": patches, "dims": dims, "heads": heads}
        for name, value in {**given, "depth": depth, "mlp": mlp}.items():
            if len(value) != 2:
                raise ValueError(f"{name}: expected two, one per branch, got {tuple(value)!r}")
        self.branches = nn.ModuleList(
            _PatchTokens(channels, image, patch, dim)
            for image, patch, dim in zip(images, patches, dims, strict=True)
        )
        self.stages = nn.ModuleList(_CrossStage(dims, heads, depth, mlp) for _ in range(stages))
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-6) for dim in dims)
        self.heads = nn.ModuleList(nn.Linear(dim, outputs) for dim in dims)
        self.apply(_initialise)

    def forward(self, image: Tensor) -> Tensor:
        tokens = [branch(image) for branch in self.branches]
        for stage in self.stages:
            tokens = stage(tokens)
        parts = zip(self.heads, self.norms, tokens, strict=True)
        return torch.stack([head(norm(own[:, 0])) for head, norm, own in parts]).mean(0)


class _PatchTokens(nn.Module):
    """An image as tokens [B, 1 + patches, dim], the class token first."""

    def __init__(self, channels: int, image: int, patch: int, dim: int) -> None:
        super().__init__()
        if image % patch:
            raise ValueError(f"patches: expected divisors of images, got {patch} for {image}")
        self.image = image
        self.embed = nn.Conv2d(channels, dim, patch, stride=patch)
        self.class_token = nn.Parameter(_INITIAL * torch.randn(1, 1, dim))
        self.positions = nn.Parameter(_INITIAL * torch.randn(1, 1 + (image // patch) ** 2, dim))

    def forward(self, image: Tensor) -> Tensor:
        size = (self.image, self.image)
        if tuple(image.shape[-2:]) != size:
            image = functional.interpolate(image, size, mode="bilinear", align_corners=False)
        patches = self.embed(image).flatten(2).mT
        first = self.class_token.expand(patches.shape[0], -1, -1)
        return torch.cat((first, patches), 1) + self.positions


class _CrossStage(nn.Module):
    """Blocks of both branches, then the exchange of class tokens."""

    def __init__(
        self, dims: Sequence[int], heads: Sequence[int], depth: Sequence[int], mlp: Sequence[float]
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(*(_Block(dim, head, ratio) for _ in range(count)))
            for dim, head, count, ratio in zip(dims, heads, depth, mlp, strict=True)
        )
        self.exchanges = nn.ModuleList(
            _Exchange(dims[own], dims[1 - own], heads[1 - own]) for own in (0, 1)
        )

    def forward(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        mixed = [blocks(own) for blocks, own in zip(self.blocks, tokens, strict=True)]
        return [
            torch.cat((exchange(mixed[own][:, :1], mixed[1 - own][:, 1:]), mixed[own][:, 1:]), 1)
            for own, exchange in enumerate(self.exchanges)
        ]


class _Block(nn.Module):
    """A transformer block with normalisation first: x + attention, x + MLP."""

    def __init__(self, dim: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, eps=1e-6)
        self.attention = _Attention(dim, heads)
        self.mlp_norm = nn.LayerNorm(dim, eps=1e-6)
        inner = int(dim * ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, inner), nn.GELU(), nn.Linear(inner, dim))

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention_norm(x)
        x = x + self.attention(y, y)
        return x + self.mlp(self.mlp_norm(x))


class _Exchange(nn.Module):
    """A class token [B, 1, own] made to attend to the patches [B, N, other] of the other branch."""

    def __init__(self, own: int, other: int, heads: int) -> None:
        super().__init__()
        self.there = nn.Sequential(nn.LayerNorm(own, eps=1e-6), nn.GELU(), nn.Linear(own, other))
        self.norm = nn.LayerNorm(other, eps=1e-6)
        self.attention = _Attention(other, heads)
        self.back = nn.Sequential(nn.LayerNorm(other, eps=1e-6), nn.GELU(), nn.Linear(other, own))

    def forward(self, token: Tensor, patches: Tensor) -> Tensor:
        guest = self.there(token)
        both = self.norm(torch.cat((guest, patches), 1))
        return self.back(guest + self.attention(both[:, :1], both))


class _Attention(nn.Module):
    """Attention of queries [B, Q, dim] to keys [B, K, dim], by plain matrix products."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads: expected divisors of dims, got {heads} for {dim}")
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, queries), (self.key, keys), (self.value, keys))
        )
        weight = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1)
        return self.output((weight @ v).transpose(1, 2).flatten(2))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=_INITIAL)
        nn.init.zeros_(module.bias)
