"""What networks share: interfaces, images on one scale, normalisations, the 3D network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from drrkit._arguments import check_attenuation
from drrkit.geometry import Camera, volume_center
from drrkit.volume import Volume, water_attenuation

EMPHASIS_HU = -130.0
"""mu above this many HU is what remains of bone in a moving volume (the conversion of ProST's and
SOPI's published code)."""

NORMS = ("group", "batch", "none")
SCALINGS = ("none", "unit", "standard")

# ---- interfaces


class BoneNetwork(nn.Module):
    """A network that reads the bone of a CT.

    Its constructor takes settings by name only: numbers, strings, booleans, None and tuples of
    these. With them and the state dict a file rebuilds it (`build`, `save_similarity`).

    Args:
        threshold_hu: voxels below are not part of the moving volume; None keeps all (the "full CT"
            ablation).
        voxel_mm: the moving volume is resampled to voxels of this size; None for the scene's own.

    Attributes:
        kind, settings: name of the class in `KINDS` and arguments of the constructor, set by
            `construct`.
    """

    kind: str
    settings: dict[str, Any]

    def __init__(
        self, *, threshold_hu: float | None = 150.0, voxel_mm: float | None = None
    ) -> None:
        super().__init__()
        self.threshold_hu = threshold_hu
        self.voxel_mm = voxel_mm

    def moving(self, scene: Volume) -> Volume:
        """The volume that the network reads: mu of bone in 1/mm, [D, H, W], no weights involved.

        mu' = max(mu - mu(EMPHASIS_HU), 0) where the scene has at least `threshold_hu`. A label map
        selects bone better than the threshold where there is one: pass scene.select(bones).

        Args:
            scene: a Volume in mu at to_mu's default energy, of one channel.

        Raises:
            TypeError: not a Volume.
            ValueError: not in mu, or of several channels.
        """
        check_attenuation(scene, "scene")
        if scene.values.dim() == 4 and scene.values.shape[0] != 1:
            raise ValueError(f"scene: expected one channel, got {tuple(scene.values.shape)}")
        values = scene.values.reshape(scene.values.shape[-3:])
        water = water_attenuation()
        bone = (values - water * (1.0 + EMPHASIS_HU / 1000.0)).clamp_min(0.0)
        if self.threshold_hu is not None:
            bone = bone * (values >= water * (1.0 + self.threshold_hu / 1000.0))
        found = replace(scene, values=bone, labels=None)
        return found if self.voxel_mm is None else found.resample((self.voxel_mm,) * 3)


class LearnedSimilarity(BoneNetwork):
    """A similarity with weights: S(moving, fixed) -> [B], to be minimised.

        moving(scene)       the bone of the CT, on the network's voxels
        channels(values)    the learned map of these values to channels, before projection
        prepare(scene)      both: the volume that registration renders
        forward(moving, fixed, mask)  compares projected channels with X-rays

    A subclass defines `forward`, and `channels` unless the volume stays as it is.

    S[i] must not depend on the other images of a batch, or d S[i] / d pose[i] is not what
    registration descends: no batch statistics in training mode. Every operation needs a second
    derivative (attention written out, not a fused kernel).

    Args: those of BoneNetwork.
    """

    def channels(self, values: Tensor) -> Tensor:
        """Moving values [D, H, W] -> [C, D, H, W] to be projected; here the values, C = 1."""
        return values[None]

    def prepare(self, scene: Volume) -> Volume:
        """The volume of C channels to render, without gradient; raises as `moving`."""
        moving = self.moving(scene)
        with torch.no_grad():
            values = self.channels(moving.values.float())
        return replace(moving, values=values.to(moving.values.dtype))

    def forward(self, moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        """S of projected channels and X-rays, lower is better: [B].

        Args:
            moving: [B, C, rows, cols] projections of `channels`.
            fixed: [B or 1, 1, rows, cols] X-rays on the scale of line integrals.
            mask: [B or 1, 1, rows, cols] float weights of pixels.
        """
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class PosePairs:
    """Poses to improve and their true poses, to learn from.

    Attributes:
        volume: the prepared volume of one patient.
        camera: of all images.
        fixed: [B, 1, rows, cols] X-rays at the targets.
        world_to_camera: [B, 4, 4] float64 poses to improve.
        target: [B, 4, 4] float64 true poses.
        points: [P, 3] float64 world mm, of the bones.
    """

    volume: Volume
    camera: Camera
    fixed: Tensor
    world_to_camera: Tensor
    target: Tensor
    points: Tensor

    @property
    def center(self) -> Tensor:
        """The volume's centre, [3] world mm, about which poses turn."""
        return volume_center(self.volume)


class PoseRegressor(BoneNetwork):
    """A network that predicts better poses from renderings at poses and an X-ray.

        prepare(scene)      the volume that is rendered: bone, as for learned similarities
        predict(...)        the network's output, [B, n] numbers
        apply(...)          the poses that these numbers mean
        update(...)         both of these
        loss(...)           how wrong predictions are, to be minimised in training

    A subclass defines `predict`, `apply` and `loss`.

    Args: those of BoneNetwork.
    """

    def prepare(self, scene: Volume) -> Volume:
        """The volume to render: `moving`, by the name that registration uses."""
        return self.moving(scene)

    def predict(self, moving: Tensor, fixed: Tensor, volume: Volume) -> Tensor:
        """The network's output: [B, n], differentiable.

        Args:
            moving: [B, 1, rows, cols] renderings of `volume` at the poses to improve.
            fixed: [B or 1, 1, rows, cols] X-rays on the scale of line integrals.
            volume: the prepared volume.
        """
        raise NotImplementedError

    def apply(self, prediction: Tensor, world_to_camera: Tensor, center: Tensor) -> Tensor:
        """The poses that predictions [B, n] mean: [B, 4, 4] float64, differentiable.

        Args:
            prediction: of `predict`.
            world_to_camera: [B, 4, 4] poses of the moving images.
            center: [3] world mm, the volume's centre.
        """
        raise NotImplementedError

    def loss(self, prediction: Tensor, pairs: PosePairs) -> Tensor:
        """How far predictions [B, n] for pairs are off, [], differentiable."""
        raise NotImplementedError

    def update(
        self, moving: Tensor, fixed: Tensor, world_to_camera: Tensor, volume: Volume
    ) -> Tensor:
        """Better poses: [B, 4, 4] float64, differentiable. Arguments as above."""
        prediction = self.predict(moving, fixed, volume)
        return self.apply(prediction, world_to_camera.double(), volume_center(volume))


# ---- images


def scaled(image: Tensor, how: str, mask: Tensor | None = None) -> Tensor:
    """Images [B, C, rows, cols] on the scale that a network expects, each by itself.

    how: "none"; "unit", the least value 0 and the largest 1, both constants for derivatives, as
    they stand at single pixels; "standard", mean 0 and standard deviation 1 over pixels and
    channels, differentiable twice. mask: float weights [B or 1, 1, rows, cols] of the pixels that
    count; the others become 0.
    """
    if how not in SCALINGS:
        raise ValueError(f"how: expected one of {SCALINGS}, got {how!r}")
    if how == "standard":
        weight = torch.ones_like(image[:1, :1]) if mask is None else mask
        weight = weight.expand(weight.shape[0], image.shape[1], -1, -1)
        total = weight.sum((1, 2, 3), keepdim=True)
        mean = (image * weight).sum((1, 2, 3), keepdim=True) / total
        centred = (image - mean) * weight
        variance = (centred.square()).sum((1, 2, 3), keepdim=True) / total
        # Of an empty image, too, the derivatives are finite.
        return centred / (variance + 1e-6).sqrt()
    if how == "unit":
        seen = image.detach()
        hidden = (torch.zeros_like(seen) if mask is None else mask <= 0).bool()
        low = seen.masked_fill(hidden, torch.inf).amin((1, 2, 3), keepdim=True)
        high = seen.masked_fill(hidden, -torch.inf).amax((1, 2, 3), keepdim=True)
        image = (image - low) / (high - low).clamp_min(torch.finfo(image.dtype).tiny)
    return image if mask is None else image * mask


def check_image_pair(moving: Tensor, fixed: Tensor, channels: int) -> None:
    """Raise ValueError unless these are [B, channels, r, c] and [B or 1, 1, r, c]."""
    if moving.dim() != 4 or moving.shape[1] != channels:
        raise ValueError(
            f"moving: expected [B, {channels}, rows, cols] (is the volume prepared?), "
            f"got {tuple(moving.shape)}"
        )
    views, _, rows, cols = moving.shape
    if tuple(fixed.shape) not in {(count, 1, rows, cols) for count in (1, views)}:
        raise ValueError(
            f"fixed: expected [{views} or 1, 1, {rows}, {cols}], got {tuple(fixed.shape)}"
        )


def resized(image: Tensor, size: int) -> Tensor:
    """[B, C, rows, cols] -> [B, C, size, size]: means of what each pixel covers, or interpolated.

    Volumes [B, C, D, H, W] likewise.
    """
    sides, cube = tuple(image.shape[2:]), (size,) * (image.dim() - 2)
    if sides == cube:
        return image
    volume = len(cube) == 3
    if min(sides) >= size:
        pool = functional.adaptive_avg_pool3d if volume else functional.adaptive_avg_pool2d
        return pool(image, size)
    mode = "trilinear" if volume else "bilinear"
    return functional.interpolate(image, cube, mode=mode, align_corners=False)


# ---- layers


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of every pixel: [B, C, rows, cols] -> the same."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


def normalisation(how: str, channels: int) -> nn.Module:
    """A normalisation of [B, channels, rows, cols].

    how: "group" (groups of 8 channels), which normalises every image by itself; "batch", the
    published one, which couples the images of a batch in training; "none".
    """
    if how == "group":
        return nn.GroupNorm(max(1, channels // 8), channels)
    if how == "batch":
        return nn.BatchNorm2d(channels)
    if how == "none":
        return nn.Identity()
    raise ValueError(f"norm: expected one of {NORMS}, got {how!r}")


def linear_layers(*widths: int) -> nn.Sequential:
    """Linear layers between these widths, with ReLU between them."""
    layers: list[nn.Module] = []
    for inside, outside in pairwise(widths):
        layers += [nn.Linear(inside, outside), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class VolumeExpansion(nn.Module):
    """ProST's residual 3D network: repeat(V, C) + CNN(V), convolutions 3x3x3 with ReLU after each.

    mu [D, H, W] in 1/mm -> [C, D, H, W]. The convolutions see mu relative to water, of order one.

    Widths (4, 8, 16, 8, 3) are those of the published code (8571 parameters), (4, 8, 16, 16, 8, 3)
    those of the 2020 paper's figure (15499). The last width is C.

    Args:
        widths: output channels of every convolution; one number C alone gives repeat(V, C), the
            ablation without a network, which has no parameters.
    """

    def __init__(self, widths: Sequence[int] = (4, 8, 16, 8, 3)) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"widths: expected positive numbers of channels, got {widths!r}")
        self.count = widths[-1]
        sizes = (1, *widths) if len(widths) > 1 else ()
        self.layers = nn.ModuleList(
            nn.Conv3d(before, after, 3, padding=1) for before, after in pairwise(sizes)
        )

    def forward(self, values: Tensor) -> Tensor:
        repeated = values.expand(self.count, *values.shape)
        if not self.layers:
            return repeated.contiguous()
        water = water_attenuation()
        features = values[None, None] / water
        for layer in self.layers:
            # Not in place: the sum below and second derivatives read these tensors.
            features = torch.relu(_convolved(cast(nn.Conv3d, layer), features))
        return repeated + water * features[0]


def _convolved(layer: nn.Conv3d, features: Tensor) -> Tensor:
    """layer(features [1, C, D, H, W]), ten times faster on the CPU for small volumes.

    torch uses oneDNN where the batch is larger than one or C D H > 20480, and unfolds otherwise. So
    both halves of the volume, each with its neighbour's first plane, are convolved as a batch.
    """
    depth = features.shape[2]
    if features.is_cuda or features[0, :, :, :, 0].numel() > 20480 or depth < 4:
        return layer(features)
    half = (depth + 1) // 2
    padded = functional.pad(features, (0, 0, 0, 0, 1, 1))
    halves = torch.cat((padded[:, :, : half + 2], padded[:, :, depth - half :]))
    first, second = functional.conv3d(halves, layer.weight, layer.bias, padding=(0, 1, 1))
    return torch.cat((first, second[:, 2 * half - depth :]), 1)[None]
