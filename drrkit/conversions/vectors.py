"""A view as points and vectors in some world: what ASTRA, LEAP, RTK and TIGRE describe one by."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from drrkit.geometry import (
    Camera,
    assemble,
    batched,
    batched_pose,
    checked_size,
    volume_center,
)


class CameraView(NamedTuple):
    """A converted view: what drrkit needs to render it."""

    camera: Camera
    world_to_camera: Tensor
    """[B, 4, 4] float64, in the patient's LPS."""
    flip: tuple[int, ...] = ()
    """The dimensions along which the other tool's image is flipped to become drrkit's:
    (-2,) turns rows upside down, (-1,) mirrors columns, () when they agree."""


class ViewVectors(NamedTuple):
    """A view in world mm, each [B, 3] float64."""

    source: Tensor
    corner: Tensor
    """The centre of pixel (0, 0)."""
    col_step: Tensor
    """From a pixel to the next column."""
    row_step: Tensor
    """From a pixel to the next row."""

    @property
    def axes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Unit vectors [B, 3] along the columns, along the rows and normal to both; without skew
        and mirroring the axes of the camera."""
        right, down = (s / s.norm(dim=-1, keepdim=True) for s in (self.col_step, self.row_step))
        return right, down, torch.linalg.cross(right, down)

    def center(self, size: tuple[int, int]) -> Tensor:
        """The middle of a detector of (rows, cols) pixels: [B, 3]."""
        rows, cols = size
        return self.corner + (cols - 1) / 2 * self.col_step + (rows - 1) / 2 * self.row_step

    def mapped(self, linear: Tensor, offset: Tensor) -> ViewVectors:
        """The view in another world, X' = linear X + offset with linear [3, 3], offset [3]."""
        return ViewVectors(
            self.source @ linear.mT + offset,
            self.corner @ linear.mT + offset,
            self.col_step @ linear.mT,
            self.row_step @ linear.mT,
        )


def to_vectors(camera: Camera, world_to_camera: Tensor) -> ViewVectors:
    """The source, the first pixel and the two pixel steps of a view, in world mm.

    world_to_camera  [4, 4] or [B, 4, 4]

    Differentiable. Raises ValueError for a parallel beam, TypeError and ValueError for other
    shapes and dtypes.
    """
    pose = checked_view(camera, world_to_camera)
    frame = camera.pixel_rays().to(pose.device)
    turn, shift = pose[:, :3, :3], pose[:, :3, 3]
    points = (frame[..., :2, :] - shift[:, None]) @ turn
    steps = (frame[..., 2:, :]).expand(len(pose), 2, 3) @ turn
    return ViewVectors(points[:, 0], points[:, 1], steps[:, 0], steps[:, 1])


