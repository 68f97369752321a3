"""Files of 3D Slicer: ITK's transforms, and points, in tables and JSON of others too.

Sources: the .fcsv and .mrk.json formats of 3D Slicer's Markups module.
"""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drrkit.conversions.pinhole import check_rigid
from drrkit.files import PathLike, existing_file, whole_file
from drrkit.geometry import assemble, check_floating


def write_itk_transform(path: PathLike, to_parent: Tensor) -> None:
    """A linear transform as ITK writes it (.tfm, .txt, .h5), in LPS mm.

    path       its suffix chooses the format
    to_parent  [4, 4] or [1, 4, 4]: where points go, what 3D Slicer shows as the transform's matrix
               (in RAS there)

    ITK's files hold the map of resampling, from the parent back, which is the inverse: 3D Slicer
    inverts it when it reads the file. With `world_to_camera` the CT appears in the C-arm's
    coordinates; with `inv(start) @ found` it moves from where it was believed to be to where it
    is. Needs SimpleITK. The file appears whole or not at all.
    """
    import SimpleITK as sitk

    check_floating("to_parent", to_parent, (4, 4))
    if to_parent.numel() != 16:
        raise ValueError(f"to_parent: expected one matrix [4, 4], got {list(to_parent.shape)}")
    matrix = to_parent.detach().double().cpu().reshape(4, 4)
    back = torch.linalg.inv(assemble(matrix[:3, :3], matrix[:3, 3:]))
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(back[:3, :3].flatten().tolist())
    transform.SetTranslation(back[:3, 3].tolist())
    with whole_file(path) as file:
        try:
            sitk.WriteTransform(transform, os.fspath(file))
        except RuntimeError as error:
            raise ValueError(f"path: ITK cannot write {path}; known are .tfm, .txt, .h5") from error


def read_itk_transform(path: PathLike) -> Tensor:
    """The pose to_parent [4, 4] float64 of a linear ITK transform file, LPS mm.

    Raises FileNotFoundError, and ValueError for a file that is no linear 3D transform, or one with
    scale, shear or reflection.
    """
    import SimpleITK as sitk

    file = existing_file(path)
    try:
        transform = sitk.ReadTransform(os.fspath(file))
    except (RuntimeError, UnicodeDecodeError) as error:  # a name in it may be no text
        raise ValueError(f"{path}: not a transform that ITK reads") from error
    if transform.GetDimension() != 3 or not transform.IsLinear():
        raise ValueError(f"{path}: expected a linear 3D transform, got {transform.GetName()}")
    corners = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0))
    points = torch.tensor([transform.TransformPoint(c) for c in corners], dtype=torch.float64)
    *images, zero = points[..., None]
    matrix = assemble(torch.cat(images, 1) - zero, zero)
    check_rigid(os.fspath(path), matrix)
    return torch.linalg.inv(matrix)


def read_landmark_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of points, by the names of their columns in lower case.

    Tables have a first line of names; JSON is a list of objects. Slicer's .fcsv and .mrk.json give
    name, x, y, z in LPS mm (RAS is converted), and row, col where a point's description is two
    numbers.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is none of these.
    """
    text = _decoded(path)
    if path.suffix.lower() != ".json":
        try:
            return _from_fcsv(path, text) if path.suffix.lower() == ".fcsv" else _from_table(text)
        except csv.Error as error:
            raise ValueError(f"{path}: expected a table, but it does not parse: {error}") from None
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, but it does not parse: {error}") from None
    if isinstance(content, dict) and "markups" in content:
        return _from_markups(path, content)
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise ValueError(f"{path}: expected a list of objects with x, y, z, row, col")
    return [{str(key).strip().lower(): value for key, value in row.items()} for row in content]


def _decoded(path: Path) -> str:
    data = path.read_bytes()
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected CSV or JSON, got a binary file") from None


def _from_table(text: str) -> list[dict[str, Any]]:
    lines = [line for line in text.splitlines() if line.strip()]
    first = lines[0] if lines else ""
    mark = max((",", ";", "\t"), key=first.count)
    rows = csv.DictReader(lines, delimiter=mark)
    return [
        {
            # With semicolons or tabs a comma may be the decimal point.
            str(key).strip().lower(): value.replace(",", ".")
            if mark != "," and isinstance(value, str) and re.fullmatch(r"\s*[-+\d,eE]+\s*", value)
            else value
            for key, value in row.items()
        }
        for row in rows
    ]


def _from_fcsv(path: Path, text: str) -> list[dict[str, Any]]:
    columns, system, rows = ["id", "x", "y", "z"], "0", []
    for line in text.splitlines():
        if match := re.match(r"#\s*columns\s*=\s*(.*)", line):
            columns = [name.strip().lower() for name in match[1].split(",")]
        elif match := re.match(r"#\s*CoordinateSystem\s*=\s*(\S+)", line):
            system = match[1]
        elif line.strip() and not line.startswith("#"):
            row = dict(zip(columns, next(csv.reader([line])), strict=False))
            place = [row.get(axis) for axis in "xyz"]
            rows.append(_point(path, row.get("label"), place, system, row.get("desc")))
    return _with_unseen(rows)


def _from_markups(path: Path, content: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        rows = [
            _point(
                path,
                point.get("label"),
                point["position"],
                str(markup.get("coordinateSystem", "RAS")),
                point.get("description"),
                str(markup.get("coordinateUnits", "mm")),
            )
            for markup in content["markups"]
            for point in markup["controlPoints"]
            if point.get("positionStatus", "defined") == "defined"
        ]
        return _with_unseen(rows)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected 3D Slicer's markups, {error} is missing") from None


def _with_unseen(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where some points have a pixel, those without are not seen, as in tables."""
    unseen = {"row": None, "col": None} if any("row" in row for row in rows) else {}
    return [{**unseen, **row} for row in rows]


def _point(
    path: Path, name: Any, place: Any, system: str, words: Any, unit: str = "mm"
) -> dict[str, Any]:
    """A point in LPS mm; 0 and RAS are RAS, 1 and LPS are LPS."""
    signs = {"0": -1.0, "RAS": -1.0, "1": 1.0, "LPS": 1.0}
    if system not in signs or unit not in ("mm", "um", "cm", "m"):
        raise ValueError(f"{path}: expected RAS or LPS and mm, got {system} and {unit}")
    scale = {"mm": 1.0, "um": 1e-3, "cm": 10.0, "m": 1000.0}[unit]
    try:
        x, y, z = (scale * float(word) for word in place)
    except (TypeError, ValueError):
        raise ValueError(f"{path}: expected x, y, z as numbers, got {str(place)[:60]}") from None
    found = {"name": name, "x": signs[system] * x, "y": signs[system] * y, "z": z}
    pixel = re.fullmatch(r"\s*([-+.\deE]+)[\s,;]+([-+.\deE]+)\s*", str(words or ""))
    return {**found, "row": pixel[1], "col": pixel[2]} if pixel else found
