"""The DeepFluoro data set: fluoroscopy of hips with CTs, landmarks and true poses in one HDF5 file.

Source: Grupp et al. 2020, Automatic annotation of hip anatomy in fluoroscopy for robust and
efficient 2D/3D registration; the layout is that of ipcai_2020_full_res_data.h5, described in
hdf5_layouts/Readme.md of github.com/rg2/DeepFluoroLabeling-IPCAI2020.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drrkit.conversions import CameraView, from_deepfluoro
from drrkit.files import PathLike, existing_file
from drrkit.geometry import Camera
from drrkit.volume import Volume
from drrkit.xray.read.dicom import flipped_camera
from drrkit.xray.read.xray import Xray

__all__ = [
    "DEEPFLUORO_BONES",
    "DeepfluoroSpecimen",
    "DeepfluoroXray",
    "deepfluoro_contents",
    "read_deepfluoro_specimen",
    "read_deepfluoro_xray",
]

DEEPFLUORO_BONES = ("pelvis", "left-femur", "right-femur")
"""What has a pose of its own in every projection."""

PARAMETERS = "proj-params"
BORDER = 50
"""Pixels at each side that the data's authors leave out: the collimator's edge is there."""


@dataclass(frozen=True, eq=False)
class DeepfluoroSpecimen:
    """The CT of a specimen.

    Attributes:
        volume: in HU, LPS mm, with the segmentation as labels.
        label_names: what the labels are, such as {1: "left-hemipelvis"}.
        landmarks: [3] float64 world mm each, by name, such as "FH-l".
    """

    volume: Volume
    label_names: dict[int, str]
    landmarks: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class DeepfluoroXray:
    """One projection, as seen from the source.

    Attributes:
        xray: image (an intensity), camera and true pose.
        landmarks: [2] float64 (row, col) each, by name; some lie outside the image.
        labels: [rows, cols] the true segmentation, or None.
    """

    xray: Xray
    landmarks: dict[str, Tensor]
    labels: Tensor | None


def deepfluoro_contents(path: PathLike) -> dict[str, tuple[int, ...]]:
    """The specimens of a file and the numbers of their projections.

    Raises OSError, ImportError (h5py), and ValueError for a file that is not DeepFluoro's.
    """
    with _opened(path) as file:
        return {
            name: tuple(sorted(int(key) for key in file[name]["projections"] if key.isdigit()))
            for name in _specimens(file)
        }


def read_deepfluoro_specimen(path: PathLike, specimen: str) -> DeepfluoroSpecimen:
    """The CT of a specimen, such as "17-1882", with its segmentation and landmarks.

    Raises as deepfluoro_contents, and ValueError for a specimen that is not there or whose
    segmentation lies on another grid than its CT.
    """
    with _opened(path) as file:
        group = _specimen(file, specimen, path)
        volume = _volume(group["vol"])
        names: dict[int, str] = {}
        if "vol-seg" in group:
            labels = _volume(group["vol-seg"]["image"])
            if not _same_grid(volume, labels):
                raise ValueError(f"{path}: the segmentation of {specimen} lies on another grid")
            volume = replace(volume, labels=labels.values.to(torch.uint8))
            stored = group["vol-seg"].get("labels-def", {})
            names = {int(number): _text(stored[number]) for number in stored}
        return DeepfluoroSpecimen(volume, names, _points(group.get("vol-landmarks", {})))


def read_deepfluoro_xray(
    path: PathLike,
    specimen: str,
    projection: int,
    *,
    bone: str = "pelvis",
    border: int = BORDER,
    upright: bool = True,
    half_voxel: bool = False,
) -> DeepfluoroXray:
    """One projection with its camera, the true pose of a bone, and what is seen where.

    specimen, projection
                as deepfluoro_contents lists them
    bone        one of DEEPFLUORO_BONES; a femur that is hardly in view has a warning
    border      pixels to cut off all around; the camera and landmarks go along
    upright     turn images marked rot-180-for-up by 180 degrees, and their cameras about the beam
    half_voxel  move the true pose by -0.5 mm along x, y and z of the CT, as later programs of the
                data's authors do: it was found with voxels whose corners, not centres, stood at
                whole indices. Published results are without, as are the 2D landmarks.

    The file's images are seen from behind the detector; here they are mirrored.
    Raises as read_deepfluoro_specimen, and ValueError for a projection that is not there, another
    bone, or a border that leaves nothing.
    """
    if bone not in DEEPFLUORO_BONES:
        raise ValueError(f"bone: expected one of {', '.join(DEEPFLUORO_BONES)}, got {bone!r}")
    with _opened(path) as file:
        found = _specimen(file, specimen, path)["projections"]
        key = str(projection).zfill(3)
        if key not in found:
            raise ValueError(
                f"projection: {path} has {len(found)} of {specimen}, {min(found, default='none')} "
                f"to {max(found, default='none')}; got {projection!r}"
            )
        group = found[key]
        view = _view(file[PARAMETERS], group["gt-poses"], bone, half_voxel)
        image = torch.from_numpy(group["image"]["pixels"][()].astype(np.float32))
        labels = None
        if "gt-seg" in group:
            labels = torch.from_numpy(group["gt-seg"]["pixels"][()].astype(np.uint8))
        # Stored as (column, row).
        points = {n: p.flip(0) for n, p in _points(group.get("gt-landmarks", {})).items()}
        turn = upright and bool(group["rot-180-for-up"][()])
        warnings = _warnings(group["gt-poses"], bone)
    if not bool(image.isfinite().all()):
        raise ValueError(f"{path}: {specimen}/{key}: expected finite pixels")
    if tuple(image.shape) != view.camera.size:
        raise ValueError(
            f"{path}: {specimen}/{key}: expected {view.camera.size} pixels as {PARAMETERS} says, "
            f"got {tuple(image.shape)}"
        )
    # The converter's camera is that of the mirrored image already, a turn is still to come.
    image, labels, points = _flipped(image, labels, points, view.flip)
    camera, pose = view.camera, view.world_to_camera[0]
    if turn:
        image, labels, points = _flipped(image, labels, points, (-2, -1))
        camera = flipped_camera(camera, (-2, -1))
        pose = torch.diag(pose.new_tensor((-1.0, -1.0, 1.0, 1.0))) @ pose
    image, labels, points, camera = _cropped(image, labels, points, camera, border)
    xray = Xray(
        image[None, None],
        "intensity",
        camera,
        (float(camera.pixel_spacing[0]), float(camera.pixel_spacing[1])),
        world_to_camera=pose,
        warnings=warnings,
    )
    return DeepfluoroXray(xray, points, labels)


@contextmanager
def _opened(path: PathLike) -> Iterator[Any]:
    """The HDF5 file; what is missing or damaged in it becomes a ValueError that names the file."""
    source = existing_file(path)
    try:
        import h5py
    except ImportError as error:
        raise ImportError("DeepFluoro's HDF5 file needs h5py: pip install h5py") from error
    try:
        with h5py.File(source, "r") as file:
            if PARAMETERS not in file:
                raise KeyError(f"no group {PARAMETERS!r}")
            yield file
    except (KeyError, OSError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        if isinstance(error, ValueError) and str(source) in str(error):
            raise
        text = error.args[0] if error.args else error
        raise ValueError(
            f"{source}: expected DeepFluoro's full-resolution HDF5 layout ({text})"
        ) from error


def _specimens(file: Any) -> list[str]:
    return sorted(name for name in file if name != PARAMETERS and "projections" in file[name])


def _specimen(file: Any, name: str, path: PathLike) -> Any:
    known = _specimens(file)
    if name not in known:
        raise ValueError(f"specimen: {Path(path)} has {', '.join(known)}; got {name!r}")
    return file[name]


def _volume(group: Any) -> Volume:
    """A volume of HU or labels; pixels are stored row by row, [z, y, x]."""
    spacing, origin = (
        tuple(np.asarray(group[part][()], dtype=float).flatten().tolist())
        for part in ("spacing", "origin")
    )
    direction = torch.from_numpy(np.asarray(group["dir-mat"][()], dtype=float).reshape(3, 3))
    values = torch.from_numpy(group["pixels"][()].astype(np.float32))
    return Volume(values, spacing, origin, direction)


def _same_grid(first: Volume, second: Volume) -> bool:
    return first.values.shape == second.values.shape and torch.allclose(
        first.affine, second.affine, rtol=0, atol=1e-3
    )


def _points(group: Any) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(np.asarray(group[name][()], dtype=float).flatten()) for name in group
    }


def _text(dataset: Any) -> str:
    """A string stored as one, or as the codes of its letters."""
    value = dataset[()]
    if isinstance(value, np.ndarray):
        whole = value.dtype.kind in "iu"
        value = bytes(value.astype(np.uint8)) if whole else value.flatten()[0]
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text.split("\0")[0]


def _view(parameters: Any, poses: Any, bone: str, half_voxel: bool) -> CameraView:
    def matrix(group: Any, name: str) -> Tensor:
        return torch.from_numpy(np.asarray(group[name][()], dtype=float))

    def number(name: str) -> float:
        return float(np.asarray(parameters[name][()]).flatten()[0])

    cam_to_volume = matrix(poses, f"cam-to-{bone}-vol")
    if half_voxel:
        cam_to_volume[:3, 3] -= 0.5
    return from_deepfluoro(
        matrix(parameters, "intrinsic"),
        matrix(parameters, "extrinsic"),
        cam_to_volume,
        (int(number("num-rows")), int(number("num-cols"))),
        (number("pixel-row-spacing"), number("pixel-col-spacing")),
    )


def _warnings(poses: Any, bone: str) -> tuple[str, ...]:
    flag = f"{bone}-good-fov"
    if flag in poses and not bool(poses[flag][()]):
        return (f"the {bone} is hardly in view: its pose is not to be relied on",)
    return ()


def _flipped(
    image: Tensor, labels: Tensor | None, points: dict[str, Tensor], dims: tuple[int, ...]
) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    """Image, labels and points (row, col) with rows (-2) or columns (-1) the other way round."""
    if not dims:
        return image, labels, points
    sign = torch.tensor([-1.0 if dim in dims else 1.0 for dim in (-2, -1)], dtype=torch.float64)
    last = torch.tensor([image.shape[dim] - 1.0 if dim in dims else 0.0 for dim in (-2, -1)])
    moved = {name: last + sign * point for name, point in points.items()}
    return image.flip(dims), None if labels is None else labels.flip(dims), moved


def _cropped(
    image: Tensor,
    labels: Tensor | None,
    points: dict[str, Tensor],
    camera: Camera,
    border: int,
) -> tuple[Tensor, Tensor | None, dict[str, Tensor], Camera]:
    rows, cols = (n - 2 * border for n in image.shape)
    if isinstance(border, bool) or not isinstance(border, int) or border < 0 or min(rows, cols) < 1:
        raise ValueError(
            f"border: expected 0 or more pixels that leave some of {tuple(image.shape)}, got "
            f"{border!r}"
        )
    window = (slice(border, border + rows), slice(border, border + cols))
    return (
        image[window].contiguous(),
        None if labels is None else labels[window].contiguous(),
        {name: point - border for name, point in points.items()},
        camera.crop(border, border, rows, cols),
    )
