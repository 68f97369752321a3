"""The interface of a projector's adapter.

An adapter is constructed in a process of its own. It prepares a volume once, prepares the views of
a workload outside the measured time, and then runs one of these operations on them:

    forward   line integrals of the views
    pose      those, and the gradient of <cotangent, images> in the tool's own pose matrices
    volume    those, and the gradient of <cotangent, images> in the voxels
    double    those, and the gradients in voxels and cotangent of <weights, pose gradient>
    adjoint   the matched backprojection of given images, by itself
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bench.projectors.scene import Scene
from drrkit.geometry import Camera, perturb, volume_center
from drrkit.volume import Volume

OPERATIONS = ("forward", "pose", "volume", "double", "adjoint")


class Cannot(Exception):
    """A tool has no such operation, or not for this geometry or device; the text says why."""


class Peer:
    """One method of one tool on one device.

    name        of the tool
    package     whose version is recorded
    methods     of the tool; an instance is one of them
    integral    method -> drrkit's method for the same integral, with which images are compared
    physical    whether images come in drrkit's scale; else a least-squares scale is taken out
    seconds     of the last call as the tool itself reports them, where wall time would include
                file input and output; None: wall time counts
    note        for readers of the table, e.g. how the time was taken
    """

    name = ""
    package = ""
    methods: tuple[str, ...] = ()
    integral: ClassVar[dict[str, str]] = {}
    operations: tuple[str, ...] = ("forward",)
    physical = True
    note = ""

    def __init__(self, method: str, device: torch.device, threads: int) -> None:
        self.method, self.device, self.threads = method, device, threads
        self.seconds: float | None = None

    @classmethod
    def unavailable(cls, device: torch.device) -> str | None:
        """The reason why the tool cannot run here; None when it can. May import it."""
        raise NotImplementedError

    @classmethod
    def version(cls) -> dict[str, str]:
        """The version of a tool that is not an installed package, by its name."""
        return {}

    @classmethod
    def methods_on(cls, device: torch.device) -> tuple[str, ...]:
        """The methods to measure on a device."""
        return cls.methods

    def supports(self, operation: str) -> bool:
        return operation in self.operations

    def prepare(self, scene: Scene) -> None:
        """Takes the volume (on self.device) in the tool's own form; raises Cannot."""
        raise NotImplementedError

    def views(self, camera: Camera, world_to_camera: Tensor) -> Any:
        """Views [B, 4, 4] in the tool's own form; raises Cannot."""
        raise NotImplementedError

    def forward(self, views: Any) -> Any:
        raise NotImplementedError

    def answer(self, operation: str, views: Any, result: Any) -> np.ndarray:
        """The result of an operation in drrkit's terms.

        forward: images [B, rows, cols]; pose: twists [B, 6]; volume, double, adjoint: gradients
        in voxels [D, H, W], those of the scene's volume.
        """
        raise NotImplementedError


@dataclass
class TorchViews:
    """Prepared views of a tool that torch differentiates."""

    world_to_camera: Tensor  # [B, 4, 4] float64
    pose: Tensor  # the tool's own matrices, a leaf
    camera: Any  # the tool's own intrinsics
    cotangent: Tensor  # [B, 1, rows, cols], a leaf
    weights: Tensor  # like pose: derivative of pose along a fixed twist


