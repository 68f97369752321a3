"""CDreg: a similarity with a global and a local branch whose features are driven apart.

Chen, Zhang, Gu, Ge, Kong, "Fully differentiable correlation-driven 2D/3D registration for X-ray to
CT image fusion", ISBI 2024 (arXiv 2402.02498).

The encoder is made of pooling transformers (token mixer: a global mean) after Yu et al.,
"MetaFormer is actually what you need for vision", CVPR 2022. The global branch is a fast Fourier
convolution (Chi, Jiang, Mu, NeurIPS 2020): channels are split in a local half, convolved 3 x 3, and
a global half, whose spectrum is convolved 1 x 1, with all four connections between them. The local
branch is made of affine couplings (Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real
NVP", ICLR 2017), as in CDDFuse's detail branch (Zhao et al., CVPR 2023). `norm` names the
normalisation (`networks.normalisation`); "batch" is the published one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from drrkit.similarity.networks import (
    ChannelNorm,
    LearnedSimilarity,
    VolumeExpansion,
    check_image_pair,
    linear_layers,
    normalisation,
    resized,
    scaled,
)

COMBINATIONS = ("gated", "sigmoid_product")
EPSILON = 1.01
"""In the decomposition loss, CDDFuse's: above 1, the denominator is positive."""


class Features(NamedTuple):
    """Features of moving images and X-rays in both branches, each [B, F, rows, cols]."""

    global_moving: Tensor
    global_fixed: Tensor
    local_moving: Tensor
    local_fixed: Tensor


