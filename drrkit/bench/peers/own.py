"""drrkit itself: the exact methods, and prepared (packed) volumes where this version has them."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor

from drrkit.bench.peers.peer import TorchPeer, TorchViews, center_of
from drrkit.bench.scene import Scene
from drrkit.geometry import Camera, grid_constants, view_frames
from drrkit.projector import Projector, backproject

PACKED = " packed"
CAN_PACK = "pack" in inspect.signature(Projector.__init__).parameters


class Drrkit(TorchPeer):
    """Projector's call; joseph also backprojects. Poses are world_to_camera itself, float64."""

    name = "drrkit"
    package = "drrkit"
    methods = ("joseph", *(("joseph" + PACKED,) if CAN_PACK else ()), "trilinear", "siddon")
    integral: ClassVar[dict[str, str]] = {m: m.removesuffix(PACKED) for m in methods}

    @classmethod
    def unavailable(cls, device: torch.device) -> str | None:
        from drrkit import _C

        if device.type == "cuda" and not _C.has_cuda:
            return "this drrkit was built without CUDA kernels"
        return None

    def supports(self, operation: str) -> bool:
        if self.method.endswith(PACKED):  # constant volumes
            return operation in ("forward", "pose")
        return operation in self.operations or operation == "adjoint"

    def prepare(self, scene: Scene) -> None:
        self.scene, self.values = scene, scene.volume.values
        self.center = center_of(scene, self.device)
        self.grid = grid_constants(scene.volume)
        self.projectors: dict[tuple[int, int], Projector] = {}
        method = self.method.removesuffix(PACKED)
        self.options: dict[str, Any] = {"method": method}
        if method == "trilinear":
            self.options["step"] = min(scene.volume.spacing)

    def pose_of(self, world_to_camera: Tensor) -> Tensor:
        return world_to_camera

    def intrinsics(self, camera: Camera, count: int) -> Projector:
        if camera.size not in self.projectors:
            pack = {"pack": "auto"} if self.method.endswith(PACKED) else {}
            projector = Projector(self.scene.volume, camera, **self.options, **pack)
            self.projectors = {camera.size: projector}
        return self.projectors[camera.size]

    def render(self, pose: Tensor, camera: Projector) -> Tensor:
        return camera(pose)

    def adjoint(self, views: TorchViews) -> Tensor:
        projector, volume = views.camera, self.scene.volume
        camera = projector.camera
        with torch.no_grad():
            frames = view_frames(self.grid, camera, views.world_to_camera, extend=True)
            return backproject(
                views.cotangent.detach(),
                frames,
                self.values.shape,
                spacing=volume.spacing,
                **self.options,
            )
