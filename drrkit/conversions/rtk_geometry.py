"""RTK's geometry files: the XML of ThreeDCircularProjectionGeometry.

Source: rtkThreeDCircularProjectionGeometryXMLFileReader and -Writer. What all projections share
stands before them, zero is left out. The matrix, which RTK checks, follows from the numbers.
"""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import torch
from torch import Tensor

from drrkit.conversions.angles import euler_to_matrix
from drrkit.conversions.tomography import RtkView
from drrkit.files import PathLike, existing_file, whole_file

ROOT = "RTKThreeDCircularGeometry"
NAMES = dict(
    zip(
        RtkView._fields,
        (
            "SourceToIsocenterDistance",
            "SourceToDetectorDistance",
            "GantryAngle",
            "ProjectionOffsetX",
            "ProjectionOffsetY",
            "OutOfPlaneAngle",
            "InPlaneAngle",
            "SourceOffsetX",
            "SourceOffsetY",
        ),
        strict=True,
    )
)
"""Of RtkView's numbers in the file."""
CYLINDER = "RadiusCylindricalDetector"


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
        for name, number in zip(NAMES.values(), numbers, strict=True):
            ElementTree.SubElement(projection, name).text = repr(number)
        lines = (" ".join(repr(number) for number in row) for row in matrix)
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
    geometry, a curved detector and distances of different signs.
    """
    file = existing_file(path)
    root = _parsed(file)
    shared = {entry.tag: entry.text for entry in root if entry.tag != "Projection"}
    projections = root.findall("Projection")
    if not projections:
        raise ValueError(f"{file}: expected projections of RTK's geometry, got none")
    rows = []
    for projection in projections:
        found = {**shared, **{entry.tag: entry.text for entry in projection}}
        if _number(file, CYLINDER, found.get(CYLINDER)) != 0.0:
            raise ValueError(f"{file}: expected a flat detector, got a cylinder's radius")
        rows.append([_number(file, name, found.get(name)) for name in NAMES.values()])
        sid, sdd = rows[-1][:2]
        if sid == 0.0 or sid * sdd < 0.0:
            raise ValueError(
                f"{file}: expected distances of a cone beam, both of one sign, or a "
                f"SourceToDetectorDistance of 0 for a parallel beam, got {sid:g} and {sdd:g}"
            )
    if len({row[1] == 0.0 for row in rows}) > 1:
        raise ValueError(f"{file}: expected one kind of beam, got cone and parallel beams")
    return RtkView(*torch.tensor(rows, dtype=torch.float64).unbind(-1))


def _matrices(table: Tensor) -> Tensor:
    """The maps [B, 3, 4] from the fixed system to the detector's own mm, of rows as RtkView's."""
    sid, sdd, gantry, px, py, out, inside, sx, sy = table.unbind(-1)
    turn = euler_to_matrix(-torch.stack((inside, out, gantry), -1).deg2rad(), "ZXY")
    # Seen from the source, in the turned system; the last row is the depth, negative.
    x, y, depth = torch.cat((turn, -torch.stack((sx, sy, sid), -1)[..., None]), -1).unbind(1)
    return torch.stack(
        (
            (sx - px)[:, None] * depth - sdd[:, None] * x,
            (sy - py)[:, None] * depth - sdd[:, None] * y,
            depth,
        ),
        1,
    )


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


def _number(file: Path, name: str, text: str | None) -> float:
    try:
        number = 0.0 if text is None else float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{file}: {name}: expected a number, got {str(text)[:40]!r}")
    return number
