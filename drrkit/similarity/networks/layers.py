"""Layers that several networks share: images on one scale, normalisations, the 3D network."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from drrkit.volume import water_attenuation

CT_ENERGY_KEV = 70.0
"""The energy at which a scene's mu is read back as Hounsfield units: Volume.to_mu's default."""

NORMS = ("group", "batch", "none")
SCALINGS = ("none", "unit", "standard")


def scaled(image: Tensor, how: str, mask: Tensor | None = None) -> Tensor:
    """Images [B, C, rows, cols] on the scale that a network expects, each by itself.

    how: "none"; "unit", the least value 0 and the largest 1, both constants for derivatives, as
    they stand at single pixels; "standard", mean 0 and standard deviation 1 over pixels and
    channels, differentiable twice. mask: float weights [B or 1, 1, rows, cols] of the pixels that
    count; the others become 0.
    """
    if how == "none":
        return image if mask is None else image * mask
    if how == "unit":
        low, high = _range(image.detach(), mask)
        image = (image - low) / (high - low).clamp_min(torch.finfo(image.dtype).tiny)
        return image if mask is None else image * mask
    if how != "standard":
        raise ValueError(f"how: expected one of {SCALINGS}, got {how!r}")
    weight = torch.ones_like(image[:1, :1]) if mask is None else mask
    weight = weight.expand(weight.shape[0], image.shape[1], -1, -1)
    total = weight.sum((1, 2, 3), keepdim=True)
    mean = (image * weight).sum((1, 2, 3), keepdim=True) / total
    centred = (image - mean) * weight
    variance = (centred.square()).sum((1, 2, 3), keepdim=True) / total
    # Of an empty image, too, the derivatives are finite.
    return centred / (variance + 1e-6).sqrt()


def _range(image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if mask is None:
        return image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
    inside = (mask > 0).expand_as(image)
    low = torch.where(inside, image, torch.inf).amin((1, 2, 3), keepdim=True)
    high = torch.where(inside, image, -torch.inf).amax((1, 2, 3), keepdim=True)
    return low, high


def check_image_pair(moving: Tensor, fixed: Tensor, channels: int) -> None:
    """Raise ValueError unless these are [B, channels, r, c] and [B or 1, 1, r, c]."""
    if moving.dim() != 4 or moving.shape[1] != channels:
        raise ValueError(
            f"moving: expected [B, {channels}, rows, cols] (is the volume prepared?), "
            f"got {tuple(moving.shape)}"
        )
    views, _, rows, cols = moving.shape
    if fixed.dim() != 4 or fixed.shape[0] not in (1, views) or fixed.shape[1] != 1:
        raise ValueError(
            f"fixed: expected [{views} or 1, 1, {rows}, {cols}], got {tuple(fixed.shape)}"
        )
    if fixed.shape[2:] != moving.shape[2:]:
        raise ValueError(
            f"fixed: expected images of {rows} x {cols} as moving, got {tuple(fixed.shape)}"
        )


def resized(image: Tensor, size: int) -> Tensor:
    """[B, C, rows, cols] -> [B, C, size, size]: means of what each pixel covers, or bilinear."""
    rows, cols = image.shape[-2:]
    if (rows, cols) == (size, size):
        return image
    if min(rows, cols) >= size:
        return functional.adaptive_avg_pool2d(image, size)
    return functional.interpolate(image, (size, size), mode="bilinear", align_corners=False)


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


def normalisation(how: str, channels: int) -> nn.Module:
    """A normalisation of [B, channels, rows, cols].

    how: "group" (groups of 8 channels), which normalises every image by itself; "batch", the
    published one, which couples the images of a batch in training; "none".
    """
    if how == "group":
        return nn.GroupNorm(max(1, channels // 8), channels)
    if how == "batch":
        return nn.BatchNorm2d(channels)
    if how == "none":
        return nn.Identity()
    raise ValueError(f"norm: expected one of {NORMS}, got {how!r}")


class VolumeExpansion(nn.Module):
    """ProST's residual 3D network: repeat(V, C) + CNN(V), convolutions 3x3x3 with ReLU after each.

    mu [D, H, W] in 1/mm -> [C, D, H, W]. The convolutions see mu relative to water, of order one.

    Widths (4, 8, 16, 8, 3) are those of the published code (8571 parameters), (4, 8, 16, 16, 8, 3)
    those of the 2020 paper's figure (15499). The last width is C.

    Args:
        widths: output channels of every convolution; one number C alone gives repeat(V, C), the
            ablation without a network, which has no parameters.
    """

    def __init__(self, widths: Sequence[int] = (4, 8, 16, 8, 3)) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"widths: expected positive numbers of channels, got {widths!r}")
        self.count = widths[-1]
        sizes = (1, *widths) if len(widths) > 1 else ()
        self.layers = nn.ModuleList(
            nn.Conv3d(before, after, 3, padding=1) for before, after in itertools.pairwise(sizes)
        )

    def forward(self, values: Tensor) -> Tensor:
        repeated = values.expand(self.count, *values.shape)
        if not self.layers:
            return repeated.contiguous()
        water = water_attenuation(CT_ENERGY_KEV)
        features = values[None, None] / water
        for layer in self.layers:
            # Not in place: the sum below and second derivatives read these tensors.
            features = torch.relu(_convolved(cast(nn.Conv3d, layer), features))
        return repeated + water * features[0]


def _convolved(layer: nn.Conv3d, features: Tensor) -> Tensor:
    """layer(features [1, C, D, H, W]), ten times faster on the CPU for small volumes.

    torch uses oneDNN where the batch is larger than one or C D H > 20480, and unfolds otherwise. So
    both halves of the volume, each with its neighbour's first plane, are convolved as a batch.
    """
    depth = features.shape[2]
    if features.is_cuda or features[0, :, :, :, 0].numel() > 20480 or depth < 4:
        return layer(features)
    half = (depth + 1) // 2
    padded = functional.pad(features, (0, 0, 0, 0, 1, 1))
    halves = torch.cat((padded[:, :, : half + 2], padded[:, :, depth - half :]))
    first, second = functional.conv3d(halves, layer.weight, layer.bias, padding=(0, 1, 1))
    return torch.cat((first, second[:, 2 * half - depth :]), 1)[None]
