"""DeepIM: a rendering and an image in, a turn and a shift as seen in the image out; iterated.

Li, Wang, Ji, Xiang, Fox, "DeepIM: deep iterative matching for 6D pose estimation", ECCV 2018, with
the encoder of FlowNetSimple (Dosovitskiy et al., "FlowNet", ICCV 2015), as the ProST paper (TMI
2024) compares with it on X-rays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from drrkit.similarity.networks.configuration import Configuration
from drrkit.similarity.networks.images import check_images, scaled
from drrkit.similarity.networks.norms import resized
from drrkit.similarity.networks.pose_updates import untangled_step
from drrkit.similarity.networks.regressor import Pairs, PoseRegressor
from drrkit.volume import Volume

__all__ = ["KINDS", "NETWORKS", "DeepIM"]

UNIT_MM = 100.0
"""Point distances are divided by this in training, so that they are of order one."""


class DeepIM(PoseRegressor):
    """Strided convolutions of both images together, two linear layers, quaternion and shift.

    A prediction is [B, 7]: what is added to the quaternion (1, 0, 0, 0), then (v_x, v_y, v_z) of
    `pose_updates`, which starts at 0: a fresh network leaves poses as they are. The decoders of
    optical flow and masks, which the original trains beside this, are left out, as X-rays have no
    visible surface whose flow there is.

    Args:
        image: side of the square images that the network sees; others are resized.
        widths, kernels, strides: of the convolutions, one number each.
        hidden: width of both linear layers.
        threshold_hu, voxel_mm: as of every PoseRegressor.
    """

    def __init__(
        self,
        *,
        image: int = 128,
        widths: Sequence[int] = (64, 128, 256, 256, 512, 512, 512, 512, 1024, 1024),
        kernels: Sequence[int] = (7, 5, 5, 3, 3, 3, 3, 3, 3, 3),
        strides: Sequence[int] = (2, 2, 2, 1, 2, 1, 2, 1, 2, 1),
        hidden: int = 256,
        threshold_hu: float | None = 150.0,
        voxel_mm: float | None = None,
    ) -> None:
        super().__init__(threshold_hu=threshold_hu, voxel_mm=voxel_mm)
        if not len(widths) == len(kernels) == len(strides):
            raise ValueError(
                "widths, kernels, strides: expected as many of each, got "
                f"{len(widths)}, {len(kernels)} and {len(strides)}"
            )
        if image % math.prod(strides):
            raise ValueError(f"image: expected a multiple of {math.prod(strides)}, got {image}")
        self.image = image
        layers: list[nn.Module] = []
        inside = 2
        for width, kernel, stride in zip(widths, kernels, strides, strict=True):
            convolution = nn.Conv2d(inside, width, kernel, stride, padding=kernel // 2)
            layers += [convolution, nn.LeakyReLU(0.1)]
            inside = width
        side = image // math.prod(strides)
        self.encoder = nn.Sequential(*layers)
        self.hidden = nn.Sequential(
            nn.Flatten(),
            nn.Linear(inside * side * side, hidden),
            nn.LeakyReLU(0.1),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.1),
        )
        self.turn, self.shift = nn.Linear(hidden, 4), nn.Linear(hidden, 3)
        for head in (self.turn, self.shift):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def predict(self, moving: Tensor, fixed: Tensor, volume: Volume) -> Tensor:
        features = self.hidden(self.encoder(image_pair(moving, fixed, self.image)))
        return torch.cat((self.turn(features), self.shift(features)), 1)

    def apply(self, prediction: Tensor, world_to_camera: Tensor, center: Tensor) -> Tensor:
        turn, shift = prediction.double().split((4, 3), 1)
        real = torch.ones_like(turn[:, :1])
        quaternion = turn + torch.cat((real, torch.zeros_like(turn[:, 1:])), 1)
        return untangled_step(world_to_camera, quaternion, shift, center)

    def loss(self, prediction: Tensor, pairs: Pairs) -> Tensor:
        """Point matching: the mean L1 distance of points at predicted and true poses, in 100 mm."""
        found = self.apply(prediction, pairs.world_to_camera, pairs.center)
        difference = found - pairs.target
        apart = pairs.points @ difference[:, :3, :3].mT + difference[:, None, :3, 3]
        return apart.abs().sum(-1).mean() / UNIT_MM


def image_pair(moving: Tensor, fixed: Tensor, size: int) -> Tensor:
    """Renderings and X-rays, each with mean 0 and deviation 1, side by side: [B, 2, size, size]."""
    check_images(moving, fixed, 1)
    fixed = fixed.to(moving.dtype).expand(len(moving), -1, -1, -1)
    both = torch.cat((scaled(moving, "standard"), scaled(fixed, "standard")), 1)
    return resized(both, size)


KINDS: dict[str, type[nn.Module]] = {"deepim": DeepIM}

NETWORKS: dict[str, Configuration] = {
    "deepim": Configuration("deepim", {}),
    "deepim-small": Configuration(
        "deepim",
        {
            "image": 64,
            "widths": (16, 32, 64, 64, 64),
            "kernels": (7, 5, 3, 3, 3),
            "strides": (2, 2, 2, 1, 2),
            "hidden": 64,
        },
    ),
}
"""deepim: FlowNetSimple's sizes on images of 128 x 128; -small: for two cores."""