class TorchPeer(Peer):
    """A tool inside torch: every gradient comes from autograd.

    A subclass sets self.values in prepare() and defines pose_of, intrinsics, render.
    """

    operations = ("forward", "pose", "volume", "double")
    values: Tensor
    center: Tensor  # [3] float64, of the scene's volume

    def pose_of(self, world_to_camera: Tensor) -> Tensor:
        """The tool's pose matrices, differentiable in world_to_camera [B, 4, 4] float64."""
        raise NotImplementedError

    def intrinsics(self, camera: Camera, count: int) -> Any:
        """The camera in the tool's own form, for `count` views."""
        raise NotImplementedError

    def render(self, pose: Tensor, camera: Any) -> Tensor:
        """Images [B, 1, rows, cols]."""
        raise NotImplementedError

    def views(self, camera: Camera, world_to_camera: Tensor) -> TorchViews:
        poses = world_to_camera.to(self.device)
        count = len(poses)
        weights = torch.autograd.functional.jvp(
            lambda xi: self._moved(poses, xi),
            torch.zeros(count, 6, dtype=torch.float64, device=self.device),
            twist_weights(count).to(self.device),
        )[1]
        leaf = self.pose_of(poses).detach().clone().requires_grad_()
        g = cotangent(camera.size).expand(count, 1, *camera.size).float().contiguous()
        own = self.intrinsics(camera, count)
        return TorchViews(
            poses, leaf, own, g.to(self.device).requires_grad_(), weights.detach().to(leaf)
        )

    def forward(self, views: TorchViews) -> Tensor:
        with torch.no_grad():
            return self.render(views.pose, views.camera)

    def pose(self, views: TorchViews) -> Tensor:
        image = self.render(views.pose, views.camera)
        return torch.autograd.grad(image, views.pose, views.cotangent.detach())[0]

    def volume(self, views: TorchViews) -> Tensor:
        self.values.requires_grad_(True)
        try:
            image = self.render(views.pose.detach(), views.camera)
            return torch.autograd.grad(image, self.values, views.cotangent.detach())[0]
        finally:
            self.values.requires_grad_(False)

    def double(self, views: TorchViews) -> Tensor:
        self.values.requires_grad_(True)
        try:
            image = self.render(views.pose, views.camera)
            (pose,) = torch.autograd.grad(image, views.pose, views.cotangent, create_graph=True)
            loss = (pose * views.weights).sum()
            return torch.autograd.grad(loss, (self.values, views.cotangent))[0]
        finally:
            self.values.requires_grad_(False)

    def in_voxels(self, gradient: Tensor) -> Tensor:
        """A gradient in self.values as [D, H, W] of the scene's volume."""
        return gradient.reshape(gradient.shape[-3:])

    def answer(self, operation: str, views: TorchViews, result: Tensor) -> np.ndarray:
        if operation == "forward":
            found = result[:, 0]
        elif operation == "pose":
            xi = torch.zeros(len(result), 6, dtype=torch.float64, device=self.device)
            xi.requires_grad_()
            own = self._moved(views.world_to_camera, xi)
            found = torch.autograd.grad(own, xi, result.to(own))[0]
        else:
            found = self.in_voxels(result)
        return found.detach().float().cpu().numpy()

    def _moved(self, poses: Tensor, xi: Tensor) -> Tensor:
        return self.pose_of(perturb(poses, xi, self.center))


def center_of(scene: Scene, device: torch.device) -> Tensor:
    """The volume's centre [3] float64, about which twists turn, on the device."""
    return volume_center(scene.volume).to(device)


def cotangent(size: tuple[int, int]) -> Tensor:
    """A smooth pattern [rows, cols] of both signs, float64: what images are multiplied with."""
    row, col = (torch.linspace(0.0, 1.0, n, dtype=torch.float64) for n in size)
    return torch.cos(5.1 * row + 0.4)[:, None] * torch.sin(4.3 * col + 0.9)[None]


def twist_weights(count: int) -> Tensor:
    """The twists [count, 6] (rad, mm) along which pose gradients are weighted, float64."""
    return torch.tensor((0.7, -0.4, 0.5, 1.1, -0.8, 0.9), dtype=torch.float64).repeat(count, 1)


def upright(volume: Volume) -> tuple[Volume, tuple[int, ...]]:
    """The volume with flipped axes so that its direction is the identity, and which dims flipped.

    Raises Cannot when the grid is oblique or its axes are permuted.
    """
    signs = volume.direction.diagonal()
    if not torch.allclose(volume.direction, torch.diag(signs), atol=1e-6):
        raise Cannot("expected a volume along the world's axes: the tool has no others")
    flipped = tuple(2 - axis for axis in range(3) if signs[axis] < 0)  # x is the last dimension
    corner = [
        float(o) - (n - 1) * s if sign < 0 else float(o)
        for o, n, s, sign in zip(
            volume.origin, volume.shape_xyz, volume.spacing, signs.tolist(), strict=True
        )
    ]
    values = volume.values.flip(flipped) if flipped else volume.values
    turned = replace(
        volume, values=values, origin=tuple(corner), direction=torch.eye(3, dtype=torch.float64)
    )
    return turned, flipped
