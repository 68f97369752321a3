"""RTK: nine numbers per projection, and the XML files of ThreeDCircularProjectionGeometry.

Source: rtkThreeDCircularProjectionGeometryXMLFileReader and -Writer. What all projections share
stands before them, zero is left out. The matrix, which RTK checks, follows from the numbers.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import torch
from torch import Tensor

from drrkit.conversions.angles import euler_to_matrix, matrix_to_euler
from drrkit.conversions.carm import odd_lengths
from drrkit.conversions.vectors import (
    CameraView,
    ViewVectors,
    from_vectors,
    one_pitch,
    shared,
    to_vectors,
)
from drrkit.files import FileWarning, PathLike, existing_file, whole_file
from drrkit.geometry import Camera, assemble, check_floating, checked_size

ROOT = "RTKThreeDCircularGeometry"
NAMES = (
    "SourceToIsocenterDistance",
    "SourceToDetectorDistance",
    "GantryAngle",
    "ProjectionOffsetX",
    "ProjectionOffsetY",
    "OutOfPlaneAngle",
    "InPlaneAngle",
    "SourceOffsetX",
    "SourceOffsetY",
)
"""Of RtkView's numbers in the file, in its order."""
CYLINDER = "RadiusCylindricalDetector"


class RtkView(NamedTuple):
    """RTK's nine numbers per projection, in AddProjection's order: mm and degrees, each [B]."""

    source_to_isocenter: Tensor
    source_to_detector: Tensor
    gantry_angle: Tensor
    projection_offset_x: Tensor
    projection_offset_y: Tensor
    out_of_plane_angle: Tensor
    in_plane_angle: Tensor
    source_offset_x: Tensor
    source_offset_y: Tensor


def to_rtk(camera: Camera, world_to_camera: Tensor, isocenter: Tensor | None = None) -> RtkView:
    """RTK's geometry parameters, its fixed system being the patient's LPS in mm.

    isocenter  [3] world mm, default zero: RTK turns about the origin of the fixed system, so a
               volume must be moved by -isocenter for it

    Projections lie in the detector's plane with the foot of the source at ProjectionOffset of the
    detector's own origin: an ITK image with spacing (col, row) mm and origin
    (-cx col, -(rows - 1 - cy) row), where (cx, cy) is the principal point. Rows run upwards: flip
    its images, (-2,), to get drrkit's.
    """
    sdd = one_pitch(camera)[-1]
    vectors = to_vectors(camera, world_to_camera)
    right, down, towards = vectors.axes
    # Rows: the axes of the rotated system, in which the source is at +z and y is up.
    turn = torch.stack((right, -down, -towards), -2)
    offset = vectors.source - _isocenter(isocenter, turn)
    x, y, z = (turn @ offset[:, :, None]).squeeze(-1).unbind(-1)
    in_plane, out_of_plane, gantry = (-matrix_to_euler(turn, "ZXY")).rad2deg().unbind(-1)
    return RtkView(z, torch.full_like(z, sdd), gantry, x, y, out_of_plane, in_plane, x, y)


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
    turn = _turn(inside, out, gantry)
    center = _isocenter(isocenter, turn)
    x, y = px + origin[0], py + origin[1]  # of pixel (0, 0)
    if bool((sdd == 0).any()):
        if not bool((sdd == 0).all()):
            raise ValueError("view: expected one kind of beam, got cone and parallel beams")
        # Rays along -z of the rotated system. Where they begin moves no pixel; twice the distance
        # covers the patient. Rows run upwards, so they are flipped.
        away = float(torch.where(sid == 0, 1000.0, sid.abs()).max())
        axes = turn * turn.new_tensor(((1.0,), (-1.0,), (-1.0,)))
        depth = turn.new_tensor(((0.0,), (0.0,), (away,)))
        pose = assemble(axes, depth - axes @ center[:, None])
        matrix = torch.diag(turn.new_tensor((2 * away / spacing[0], 2 * away / spacing[1], 1.0)))
        matrix = matrix.repeat(len(turn), 1, 1)
        matrix[:, 0, 2], matrix[:, 1, 2] = -x / spacing[0], size[0] - 1 + y / spacing[1]
        return CameraView(shared(Camera(matrix, size, 2 * away, "parallel")), pose, (-2,))
    points = torch.stack((sx, sy, sid, x, y, sid - sdd), -1).reshape(-1, 2, 3)
    source, corner = (points @ turn + center).unbind(1)
    vectors = ViewVectors(source, corner, turn[:, 0] * spacing[0], turn[:, 1] * spacing[1])
    return from_vectors(vectors, size)


