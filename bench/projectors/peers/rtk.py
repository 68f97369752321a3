"""RTK (itk-rtk): Joseph's method on the CPU, forward and matched backward."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench.projectors.peers.peer import Cannot, Peer, cotangent
from bench.projectors.scene import Scene
from drrkit.conversions import to_vectors
from drrkit.geometry import Camera


@dataclass
class RtkViews:
    """A stack of projections: the filter that makes it, and the one that takes it back."""

    forward: Any
    adjoint: Any


class Rtk(Peer):
    """JosephForwardProjectionImageFilter and JosephBackProjectionImageFilter.

    Timed is Update() of a filter whose inputs, geometry and threads are set.
    """

    name = "itk-rtk"
    package = "itk-rtk"
    methods = ("joseph",)
    integral: ClassVar[dict[str, str]] = {"joseph": "joseph"}
    operations = ("forward", "adjoint")

    @classmethod
    def unavailable(cls, device: torch.device) -> str | None:
        if device.type != "cpu":
            return "its CPU filters are measured on the CPU only"
        if not find_spec("itk"):
            return "itk-rtk is not installed"
        import itk

        return None if hasattr(itk, "RTK") else "itk is installed without itk-rtk"

    def prepare(self, scene: Scene) -> None:
        import itk

        self.itk, self.rtk = itk, itk.RTK
        self.kind = itk.Image[itk.F, 3]
        itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(self.threads)
        itk.MultiThreaderBase.SetGlobalMaximumNumberOfThreads(self.threads)
        self.scene = scene
        self.grid = self._volume(scene.volume.values.numpy())

    def views(self, camera: Camera, world_to_camera: Tensor) -> RtkViews:
        rows, cols = camera.size
        geometry = self._geometry(camera, world_to_camera)
        stack = (len(world_to_camera), rows, cols)
        forward = self.rtk.JosephForwardProjectionImageFilter[self.kind, self.kind].New()
        forward.SetInput(0, self._detector(camera, np.zeros(stack, np.float32)))
        forward.SetInput(1, self.grid)
        given = cotangent(camera.size).float().numpy()[None].repeat(stack[0], 0)
        adjoint = self.rtk.JosephBackProjectionImageFilter[self.kind, self.kind].New()
        adjoint.SetInput(0, self._volume(np.zeros_like(self.scene.volume.values.numpy())))
        adjoint.SetInput(1, self._detector(camera, given))
        for projector in (forward, adjoint):
            projector.SetGeometry(geometry)
            projector.SetNumberOfWorkUnits(self.threads)
            projector.InPlaceOff()  # or the inputs would not survive a run
        return RtkViews(forward, adjoint)

    def forward(self, views: RtkViews) -> Any:
        views.forward.Modified()
        views.forward.Update()
        return views.forward.GetOutput()

    def adjoint(self, views: RtkViews) -> Any:
        views.adjoint.Modified()
        views.adjoint.Update()
        return views.adjoint.GetOutput()

    def answer(self, operation: str, views: RtkViews, result: Any) -> np.ndarray:
        return self.itk.array_from_image(result)  # a copy: the filter keeps the image itself

    def _volume(self, values: np.ndarray) -> Any:
        volume = self.scene.volume
        image = self.itk.image_from_array(values)
        image.SetOrigin([float(o) for o in volume.origin])
        image.SetSpacing([float(s) for s in volume.spacing])
        image.SetDirection(self.itk.matrix_from_array(volume.direction.numpy()))
        return image

    def _detector(self, camera: Camera, images: np.ndarray) -> Any:
        """Projections in the detector's own millimetres, (0, 0) at the foot of the source."""
        (row_pitch, col_pitch), (rows, cols) = camera.pixel_spacing, camera.size
        image = self.itk.image_from_array(images)
        image.SetSpacing([col_pitch, row_pitch, 1.0])
        image.SetOrigin([-(cols - 1) / 2 * col_pitch, -(rows - 1) / 2 * row_pitch, 0.0])
        return image

    def _geometry(self, camera: Camera, world_to_camera: Tensor) -> Any:
        itk = self.itk
        geometry = self.rtk.ThreeDCircularProjectionGeometry.New()
        point, vector = itk.Point[itk.D, 3], itk.Vector[itk.D, 3]
        vectors = to_vectors(camera, world_to_camera)
        places = (vectors.source, vectors.center(camera.size))
        for source, middle, right, down in zip(
            *places, normalize(vectors.col_step), normalize(vectors.row_step), strict=True
        ):
            taken = geometry.AddProjection(
                point(source.tolist()),
                point(middle.tolist()),
                vector(right.tolist()),
                vector(down.tolist()),
            )
            if not taken:
                raise Cannot("RTK has no such projection geometry")
        return geometry
