"""LEAP: Joseph's method and voxel-driven backprojection of its modular beam."""

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
from drrkit.conversions import to_leap
from drrkit.geometry import Camera

UNMASKED = 1e5  # mm: no circular mask on backprojections


@dataclass
class LeapViews:
    model: Any  # leapctype.tomographicModels with this geometry
    images: Tensor  # [B, rows, cols], rows upwards
    given: Tensor  # [B, rows, cols], what is backprojected, rows upwards


class Leap(Peer):
    """leapctype's project and backproject; torch tensors in and out, geometry set before.

    Every view is its modular beam, whose forward projector is Joseph's and needs cubic voxels (the
    footprints of its cone beam need a voxel near pixel / magnification on the CPU). "VD" is its
    voxel-driven, unmatched backprojection, "SF" the matched one.
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
        if abs(self.grid[3] - self.grid[4]) > 1e-6 * self.grid[3]:
            raise Cannot("LEAP's modular beam needs cubic voxels")
        vectors = (view.source_positions, view.module_centers, view.row_vectors, view.col_vectors)
        model.set_modularbeam(
            len(view.source_positions),
            *camera.size,
            view.pixel_height,
            view.pixel_width,
            *(np.ascontiguousarray(v.numpy(), np.float32) for v in vectors),
        )
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


def new_model() -> Any:
    """A parameter set of LEAP's own; each prepared input has one."""
    with stubbed(("imageio",)):  # for reading and writing files
        return import_module("leapctype").tomographicModels()
