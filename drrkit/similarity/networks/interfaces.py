"""The interfaces of all networks here: similarities, pose regressors, and named configurations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from drrkit.geometry import Camera, volume_center
from drrkit.similarity.networks.layers import CT_ENERGY_KEV
from drrkit.volume import Volume, water_attenuation

EMPHASIS_HU = -130.0
"""mu above this many HU is what remains of bone in a moving volume (the conversion of ProST's and
SOPI's published code)."""


class Configuration(NamedTuple):
    """A network's class, by name, and the settings of its constructor."""

    kind: str
    settings: dict[str, Any]

    def but(self, **changes: Any) -> Configuration:
        """The same with some settings changed."""
        return Configuration(self.kind, {**self.settings, **changes})


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
            scene: a Volume in mu at CT_ENERGY_KEV, of one channel.

        Raises:
            TypeError: not a Volume.
            ValueError: not in mu, or of several channels.
        """
        if not isinstance(scene, Volume):
            raise TypeError(f"scene: expected a Volume, got {type(scene).__name__}")
        if scene.unit != "mu":
            raise ValueError(
                f'scene: expected a volume in "mu", got unit {scene.unit!r}; to_mu() converts'
            )
        if scene.values.dim() == 4 and scene.values.shape[0] != 1:
            raise ValueError(f"scene: expected one channel, got {tuple(scene.values.shape)}")
        values = scene.values.reshape(scene.values.shape[-3:])
        water = water_attenuation(CT_ENERGY_KEV)
        bone = (values - water * (1.0 + EMPHASIS_HU / 1000.0)).clamp_min(0.0)
        if self.threshold_hu is not None:
            bone = bone * (values >= water * (1.0 + self.threshold_hu / 1000.0))
        found = replace(scene, values=bone, labels=None)
        if self.voxel_mm is None:
            return found
        return found.resample((self.voxel_mm,) * 3)


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
