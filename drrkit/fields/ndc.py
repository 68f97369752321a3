"""Normalised device coordinates of DiffProj: the volume scaled to [-1, 1]^3.

A cube of 256 mm becomes [-1, 1]^3, so one unit is 128 mm: a source-to-isocentre distance of
1000 mm is 7.8125, a source-to-detector distance of 1536 mm (which the paper calls SID) is 12.0.
Volumes keep their axes, the world's origin moves to the volume's centre, lengths are multiplied by
`scale` and attenuation is divided by it: line integrals, images and pixels stay what they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drrkit._arguments import check_attenuation
from drrkit.geometry import Camera, assemble, batched, check_numbers, volume_center
from drrkit.volume import Volume

DIFFPROJ_SOD, DIFFPROJ_SDD = 7.8125, 12.0
"""The paper's distances from the source to isocentre and detector, in NDC of a 256 mm cube."""


@dataclass(frozen=True)
class NDC:
    """The map from world mm to NDC: x_ndc = scale (x - center).

    Attributes:
        scale: NDC units per mm, 2 / (longest side of the volume in mm).
        center: world position (x, y, z) in mm of the NDC origin.

    Raises:
        ValueError: a scale that is not positive and finite, or a center that is not three numbers.
    """

    scale: float
    center: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        check_numbers(scale=self.scale)
        if len(self.center) != 3 or not all(math.isfinite(c) for c in self.center):
            raise ValueError(f"center: expected three finite numbers (mm), got {self.center!r}")

    @staticmethod
    def of(volume: Volume) -> NDC:
        """The map that takes a volume, face to face, into [-1, 1]^3; its longest side fills it."""
        sides = (n * s for n, s in zip(volume.shape_xyz, volume.spacing, strict=True))
        x, y, z = volume_center(volume).tolist()
        return NDC(2.0 / max(sides), (x, y, z))

    @property
    def inverse(self) -> NDC:
        """The map back: every method of it undoes the same method of this one."""
        x, y, z = (-self.scale * c for c in self.center)
        return NDC(1.0 / self.scale, (x, y, z))

    def length(self, length: float) -> float:
        """A length in mm in NDC units: 1000 mm are 7.8125 where 256 mm are two."""
        return length * self.scale

    def points(self, points: Tensor) -> Tensor:
        """World points [..., 3] in mm to NDC."""
        return (points - points.new_tensor(self.center)) * self.scale

    def volume(self, volume: Volume) -> Volume:
        """A Volume in mu (1/mm) with lengths in NDC units and mu in 1/unit.

        Raises:
            TypeError, ValueError: it is no Volume in mu.
        """
        check_attenuation(volume)
        x, y, z = self.points(torch.tensor(volume.origin, dtype=torch.float64)).tolist()
        spacing = tuple(side * self.scale for side in volume.spacing)
        values = volume.values / self.scale
        return replace(volume, values=values, spacing=spacing, origin=(x, y, z))

    def camera(self, camera: Camera) -> Camera:
        """A camera (sdd in mm) with sdd in NDC units; pixels are pixels in both."""
        return replace(camera, sdd=camera.sdd * self.scale)

    def pose(self, world_to_camera: Tensor) -> Tensor:
        """Poses [4, 4] or [B, 4, 4] from world mm to camera mm as ones from NDC to camera units.

        With x = center + x_n / scale: R_n = R and t_n = scale (R center + t).
        """
        pose = batched("world_to_camera", world_to_camera, (4, 4))
        place = pose[:, :3, :3] @ pose.new_tensor(self.center) + pose[:, :3, 3]
        found = assemble(pose[:, :3, :3], (place * self.scale)[..., None])
        return found.reshape(world_to_camera.shape)
