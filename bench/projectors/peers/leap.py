"""LEAP: separable footprints for circular orbits, Joseph's method for single views."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bench.projectors.peers.peer import Cannot, Peer, cotangent, upright
from bench.projectors.peers.stubs import stubbed
from bench.projectors.scene import Scene
from drrkit.conversions import LeapView, to_leap
from drrkit.geometry import Camera

UNMASKED = 1e5  # mm: no circular mask on backprojections
CIRCLE = 1e-3  # mm by which an orbit may miss a circle


@dataclass
class LeapViews:
    model: Any  # leapctype.tomographicModels with this geometry
    images: Tensor  # [B, rows, cols], rows upwards
    given: Tensor  # [B, rows, cols], what is backprojected, rows upwards


class Leap(Peer):
    """leapctype's project and backproject; torch tensors in and out, geometry set before.

    A circular orbit is its cone beam, anything else its modular beam, whose forward projector is
    Joseph's and needs cubic voxels. Its footprints need a voxel near pixel / magnification on the
    CPU, so there every view is modular. "VD" is its voxel-driven, unmatched backprojection, "SF"
    the matched one.
    """

    name = "LEAP"
    package = "leapct"
    methods = ("SF", "VD")
    integral: ClassVar[dict[str, str]] = {"SF": "joseph", "VD": "joseph"}
    operations = ("forward", "adjoint")

    @classmethod
    def unavailable(cls, device: torch.device) -> str | None:
        if not find_spec("leapctype"):
            return "LEAP (leapctype) is not installed"
        if new_model().libprojectors is None:
            return "leapctype does not find its library"
        return None

    @classmethod
    def version(cls) -> dict[str, str]:
        return {"LEAP": str(new_model().version())}

    def supports(self, operation: str) -> bool:
        return operation == "adjoint" or (operation == "forward" and self.method == "SF")

    def prepare(self, scene: Scene) -> None:
        volume, self.flipped = upright(scene.volume)
        if abs(volume.spacing[0] - volume.spacing[1]) > 1e-6 * volume.spacing[0]:
            raise Cannot("LEAP's voxels are square in x and y")
        self.grid = (*volume.shape_xyz, volume.spacing[0], volume.spacing[2])
        self.values = volume.values.contiguous()
        self.volume = volume
        self.gradient = torch.empty_like(self.values)

    def views(self, camera: Camera, world_to_camera: Tensor) -> LeapViews:
        model = new_model()
        model.set_log_error()
        model.set_gpu(-1 if self.device.type == "cpu" else self.device.index or 0)
        view = to_leap(camera, world_to_camera.cpu(), self.volume)
        angles = None if self.device.type == "cpu" else orbit(view)
        if angles is None:
            if abs(self.grid[3] - self.grid[4]) > 1e-6 * self.grid[3]:
                raise Cannot("LEAP's modular beam needs cubic voxels")
            self._modular(model, view, camera)
        else:
            self._circular(model, view, angles, camera)
        model.set_volume(*self.grid)
        model.set_diameterFOV(UNMASKED)
        if self.method == "VD" and not model.set_projector("VD"):
            raise Cannot("this LEAP has no voxel-driven backprojection")
        shape = (len(world_to_camera), *camera.size)
        given = cotangent(camera.size).float().flip(0).expand(shape).contiguous()
        return LeapViews(model, torch.zeros(shape, device=self.device), given.to(self.device))

    def forward(self, views: LeapViews) -> Tensor:
        return views.model.project(views.images, self.values)

    def adjoint(self, views: LeapViews) -> Tensor:
        return views.model.backproject(views.given, self.gradient)

    def answer(self, operation: str, views: LeapViews, result: Tensor) -> np.ndarray:
        if not bool(result.any()):  # it prints what it refuses and returns
            raise Cannot("LEAP returned zeros: it refused this geometry")
        if operation == "forward":
            return result.flip(1).cpu().numpy()
        return result.flip(self.flipped).cpu().numpy()

    def _modular(self, model: Any, view: LeapView, camera: Camera) -> None:
        vectors = (view.source_positions, view.module_centers, view.row_vectors, view.col_vectors)
        model.set_modularbeam(
            len(view.source_positions),
            *camera.size,
            view.pixel_height,
            view.pixel_width,
            *(np.ascontiguousarray(v.numpy(), np.float32) for v in vectors),
        )

    def _circular(self, model: Any, view: LeapView, angles: np.ndarray, camera: Camera) -> None:
        rows, cols = camera.size
        sod = float(view.source_positions[0].norm())
        middle = ((rows - 1) / 2, (cols - 1) / 2)
        pitch = (view.pixel_height, view.pixel_width)
        model.set_conebeam(len(angles), rows, cols, *pitch, *middle, angles, sod, float(camera.sdd))


def orbit(view: LeapView) -> np.ndarray | None:
    """Angles in degrees when the views lie on a circle in the z = 0 plane, else None."""
    sources, up = view.source_positions.numpy(), view.row_vectors.numpy()
    if len(sources) < 2:
        return None
    radius = np.linalg.norm(sources[0])
    on_circle = (
        np.abs(sources[:, 2]).max() < CIRCLE
        and np.abs(np.linalg.norm(sources, axis=1) - radius).max() < CIRCLE
        and np.abs(up - [0.0, 0.0, 1.0]).max() < 1e-6
    )
    angles = np.unwrap(np.arctan2(sources[:, 1], sources[:, 0]))
    steps = np.diff(angles)
    if not on_circle or not (np.all(steps > 0) or np.all(steps < 0)):
        return None
    return np.ascontiguousarray(np.degrees(angles), np.float32)


def new_model() -> Any:
    """A parameter set of LEAP's own; each prepared input has one."""
    with stubbed(("imageio",)):  # for reading and writing files
        return import_module("leapctype").tomographicModels()
