"""Tomography packages: ASTRA, LEAP, TIGRE, RTK, and plastimatch's drr."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from drrkit.conversions.angles import euler_to_matrix, matrix_to_euler
from drrkit.conversions.vectors import (
    CameraView,
    ViewVectors,
    from_vectors,
    grid_world,
    one_pitch,
    patient_world,
    shared,
    to_vectors,
)
from drrkit.geometry import Camera, assemble, check_floating, checked_size, volume_center


class LeapView(NamedTuple):
    """Arguments of LEAP's set_modularbeam after (numAngles, numRows, numCols), float64."""

    pixel_height: float
    pixel_width: float
    source_positions: Tensor
    module_centers: Tensor
    row_vectors: Tensor
    col_vectors: Tensor


class TigreView(NamedTuple):
    """Attributes of TIGRE's geometry and its angles; lengths in mm, angles in rad."""

    DSD: float
    DSO: Tensor
    """[B]"""
    nDetector: tuple[int, int]
    dDetector: tuple[float, float]
    offOrigin: Tensor
    """[B, 3], (z, y, x)"""
    offDetector: tuple[float, float]
    """(v, u)"""
    angles: Tensor
    """[B, 3], Rz Ry Rz"""


class RtkView(NamedTuple):
    """RTK's nine numbers a projection, in AddProjection's order: mm and degrees, each [B]."""

    source_to_isocenter: Tensor
    source_to_detector: Tensor
    gantry_angle: Tensor
    projection_offset_x: Tensor
    projection_offset_y: Tensor
    out_of_plane_angle: Tensor
    in_plane_angle: Tensor
    source_offset_x: Tensor
    source_offset_y: Tensor


@dataclass(frozen=True)
class PlastimatchView:
    """Options of `plastimatch drr`; every pair is (columns, rows), whatever its help says."""

    nrm: tuple[float, float, float]
    vup: tuple[float, float, float]
    sad: float
    sid: float
    isocenter: tuple[float, float, float]
    image_center: tuple[float, float]
    detector_size: tuple[float, float]
    resolution: tuple[int, int]

    def arguments(self) -> list[str]:
        """As on a command line, without the method, the file names and what to do with HU."""

        def numbers(values: tuple[float, ...]) -> str:
            return " ".join(repr(value) for value in values)

        return [
            *("--nrm", numbers(self.nrm), "--vup", numbers(self.vup)),
            *("--sad", repr(self.sad), "--sid", repr(self.sid), "-o", numbers(self.isocenter)),
            *("-r", numbers(self.resolution), "-c", numbers(self.image_center)),
            *("-z", numbers(self.detector_size)),
        ]


def to_astra(camera: Camera, world_to_camera: Tensor, volume: Any) -> Tensor:
    """ASTRA's cone_vec rows [B, 12] float64: source, detector centre, column and row steps.

    ASTRA's world is the grid's own: mm along the index axes, the volume's centre at zero, so that
    `volume.values` is its array as it stands, in create_vol_geom(ny, nx, nz, -x, x, -y, y, -z, z)
    with half the grid's extents. Its projections are [rows, views, cols]. Differentiable.
    """
    vectors = to_vectors(camera, world_to_camera).mapped(*_on(grid_world(volume), world_to_camera))
    center = vectors.center(camera.size)
    return torch.cat((vectors.source, center, vectors.col_step, vectors.row_step), -1)


def from_astra(vectors: Tensor, size: tuple[int, int], volume: Any) -> CameraView:
    """The views of cone_vec rows [B, 12]; size (rows, cols)."""
    check_floating("vectors", vectors, (12,))
    rows, cols = checked_size(size)
    source, center, col, row = vectors.double().reshape(-1, 4, 3).unbind(1)
    corner = center - (cols - 1) / 2 * col - (rows - 1) / 2 * row
    world = _on(patient_world(volume), vectors)
    return from_vectors(ViewVectors(source, corner, col, row).mapped(*world), size)


def to_leap(camera: Camera, world_to_camera: Tensor, volume: Any) -> LeapView:
    """LEAP's modular beam. Its rows run upwards: flip its images, (-2,), to get drrkit's.

    The world is the grid's own, as for to_astra. One camera without skew for all views.
    """
    row, col, _, _, _ = one_pitch(camera)
    vectors = to_vectors(camera, world_to_camera).mapped(*_on(grid_world(volume), world_to_camera))
    return LeapView(
        row,
        col,
        vectors.source,
        vectors.center(camera.size),
        -vectors.row_step / row,
        vectors.col_step / col,
    )


