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

from drrkit.geometry import Camera, batched, volume_center
from drrkit.volume import Volume

__all__ = ["DIFFPROJ_SDD", "DIFFPROJ_SOD", "NDC"]

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
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale: expected a positive number of units per mm, got {self.scale}")
        if len(self.center) != 3 or not all(math.isfinite(c) for c in self.center):
            raise ValueError(f"center: expected three finite numbers (mm), got {self.center!r}")

    @staticmethod
    def of(volume: Volume) -> NDC:
        """The map that takes a volume, face to face, into [-1, 1]^3; its longest side fills it."""
        sides = (n * s for n, s in zip(volume.shape_xyz, volume.spacing, strict=True))
        x, y, z = volume_center(volume).tolist()
        return NDC(2.0 / max(sides), (x, y, z))

    def length(self, mm: float) -> float:
        """A length in mm in NDC units: 1000 mm are 7.8125 where 256 mm are two."""
        return mm * self.scale

    def length_mm(self, units: float) -> float:
        """A length in NDC units in mm."""
        return units / self.scale

    def points(self, world: Tensor) -> Tensor:
        """World points [..., 3] in mm to NDC."""
        return (world - world.new_tensor(self.center)) * self.scale

    def points_mm(self, ndc: Tensor) -> Tensor:
        """NDC points [..., 3] to world mm."""
        return ndc / self.scale + ndc.new_tensor(self.center)

    def volume(self, volume: Volume) -> Volume:
        """A Volume in mu (1/mm) with lengths in NDC units and mu in 1/unit.

        Raises:
            ValueError: the volume is in HU.
        """
        return self._rescaled(volume, self.scale, self.points)

    def volume_mm(self, volume: Volume) -> Volume:
        """The inverse of `volume`."""
        return self._rescaled(volume, 1.0 / self.scale, self.points_mm)

    def camera(self, camera: Camera) -> Camera:
        """A camera (sdd in mm) with sdd in NDC units; pixels are pixels in both."""
        return replace(camera, sdd=camera.sdd * self.scale)

    def camera_mm(self, camera: Camera) -> Camera:
        """The inverse of `camera`."""
        return replace(camera, sdd=camera.sdd / self.scale)

    def pose(self, world_to_camera: Tensor) -> Tensor:
        """Poses [4, 4] or [B, 4, 4] from world mm to camera mm as ones from NDC to camera units.

        With x = center + x_n / scale: R_n = R and t_n = scale (R center + t).
        """
        pose = batched("world_to_camera", world_to_camera, (4, 4))
        moved = pose[:, :3, :3] @ pose.new_tensor(self.center) + pose[:, :3, 3]
        return _with_translation(pose, moved * self.scale).reshape(world_to_camera.shape)

    def pose_mm(self, ndc_to_camera: Tensor) -> Tensor:
        """The inverse of `pose`: t = t_n / scale - R center."""
        pose = batched("ndc_to_camera", ndc_to_camera, (4, 4))
        moved = pose[:, :3, 3] / self.scale - pose[:, :3, :3] @ pose.new_tensor(self.center)
        return _with_translation(pose, moved).reshape(ndc_to_camera.shape)

    def _rescaled(self, volume: Volume, factor: float, place) -> Volume:
        if volume.unit != "mu":
            raise ValueError(
                f"volume: expected attenuation (unit 'mu'), got unit {volume.unit!r}; "
                "volume.to_mu() converts Hounsfield units"
            )
        x, y, z = place(torch.tensor(volume.origin, dtype=torch.float64)).tolist()
        spacing = tuple(side * factor for side in volume.spacing)
        return replace(volume, values=volume.values / factor, spacing=spacing, origin=(x, y, z))


def _with_translation(pose: Tensor, translation: Tensor) -> Tensor:
    upper = torch.cat((pose[:, :3, :3], translation[:, :, None]), 2)
    return torch.cat((upper, pose[:, 3:]), 1)
