"""DMW: a regressor of the Riemannian pose gradient between a rendering and an X-ray.

Gu, Gao, Grupp et al., "Extended capture range of rigid 2D/3D registration by estimating Riemannian
pose gradients", MLMI 2020, named DMW in the ProST paper (TMI 2024). Its sizes are not public:
these are a DenseNet's (Huang et al., CVPR 2017) of moderate size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from drrkit.similarity.networks.configuration import Configuration
from drrkit.similarity.networks.deepim import image_pair
from drrkit.similarity.networks.encoder import normalisation
from drrkit.similarity.networks.pose_updates import riemannian_gradient, riemannian_step
from drrkit.similarity.networks.regressor import Pairs, PoseRegressor
from drrkit.volume import Volume

__all__ = ["DMW", "KINDS", "NETWORKS", "DenseBlock"]


class DenseBlock(nn.Module):
    """Layers that each read all features before them and add `growth` new ones."""

    def __init__(self, channels: int, layers: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                normalisation("group", wide),
                nn.ReLU(),
                nn.Conv2d(wide, growth, 3, padding=1, bias=False),
            )
            for wide in range(channels, channels + layers * growth, growth)
        )

    def forward(self, image: Tensor) -> Tensor:
        for layer in self.layers:
            image = torch.cat((image, layer(image)), 1)
        return image


class DMW(PoseRegressor):
    """A DenseNet of both images together; a prediction is the Riemannian gradient [B, 6].

    That is (rad, mm / unit_mm) from the true pose to that of the rendering (`pose_updates`); the
    pose is moved against it. A fresh network predicts 0.

    Args:
        image: side of the square images that the network sees; others are resized.
        stem: channels of the first convolution.
        layers: of every dense block; between blocks channels and sides are halved.
        growth: channels that a layer adds.
        unit_mm: the shift that counts as a turn of one radian.
        step: share of the predicted way that an update goes.
        threshold_hu, voxel_mm: as of every PoseRegressor.
    """

    def __init__(
        self,
        *,
        image: int = 128,
        stem: int = 64,
        layers: Sequence[int] = (4, 4, 4, 4),
        growth: int = 16,
        unit_mm: float = 100.0,
        step: float = 1.0,
        threshold_hu: float | None = 150.0,
        voxel_mm: float | None = None,
    ) -> None:
        super().__init__(threshold_hu=threshold_hu, voxel_mm=voxel_mm)
        if not (unit_mm > 0 and step > 0):
            raise ValueError(f"unit_mm, step: expected positive numbers, got {unit_mm!r}, {step!r}")
        self.image, self.unit_mm, self.step = image, unit_mm, step
        parts: list[nn.Module] = [
            nn.Conv2d(2, stem, 7, stride=2, padding=3, bias=False),
            normalisation("group", stem),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        ]
        channels = stem
        for number, count in enumerate(layers):
            if number:
                parts += _transition(channels)
                channels //= 2
            parts.append(DenseBlock(channels, count, growth))
            channels += count * growth
        self.encoder = nn.Sequential(*parts, normalisation("group", channels), nn.ReLU())
        self.head = nn.Linear(channels, 6)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def predict(self, moving: Tensor, fixed: Tensor, volume: Volume) -> Tensor:
        features = self.encoder(image_pair(moving, fixed, self.image))
        return self.head(features.mean((2, 3)))

    def apply(self, prediction: Tensor, world_to_camera: Tensor, center: Tensor) -> Tensor:
        return riemannian_step(
            world_to_camera, prediction.double(), center, self.unit_mm, self.step
        )

    def loss(self, prediction: Tensor, pairs: Pairs) -> Tensor:
        """Mean squared error of the Riemannian gradient."""
        true = riemannian_gradient(pairs.world_to_camera, pairs.target, pairs.center, self.unit_mm)
        return (prediction.double() - true).square().mean()


def _transition(channels: int) -> list[nn.Module]:
    return [
        normalisation("group", channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels // 2, 1, bias=False),
        nn.AvgPool2d(2),
    ]


KINDS: dict[str, type[nn.Module]] = {"dmw": DMW}

NETWORKS: dict[str, Configuration] = {
    "dmw": Configuration("dmw", {}),
    "dmw-small": Configuration("dmw", {"image": 64, "stem": 32, "layers": (4, 4, 4), "growth": 8}),
}
"""dmw: for images of 128 x 128; -small: for two cores."""
