"""drrkit itself: the exact methods, and prepared (packed) volumes where this version has them."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.projectors.peers.peer import TorchPeer, TorchViews, center_of
from bench.projectors.scene import Scene
from drrkit.geometry import Camera, grid_constants, view_frames
from drrkit.projector import Projector, backproject

PACKED = " packed"
CAN_PACK = "pack" in inspect.signature(Projector.__init__).parameters
PLAIN = ("joseph", "trilinear", "siddon")
PACKS = {"joseph" + PACKED: "auto"} if CAN_PACK else {}
"""Methods with a prepared volume, and Projector's word for it."""
CUDA_PACKS = {f"joseph{PACKED} {kind}": kind for kind in ("float16", "float32")} if CAN_PACK else {}
TEXEL_BYTES = {"auto": 2, "int16": 2, "float16": 2, "float32": 4}


class Drrkit(TorchPeer):
    """Projector's call; joseph also backprojects. Poses are world_to_camera itself, float64.

    "joseph", "trilinear" and "siddon" read the plain values, with nothing prepared.
    """

    name = "drrkit"
    package = "drrkit"
    methods = (*PACKS, *PLAIN)
    integral: ClassVar[dict[str, str]] = {m: m.split()[0] for m in (*PLAIN, *PACKS, *CUDA_PACKS)}

    @classmethod
    def methods_on(cls, device: torch.device) -> tuple[str, ...]:
        return cls.methods + (tuple(CUDA_PACKS) if device.type == "cuda" else ())

    @classmethod
    def unavailable(cls, device: torch.device) -> str | None:
        from drrkit import _C

        if device.type == "cuda" and not _C.has_cuda:
            return "this drrkit was built without CUDA kernels"
        return None

    def supports(self, operation: str) -> bool:
        if self.method in CUDA_PACKS:
            return operation == "forward"
        if self.method in PACKS:  # of constant volumes
            return operation in ("forward", "pose")
        return operation in self.operations or operation == "adjoint"

    def prepare(self, scene: Scene) -> None:
        self.scene, self.values = scene, scene.volume.values
        self.center = center_of(scene, self.device)
        self.grid = grid_constants(scene.volume)
        self.projectors: dict[tuple[int, int], Projector] = {}
        method = self.integral[self.method]
        self.options: dict[str, Any] = {"method": method}
        self.pack = {"pack": (PACKS | CUDA_PACKS).get(self.method)} if CAN_PACK else {}
        if method == "trilinear":
            self.options["step"] = min(scene.volume.spacing)

    def pose_of(self, world_to_camera: Tensor) -> Tensor:
        return world_to_camera

    def intrinsics(self, camera: Camera, count: int) -> Projector:
        if camera.size not in self.projectors:
            projector = Projector(self.scene.volume, camera, **self.options, **self.pack)
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


def texel_bytes(method: str) -> int | None:
    """Bytes per voxel of the textures that a method reads on CUDA, None for plain values."""
    kind = (PACKS | CUDA_PACKS).get(method)
    return None if kind is None else TEXEL_BYTES[kind]
