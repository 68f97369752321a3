"""Files of other programs: ITK transforms (3D Slicer) and Autoscoper tracks."""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

from drrkit.conversions.mayacam import numbers
from drrkit.files import PathLike, existing_file, whole_file
from drrkit.geometry import assemble, check_floating
from drrkit.volume import load_simpleitk


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
    matrix = _single("to_parent", to_parent)
    sitk = load_simpleitk()
    back = torch.linalg.inv(matrix)
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(back[:3, :3].flatten().tolist())
    transform.SetTranslation(back[:3, 3].tolist())
    with whole_file(path) as file:
        try:
            sitk.WriteTransform(transform, os.fspath(file))
        except RuntimeError as error:
            raise ValueError(f"path: ITK cannot write {path}; known are .tfm, .txt, .h5") from error


def read_itk_transform(path: PathLike) -> Tensor:
    """The matrix to_parent [4, 4] float64 of a linear ITK transform file, LPS mm.

    Raises FileNotFoundError, and ValueError for a file that is no linear 3D transform, or one that
    has no inverse.
    """
    file = existing_file(path)
    sitk = load_simpleitk()
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
    inverse, singular = torch.linalg.inv_ex(matrix)
    if bool(singular) or not bool(inverse.isfinite().all()):
        raise ValueError(f"{path}: expected a matrix that has an inverse, got {matrix.tolist()}")
    return inverse


def write_autoscoper(path: PathLike, poses: Tensor) -> None:
    """A .tra track: a row of 16 numbers, the 4x4 matrix row by row, a pose [T, 4, 4].

    Frames without a pose are NaN, in the file too.
    """
    check_floating("poses", poses, (4, 4))
    rows = poses.detach().double().cpu().reshape(-1, 16).tolist()
    with whole_file(path) as file:
        lines = (",".join(repr(number) for number in row) for row in rows)
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_autoscoper(path: PathLike) -> Tensor:
    """The poses [T, 4, 4] float64 of a .tra track, NaN where a frame has none."""
    rows = []
    text = existing_file(path).read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        values = numbers(line, f"{path}, line {number}")
        if len(values) != 16:
            raise ValueError(f"{path}, line {number}: expected 16 numbers, got {len(values)}")
        last = values[12:]
        if not all(map(math.isnan, values)) and math.dist(last, (0, 0, 0, 1)) > 1e-6:
            raise ValueError(
                f"{path}, line {number}: expected matrices row by row, ending in 0, 0, 0, 1, got "
                f"{last}: written column by column?"
            )
        rows.append(values)
    if not rows:
        raise ValueError(f"{path}: expected rows of 16 numbers, got none")
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4, 4)


def _single(name: str, matrix: Tensor) -> Tensor:
    check_floating(name, matrix, (4, 4))
    if matrix.numel() != 16:
        raise ValueError(f"{name}: expected one matrix [4, 4], got {list(matrix.shape)}")
    single = matrix.detach().double().cpu().reshape(4, 4)
    return assemble(single[:3, :3], single[:3, 3:])
