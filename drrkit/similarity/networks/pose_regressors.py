"""DeepIM and DMW, regressors that iterate, and the pose updates that their numbers mean.

Both turn the patient about a world point (normally the volume's centre) in camera axes and shift
that point independently, so that the numbers do not depend on the distance to the source:

    R' = turn R,   c' = shifted c,   c = M center

They differ in how the shift is written.

DeepIM (Li, Wang, Ji, Xiang, Fox, "DeepIM: deep iterative matching for 6D pose estimation", ECCV
2018; encoder: FlowNetSimple, Dosovitskiy et al., ICCV 2015; on X-rays: the ProST paper, TMI 2024),
"untangled": as seen in the image, v_x = x'/z' - x/z, v_y = y'/z' - y/z, v_z = log(z / z').

DMW (Gu, Gao, Grupp et al., "Extended capture range of rigid 2D/3D registration by estimating
Riemannian pose gradients", MLMI 2020, named DMW in the ProST paper): the gradient of half the
squared distance in the product metric, -log, with millimetres in units of a length. Its sizes are
not public: these are a DenseNet's (Huang et al., CVPR 2017) of moderate size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from drrkit.geometry import assemble, so3_exp, so3_log
from drrkit.similarity.networks.interfaces import Configuration, PosePairs, PoseRegressor
from drrkit.similarity.networks.layers import check_image_pair, normalisation, resized, scaled
from drrkit.volume import Volume

UNIT_MM = 100.0
"""Point distances are divided by this in DeepIM's loss, so that they are of order one."""


def turned_and_placed(
    world_to_camera: Tensor, turn: Tensor, place: Tensor, center: Tensor
) -> Tensor:
    """The patient turned by `turn` in camera axes, `center` put at `place`.

    Args:
        world_to_camera: [B, 4, 4] float64.
        turn: [B, 3, 3] rotations.
        place: [B, 3] camera mm.
        center: [3] world mm.

    Returns:
        [B, 4, 4] in the dtype of world_to_camera, differentiable in all.
    """
    rotation = turn.to(world_to_camera) @ world_to_camera[:, :3, :3]
    place, center = place.to(world_to_camera), center.to(world_to_camera)
    return assemble(rotation, (place - rotation @ center)[..., None])


def place_of(center: Tensor, world_to_camera: Tensor) -> Tensor:
    """Camera coordinates [B, 3] mm of a world point [3] mm."""
    return world_to_camera[:, :3, :3] @ center.to(world_to_camera) + world_to_camera[:, :3, 3]


def untangled_step(
    world_to_camera: Tensor, quaternion: Tensor, shift: Tensor, center: Tensor
) -> Tensor:
    """The poses after DeepIM's updates.

    Args:
        world_to_camera: [B, 4, 4].
        quaternion: [B, 4] = (w, x, y, z) of the turn, of any length but 0.
        shift: [B, 3] = (v_x, v_y, v_z), no unit.
        center: [3] world mm; stands in front of the camera.

    Returns:
        [B, 4, 4], differentiable in all.
    """
    ray, depth = _ray_and_depth(world_to_camera, center)
    shift = shift.to(world_to_camera)
    farther = depth * torch.exp(-shift[:, 2:])
    place = torch.cat((ray + shift[:, :2], torch.ones_like(farther)), 1) * farther
    return turned_and_placed(world_to_camera, quaternion_rotation(quaternion), place, center)


