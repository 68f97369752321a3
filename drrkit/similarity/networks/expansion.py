"""The 3D network: a volume becomes several channels of itself before it is projected."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["VolumeExpansion"]


class VolumeExpansion(nn.Module):
    """ProST's residual 3D network: repeat(V, C) + CNN(V), convolutions 3x3x3 with ReLU after each.

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
        """[D, H, W] of order one -> [C, D, H, W]."""
        repeated = values.expand(self.count, *values.shape)
        if not self.layers:
            return repeated.contiguous()
        features = values[None, None]
        for layer in self.layers:
            # Not in place: the sum below, and second derivatives, read these tensors.
            features = torch.relu(_convolved(cast(nn.Conv3d, layer), features))
        return repeated + features[0]


def _convolved(layer: nn.Conv3d, features: Tensor) -> Tensor:
    """layer(features [1, C, D, H, W]), ten times faster on the CPU for small volumes.

    torch hands a convolution to oneDNN where the batch is larger than one or C D H > 20480, and
    else unfolds it. So both halves of the volume, each with its neighbour's first plane, are a
    batch of two.
    """
    depth = features.shape[2]
    if features.is_cuda or features[0, :, :, :, 0].numel() > 20480 or depth < 4:
        return layer(features)
    half = (depth + 1) // 2
    padded = functional.pad(features, (0, 0, 0, 0, 1, 1))
    halves = torch.cat((padded[:, :, : half + 2], padded[:, :, depth - half :]))
    first, second = functional.conv3d(halves, layer.weight, layer.bias, padding=(0, 1, 1))
    return torch.cat((first, second[:, 2 * half - depth :]), 1)[None]
