"""nanodrr: trilinear samples, fused Triton kernels on CUDA, grid_sample elsewhere."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.projectors.peers.peer import TorchPeer, center_of
from bench.projectors.peers.stubs import stubbed
from bench.projectors.scene import Scene
from drrkit.conversions import lps_from_ras
from drrkit.geometry import Camera

UNUSED = ("torchio", "roma", "platformdirs", "einops")
"""Imported by nanodrr for reading files and for poses given as angles."""
IN_TORCH = " in torch"


class Nanodrr(TorchPeer):
    """Its functional render with the backend it chooses by itself; poses are rt_inv, float32.

    The number of samples is the scene's: a step of one voxel of the longest axis. Triton has no
    double backward; on CUDA that is measured with its torch backend.
    """

    name = "nanodrr"
    package = "nanodrr"
    methods = ("trilinear",)
    integral: ClassVar[dict[str, str]] = dict.fromkeys(
        ("trilinear", "trilinear" + IN_TORCH), "trilinear"
    )

    @classmethod
    def unavailable(cls, device: torch.device) -> str | None:
        return None if find_spec("nanodrr") else "nanodrr is not installed"

    @classmethod
    def methods_on(cls, device: torch.device) -> tuple[str, ...]:
        return cls.methods + (("trilinear" + IN_TORCH,) if device.type == "cuda" else ())

    def supports(self, operation: str) -> bool:
        if self.device.type == "cuda":
            return (operation == "double") == self.method.endswith(IN_TORCH)
        return super().supports(operation)

    def prepare(self, scene: Scene) -> None:
        with stubbed(UNUSED):
            subject = import_module("nanodrr.data").Subject
            self.renderer = import_module("nanodrr.drr").render
        volume = scene.volume
        voxels = volume.values.cpu()[None, None].contiguous()
        affine = lps_from_ras(volume.affine.cpu())
        self.subject = subject(
            voxels.clone(),
            torch.zeros_like(voxels),
            affine.float(),
            torch.linalg.inv(affine).float(),
            subject._make_voxel_to_grid(voxels.shape),
            (lps_from_ras() @ torch.cat((center_of(scene, torch.device("cpu")), torch.ones(1))))[
                :3
            ].float(),
            max_label=0,
            convert_to_mu=False,
        ).to(self.device)
        self.values = self.subject.image
        self.center, self.samples = center_of(scene, self.device), scene.samples
        self.backend = "torch" if self.method.endswith(IN_TORCH) else "auto"

    def pose_of(self, world_to_camera: Tensor) -> Tensor:
        return lps_from_ras(torch.linalg.inv(world_to_camera)).float()

    def intrinsics(self, camera: Camera, count: int) -> Any:
        matrix = camera.K.double().clone()
        matrix[:2, 2] += 0.5  # its pixel centres stand at half-integers
        k_inv = torch.linalg.inv(matrix).float().expand(count, 3, 3).contiguous()
        sdd = torch.full((count,), float(camera.sdd))
        return k_inv.to(self.device), sdd.to(self.device), camera.size

    def render(self, pose: Tensor, camera: Any) -> Tensor:
        k_inv, sdd, size = camera
        return self.renderer(
            self.subject, k_inv, pose, sdd, *size, n_samples=self.samples, backend=self.backend
        )
