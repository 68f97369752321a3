"""ASTRA: Joseph-like forward and voxel-driven back projection on CUDA."""

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
from drrkit.conversions import to_astra
from drrkit.geometry import Camera


@dataclass
class AstraViews:
    projections: Tensor  # [rows, B, cols], linked to ASTRA, as the next
    given: Tensor
    forward: int  # algorithms
    adjoint: int


class Astra(Peer):
    """FP3D_CUDA and BP3D_CUDA on tensors that stay on the GPU.

    Its back projection is voxel-driven, not the adjoint of its forward projection. On a machine
    without a GPU its 3D projectors end the process, so it is asked for one first.
    """

    name = "ASTRA"
    package = "astra-toolbox"
    methods = ("cone_vec",)
    integral: ClassVar[dict[str, str]] = {"cone_vec": "joseph"}
    operations = ("forward", "adjoint")
    note = "adapter not run yet; its backprojection is not matched"

    @classmethod
    def unavailable(cls, device: torch.device) -> str | None:
        if device.type != "cuda":
            return "its 3D projectors need CUDA"
        if not find_spec("astra"):
            return "astra-toolbox is not installed"
        return None if import_module("astra").use_cuda() else "ASTRA sees no usable GPU"

    def prepare(self, scene: Scene) -> None:
        self.astra = import_module("astra")
        self.astra.set_gpu_index(self.device.index or 0)
        volume, self.flipped = upright(scene.volume)
        self.volume = volume
        self.values = volume.values.contiguous()
        self.gradient = torch.zeros_like(self.values)
        (nx, ny, nz), half = volume.shape_xyz, np.multiply(volume.shape_xyz, volume.spacing) / 2
        x, y, z = half.tolist()
        self.grid = self.astra.create_vol_geom(ny, nx, nz, -x, x, -y, y, -z, z)
        self.volume_id = self.astra.data3d.link("-vol", self.grid, self.values)
        self.gradient_id = self.astra.data3d.link("-vol", self.grid, self.gradient)

    def views(self, camera: Camera, world_to_camera: Tensor) -> AstraViews:
        vectors = to_astra(camera, world_to_camera.cpu(), self.volume).numpy()
        rows, cols = camera.size
        detector = self.astra.create_proj_geom("cone_vec", rows, cols, vectors)
        given = cotangent(camera.size).float()[:, None].expand(rows, len(vectors), cols)
        images = torch.zeros(rows, len(vectors), cols, device=self.device)
        given = given.contiguous().to(self.device)
        forward = self._algorithm("FP3D_CUDA", detector, images, self.volume_id)
        adjoint = self._algorithm("BP3D_CUDA", detector, given, self.gradient_id)
        return AstraViews(images, given, forward, adjoint)

    def forward(self, views: AstraViews) -> Tensor:
        self.astra.algorithm.run(views.forward)
        return views.projections

    def adjoint(self, views: AstraViews) -> Tensor:
        self.astra.algorithm.run(views.adjoint)
        return self.gradient

    def answer(self, operation: str, views: AstraViews, result: Tensor) -> np.ndarray:
        if operation == "forward":
            return result.permute(1, 0, 2).contiguous().cpu().numpy()
        return result.flip(self.flipped).cpu().numpy()

    def _algorithm(self, kind: str, detector: Any, projections: Tensor, volume: int) -> int:
        settings = self.astra.astra_dict(kind)
        settings["ProjectionDataId"] = self.astra.data3d.link("-sino", detector, projections)
        settings["VolumeDataId" if kind == "FP3D_CUDA" else "ReconstructionDataId"] = volume
        return self.astra.algorithm.create(settings)
