"""TIGRE: Siddon's and sampled projections on CUDA, NumPy arrays in and out."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bench.projectors.peers.peer import Peer, cotangent, upright
from bench.projectors.scene import Scene
from drrkit.conversions import to_tigre
from drrkit.geometry import Camera


@dataclass
class TigreViews:
    geometry: Any
    angles: np.ndarray  # [B, 3] ZYZ
    given: np.ndarray  # [B, rows, cols], rows upwards


class Tigre(Peer):
    """tigre.Ax and tigre.Atb("matched"); copies to and from the GPU are part of the call."""

    name = "TIGRE"
    package = "pytigre"
    methods = ("Siddon", "interpolated")
    integral: ClassVar[dict[str, str]] = {"Siddon": "siddon", "interpolated": "trilinear"}
    operations = ("forward", "adjoint")
    note = "adapter not run yet; NumPy in and out, with the copies"

    @classmethod
    def unavailable(cls, device: torch.device) -> str | None:
        if device.type != "cuda":
            return "it needs CUDA"
        return None if find_spec("tigre") else "TIGRE (pytigre) is not installed"

    def supports(self, operation: str) -> bool:
        return operation == "forward" or (operation == "adjoint" and self.method == "Siddon")

    def prepare(self, scene: Scene) -> None:
        self.tigre = import_module("tigre")
        volume, self.flipped = upright(scene.volume)
        self.volume = volume
        self.values = np.ascontiguousarray(volume.values.cpu().numpy())

    def views(self, camera: Camera, world_to_camera: Tensor) -> TigreViews:
        view = to_tigre(camera, world_to_camera.cpu(), self.volume)
        count = len(view.angles)
        geometry = self.tigre.geometry(mode="cone", default=False)
        geometry.nVoxel = np.array(self.volume.shape_xyz[::-1])
        geometry.dVoxel = np.array(self.volume.spacing[::-1])
        geometry.sVoxel = geometry.nVoxel * geometry.dVoxel
        geometry.nDetector = np.array(view.nDetector)
        geometry.dDetector = np.array(view.dDetector)
        geometry.sDetector = geometry.nDetector * geometry.dDetector
        geometry.accuracy = 1.0  # interpolated: a step of one voxel, as the other sampling tools
        geometry.DSO = view.DSO.numpy()
        geometry.DSD = np.full(count, view.DSD)
        geometry.offOrigin = view.offOrigin.numpy()
        geometry.offDetector = np.tile(view.offDetector, (count, 1))
        geometry.rotDetector = np.zeros((count, 3))
        angles = view.angles.float().numpy()
        given = cotangent(camera.size).float().numpy()[::-1]
        shape = (count, *camera.size)
        return TigreViews(geometry, angles, np.ascontiguousarray(np.broadcast_to(given, shape)))

    def forward(self, views: TigreViews) -> np.ndarray:
        return self.tigre.Ax(self.values, views.geometry, views.angles, projection_type=self.method)

    def adjoint(self, views: TigreViews) -> np.ndarray:
        return self.tigre.Atb(
            views.given, views.geometry, views.angles, backprojection_type="matched"
        )

    def answer(self, operation: str, views: TigreViews, result: np.ndarray) -> np.ndarray:
        if operation == "forward":
            return np.ascontiguousarray(result[:, ::-1])
        return np.ascontiguousarray(np.flip(result, self.flipped)) if self.flipped else result
