"""CDreg: a similarity with a global and a local branch whose features are driven apart.

Chen, Zhang, Gu, Ge, Kong, "Fully differentiable correlation-driven 2D/3D registration for X-ray to
CT image fusion", ISBI 2024 (arXiv 2402.02498).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from drrkit.similarity.networks.cdreg_branches import (
    FourierResidual,
    InvertibleNetwork,
    PoolformerEncoder,
)
from drrkit.similarity.networks.interfaces import Configuration, LearnedSimilarity
from drrkit.similarity.networks.layers import VolumeExpansion, check_image_pair, resized, scaled

COMBINATIONS = ("gated", "sigmoid_product")
NUMERATORS = ("squared", "clamped", "literal")


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
        self.trunk = _layers(wide, wide // 2, wide // 4, end=True)
        self.score = _layers(wide // 4, wide // 16, wide // 64, 1)
        self.gate = _layers(wide // 4, wide // 16, wide // 64, 1)

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
        if losses < 1 or not bound > 0:
            raise ValueError(
                f"losses, bound: expected positive numbers, got {losses!r} and {bound!r}"
            )
        self.bound = bound
        self.free = nn.Parameter(torch.zeros(losses))

    @property
    def log_variance(self) -> Tensor:
        """s_i, [losses]."""
        return self.bound * torch.tanh(self.free / self.bound)

    def forward(self, *losses: Tensor) -> Tensor:
        """The weighted sum [] of as many losses [] as there are weights."""
        if len(losses) != len(self.free):
            raise ValueError(f"losses: expected {len(self.free)} of them, got {len(losses)}")
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
        norm: of the Fourier branch, see `layers.normalisation`; "batch" is the published one.
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


def decomposition_loss(
    features: Features, epsilon: float = 1.01, numerator: str = "squared"
) -> Tensor:
    """N(g) / (l + epsilon), g and l the correlations of global and of local features: [].

    Correlations are Pearson's over the pixels of a channel, averaged over channels and images. With
    epsilon above 1 (1.01, CDDFuse's) the denominator is positive for every l in [-1, 1]. The
    poster's numerator is g itself, whose sign then decides what minimising does to l, and which has
    no lower bound but -1 / (epsilon - 1); its square, the default, and max(g, 0) are not negative.

    Args:
        features: of a batch.
        epsilon: above 1.
        numerator: "squared", "clamped" or "literal".

    Raises:
        ValueError: epsilon is not above 1, or another numerator.
    """
    if not epsilon > 1:
        raise ValueError(f"epsilon: expected a number above 1, got {epsilon!r}")
    if numerator not in NUMERATORS:
        raise ValueError(f"numerator: expected one of {NUMERATORS}, got {numerator!r}")
    whole = correlation(features.global_moving, features.global_fixed)
    local = correlation(features.local_moving, features.local_fixed)
    if numerator == "squared":
        whole = whole.square()
    elif numerator == "clamped":
        whole = whole.clamp_min(0.0)
    return whole / (local + epsilon)


def correlation(first: Tensor, second: Tensor, eps: float = 1e-8) -> Tensor:
    """Pearson's over the pixels of every channel [B, F, rows, cols], its mean: [] in [-1, 1].

    0 where a channel is constant; differentiable there, too.
    """
    first, second = first.flatten(2), second.flatten(2)
    first, second = first - first.mean(-1, keepdim=True), second - second.mean(-1, keepdim=True)
    power = first.square().mean(-1) * second.square().mean(-1)
    return ((first * second).mean(-1) / (power + eps**2).sqrt()).mean()


def _layers(*widths: int, end: bool = False) -> nn.Sequential:
    """Linear layers between these widths with ReLU between them, and at the `end` if wanted."""
    layers: list[nn.Module] = []
    for inside, outside in pairwise(widths):
        layers += [nn.Linear(inside, outside), nn.ReLU()]
    return nn.Sequential(*(layers if end else layers[:-1]))


KINDS: dict[str, type[nn.Module]] = {"cdreg": CDReg}

NETWORKS: dict[str, Configuration] = {
    "cdreg": Configuration("cdreg", {}),
    "cdreg-small": Configuration(
        "cdreg",
        {
            "image": 64,
            "features": (8, 16, 32, 32),
            "expansion": (4, 8, 3),
            "score_side": 4,
            "dropout": 0.0,
        },
    ),
}
"""cdreg: the published sizes, with group normalisation; -small: for two cores."""
