"""ProST: the projective spatial transformers' networks of 2020 and 2024.

Gao et al., "Generalizing Spatial Transformers to Projective Geometry with Applications to 2D/3D
Registration", MICCAI 2020, and "A Fully Differentiable Framework for 2D/3D Registration and the
Projective Spatial Transformers", IEEE TMI 2024. Both expand the moving volume by the same 3D
network; the first compares two convolutional encoders' features, the second reads both images with
one CrossViT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from drrkit.similarity.networks.configuration import Configuration
from drrkit.similarity.networks.crossvit import CrossViT
from drrkit.similarity.networks.encoder import ImageEncoder
from drrkit.similarity.networks.expansion import VolumeExpansion
from drrkit.similarity.networks.images import check_images, scaled
from drrkit.similarity.networks.learned import CT_ENERGY_KEV, LearnedSimilarity
from drrkit.volume import water_attenuation

__all__ = ["KINDS", "NETWORKS", "EncoderProST", "TransformerProST"]


class _Expanded(LearnedSimilarity):
    """What both share: the 3D network, and images on one scale."""

    def __init__(
        self,
        *,
        expansion: Sequence[int],
        moving_scale: str,
        fixed_scale: str,
        threshold_hu: float | None,
        voxel_mm: float | None,
    ) -> None:
        super().__init__(threshold_hu=threshold_hu, voxel_mm=voxel_mm)
        self.expansion = VolumeExpansion(expansion)
        self.moving_scale, self.fixed_scale = moving_scale, fixed_scale

    def channels(self, values: Tensor) -> Tensor:
        # The network works on attenuation relative to water, which is of order one.
        water = water_attenuation(CT_ENERGY_KEV)
        return self.expansion(values / water) * water

    def _images(self, moving: Tensor, fixed: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        check_images(moving, fixed, self.expansion.count)
        fixed = fixed.to(moving.dtype)
        return scaled(moving, self.moving_scale, mask), scaled(fixed, self.fixed_scale, mask)


class EncoderProST(_Expanded):
    """The network of 2020: S = mean squared difference of two encoders' features.

    The encoders have weights of their own; any image size will do.

    Args:
        expansion: widths of the 3D network, see VolumeExpansion.
        widths, norm: of the encoders, see ImageEncoder; "batch" is the published norm.
        moving_scale, fixed_scale: see `images.scaled`; ("none", "unit") are the published ones.
        threshold_hu, voxel_mm: see LearnedSimilarity.
    """

    def __init__(
        self,
        *,
        expansion: Sequence[int] = (4, 8, 16, 8, 3),
        widths: Sequence[int] = (16, 64, 128, 64),
        norm: str = "group",
        moving_scale: str = "none",
        fixed_scale: str = "unit",
        threshold_hu: float | None = 150.0,
        voxel_mm: float | None = None,
    ) -> None:
        super().__init__(
            expansion=expansion,
            moving_scale=moving_scale,
            fixed_scale=fixed_scale,
            threshold_hu=threshold_hu,
            voxel_mm=voxel_mm,
        )
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
        expansion, moving_scale, fixed_scale, threshold_hu, voxel_mm: as for EncoderProST.
        **transformer: of the CrossViT, by its names.
    """

    def __init__(
        self,
        *,
        expansion: Sequence[int] = (4, 8, 16, 8, 3),
        moving_scale: str = "none",
        fixed_scale: str = "unit",
        threshold_hu: float | None = 150.0,
        voxel_mm: float | None = None,
        **transformer: Any,
    ) -> None:
        super().__init__(
            expansion=expansion,
            moving_scale=moving_scale,
            fixed_scale=fixed_scale,
            threshold_hu=threshold_hu,
            voxel_mm=voxel_mm,
        )
        self.transformer = CrossViT(self.expansion.count + 1, 1, **transformer)

    def forward(self, moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        moving, fixed = self._images(moving, fixed, mask)
        both = torch.cat((moving, fixed.expand(moving.shape[0], -1, -1, -1)), 1)
        return self.transformer(both)[:, 0]


KINDS: dict[str, type[nn.Module]] = {
    "prost-encoder": EncoderProST,
    "prost-transformer": TransformerProST,
}

_JOURNAL = Configuration(
    "prost-transformer",
    {
        "images": (240, 224),
        "patches": (12, 16),
        "dims": (128, 256),
        "heads": (4, 4),
        "depth": (1, 3),
        "stages": 3,
        "mlp": (3.0, 3.0),
    },
)
_FOURFOLD = {"mlp": (4.0, 4.0)}
_ENCODERS = Configuration("prost-encoder", {})

NETWORKS: dict[str, Configuration] = {
    "prost": _JOURNAL,
    "prost-tiny": _JOURNAL.but(dims=(96, 192), heads=(3, 3), depth=(1, 4), **_FOURFOLD),
    "prost-medium": _JOURNAL.but(dims=(192, 384), heads=(6, 6), depth=(1, 4), **_FOURFOLD),
    "prost-15": _JOURNAL.but(dims=(192, 384), heads=(6, 6), depth=(1, 5)),
    "prost-18": _JOURNAL.but(dims=(224, 448), heads=(7, 7), depth=(1, 6)),
    "prost-small": _JOURNAL.but(
        images=(64, 64),
        patches=(8, 16),
        dims=(64, 96),
        heads=(4, 4),
        depth=(1, 2),
        stages=2,
        mlp=(2.0, 2.0),
        moving_scale="standard",
        fixed_scale="standard",
    ),
    "prost-2020": _ENCODERS,
    "prost-2020-paper": _ENCODERS.but(expansion=(4, 8, 16, 16, 8, 3)),
    "prost-2020-published": _ENCODERS.but(norm="batch"),
    "prost-2020-small": _ENCODERS.but(
        expansion=(4, 8, 3),
        widths=(16, 32, 64, 32),
        moving_scale="standard",
        fixed_scale="standard",
    ),
}
"""prost: the journal's network with CrossViT-9; -tiny, -medium, -15, -18: CrossViT's other sizes
(its "small" is -medium here); -small: for two cores and images of 64 x 64. prost-2020: the
published code with group normalisation; -paper: the 3D network of the paper's figure; -published:
with batch normalisation, to the letter; -small: for two cores."""
