"""Files of ITK transforms, as 3D Slicer reads and writes them."""

from __future__ import annotations

import os

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
