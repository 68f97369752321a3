"""TIGRE: Siddon's and sampled projections on CUDA, NumPy arrays in and out."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from drrkit.bench.peers.peer import Peer, cotangent
from drrkit.bench.peers.upright import Viewpoint, upright, viewpoints
from drrkit.bench.scene import Scene
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
        middle = [(n - 1) / 2 * s for n, s in zip(volume.shape_xyz, volume.spacing, strict=True)]
        self.center = np.add(volume.origin, middle)

    def views(self, camera: Camera, world_to_camera: Tensor) -> TigreViews:
        seen = list(viewpoints(world_to_camera, float(camera.sdd)))
        geometry = self.tigre.geometry(mode="cone", default=False)
        geometry.nVoxel = np.array(self.volume.shape_xyz[::-1])
        geometry.dVoxel = np.array(self.volume.spacing[::-1])
        geometry.sVoxel = geometry.nVoxel * geometry.dVoxel
        geometry.nDetector = np.array(camera.size)
        geometry.dDetector = np.array(camera.pixel_spacing)
        geometry.sDetector = geometry.nDetector * geometry.dDetector
        geometry.accuracy = 1.0  # interpolated: a step of one voxel, as the other sampling tools
        depths, offsets = zip(*(self._place(s) for s in seen), strict=True)
        geometry.DSO = np.array(depths)
        geometry.DSD = np.full(len(seen), float(camera.sdd))
        geometry.offOrigin = np.stack(offsets)
        geometry.offDetector = np.zeros((len(seen), 2))
        geometry.rotDetector = np.zeros((len(seen), 3))
        angles = np.stack([_zyz(s) for s in seen]).astype(np.float32)
        given = cotangent(camera.size).float().numpy()[::-1]
        shape = (len(seen), *camera.size)
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

    def _place(self, seen: Viewpoint) -> tuple[float, np.ndarray]:
        """The isocentre is the foot of the volume's centre on the axis: depth, offset (z, y, x)."""
        to_center = self.center - seen.source
        depth = float(to_center @ seen.towards)
        return depth, (to_center - depth * seen.towards)[::-1]


def _zyz(seen: Viewpoint) -> np.ndarray:
    """Angles of Rz(a) Ry(b) Rz(c), which turns x to the source, y to `right`, z against `down`."""
    turn = np.stack([-seen.towards, seen.right, -seen.down], 1)
    tilt = np.arccos(np.clip(turn[2, 2], -1.0, 1.0))
    if np.sin(tilt) > 1e-9:
        first = np.arctan2(turn[1, 2], turn[0, 2])
        return np.array([first, tilt, np.arctan2(turn[2, 1], -turn[2, 0])])
    sign = 1.0 if turn[2, 2] > 0 else -1.0
    return np.array([np.arctan2(sign * turn[1, 0], sign * turn[0, 0]), tilt, 0.0])