def from_vectors(vectors: ViewVectors, size: tuple[int, int]) -> CameraView:
    """The camera and the pose of a view given by vectors [3] or [B, 3] in patient LPS, mm.

    size  (rows, cols)

    Columns and rows need not be perpendicular (K has a skew then). A detector whose image is
    mirrored, as seen from the source, gives the camera of the image with its rows flipped and
    says so in `flip`. Raises ValueError when the steps are parallel, the source lies in the
    detector's plane, or only some views of a batch are mirrored.
    """
    rows, cols = checked_size(size)
    parts = (batched(name, v, (3,)) for name, v in vectors._asdict().items())
    vectors = ViewVectors(*(v.double() for v in torch.broadcast_tensors(*parts)))
    normal = torch.linalg.cross(vectors.col_step, vectors.row_step)
    area = normal.norm(dim=-1)
    lengths = vectors.col_step.norm(dim=-1) * vectors.row_step.norm(dim=-1)
    towards = ((vectors.corner - vectors.source) * normal).sum(-1)
    if not bool((area > 1e-9 * lengths).all()):
        raise ValueError("col_step and row_step: expected two directions, got parallel vectors")
    if not bool((towards.abs() > 1e-9 * area).all()):
        raise ValueError("source: expected it outside the detector's plane, it lies in it")
    mirrored = towards < 0
    if bool(mirrored.any()):
        if not bool(mirrored.all()):
            raise ValueError("vectors: expected all views mirrored or none, got some of a batch")
        last = vectors.corner + (rows - 1) * vectors.row_step
        turned = vectors._replace(corner=last, row_step=-vectors.row_step)
        return from_vectors(turned, size)._replace(flip=(-2,))
    z = normal / area[:, None]
    x = vectors.col_step / vectors.col_step.norm(dim=-1, keepdim=True)
    turn = torch.stack((x, torch.linalg.cross(z, x), z), 1)
    pose = assemble(turn, -turn @ vectors.source[:, :, None])
    # Columns of the plane in camera axes, over its distance: the inverse of K.
    plane = torch.stack((vectors.col_step, vectors.row_step, vectors.corner - vectors.source), -1)
    in_camera = turn @ plane
    sdd = in_camera[:, 2, 2].clone()
    inverse = in_camera / sdd[:, None, None]
    inverse[:, (1, 2, 2), (0, 0, 1)] = 0.0
    eye = torch.eye(3, dtype=torch.float64, device=z.device).expand_as(inverse)
    matrix = torch.linalg.solve_triangular(inverse, eye, upper=True)
    matrix = matrix / matrix[:, 2:, 2:]
    return CameraView(shared(Camera(matrix, (rows, cols), sdd)), pose)


def shared(camera: Camera) -> Camera:
    """One camera without a batch where all of a batch are equal, else the camera as it is."""
    matrix, sdd = camera.K, torch.as_tensor(camera.sdd)
    if camera.requires_grad or camera.batch is None:
        return camera
    first = matrix[0] if matrix.dim() == 3 else matrix
    close = torch.allclose(matrix, first.expand_as(matrix), rtol=1e-13, atol=1e-11)
    if close and torch.allclose(sdd, sdd.flatten()[0], rtol=1e-13, atol=0.0):
        return Camera(first, camera.size, float(sdd.flatten()[0]), camera.beam)
    return camera


def grid_world(volume: Any, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The map X' = linear X + offset into the grid's own world: mm along its index axes, centred.

    In it `volume.values` stands as an array without a direction: tools that know no directions
    take the values as they are. On the device of `like`, default the volume's.
    """
    linear = torch.as_tensor(volume.direction, dtype=torch.float64).mT
    linear = linear.to(volume.values.device if like is None else like.device)
    return linear, -linear @ volume_center(volume).to(linear)


def patient_world(volume: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of grid_world."""
    linear, offset = grid_world(volume, like)
    return linear.mT, -linear.mT @ offset


def checked_view(camera: Camera, world_to_camera: Tensor) -> Tensor:
    """The pose as [B, 4, 4] float64, B that of the camera if it has one."""
    if not isinstance(camera, Camera):
        raise TypeError(f"camera: expected a drrkit.Camera, got {type(camera).__name__}")
    if camera.beam != "cone":
        raise ValueError(f"camera: expected a cone beam, got beam={camera.beam!r}")
    pose = batched_pose(world_to_camera, camera.batch).double()
    return pose.expand(max(len(pose), camera.batch or 1), 4, 4)


def one_pitch(camera: Camera) -> tuple[float, float, float, float, float]:
    """(row pitch, col pitch, cx, cy, sdd) of a camera without batch and skew.

    Raises ValueError when the tool in question cannot describe the camera.
    """
    matrix = camera.K.detach().double().reshape(-1, 3, 3)
    if camera.batch not in (None, 1):
        raise ValueError(f"camera: expected one camera for all views, got {camera.batch}")
    if float(matrix[0, 0, 1]) != 0.0:
        raise ValueError(f"camera: expected no skew, got {float(matrix[0, 0, 1])}")
    sdd = float(torch.as_tensor(camera.sdd).detach().flatten()[0])
    fx, fy, cx, cy = (float(matrix[0, i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return sdd / fy, sdd / fx, cx, cy, sdd
