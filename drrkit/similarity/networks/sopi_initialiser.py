"""SOPI's initialiser: from a CT and an X-ray to a pose in a fixed range, in one pass.

"Rigid transformation parameter initialization" of Chen et al., ICASSP 2024 (arXiv 2305.06252).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from drrkit.geometry import so3_exp
from drrkit.losses import gradient_difference
from drrkit.projector import render
from drrkit.similarity.networks.interfaces import Configuration, PosePairs, PoseRegressor
from drrkit.similarity.networks.layers import normalisation, resized, scaled
from drrkit.similarity.networks.pose_regressors import (
    place_of,
    riemannian_gradient,
    turned_and_placed,
)
from drrkit.similarity.networks.sopi import SplitBottleneck
from drrkit.volume import Volume

UNIT_MM = 100.0
"""The shift that counts as a turn of one radian in the loss."""


class ConvolutionPair(nn.Module):
    """Two 3 x 3 (x 3) convolutions, each with norm, ReLU and dropout; then means of 2 x 2 (x 2).

    Both norms share their weights, as published.

    Args:
        dims: 2 for images, 3 for volumes.
        inside, outside: channels.
        dropout: of whole channels, in training.
    """

    def __init__(self, dims: int, inside: int, outside: int, dropout: float = 0.2) -> None:
        super().__init__()
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        bias = dims == 3
        self.first = convolution(inside, outside, 3, padding=1, bias=bias)
        self.second = convolution(outside, outside, 3, padding=1, bias=bias)
        self.norm = normalisation("group", outside)
        self.drop = {2: nn.Dropout2d, 3: nn.Dropout3d}[dims](dropout)
        self.pool = {2: nn.AvgPool2d, 3: nn.AvgPool3d}[dims](2)

    def forward(self, image: Tensor) -> Tensor:
        image = self.drop(self.norm(self.first(image)).relu())
        return self.pool(self.drop(self.norm(self.second(image)).relu()))


class PoseInitialiser(PoseRegressor):
    """Features of the volume, folded to an image, beside those of the X-ray; convolutions; a pose.

    A prediction is theta [B, 6] in [-1, 1]: where in the ranges the pose is, relative to the pose
    that is given (an AP view, say): turn by Rz Ry Rx in camera axes about the volume's centre, then
    shift that centre. Renderings are not used. The published network starts at a corner of the
    ranges, where ReLU6 has no derivative; this one starts in the middle.

    Args:
        image, volume: side of the square X-ray and of the cubic volume that the network sees;
            others are resized. The volume's side is a multiple of 8, the image's one of
            4 * 2^len(localisation).
        width: channels of both encoders' two stages.
        localisation: channels of the stages that follow, each of which halves the side.
        hidden: widths of the linear layers.
        rotation_deg: half ranges of the angles about x, y and z.
        shift_mm: half ranges of the shifts along x, y and z (depth).
        weights: in training, of the images' gradient difference, of theta's squared error and of
            the squared geodesic distance, 100 mm counted as a radian. The published weights are
            not known.
        dropout: of channels in the encoders, in training.
        **bone: threshold_hu, voxel_mm, see BoneNetwork.
    """

    span: Tensor

    def __init__(
        self,
        *,
        image: int = 256,
        volume: int = 256,
        width: Sequence[int] = (64, 128),
        localisation: Sequence[int] = (64, 32, 16),
        hidden: Sequence[int] = (512, 128),
        rotation_deg: Sequence[float] = (20.0, 10.0, 10.0),
        shift_mm: Sequence[float] = (30.0, 30.0, 75.0),
        weights: Sequence[float] = (0.1, 1.0, 1.0),
        dropout: float = 0.2,
        **bone: Any,
    ) -> None:
        super().__init__(**bone)
        side = image // 4
        end = side // 2 ** len(localisation)
        folded = width[-1] * side * side
        if volume % 8 or folded % (volume // 8) ** 3 or end * 2 ** len(localisation) * 4 != image:
            raise ValueError(f"image, volume: cannot fold {volume}^3 voxels to {image}^2 pixels")
        self.image, self.side, self.cube = image, side, volume
        self.weights = tuple(weights)
        angles = [math.radians(angle) for angle in rotation_deg]
        self.register_buffer("span", torch.tensor([*angles, *shift_mm], dtype=torch.float64))
        self.of_volume = nn.Sequential(
            nn.Conv3d(1, 1, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool3d(2),
            ConvolutionPair(3, 1, width[0], dropout),
            ConvolutionPair(3, width[0], width[1], dropout),
            nn.Conv3d(width[1], folded // (volume // 8) ** 3, 1),
        )
        self.of_image = nn.Sequential(
            ConvolutionPair(2, 1, width[0], dropout),
            ConvolutionPair(2, width[0], width[1], dropout),
        )
        stages: list[nn.Module] = [nn.Conv2d(2 * width[1], width[1], 3, padding=1)]
        inside = width[1]
        for wide in localisation:
            convolution = nn.Conv2d(inside, wide, 3, padding=1)
            stages += [convolution, nn.ReLU(), SplitBottleneck(wide), nn.MaxPool2d(2)]
            inside = wide
        self.localisation = nn.Sequential(*stages, nn.Flatten())
        wide = inside * end * end
        layers: list[nn.Module] = []
        for outside in hidden:
            layers += [nn.Linear(wide, outside), nn.ReLU()]
            wide = outside
        last = nn.Linear(wide, 6)
        nn.init.constant_(last.bias, 3.0)
        self.pose = nn.Sequential(*layers, last)

    def predict(self, moving: Tensor, fixed: Tensor, volume: Volume) -> Tensor:
        """theta [B, 6] in [-1, 1], B that of `fixed` or, for one X-ray, of `moving`."""
        fixed = resized(scaled(fixed, "standard"), self.image)
        seen = self.of_image(fixed)
        known = self.of_volume(self._values(volume).to(fixed))
        known = known.reshape(1, -1, self.side, self.side).expand(len(seen), -1, -1, -1)
        out = self.pose(self.localisation(torch.cat((known, seen), 1)))
        return (functional.relu6(out) / 3 - 1).expand(max(len(out), len(moving)), -1)

    def apply(self, prediction: Tensor, world_to_camera: Tensor, center: Tensor) -> Tensor:
        angles, shift = (prediction.double() * self.span).split(3, 1)
        x, y, z = (torch.diag_embed(angles)[:, axis].contiguous() for axis in range(3))
        turn = so3_exp(z) @ so3_exp(y) @ so3_exp(x)
        place = place_of(center, world_to_camera) + shift
        return turned_and_placed(world_to_camera, turn, place, center)

    def parameters_between(self, world_to_camera: Tensor, target: Tensor, center: Tensor) -> Tensor:
        """The theta [B, 6] that takes poses to target poses: the inverse of `apply`."""
        turn = target[:, :3, :3] @ world_to_camera[:, :3, :3].mT
        x = torch.atan2(turn[:, 2, 1], turn[:, 2, 2])
        y = torch.asin((-turn[:, 2, 0]).clamp(-1, 1))
        z = torch.atan2(turn[:, 1, 0], turn[:, 0, 0])
        shift = place_of(center, target) - place_of(center, world_to_camera)
        return torch.cat((torch.stack((x, y, z), 1), shift), 1) / self.span

    def loss(self, prediction: Tensor, pairs: PosePairs) -> Tensor:
        """The weighted sum of the losses of images, parameters and poses."""
        true = self.parameters_between(pairs.world_to_camera, pairs.target, pairs.center)
        found = self.apply(prediction, pairs.world_to_camera, pairs.center)
        apart = riemannian_gradient(found, pairs.target, pairs.center, UNIT_MM)
        of_image, of_parameters, of_pose = self.weights
        loss = of_parameters * (prediction.double() - true).square().mean()
        loss = loss + of_pose * apart.square().sum(1).mean().to(loss)
        if of_image:
            image = render(pairs.volume, pairs.camera, found).to(loss)
            fixed = pairs.fixed.to(loss)
            loss = loss + of_image * gradient_difference(image, fixed).mean()
        return loss

    def _values(self, volume: Volume) -> Tensor:
        """The volume's values [1, 1, side, side, side], the largest one 1."""
        values = volume.values.reshape(1, 1, *volume.values.shape[-3:])
        values = values / values.amax().clamp_min(1e-6)
        size = self.cube, self.cube, self.cube
        if min(values.shape[-3:]) >= self.cube:
            return functional.adaptive_avg_pool3d(values, size)
        return functional.interpolate(values, size, mode="trilinear", align_corners=False)


KINDS: dict[str, type[nn.Module]] = {"initialiser": PoseInitialiser}

NETWORKS: dict[str, Configuration] = {
    "sopi-initialiser": Configuration("initialiser", {}),
    "sopi-initialiser-small": Configuration(
        "initialiser",
        {
            "image": 64,
            "volume": 32,
            "width": (8, 16),
            "localisation": (16, 16),
            "hidden": (64, 32),
            "dropout": 0.0,
        },
    ),
}
"""sopi-initialiser: the published sizes and ranges; -small: for two cores."""
