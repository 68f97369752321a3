"""Regressors of poses: DeepIM and DMW, which iterate, and SOPI's initialiser, one pass.

All turn the patient about a world point (normally the volume's centre) in camera axes and shift
that point independently, so that the numbers do not depend on the distance to the source:

    R' = turn R,   c' = shifted c,   c = M center

They differ in how turn and shift are written.

DeepIM (Li, Wang, Ji, Xiang, Fox, "DeepIM: deep iterative matching for 6D pose estimation", ECCV
2018; encoder: FlowNetSimple, Dosovitskiy et al., ICCV 2015; on X-rays: the ProST paper, TMI 2024),
"untangled": as seen in the image, v_x = x'/z' - x/z, v_y = y'/z' - y/z, v_z = log(z / z').

DMW (Gu, Gao, Grupp et al., "Extended capture range of rigid 2D/3D registration by estimating
Riemannian pose gradients", MLMI 2020, named DMW in the ProST paper): the gradient of half the
squared distance in the product metric, -log, with millimetres in units of a length. Its sizes are
not public: these are a DenseNet's (Huang et al., CVPR 2017) of moderate size.

SOPI's initialiser ("rigid transformation parameter initialization", Chen et al., ICASSP 2024, arXiv
2305.06252): from a CT and an X-ray to Euler angles and a shift in fixed ranges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from drrkit.conversions import euler_to_matrix, matrix_to_euler
from drrkit.geometry import assemble, check_numbers, quaternion_rotation, so3_exp, so3_log
from drrkit.losses import gradient_difference
from drrkit.projector import render
from drrkit.similarity.networks import (
    PosePairs,
    PoseRegressor,
    check_image_pair,
    linear_layers,
    normalisation,
    resized,
    scaled,
)
from drrkit.similarity.sopi import SplitBottleneck
from drrkit.volume import Volume

UNIT_MM = 100.0
"""Losses count millimetres in this unit, so that they are of order one: a shift by it as much as a
turn of one radian."""

# ---- updates of poses


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
    """The poses [B, 4, 4] after DeepIM's updates, differentiable in all.

    Args:
        world_to_camera: [B, 4, 4].
        quaternion: [B, 4] = (w, x, y, z) of the turn, of any length but 0.
        shift: [B, 3] = (v_x, v_y, v_z), no unit.
        center: [3] world mm; stands in front of the camera.
    """
    place, shift = place_of(center, world_to_camera), shift.to(world_to_camera)
    ray, depth = place[:, :2] / place[:, 2:], place[:, 2:]
    farther = depth * torch.exp(-shift[:, 2:])
    place = torch.cat((ray + shift[:, :2], torch.ones_like(farther)), 1) * farther
    return turned_and_placed(world_to_camera, quaternion_rotation(quaternion), place, center)


def riemannian_step(
    world_to_camera: Tensor, gradient: Tensor, center: Tensor, unit_mm: float, step: float = 1.0
) -> Tensor:
    """The poses [B, 4, 4] after a step against a Riemannian gradient, differentiable in all.

    Args:
        world_to_camera: [B, 4, 4].
        gradient: [B, 6] = (rad, mm / unit_mm).
        center: [3] world mm.
        unit_mm: the shift that counts as much as a turn of one radian.
        step: share of the way; 1 follows a true gradient to its end.
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


# ---- networks that iterate


def _image_pair(moving: Tensor, fixed: Tensor, size: int) -> Tensor:
    """Renderings and X-rays, each with mean 0 and deviation 1, side by side: [B, 2, size, size]."""
    check_image_pair(moving, fixed, 1)
    fixed = fixed.to(moving.dtype).expand(len(moving), -1, -1, -1)
    both = torch.cat((scaled(moving, "standard"), scaled(fixed, "standard")), 1)
    return resized(both, size)


