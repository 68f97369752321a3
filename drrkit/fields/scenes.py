"""What can be rendered: a CT as a scene, and DiffProj's two image formations (arXiv 2308.00214).

A scene has `render(camera, world_to_camera, **options) -> [B, C, rows, cols]`, line integrals of
its attenuation, and `center` [3], the world point (mm) that registrations turn it about. A scene
that is nothing but a voxel grid also has `volume`, a Volume in mu with the same images, which can
be registered in its place at the cost of a CT; registrations of the scene use its own `render`.

Ray casting (RC, Eq. 4 of the paper) is the line integral sum_i mu_i delta_i, the scale that drrkit
renders. Volume rendering (VR, its Eq. 1) is emission and absorption with a constant colour of one,

    I = sum_i T_i (1 - exp(-sigma_i delta_i)),   T_i = exp(-sum_{j < i} sigma_j delta_j),

whose terms telescope: T_i (1 - exp(-sigma_i delta_i)) = T_i - T_{i+1}, so I = 1 - exp(-RC) for any
samples. It is the share of the beam that the patient absorbs, and saturates behind dense bone.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from drrkit._arguments import check_attenuation
from drrkit.geometry import Camera, volume_center
from drrkit.projector import Projector, render
from drrkit.volume import Volume


@runtime_checkable
class Scene(Protocol):
    """Anything that renders itself."""

    @property
    def center(self) -> Tensor:
        """[3] float64 world mm, the point that rotations turn about."""
        ...

    def render(self, camera: Camera, world_to_camera: Tensor, **options: Any) -> Tensor:
        """Line integrals [B, C, rows, cols] for poses [4, 4] or [B, 4, 4]."""
        ...


class CT:
    """A CT as a scene: `drrkit.render` of a Volume in mu, its Projector kept.

    Args:
        volume: a Volume with unit "mu".

    Raises:
        TypeError, ValueError: it is not, see Volume.to_mu.
    """

    def __init__(self, volume: Volume) -> None:
        check_attenuation(volume)
        self._given = volume
        self._kept: tuple[Volume, Camera, dict[str, Any], Projector] | None = None

    @property
    def volume(self) -> Volume:
        """The Volume in mu that has the same images."""
        return self._given

    @property
    def center(self) -> Tensor:
        """[3] float64 world mm: the centre of the grid."""
        return volume_center(self._given)

    def render(self, camera: Camera, world_to_camera: Tensor, **options: Any) -> Tensor:
        """Line integrals [B, C, rows, cols]; options and errors as for `drrkit.render`."""
        volume = self._rendered()
        if volume.values.requires_grad or camera.requires_grad:
            return render(volume, camera, world_to_camera, **options)
        if self._kept is None or self._kept[:3] != (volume, camera, options):
            self._kept = (volume, camera, options, Projector(volume, camera, **options))
        return self._kept[3](world_to_camera)

    def _rendered(self) -> Volume:
        return self.volume


def as_scene(scene: Any) -> Scene:
    """A Volume in mu as a CT; what renders itself stays as it is.

    Raises:
        TypeError: neither.
        ValueError: a Volume in HU.
    """
    if isinstance(scene, Volume):
        return CT(scene)
    if not callable(getattr(scene, "render", None)):
        raise TypeError(
            f"scene: expected a Volume or a scene with render(), got {type(scene).__name__}"
        )
    return scene


def absorption(line_integrals: Tensor) -> Tensor:
    """Line integrals (RC) to the absorbed share of the beam (VR), 1 - exp(-I): any shape."""
    return -torch.expm1(-line_integrals)


FORMATIONS = ("rc", "vr")
"""DiffProj's image formations by their short names: ray casting and volume rendering."""


class VolumeRendered:
    """A scene whose images are volume rendering, `absorption`, so that registrations compare that.

    Args:
        scene: a Volume in mu, or anything that renders itself.
    """

    def __init__(self, scene: Any) -> None:
        self.scene: Scene = as_scene(scene)

    @property
    def center(self) -> Tensor:
        """[3] float64 world mm: that of the scene."""
        return self.scene.center

    def render(self, camera: Camera, world_to_camera: Tensor, **options: Any) -> Tensor:
        """The absorbed share of the beam [B, C, rows, cols], 0 to 1."""
        return absorption(self.scene.render(camera, world_to_camera, **options))
