"""An invertible network of affine coupling steps: no detail of its input is lost.

Affine coupling after Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", ICLR 2017,
in the form of CDDFuse's detail branch (Zhao et al., CVPR 2023), which CDreg uses.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CouplingStep", "InvertedResidual", "InvertibleNetwork"]


class InvertedResidual(nn.Sequential):
    """Twice as many channels, a 3 x 3 convolution in each, and back: [B, C, ...] -> the same."""

    def __init__(self, channels: int) -> None:
        wide = 2 * channels
        super().__init__(
            nn.Conv2d(channels, wide, 1, bias=False),
            nn.ReLU6(),
            nn.ReflectionPad2d(1),
            nn.Conv2d(wide, wide, 3, groups=wide, bias=False),
            nn.ReLU6(),
            nn.Conv2d(wide, channels, 1, bias=False),
        )


class CouplingStep(nn.Module):
    """z = W x + b, z2 += phi(z1), z1 = z1 exp(rho(z2)) + eta(z2) for the halves z1, z2 of z.

    W mixes the channels of a pixel. It starts orthogonal, so that the step is well conditioned.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shuffle = nn.Conv2d(channels, channels, 1)
        nn.init.orthogonal_(self.shuffle.weight)
        half = channels // 2
        self.phi, self.rho, self.eta = (InvertedResidual(half) for _ in range(3))

    def forward(self, image: Tensor) -> Tensor:
        first, second = self.shuffle(image).chunk(2, 1)
        second = second + self.phi(first)
        first = first * self.rho(second).exp() + self.eta(second)
        return torch.cat((first, second), 1)

    def inverse(self, image: Tensor) -> Tensor:
        """The input that `forward` makes this image of."""
        first, second = image.chunk(2, 1)
        first = (first - self.eta(second)) * (-self.rho(second)).exp()
        second = second - self.phi(first)
        bias = cast(Tensor, self.shuffle.bias)
        mixed = torch.cat((first, second), 1) - bias[:, None, None]
        weight = torch.linalg.inv(self.shuffle.weight[:, :, 0, 0])
        return functional.conv2d(mixed, weight[:, :, None, None])


class InvertibleNetwork(nn.Module):
    """Coupling steps in a row: [B, channels, rows, cols] -> the same, and back with `inverse`.

    Args:
        channels: an even number.
        steps: of coupling.
    """

    def __init__(self, channels: int, steps: int = 3) -> None:
        super().__init__()
        if channels % 2:
            raise ValueError(f"channels: expected an even number, got {channels}")
        self.steps = nn.ModuleList(CouplingStep(channels) for _ in range(steps))

    def forward(self, image: Tensor) -> Tensor:
        for step in self.steps:
            image = step(image)
        return image

    def inverse(self, image: Tensor) -> Tensor:
        """The input that `forward` makes this image of."""
        for step in reversed(self.steps):
            image = cast(CouplingStep, step).inverse(image)
        return image
