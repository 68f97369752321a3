"""The two image formations of DiffProj (arXiv 2308.00214) and the scenes they belong to.

Ray casting (RC, its Eq. 4) is the line integral sum_i mu_i delta_i, the scale that drrkit renders.
Volume rendering (VR, its Eq. 1) is emission and absorption with a constant colour of one,

    I = sum_i T_i (1 - exp(-sigma_i delta_i)),   T_i = exp(-sum_{j < i} sigma_j delta_j),

whose terms telescope: T_i (1 - exp(-sigma_i delta_i)) = T_i - T_{i+1}, so I = 1 - exp(-RC) for any
samples. It is the share of the beam that the patient absorbs, and saturates behind dense bone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from drrkit.fields.scenes import Scene, as_scene
from drrkit.geometry import Camera

__all__ = ["FORMATIONS", "VolumeRendered", "absorption", "ray_casting", "volume_rendering"]


def absorption(line_integrals: Tensor) -> Tensor:
    """Line integrals to the absorbed share of the beam: 1 - exp(-I), any shape, no unit."""
    return -torch.expm1(-line_integrals)


def ray_casting(scene: Any, camera: Camera, world_to_camera: Tensor, **options: Any) -> Tensor:
    """DiffProj's ray casting: the line integrals [B, C, rows, cols] of a scene.

    Args:
        scene: a Volume in mu, or anything that renders itself.
        camera, world_to_camera: the views, as for `drrkit.render`.
        options: what the scene's `render` takes.

    Raises:
        TypeError, ValueError: as the scene's `render`.
    """
    return as_scene(scene).render(camera, world_to_camera, **options)


def volume_rendering(scene: Any, camera: Camera, world_to_camera: Tensor, **options: Any) -> Tensor:
    """DiffProj's volume rendering: the absorbed share [B, C, rows, cols], 0 to 1, of a scene.

    1 - exp(-`ray_casting`), to rounding; arguments and errors are the same.
    """
    return absorption(ray_casting(scene, camera, world_to_camera, **options))


FORMATIONS: dict[str, Callable[..., Tensor]] = {"rc": ray_casting, "vr": volume_rendering}
"""DiffProj's image formations by their short names."""


class VolumeRendered:
    """A scene whose images are `volume_rendering`, so that registrations compare absorption.

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