def write_rtk_geometry(path: PathLike, view: RtkView) -> None:
    """A geometry file of one or more projections, for the programs of RTK.

    The file appears whole or not at all. Raises ValueError for numbers that are not finite.
    """
    table = torch.stack([torch.as_tensor(v).double().reshape(-1) for v in view], -1)
    if not bool(table.isfinite().all()):
        raise ValueError("view: expected finite numbers")
    root = ElementTree.Element(ROOT, version="3")
    for numbers, matrix in zip(table.tolist(), _matrices(table).tolist(), strict=True):
        projection = ElementTree.SubElement(root, "Projection")
        for name, number in zip(NAMES, numbers, strict=True):
            ElementTree.SubElement(projection, name).text = repr(number)
        lines = (" ".join(map(repr, row)) for row in matrix)
        ElementTree.SubElement(projection, "Matrix").text = "\n" + "\n".join(lines) + "\n"
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    with whole_file(path) as file:
        head = '<?xml version="1.0"?>\n<!DOCTYPE RTKGEOMETRY>\n'
        file.write_text(f"{head}{text}\n", encoding="utf-8")


def read_rtk_geometry(path: PathLike) -> RtkView:
    """The numbers of a geometry file's projections, each [B] float64.

    A SourceToDetectorDistance of zero is RTK's word for a parallel beam; negative distances put the
    source on the other side. Raises FileNotFoundError, and ValueError for a file that is no such
    geometry, a curved detector and distances of different signs. Lengths that are odd are a
    FileWarning.
    """
    file = existing_file(path)
    root = _parsed(file)
    common = {entry.tag: entry.text for entry in root if entry.tag != "Projection"}
    rows = []
    for projection in root.findall("Projection"):
        found = {**common, **{entry.tag: entry.text for entry in projection}}
        if _number(file, CYLINDER, found) != 0.0:
            raise ValueError(f"{file}: expected a flat detector, got a cylinder's radius")
        rows.append([_number(file, name, found) for name in NAMES])
        sid, sdd = rows[-1][:2]
        if sid == 0.0 or sid * sdd < 0.0:
            raise ValueError(
                f"{file}: expected distances of a cone beam, both of one sign, or a "
                f"SourceToDetectorDistance of 0 for a parallel beam, got {sid:g} and {sdd:g}"
            )
    if not rows:
        raise ValueError(f"{file}: expected projections of RTK's geometry, got none")
    lengths = {(abs(row[1]), abs(row[0])) for row in rows if row[1] != 0.0}
    for text in dict.fromkeys(text for pair in sorted(lengths) for text in odd_lengths(*pair)):
        warnings.warn(f"{file}: {text}", FileWarning, stacklevel=2)
    return RtkView(*torch.tensor(rows, dtype=torch.float64).unbind(-1))


def _turn(inside: Tensor, out: Tensor, gantry: Tensor) -> Tensor:
    """From the fixed to the rotated system, [B, 3, 3], of angles [B] in degrees."""
    return euler_to_matrix(-torch.stack((inside, out, gantry), -1).deg2rad(), "ZXY")


def _isocenter(isocenter: Tensor | None, like: Tensor) -> Tensor:
    if isocenter is None:
        return like.new_zeros(3)
    check_floating("isocenter", isocenter, (3,))
    return isocenter.to(like)


def _matrices(table: Tensor) -> Tensor:
    """The maps [B, 3, 4] from the fixed system to the detector's own mm, of rows as RtkView's."""
    sid, sdd, gantry, px, py, out, inside, sx, sy = table.unbind(-1)
    turn = _turn(inside, out, gantry)
    # Seen from the source, in the rotated system; the last row is the depth, negative.
    x, y, depth = torch.cat((turn, -torch.stack((sx, sy, sid), -1)[..., None]), -1).unbind(1)
    rows = (
        (offset[:, None] * depth - sdd[:, None] * axis)
        for offset, axis in ((sx - px, x), (sy - py, y))
    )
    return torch.stack((*rows, depth), 1)


def _parsed(file: Path) -> ElementTree.Element:
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    if "<!ENTITY" in text:
        raise ValueError(f"{file}: expected RTK's geometry, got one with definitions of its own")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{file}: expected RTK's geometry as XML ({error})") from None
    if root.tag != ROOT:
        raise ValueError(f"{file}: expected {ROOT}, got {root.tag}")
    return root


def _number(file: Path, name: str, found: dict[str, str | None]) -> float:
    text = found.get(name)
    try:
        number = 0.0 if text is None else float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{file}: {name}: expected a number, got {str(text)[:40]!r}")
    return number
