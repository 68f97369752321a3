"""DiffDRR: trilinear samples and Siddon's chords, written in torch."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.projectors.peers.peer import TorchPeer, center_of
from bench.projectors.peers.stubs import stubbed
from bench.projectors.scene import Scene
from drrkit.conversions import lps_from_ras
from drrkit.geometry import Camera

UNUSED = ("torchio", "pandas", "nibabel", "kornia", "torchvision", "timm", "matplotlib", "pyvista")
"""Imported by DiffDRR for reading, registering and drawing; fastcore, einops, scipy are used."""


class DiffDRR(TorchPeer):
    """Its DRR module; poses are camera-to-world matrices, float32.

    Its density buffer holds mu (1/mm) in place of a density normalised to [0, 1], so its images
    are line integrals. The trilinear renderer spreads its samples over the way of the whole bundle
    of rays, the first to enter and the last to leave.
    """

    name = "DiffDRR"
    package = "diffdrr"
    methods = ("trilinear", "siddon")
    integral: ClassVar[dict[str, str]] = {"trilinear": "trilinear", "siddon": "siddon"}

    @classmethod
    def unavailable(cls, device: torch.device) -> str | None:
        missing = [n for n in ("diffdrr", "fastcore", "einops", "scipy") if not find_spec(n)]
        return f"not installed: {', '.join(missing)}" if missing else None

    def prepare(self, scene: Scene) -> None:
        with stubbed(UNUSED):
            self.module = import_module("diffdrr.drr").DRR
            self.transform = import_module("diffdrr.pose").RigidTransform
        volume = scene.volume
        self.center = center_of(scene, self.device)
        # Its world has the volume's centre at the origin.
        self.to_centre = torch.eye(4, dtype=torch.float64)
        self.to_centre[:3, 3] = -lps_from_ras()[:3, :3] @ self.center.cpu()
        affine = self.to_centre @ lps_from_ras(volume.affine.cpu())
        # A reorientation by the identity and no reversed axis: its camera has y up, ours down.
        flip = torch.diag(torch.tensor((1.0, -1.0, 1.0, 1.0), dtype=torch.float64))
        self.to_centre, self.flip = self.to_centre.to(self.device), flip.to(self.device)
        self.values = volume.values.permute(2, 1, 0).contiguous()
        self.subject = SimpleNamespace(
            volume=SimpleNamespace(affine=affine.numpy()),
            density=SimpleNamespace(data=self.values[None]),
            reorient=torch.eye(4),
            mask=None,
        )
        self.options = {"n_points": scene.samples} if self.method == "trilinear" else {}

    def pose_of(self, world_to_camera: Tensor) -> Tensor:
        to_world = lps_from_ras(torch.linalg.inv(world_to_camera))
        return (self.to_centre @ to_world @ self.flip).float()

    def intrinsics(self, camera: Camera, count: int) -> Any:
        (rows, cols), (row_pitch, col_pitch) = camera.size, camera.pixel_spacing
        module = self.module(
            self.subject,
            sdd=float(camera.sdd),
            height=rows,
            width=cols,
            delx=float(col_pitch),
            dely=float(row_pitch),
            renderer=self.method,
            reverse_x_axis=False,
        ).to(self.device)
        module.density = self.values  # one copy of the voxels, and the one that takes gradients
        return module

    def render(self, pose: Tensor, camera: Any) -> Tensor:
        return camera(self.transform(pose), **self.options)

    def in_voxels(self, gradient: Tensor) -> Tensor:
        return gradient.permute(2, 1, 0)