def _ray_and_depth(world_to_camera: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """(x / z, y / z) [B, 2] and z [B, 1] of the world point."""
    place = place_of(center, world_to_camera)
    return place[:, :2] / place[:, 2:], place[:, 2:]


def riemannian_step(
    world_to_camera: Tensor, gradient: Tensor, center: Tensor, unit_mm: float, step: float = 1.0
) -> Tensor:
    """The poses after a step against a Riemannian gradient; step 1 follows a true one to its end.

    Args:
        world_to_camera: [B, 4, 4].
        gradient: [B, 6] = (rad, mm / unit_mm).
        center: [3] world mm.
        unit_mm: the shift that counts as much as a turn of one radian.
        step: share of the way.

    Returns:
        [B, 4, 4], differentiable in all.
    """
    xi = -step * gradient.to(world_to_camera)
    place = place_of(center, world_to_camera) + xi[:, 3:] * unit_mm
    return turned_and_placed(world_to_camera, so3_exp(xi[:, :3].contiguous()), place, center)


def riemannian_gradient(
    world_to_camera: Tensor, target: Tensor, center: Tensor, unit_mm: float
) -> Tensor:
    """Gradient of half the squared product distance of poses to targets: [B, 6], the -log.

    (rotation vector, shift / unit_mm) from the target to the pose, in camera axes. Arguments as of
    `riemannian_step`, which it is the inverse of.
    """
    turn = so3_log((target[:, :3, :3] @ world_to_camera[:, :3, :3].mT).contiguous())
    shift = (place_of(center, target) - place_of(center, world_to_camera)) / unit_mm
    return -torch.cat((turn, shift), 1)


def quaternion_rotation(quaternion: Tensor) -> Tensor:
    """Rotation matrices [B, 3, 3] of quaternions [B, 4] = (w, x, y, z) of any length but 0."""
    w, x, y, z = (quaternion / quaternion.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


class DeepIM(PoseRegressor):
    """Strided convolutions of both images together, two linear layers, quaternion and shift.

    A prediction is [B, 7]: what is added to the quaternion (1, 0, 0, 0), then (v_x, v_y, v_z)
    above, all 0 at first: a fresh network leaves poses as they are. The decoders of optical flow
    and masks, which the original trains beside this, are left out: X-rays show no surface.

    Args:
        image: side of the square images that the network sees; others are resized.
        widths, kernels, strides: of the convolutions, one number each.
        hidden: width of both linear layers.
        **bone: threshold_hu, voxel_mm, see BoneNetwork.
    """

    def __init__(
        self,
        *,
        image: int = 128,
        widths: Sequence[int] = (64, 128, 256, 256, 512, 512, 512, 512, 1024, 1024),
        kernels: Sequence[int] = (7, 5, 5, 3, 3, 3, 3, 3, 3, 3),
        strides: Sequence[int] = (2, 2, 2, 1, 2, 1, 2, 1, 2, 1),
        hidden: int = 256,
        **bone: Any,
    ) -> None:
        super().__init__(**bone)
        if not len(widths) == len(kernels) == len(strides):
            raise ValueError(
                "widths, kernels, strides: expected equally many of each, got "
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
        features = self.hidden(self.encoder(_image_pair(moving, fixed, self.image)))
        return torch.cat((self.turn(features), self.shift(features)), 1)

    def apply(self, prediction: Tensor, world_to_camera: Tensor, center: Tensor) -> Tensor:
        turn, shift = prediction.double().split((4, 3), 1)
        real = torch.ones_like(turn[:, :1])
        quaternion = turn + torch.cat((real, torch.zeros_like(turn[:, 1:])), 1)
        return untangled_step(world_to_camera, quaternion, shift, center)

    def loss(self, prediction: Tensor, pairs: PosePairs) -> Tensor:
        """Point matching: the mean L1 distance of points at predicted and true poses, in 100 mm."""
        found = self.apply(prediction, pairs.world_to_camera, pairs.center)
        difference = found - pairs.target
        apart = pairs.points @ difference[:, :3, :3].mT + difference[:, None, :3, 3]
        return apart.abs().sum(-1).mean() / UNIT_MM


def _image_pair(moving: Tensor, fixed: Tensor, size: int) -> Tensor:
    """Renderings and X-rays, each with mean 0 and deviation 1, side by side: [B, 2, size, size]."""
    check_image_pair(moving, fixed, 1)
    fixed = fixed.to(moving.dtype).expand(len(moving), -1, -1, -1)
    both = torch.cat((scaled(moving, "standard"), scaled(fixed, "standard")), 1)
    return resized(both, size)


class _DenseBlock(nn.Module):
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

    That is (rad, mm / unit_mm) from the true pose to that of the rendering; the pose is moved
    against it. A fresh network predicts 0.

    Args:
        image: side of the square images that the network sees; others are resized.
        stem: channels of the first convolution.
        layers: of every dense block; between blocks channels and sides are halved.
        growth: channels that a layer adds.
        unit_mm: the shift that counts as a turn of one radian.
        step: share of the predicted way that an update goes.
        **bone: threshold_hu, voxel_mm, see BoneNetwork.
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
        **bone: Any,
    ) -> None:
        super().__init__(**bone)
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
            parts.append(_DenseBlock(channels, count, growth))
            channels += count * growth
        self.encoder = nn.Sequential(*parts, normalisation("group", channels), nn.ReLU())
        self.head = nn.Linear(channels, 6)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def predict(self, moving: Tensor, fixed: Tensor, volume: Volume) -> Tensor:
        features = self.encoder(_image_pair(moving, fixed, self.image))
        return self.head(features.mean((2, 3)))

    def apply(self, prediction: Tensor, world_to_camera: Tensor, center: Tensor) -> Tensor:
        return riemannian_step(
            world_to_camera, prediction.double(), center, self.unit_mm, self.step
        )

    def loss(self, prediction: Tensor, pairs: PosePairs) -> Tensor:
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


KINDS: dict[str, type[nn.Module]] = {"deepim": DeepIM, "dmw": DMW}

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
    "dmw": Configuration("dmw", {}),
    "dmw-small": Configuration("dmw", {"image": 64, "stem": 32, "layers": (4, 4, 4), "growth": 8}),
}
"""deepim: FlowNetSimple's sizes on images of 128 x 128; dmw: for such images; -small: for two
cores."""
