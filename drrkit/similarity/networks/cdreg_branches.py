"""CDreg's encoder and branches: pooling transformers, Fourier convolutions, an invertible network.

Pooling transformers (token mixer: a global mean) after Yu et al., "MetaFormer is actually what you
need for vision", CVPR 2022. Fast Fourier convolution: Chi, Jiang, Mu, NeurIPS 2020: channels are
split in a local half, convolved 3 x 3, and a global half, whose spectrum is convolved 1 x 1, with
all four connections between them. Affine coupling: Dinh, Sohl-Dickstein, Bengio, "Density
estimation using Real NVP", ICLR 2017, as in CDDFuse's detail branch (Zhao et al., CVPR 2023).
`norm` names the normalisation (`layers.normalisation`); "batch" is the published one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from drrkit.similarity.networks.layers import ChannelNorm, normalisation


class _GlobalMean(nn.Module):
    """The mean of every channel, laid over the image by a learned map: one for all channels."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        self.spread = nn.Linear(1, side * side)

    def forward(self, image: Tensor) -> Tensor:
        return self.spread(image.mean((2, 3))[..., None]).unflatten(-1, (self.side, self.side))


class _PoolingBlock(nn.Module):
    """x + (global mean + identity) of its norm, then x + MLP of its norm."""

    def __init__(self, channels: int, side: int, dropout: float) -> None:
        super().__init__()
        self.mixing_norm, self.mlp_norm = ChannelNorm(channels, 1e-6), ChannelNorm(channels, 1e-6)
        self.mean = _GlobalMean(side)
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
            layers += [_PoolingBlock(wide, side, dropout) for _ in range(2)]
            inside = wide
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


class FourierUnit(nn.Module):
    """A 1 x 1 convolution of the spectrum, real and imaginary parts as channels.

    [B, C, rows, cols] -> the same; every output pixel depends on every input pixel. The transform
    is orthonormal, so that spectrum and image have the same power.
    """

    def __init__(self, channels: int, norm: str = "group") -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * channels, 2 * channels, 1, bias=False)
        self.norm = normalisation(norm, 2 * channels)

    def forward(self, image: Tensor) -> Tensor:
        # torch has no Fourier transform of half precision, which autocast may pass.
        image = image if image.dtype == torch.float64 else image.float()
        spectrum = torch.view_as_real(torch.fft.rfft2(image, norm="ortho"))
        parts = spectrum.movedim(-1, 2).flatten(1, 2)  # [B, 2 C, rows, cols // 2 + 1]
        parts = self.norm(self.mix(parts)).relu()
        real, imaginary = parts.to(image).unflatten(1, (-1, 2)).unbind(2)
        mixed = torch.complex(real, imaginary)
        return torch.fft.irfft2(mixed, s=image.shape[-2:], norm="ortho")


class SpectralTransform(nn.Module):
    """Global to global: the spectrum of the image and, in a quarter of the channels, of its parts.

    The local unit stacks the four quadrants of the image as channels, transforms them, and repeats
    the result over the image. Rows and columns must be even, channels divisible by 8.
    """

    def __init__(self, channels: int, norm: str = "group") -> None:
        super().__init__()
        half = channels // 2
        if channels % 8:
            raise ValueError(f"channels: expected a multiple of 8, got {channels}")
        self.reduce = nn.Sequential(
            nn.Conv2d(channels, half, 1, bias=False), normalisation(norm, half), nn.ReLU()
        )
        self.whole = FourierUnit(half, norm)
        self.parts = FourierUnit(half, norm)
        self.expand = nn.Conv2d(half, channels, 1, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        reduced = self.reduce(image)
        quarter = reduced[:, : reduced.shape[1] // 4]
        rows = torch.cat(quarter.chunk(2, -2), 1)
        quadrants = torch.cat(rows.chunk(2, -1), 1)
        local = self.parts(quadrants).repeat(1, 1, 2, 2)
        return self.expand(reduced + self.whole(reduced) + local)


class FourierConvolution(nn.Module):
    """(local, global) channels -> the same, in all four combinations, then norm and ReLU."""

    def __init__(self, channels: int, norm: str = "group") -> None:
        super().__init__()
        half = channels // 2

        def convolution() -> nn.Conv2d:
            return nn.Conv2d(half, half, 3, padding=1, padding_mode="reflect", bias=False)

        self.local_to_local, self.local_to_global = convolution(), convolution()
        self.global_to_local = convolution()
        self.global_to_global = SpectralTransform(half, norm)
        self.local_norm, self.global_norm = normalisation(norm, half), normalisation(norm, half)

    def forward(self, local: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
        near = self.local_to_local(local) + self.global_to_local(whole)
        far = self.local_to_global(local) + self.global_to_global(whole)
        return self.local_norm(near).relu(), self.global_norm(far).relu()


class FourierResidual(nn.Module):
    """Two Fourier convolutions around a skip connection: [B, channels, rows, cols] -> the same."""

    def __init__(self, channels: int, norm: str = "group") -> None:
        super().__init__()
        self.first = FourierConvolution(channels, norm)
        self.second = FourierConvolution(channels, norm)

    def forward(self, image: Tensor) -> Tensor:
        local, whole = image.chunk(2, 1)
        return image + torch.cat(self.second(*self.first(local, whole)), 1)


class _InvertedResidual(nn.Sequential):
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
        self.phi, self.rho, self.eta = (_InvertedResidual(half) for _ in range(3))

    def forward(self, image: Tensor) -> Tensor:
        first, second = self.shuffle(image).chunk(2, 1)
        second = second + self.phi(first)
        first = first * self.rho(second).exp() + self.eta(second)
        return torch.cat((first, second), 1)

    def inverse(self, image: Tensor) -> Tensor:
        """The input of `forward` whose output this is."""
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
        """The input of `forward` whose output this is."""
        for step in reversed(self.steps):
            image = cast(CouplingStep, step).inverse(image)
        return image
