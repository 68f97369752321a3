"""What can be rendered: the words that CT, tuned CT and neural field share.

A scene has `render(camera, world_to_camera, **options) -> [B, C, rows, cols]`, line integrals of
its attenuation, and `center` [3], the world point (mm) that registrations turn it about. A scene
that is nothing but a voxel grid has `volume`, a Volume in mu with the same images: registrations
take that instead, which costs what a CT costs.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from drrkit.geometry import Camera, volume_center
from drrkit.projector import Projector, render
from drrkit.volume import Volume

__all__ = ["CT", "GridRenderer", "Scene", "as_scene", "check_attenuation"]


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


class _Prepared(NamedTuple):
    """What a Projector was made for. Volumes and cameras are equal when they are the same."""

    volume: Volume
    camera: Camera
    options: dict[str, Any]
    projector: Projector


class GridRenderer:
    """Renders a voxel grid again and again: keeps what the last camera's images need.

    A Projector is prepared once for a camera and options and kept until another camera comes. A
    camera that carries a gradient, or values that do, are rendered afresh.
    """

    def __init__(self) -> None:
        self._kept: _Prepared | None = None

    def render(
        self, volume: Volume, camera: Camera, world_to_camera: Tensor, options: dict[str, Any]
    ) -> Tensor:
        """As `drrkit.render`."""
        if volume.values.requires_grad or camera.requires_grad:
            return render(volume, camera, world_to_camera, **options)
        kept = self._kept
        if (
            kept is None
            or (kept.volume, kept.camera) != (volume, camera)
            or kept.options != options
        ):
            projector = Projector(volume, camera, **options)
            self._kept = kept = _Prepared(volume, camera, options, projector)
        return kept.projector(world_to_camera)


class CT:
    """A CT as a scene: `drrkit.render` of a Volume in mu.

    Args:
        volume: a Volume with unit "mu".

    Raises:
        TypeError, ValueError: it is not, see Volume.to_mu.
    """

    def __init__(self, volume: Volume) -> None:
        check_attenuation(volume)
        self.volume = volume
        self._renderer = GridRenderer()

    @property
    def center(self) -> Tensor:
        """[3] float64 world mm: the centre of the grid."""
        return volume_center(self.volume)

    def render(self, camera: Camera, world_to_camera: Tensor, **options: Any) -> Tensor:
        """Line integrals [B, C, rows, cols]; options and errors as for `drrkit.render`."""
        return self._renderer.render(self.volume, camera, world_to_camera, options)


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


def check_attenuation(volume: Any) -> None:
    """Raises TypeError or ValueError unless the argument is a Volume in mu."""
    if not isinstance(volume, Volume):
        raise TypeError(f"volume: expected a drrkit.Volume, got {type(volume).__name__}")
    if volume.unit != "mu":
        raise ValueError(
            f"volume: expected attenuation in 1/mm (unit 'mu'), got unit {volume.unit!r}; "
            "volume.to_mu() converts Hounsfield units"
        )
