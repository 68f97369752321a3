"""What every learned similarity is: a module that prepares a volume and compares images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from drrkit.volume import Volume, water_attenuation

__all__ = ["CT_ENERGY_KEV", "LearnedSimilarity"]

CT_ENERGY_KEV = 70.0
"""The energy at which a scene's mu is read back as Hounsfield units: Volume.to_mu's default."""

EMPHASIS_HU = -130.0
"""What counts as nothing in a moving volume: mu above this many HU is what remains of bone (the
conversion of ProST's and SOPI's published code)."""


class LearnedSimilarity(nn.Module):
    """A similarity with weights: S(moving, fixed) -> [B], to be minimised.

    Three steps, of which registration sees `prepare` and the call:

        moving(scene)       what the network reads of the CT: bone, on the network's voxels
        channels(values)    the learned map of these values to channels, before projection
        forward(moving, fixed, mask)  compares projected channels with X-rays

    A subclass defines `forward`, and `channels` unless the volume stays as it is. Its constructor
    takes settings by name only, numbers, strings, booleans, None and tuples of these: with them and
    the state dict a file rebuilds it (`build`, `save_similarity`).

    Every image is judged on its own: S[i] must not depend on the other images of a batch, or
    d S[i] / d pose[i] is not what registration descends. So no batch statistics in training mode,
    and every operation needs a second derivative (attention written out, not a fused kernel).

    Args:
        threshold_hu: voxels below are not part of the moving volume; None keeps all (the "full CT"
            ablation).
        voxel_mm: the moving volume is resampled to voxels of this size; None for the scene's own.
    """

    kind: str
    """Name of the class in `KINDS`, set by `construct`."""
    settings: dict[str, Any]
    """What the constructor was given, set by `construct`."""

    def __init__(
        self, *, threshold_hu: float | None = 150.0, voxel_mm: float | None = None
    ) -> None:
        super().__init__()
        self.threshold_hu = threshold_hu
        self.voxel_mm = voxel_mm

    def moving(self, scene: Volume) -> Volume:
        """The volume that the network reads: mu of bone in 1/mm, [D, H, W], no weights involved.

        mu' = max(mu - mu(EMPHASIS_HU), 0) where the scene has at least `threshold_hu`. A label map
        serves better where there is one: give scene.select(bones).

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

    def channels(self, values: Tensor) -> Tensor:
        """Moving values [D, H, W] -> [C, D, H, W] to be projected, differentiable in the weights.

        Here: the values themselves, C = 1.
        """
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