def from_leap(view: LeapView, size: tuple[int, int], volume: Any) -> CameraView:
    """The inverse of to_leap; size (rows, cols). `flip` is (-2,) for detectors as LEAP's are."""
    checked_size(size)
    up, right = view.row_vectors.double(), view.col_vectors.double()
    vectors = torch.cat(
        (
            view.source_positions.double(),
            view.module_centers.double(),
            right * view.pixel_width,
            up * view.pixel_height,
        ),
        -1,
    )
    return from_astra(vectors, size, volume)


def to_tigre(camera: Camera, world_to_camera: Tensor, volume: Any) -> TigreView:
    """TIGRE's geometry with one set of angles a view. Flip its images, (-2,), to get drrkit's.

    The world is the grid's own, as for to_astra; the isocentre of each view is the foot of the
    volume's centre on the camera's axis. One camera without skew for all views.
    """
    row, col, cx, cy, sdd = one_pitch(camera)
    rows, cols = camera.size
    linear, offset = _on(grid_world(volume), world_to_camera)
    source = to_vectors(camera, world_to_camera).mapped(linear, offset).source
    pose = world_to_camera.double().reshape(-1, 4, 4)
    right, down, towards = (linear @ pose[:, :3, :3].mT).unbind(-1)
    depth = -(source * towards).sum(-1)
    offset_of_center = -source - depth[:, None] * towards
    return TigreView(
        sdd,
        depth,
        (rows, cols),
        (row, col),
        offset_of_center.flip(-1),
        ((cy - (rows - 1) / 2) * row, ((cols - 1) / 2 - cx) * col),
        matrix_to_euler(torch.stack((-towards, right, -down), -1), "ZYZ"),
    )


def from_tigre(view: TigreView, volume: Any) -> CameraView:
    """The inverse of to_tigre; its images are flipped, (-2,)."""
    (rows, cols), (row, col) = view.nDetector, view.dDetector
    back, right, up = euler_to_matrix(view.angles.double(), "ZYZ").unbind(-1)
    offset = view.offOrigin.double().flip(-1)
    source = view.DSO.double()[:, None] * back - offset
    v, u = view.offDetector
    center = source - view.DSD * back + u * right + v * up
    corner = center - (cols - 1) / 2 * col * right - (rows - 1) / 2 * row * up
    world = _on(patient_world(volume), view.angles)
    return from_vectors(
        ViewVectors(source, corner, right * col, up * row).mapped(*world), (rows, cols)
    )


def to_rtk(camera: Camera, world_to_camera: Tensor, isocenter: Tensor | None = None) -> RtkView:
    """RTK's geometry parameters, its fixed system being the patient's LPS in mm.

    isocenter  [3] world mm, default zero: RTK turns about the origin of the fixed system, so a
               volume must be moved by -isocenter for it

    Projections lie in the detector's plane with the foot of the source at ProjectionOffset of the
    detector's own origin: an ITK image with spacing (col, row) mm and origin
    (-cx col, -(rows - 1 - cy) row), where (cx, cy) is the principal point. Rows run upwards: flip
    its images, (-2,), to get drrkit's.
    """
    one_pitch(camera)
    vectors = to_vectors(camera, world_to_camera)
    pose = world_to_camera.double().reshape(-1, 4, 4)
    center = _isocenter(isocenter, pose)
    right, down, towards = pose[:, :3, :3].unbind(-2)
    # Rows: the axes of the rotated system, in which the source is at +z and y is up.
    turn = torch.stack((right, -down, -towards), -2)
    source = (turn @ (vectors.source - center)[:, :, None]).squeeze(-1)
    sdd = torch.as_tensor(camera.sdd, dtype=torch.float64, device=pose.device).expand(len(pose))
    in_plane, out_of_plane, gantry = (-matrix_to_euler(turn, "ZXY")).rad2deg().unbind(-1)
    x, y, z = source.unbind(-1)
    return RtkView(z, sdd, gantry, x, y, out_of_plane, in_plane, x, y)


