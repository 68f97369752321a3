"""Several rigid bodies with poses of their own in one X-ray: their line integrals add."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drrkit.geometry import Camera, volume_center
from drrkit.projector import render
from drrkit.volume import Volume

__all__ = ["Bodies"]

# Voxels of air kept around a body's own: interpolation reaches that far.
_BORDER = 1


@dataclass(frozen=True)
class Bodies:
    """A scene of rigid bodies, each a Volume in mu with a pose of its own.

    Every body has its own map world_to_camera from its volume's world; bodies cut from one CT stand
    in the world as in that CT when their poses are equal. `register` finds the poses [n, 4, 4].

    Attributes:
        bodies: Volumes in mu on one device, of one dtype, one channel each.

    Raises:
        TypeError, ValueError: there are none, or one is something else.
    """

    bodies: tuple[Volume, ...]

    def __init__(self, bodies: Iterable[Volume]) -> None:
        object.__setattr__(self, "bodies", tuple(bodies))
        if not self.bodies:
            raise ValueError("bodies: expected at least one Volume, got none")
        for number, body in enumerate(self.bodies):
            self._check(number, body)

    @staticmethod
    def from_labels(volume: Volume, labels: Sequence[int | Sequence[int]]) -> Bodies:
        """The labelled parts of a volume in mu, one body an entry, each cropped to its extent.

        Args:
            volume: with labels.
            labels: for each body a label, or several. What is in none of them is left out; give
                soft tissue (label 0) to the body that it moves with, where it matters.

        Raises:
            TypeError, ValueError: as `Volume.select`; a body without voxels.
        """
        parts = [volume.select(own) for own in labels]
        return Bodies(_cropped(part, own) for part, own in zip(parts, labels, strict=True))

    def __len__(self) -> int:
        return len(self.bodies)

    @property
    def center(self) -> Tensor:
        """Each body's centre [n, 3] float64 world mm: what its rotations turn about."""
        return torch.stack([volume_center(body) for body in self.bodies])

    def render(self, camera: Camera, world_to_camera: Tensor, **options: Any) -> Tensor:
        """Line integrals [B, 1, rows, cols] of all bodies together.

        Args:
            camera: of the X-ray.
            world_to_camera: [B, n, 4, 4] or [n, 4, 4]; options as for `render`.

        Raises:
            TypeError, ValueError: as `render`; not a pose a body.
        """
        poses = self._poses(world_to_camera)
        images = [
            render(body, camera, poses[:, i], **options) for i, body in enumerate(self.bodies)
        ]
        return torch.stack(images).sum(0)

    def map(self, change: Callable[[Volume], Volume]) -> Bodies:
        """The same with every volume changed."""
        return Bodies(change(body) for body in self.bodies)

    def _poses(self, world_to_camera: Tensor) -> Tensor:
        if world_to_camera.shape[-3:] != (len(self), 4, 4) or world_to_camera.dim() not in (3, 4):
            raise ValueError(
                f"world_to_camera: expected shape [{len(self)}, 4, 4] or [B, {len(self)}, 4, 4], "
                f"a pose a body, got {tuple(world_to_camera.shape)}"
            )
        return world_to_camera.reshape(-1, len(self), 4, 4)

    def _check(self, number: int, body: Any) -> None:
        if not isinstance(body, Volume):
            raise TypeError(f"bodies: expected Volumes, got {type(body).__name__}")
        if body.unit != "mu":
            raise ValueError(
                f"bodies: expected attenuation (unit 'mu'), got unit {body.unit!r} in body "
                f"{number}; volume.to_mu() converts Hounsfield units"
            )
        first = self.bodies[0].values
        if (body.values.device, body.values.dtype) != (first.device, first.dtype):
            raise ValueError(
                f"bodies: expected {first.dtype} on {first.device} as the first is, got "
                f"{body.values.dtype} on {body.values.device} in body {number}"
            )


def _cropped(part: Volume, labels: int | Sequence[int]) -> Volume:
    """The part of a volume that is not air, with a border."""
    filled = part.values != 0
    while filled.dim() > 3:
        filled = filled.any(0)
    places = filled.nonzero()
    if len(places) == 0:
        raise ValueError(f"labels: expected voxels with attenuation in every body, got {labels}")
    lower = (places.amin(0) - _BORDER).clamp_min(0)
    upper = torch.minimum(places.amax(0) + 1 + _BORDER, places.new_tensor(filled.shape))
    return part.crop(lower.flip(0).tolist(), upper.flip(0).tolist())
