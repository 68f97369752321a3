"""Tomography packages: ASTRA, LEAP, TIGRE, and plastimatch's drr."""

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
    to_vectors,
)
from drrkit.geometry import Camera, check_floating, checked_size, volume_center


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


@dataclass(frozen=True)
class PlastimatchView:
    """Options of `plastimatch drr`; every pair is (columns, rows), whatever its help says."""

    nrm: tuple[float, ...]
    vup: tuple[float, ...]
    sad: float
    sid: float
    isocenter: tuple[float, ...]
    image_center: tuple[float, float]
    detector_size: tuple[float, float]
    resolution: tuple[int, int]

    def arguments(self) -> list[str]:
        """As on a command line, without the method, the file names and what to do with HU."""

        def numbers(values: tuple[float, ...]) -> str:
            return " ".join(map(repr, values))

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
    vectors = to_vectors(camera, world_to_camera).mapped(*grid_world(volume, world_to_camera))
    center = vectors.center(camera.size)
    return torch.cat((vectors.source, center, vectors.col_step, vectors.row_step), -1)


def from_astra(vectors: Tensor, size: tuple[int, int], volume: Any) -> CameraView:
    """The views of cone_vec rows [B, 12]; size (rows, cols)."""
    check_floating("vectors", vectors, (12,))
    rows, cols = checked_size(size)
    source, center, col, row = vectors.double().reshape(-1, 4, 3).unbind(1)
    corner = center - (cols - 1) / 2 * col - (rows - 1) / 2 * row
    world = patient_world(volume, vectors)
    return from_vectors(ViewVectors(source, corner, col, row).mapped(*world), size)


def to_leap(camera: Camera, world_to_camera: Tensor, volume: Any) -> LeapView:
    """LEAP's modular beam. Its rows run upwards: flip its images, (-2,), to get drrkit's.

    The world is the grid's own, as for to_astra. One camera without skew for all views.
    """
    height, width, *_ = one_pitch(camera)
    source, center, col, row = to_astra(camera, world_to_camera, volume).split(3, -1)
    return LeapView(height, width, source, center, -row / height, col / width)


def from_leap(view: LeapView, size: tuple[int, int], volume: Any) -> CameraView:
    """The inverse of to_leap; size (rows, cols). `flip` is (-2,) for detectors as LEAP's are."""
    col, row = view.col_vectors * view.pixel_width, view.row_vectors * view.pixel_height
    parts = (view.source_positions, view.module_centers, col, row)
    return from_astra(torch.cat([part.double() for part in parts], -1), size, volume)


def to_tigre(camera: Camera, world_to_camera: Tensor, volume: Any) -> TigreView:
    """TIGRE's geometry with one set of angles per view. Flip its images, (-2,), to get drrkit's.

    The world is the grid's own, as for to_astra; the isocentre of each view is the foot of the
    volume's centre on the camera's axis. One camera without skew for all views.
    """
    row, col, cx, cy, sdd = one_pitch(camera)
    rows, cols = camera.size
    vectors = to_vectors(camera, world_to_camera).mapped(*grid_world(volume, world_to_camera))
    right, down, towards = vectors.axes
    depth = -(vectors.source * towards).sum(-1)
    offset_of_center = -vectors.source - depth[:, None] * towards
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
    row, col = view.dDetector
    back, right, up = euler_to_matrix(view.angles.double(), "ZYZ").unbind(-1)
    source = view.DSO.double()[:, None] * back - view.offOrigin.double().flip(-1)
    v, u = view.offDetector
    center = source - view.DSD * back + u * right + v * up
    return from_astra(
        torch.cat((source, center, right * col, up * row), -1), view.nDetector, volume
    )


def to_plastimatch(camera: Camera, world_to_camera: Tensor, volume: Any) -> list[PlastimatchView]:
    """Options of `plastimatch drr`, one set per view; the volume must stand along the world's axes.

    The isocentre is the foot of the volume's centre on the camera's axis.
    """
    row, col, cx, cy, sdd = one_pitch(camera)
    rows, cols = camera.size
    vectors = to_vectors(camera, world_to_camera)
    _, down, towards = vectors.axes
    sad = ((volume_center(volume).to(towards) - vectors.source) * towards).sum(-1)
    isocenter = vectors.source + sad[:, None] * towards
    sizes = (cx, cy), (cols * col, rows * row), (cols, rows)
    return [
        PlastimatchView(tuple(nrm), tuple(vup), distance, sdd, tuple(foot), *sizes)
        for nrm, vup, distance, foot in zip(
            *(part.tolist() for part in (-towards, -down, sad, isocenter)), strict=True
        )
    ]


def from_plastimatch(view: PlastimatchView) -> CameraView:
    """The inverse of to_plastimatch, for one view."""
    (cols, rows), (width, height) = view.resolution, view.detector_size
    nrm, vup, isocenter = (
        torch.tensor(v, dtype=torch.float64) for v in (view.nrm, view.vup, view.isocenter)
    )
    towards = -nrm / nrm.norm()
    right = torch.linalg.cross(-vup, towards)
    right = right / right.norm()
    source = isocenter - view.sad * towards
    col_step = right * (width / cols)
    row_step = torch.linalg.cross(towards, right) * (height / rows)
    cx, cy = view.image_center
    corner = source + view.sid * towards - cx * col_step - cy * row_step
    return from_vectors(ViewVectors(source, corner, col_step, row_step), (rows, cols))