def from_rtk(
    view: RtkView,
    size: tuple[int, int],
    spacing: tuple[float, float],
    origin: tuple[float, float],
    isocenter: Tensor | None = None,
) -> CameraView:
    """The views of RTK's nine numbers and of a projection's ITK image.

    size     (rows, cols)
    spacing  (x, y) mm of the image, origin (x, y) mm of its pixel (0, 0)

    Tilted detectors, offsets of source and projection and negative distances are taken as RTK means
    them; source_to_detector 0 is a parallel beam, for all views. Raises ValueError for a mixture.
    """
    checked_size(size)
    parts = (torch.as_tensor(value, dtype=torch.float64).reshape(-1) for value in view)
    sid, sdd, gantry, px, py, out, inside, sx, sy = torch.broadcast_tensors(*parts)
    turn = euler_to_matrix(-torch.stack((inside, out, gantry), -1).deg2rad(), "ZXY")
    center = _isocenter(isocenter, turn)
    if bool((sdd == 0).any()):
        if not bool((sdd == 0).all()):
            raise ValueError("view: expected one kind of beam, got cone and parallel beams")
        return _parallel(turn, sid, (px + origin[0], py + origin[1]), size, spacing, center)
    corner = torch.stack((px + origin[0], py + origin[1], sid - sdd), -1)

    def fixed(points: Tensor) -> Tensor:
        return (turn.mT @ points[:, :, None]).squeeze(-1)

    vectors = ViewVectors(
        fixed(torch.stack((sx, sy, sid), -1)) + center,
        fixed(corner) + center,
        turn[:, 0] * spacing[0],
        turn[:, 1] * spacing[1],
    )
    return from_vectors(vectors, size)


def _parallel(
    turn: Tensor,
    sid: Tensor,
    corner: tuple[Tensor, Tensor],
    size: tuple[int, int],
    spacing: tuple[float, float],
    center: Tensor,
) -> CameraView:
    """RTK's parallel beam: rays along -z of the rotated system `turn` through its pixels.

    corner  x and y of pixel (0, 0) in the rotated system; rows run upwards, so they are flipped
    """
    # Where the rays begin moves no pixel; twice the distance covers the patient.
    away = float(torch.where(sid == 0, 1000.0, sid.abs()).max())
    axes = turn * turn.new_tensor(((1.0,), (-1.0,), (-1.0,)))
    pose = assemble(axes, -axes @ center[:, None] + axes.new_tensor(((0.0,), (0.0,), (away,))))
    matrix = torch.zeros_like(turn)
    matrix[:, 0, 0], matrix[:, 1, 1] = 2 * away / spacing[0], 2 * away / spacing[1]
    matrix[:, 0, 2] = -corner[0] / spacing[0]
    matrix[:, 1, 2] = size[0] - 1 + corner[1] / spacing[1]
    matrix[:, 2, 2] = 1.0
    return CameraView(shared(Camera(matrix, size, 2 * away, "parallel")), pose, (-2,))


def to_plastimatch(camera: Camera, world_to_camera: Tensor, volume: Any) -> list[PlastimatchView]:
    """Options of `plastimatch drr`, one set a view; the volume must stand along the world's axes.

    The isocentre is the foot of the volume's centre on the camera's axis.
    """
    row, col, cx, cy, sdd = one_pitch(camera)
    rows, cols = camera.size
    source = to_vectors(camera, world_to_camera).source
    pose = world_to_camera.double().reshape(-1, 4, 4)
    views = []
    for turn, here in zip(pose[:, :3, :3], source, strict=True):
        sad = float((volume_center(volume).to(here) - here) @ turn[2])
        views.append(
            PlastimatchView(
                _triple(-turn[2]),
                _triple(-turn[1]),
                sad,
                sdd,
                _triple(here + sad * turn[2]),
                (cx, cy),
                (cols * col, rows * row),
                (cols, rows),
            )
        )
    return views


def from_plastimatch(view: PlastimatchView) -> CameraView:
    """The inverse of to_plastimatch, for one view."""
    (cols, rows), (width, height) = view.resolution, view.detector_size
    towards = -torch.tensor(view.nrm, dtype=torch.float64)
    towards = towards / towards.norm()
    up = torch.tensor(view.vup, dtype=torch.float64)
    right = torch.linalg.cross(-up, towards)
    right = right / right.norm()
    down = torch.linalg.cross(towards, right)
    source = torch.tensor(view.isocenter, dtype=torch.float64) - view.sad * towards
    col_step, row_step = right * (width / cols), down * (height / rows)
    cx, cy = view.image_center
    corner = source + view.sid * towards - cx * col_step - cy * row_step
    return from_vectors(ViewVectors(source, corner, col_step, row_step), (rows, cols))


def _on(world: tuple[Tensor, Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    linear, offset = world
    return linear.to(like.device), offset.to(like.device)


def _isocenter(isocenter: Tensor | None, like: Tensor) -> Tensor:
    if isocenter is None:
        return like.new_zeros(3)
    check_floating("isocenter", isocenter, (3,))
    return isocenter.to(like)


def _triple(vector: Tensor) -> tuple[float, float, float]:
    x, y, z = vector.tolist()
    return x, y, z