class GatedScore(nn.Module):
    """A score [B] and its weight [B] in (0, 1) of squared feature differences [B, F, rows, cols].

    Two layers halve the input each, then two heads of three layers follow, as published.

    Args:
        features: F.
        side: of the square feature image.
    """

    def __init__(self, features: int, side: int) -> None:
        super().__init__()
        self.side = side
        wide = features * side * side
        self.trunk = linear_layers(wide, wide // 2, wide // 4).append(nn.ReLU())
        self.score = linear_layers(wide // 4, wide // 16, wide // 64, 1)
        self.gate = linear_layers(wide // 4, wide // 16, wide // 64, 1)

    def forward(self, difference: Tensor) -> tuple[Tensor, Tensor]:
        pooled = functional.adaptive_avg_pool2d(difference, self.side)
        shared = self.trunk(pooled.flatten(1))
        return self.score(shared)[:, 0], self.gate(shared)[:, 0].sigmoid()


class UncertaintyWeights(nn.Module):
    """sum_i L_i exp(-s_i) / 2 + s_i / 2 with learned log variances s_i = log sigma_i^2.

    Kendall, Gal, Cipolla, "Multi-task learning using uncertainty to weigh losses", CVPR 2018, with
    one change. Written with sigma itself, or with s unbounded, a loss that can become negative
    drives sigma to 0 and the sum to minus infinity. Here s_i = bound tanh(p_i / bound): no weight
    leaves [exp(-bound), exp(bound)] / 2, near 0 s_i is p_i, and the sum is bounded below wherever
    the losses are.

    Args:
        losses: how many.
        bound: the largest |s_i|.
    """

    def __init__(self, losses: int, bound: float = 3.0) -> None:
        super().__init__()
        self.bound = bound
        self.free = nn.Parameter(torch.zeros(losses))

    @property
    def log_variance(self) -> Tensor:
        """s_i, [losses]."""
        return self.bound * torch.tanh(self.free / self.bound)

    def forward(self, *losses: Tensor) -> Tensor:
        """The weighted sum [] of as many losses [] as there are weights."""
        s = self.log_variance
        return 0.5 * (torch.stack(losses) * (-s).exp() + s).sum()


class CDReg(LearnedSimilarity):
    """Shared shallow encoder, Fourier branch (global), invertible branch (local), gated scores.

    A 3D residual network makes channels of the volume. Projections and the X-ray go through one
    encoder, then through branches of their own for X-rays and for projections. The squared
    differences Phi of global and of local features are scored. The weights of its training losses
    (`UncertaintyWeights`) are learned and kept with the others.

    Args:
        image: side of the square images that the encoder sees; others are resized.
        features: of the encoder's stem and stages; the last is a multiple of 16.
        expansion: widths of the 3D network, see VolumeExpansion.
        score_side: feature differences are pooled to this side before they are scored; None: not.
        dropout: in the encoder, in training.
        norm: of the Fourier branch, see `networks.normalisation`; "batch" is the published one.
        combination: of score and gate of both branches. "gated": the published code's score * gate,
            summed. "sigmoid_product": the poster's <sigma(Phi_g), sigma(Phi_l)>, the product of the
            logistic functions of both scores.
        **bone: threshold_hu, voxel_mm, see BoneNetwork.
    """

    def __init__(
        self,
        *,
        image: int = 256,
        features: Sequence[int] = (8, 16, 32, 64, 64),
        expansion: Sequence[int] = (4, 8, 16, 8, 4, 3),
        score_side: int | None = None,
        dropout: float = 0.1,
        norm: str = "group",
        combination: str = "gated",
        **bone: Any,
    ) -> None:
        super().__init__(**bone)
        if combination not in COMBINATIONS:
            raise ValueError(f"combination: expected one of {COMBINATIONS}, got {combination!r}")
        if features[-1] % 16:
            raise ValueError(f"features: expected the last to be a multiple of 16, got {features}")
        self.image, self.combination = image, combination
        wide = features[-1]
        self.expansion = VolumeExpansion(expansion)
        self.encoder = PoolformerEncoder(self.expansion.count, image, features, dropout)
        self.global_moving = FourierResidual(wide, norm)
        self.global_fixed = FourierResidual(wide, norm)
        self.local_moving, self.local_fixed = InvertibleNetwork(wide), InvertibleNetwork(wide)
        side = score_side or image // 2 ** (len(features) - 1)
        self.global_score, self.local_score = GatedScore(wide, side), GatedScore(wide, side)
        self.uncertainty = UncertaintyWeights(2)

    def channels(self, values: Tensor) -> Tensor:
        return self.expansion(values)

    def features(self, moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Features:
        """Features of projected channels [B, C, rows, cols] and X-rays [B or 1, 1, rows, cols]."""
        check_image_pair(moving, fixed, self.expansion.count)
        moving = resized(scaled(moving, "standard", mask), self.image)
        fixed = resized(scaled(fixed.to(moving.dtype), "standard", mask), self.image)
        moving = self.encoder(moving)
        fixed = self.encoder(fixed.expand(-1, self.expansion.count, -1, -1))
        return Features(
            self.global_moving(moving),
            self.global_fixed(fixed),
            self.local_moving(moving),
            self.local_fixed(fixed),
        )

    def score(self, features: Features) -> Tensor:
        """S [B] of features."""
        whole, whole_gate = self.global_score(
            (features.global_fixed - features.global_moving).square()
        )
        local, local_gate = self.local_score(
            (features.local_fixed - features.local_moving).square()
        )
        if self.combination == "sigmoid_product":
            return whole.sigmoid() * local.sigmoid()
        return whole * whole_gate + local * local_gate

    def forward(self, moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.score(self.features(moving, fixed, mask))


def decomposition_loss(features: Features) -> Tensor:
    """g^2 / (l + EPSILON), g and l the correlations of global and of local features: [].

    Correlations are Pearson's over the pixels of a channel, averaged over channels and images. The
    poster's numerator is g itself, whose sign then decides what minimising does to l, and which has
    no lower bound but -1 / (EPSILON - 1); its square is not negative.
    """
    whole = correlation(features.global_moving, features.global_fixed)
    local = correlation(features.local_moving, features.local_fixed)
    return whole.square() / (local + EPSILON)


def correlation(first: Tensor, second: Tensor, eps: float = 1e-8) -> Tensor:
    """Pearson's over the pixels of every channel [B, F, rows, cols], its mean: [] in [-1, 1].

    0 where a channel is constant; differentiable there, too.
    """
    first, second = first.flatten(2), second.flatten(2)
    first, second = first - first.mean(-1, keepdim=True), second - second.mean(-1, keepdim=True)
    power = first.square().mean(-1) * second.square().mean(-1)
    return ((first * second).mean(-1) / (power + eps**2).sqrt()).mean()


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
        stem, factor = features[0], 2 ** (len(features) - 1)
        if side % factor:
            raise ValueError(f"image: expected a multiple of {factor}, got {side}")
        layers: list[nn.Module] = []
        for inside in (channels, stem):
            convolution = nn.Conv2d(inside, stem, 3, padding=1)
            layers += [convolution, nn.InstanceNorm2d(stem), nn.ReLU()]
        for inside, wide in pairwise(features):
            side //= 2
            layers += [nn.Conv2d(inside, wide, 2, stride=2), ChannelNorm(wide)]
            layers += [_PoolingBlock(wide, side, dropout) for _ in range(2)]
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


class InvertibleNetwork(nn.Module):
    """Coupling steps in a row, invertible: [B, channels, rows, cols] -> the same.

    Args:
        channels: an even number.
        steps: of coupling.
    """

    def __init__(self, channels: int, steps: int = 3) -> None:
        super().__init__()
        self.steps = nn.Sequential(*(CouplingStep(channels) for _ in range(steps)))

    def forward(self, image: Tensor) -> Tensor:
        return self.steps(image)
