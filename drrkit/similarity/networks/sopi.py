"""SOPI: a network that guesses the pose and one that refines it.

Chen, Zhang, Gu, Kong, "Embedded feature similarity optimization with specific parameter
initialization for 2D/3D medical image registration", ICASSP 2024 (arXiv 2305.06252). The second is
the similarity here; the first is `initialiser.PoseInitialiser`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from drrkit.similarity.networks.composite import CompositeEncoder
from drrkit.similarity.networks.configuration import Configuration
from drrkit.similarity.networks.images import check_images, scaled
from drrkit.similarity.networks.learned import LearnedSimilarity
from drrkit.similarity.networks.norms import resized

__all__ = ["KINDS", "NETWORKS", "SopiSimilarity"]


class SopiSimilarity(LearnedSimilarity):
    """S = sum_i <M_i, (e_i(moving) - f_i(fixed))^2> / sum M_i over three scales of features.

    There is no 3D network: the second channel of the prepared volume is the segmentation (1 where
    the moving volume is not 0), and its projection, at its brightest 1 and constant for
    derivatives, is the mask M: differences count where the bones are. The squared differences are
    means over channels. Encoders have weights of their own for projections and for X-rays.

    Args:
        image: side of the square images that the encoders see, divisible by 32; others are resized.
        stem, widths: of the encoders, see CompositeEncoder.
        threshold_hu, voxel_mm: as of every LearnedSimilarity.
    """

    def __init__(
        self,
        *,
        image: int = 256,
        stem: Sequence[int] = (4, 16),
        widths: Sequence[int] = (64, 128, 256),
        threshold_hu: float | None = 150.0,
        voxel_mm: float | None = None,
    ) -> None:
        super().__init__(threshold_hu=threshold_hu, voxel_mm=voxel_mm)
        if image % 32:
            raise ValueError(f"image: expected a multiple of 32, got {image}")
        self.image = image
        self.moving_encoder = CompositeEncoder(stem, widths)
        self.fixed_encoder = CompositeEncoder(stem, widths)

    def channels(self, values: Tensor) -> Tensor:
        """Values [D, H, W] and where they are not 0: [2, D, H, W]."""
        return torch.stack((values, (values > 0).to(values)))

    def forward(self, moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        check_images(moving, fixed, 2)
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


KINDS: dict[str, type[nn.Module]] = {"sopi": SopiSimilarity}

NETWORKS: dict[str, Configuration] = {
    "sopi": Configuration("sopi", {}),
    "sopi-small": Configuration("sopi", {"image": 64, "stem": (4, 8), "widths": (16, 32, 32)}),
}
"""sopi: the published sizes; -small: for two cores."""