def _silent(inside: int, outside: int) -> nn.Linear:
    """A linear layer of zeros: a fresh network leaves poses as they are."""
    layer = nn.Linear(inside, outside)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class DeepIM(PoseRegressor):
    """Strided convolutions of both images together, two linear layers, quaternion and shift.

    A prediction is [B, 7]: what is added to the quaternion (1, 0, 0, 0), then (v_x, v_y, v_z)
    above, all 0 at first. The decoders of optical flow and masks, which the original trains beside
    this, are left out: X-rays show no surface.

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
            counts = f"{len(widths)}, {len(kernels)} and {len(strides)}"
            raise ValueError(f"widths, kernels, strides: expected equally many, got {counts}")
        if image % math.prod(strides):
            raise ValueError(f"image: expected a multiple of {math.prod(strides)}, got {image}")
        self.image = image
        layers: list[nn.Module] = []
        sizes = zip(pairwise((2, *widths)), kernels, strides, strict=True)
        for (inside, width), kernel, stride in sizes:
            convolution = nn.Conv2d(inside, width, kernel, stride, padding=kernel // 2)
            layers += [convolution, nn.LeakyReLU(0.1)]
        self.encoder = nn.Sequential(*layers)
        self.hidden = nn.Sequential(
            nn.Flatten(),
            nn.Linear(widths[-1] * (image // math.prod(strides)) ** 2, hidden),
            nn.LeakyReLU(0.1),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.1),
        )
        self.turn, self.shift = _silent(hidden, 4), _silent(hidden, 3)

    def predict(self, moving: Tensor, fixed: Tensor, volume: Volume) -> Tensor:
        features = self.hidden(self.encoder(_image_pair(moving, fixed, self.image)))
        return torch.cat((self.turn(features), self.shift(features)), 1)

    def apply(self, prediction: Tensor, world_to_camera: Tensor, center: Tensor) -> Tensor:
        turn, shift = prediction.double().split((4, 3), 1)
        return untangled_step(world_to_camera, turn + turn.new_tensor((1, 0, 0, 0)), shift, center)

    def loss(self, prediction: Tensor, pairs: PosePairs) -> Tensor:
        """Point matching: the mean L1 distance of points at predicted and true poses, in 100 mm."""
        found = self.apply(prediction, pairs.world_to_camera, pairs.center)
        difference = found - pairs.target
        apart = pairs.points @ difference[:, :3, :3].mT + difference[:, None, :3, 3]
        return apart.abs().sum(-1).mean() / UNIT_MM


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
        unit_mm: float = UNIT_MM,
        step: float = 1.0,
        **bone: Any,
    ) -> None:
        super().__init__(**bone)
        check_numbers(unit_mm=unit_mm, step=step)
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
                parts += [normalisation("group", channels), nn.ReLU()]
                parts += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
                channels //= 2
            parts.append(_DenseBlock(channels, count, growth))
            channels += count * growth
        self.encoder = nn.Sequential(*parts, normalisation("group", channels), nn.ReLU())
        self.head = _silent(channels, 6)

    def predict(self, moving: Tensor, fixed: Tensor, volume: Volume) -> Tensor:
        features = self.encoder(_image_pair(moving, fixed, self.image))
        return self.head(features.mean((2, 3)))

    def apply(self, prediction: Tensor, world_to_camera: Tensor, center: Tensor) -> Tensor:
        gradient = prediction.double()
        return riemannian_step(world_to_camera, gradient, center, self.unit_mm, self.step)

    def loss(self, prediction: Tensor, pairs: PosePairs) -> Tensor:
        """Mean squared error of the Riemannian gradient."""
        true = riemannian_gradient(pairs.world_to_camera, pairs.target, pairs.center, self.unit_mm)
        return (prediction.double() - true).square().mean()


# ---- SOPI's initialiser


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
        sizes = (width[1], *localisation)
        for inside, wide in pairwise(sizes):
            convolution = nn.Conv2d(inside, wide, 3, padding=1)
            stages += [convolution, nn.ReLU(), SplitBottleneck(wide), nn.MaxPool2d(2)]
        self.localisation = nn.Sequential(*stages, nn.Flatten())
        self.pose = linear_layers(sizes[-1] * end * end, *hidden, 6)
        nn.init.constant_(cast(nn.Linear, self.pose[-1]).bias, 3.0)

    def predict(self, moving: Tensor, fixed: Tensor, volume: Volume) -> Tensor:
        """theta [B, 6] in [-1, 1], B that of `fixed` or, for one X-ray, of `moving`."""
        fixed = resized(scaled(fixed, "standard"), self.image)
        seen = self.of_image(fixed)
        values = volume.values.reshape(1, 1, *volume.values.shape[-3:])
        values = values / values.amax().clamp_min(1e-6)
        known = self.of_volume(resized(values, self.cube).to(fixed))
        known = known.reshape(1, -1, self.side, self.side).expand(len(seen), -1, -1, -1)
        out = self.pose(self.localisation(torch.cat((known, seen), 1)))
        return (functional.relu6(out) / 3 - 1).expand(max(len(out), len(moving)), -1)

    def apply(self, prediction: Tensor, world_to_camera: Tensor, center: Tensor) -> Tensor:
        angles, shift = (prediction.double() * self.span).split(3, 1)
        turn = euler_to_matrix(angles.flip(1), "ZYX")
        place = place_of(center, world_to_camera) + shift
        return turned_and_placed(world_to_camera, turn, place, center)

    def parameters_between(self, world_to_camera: Tensor, target: Tensor, center: Tensor) -> Tensor:
        """The theta [B, 6] that takes poses to target poses: the inverse of `apply`."""
        turn = target[:, :3, :3] @ world_to_camera[:, :3, :3].mT
        shift = place_of(center, target) - place_of(center, world_to_camera)
        return torch.cat((matrix_to_euler(turn, "ZYX").flip(1), shift), 1) / self.span

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
