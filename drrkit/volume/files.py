"""Volumes from and to files: NIfTI, NRRD, MetaImage and DICOM series, all through SimpleITK."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from drrkit.files import PathLike, existing_file, whole_file
from drrkit.volume import dicom, nifti
from drrkit.volume.data import AIR, Unit, Volume
from drrkit.volume.itk import (
    Raster,
    checked_header,
    image_of,
    load_simpleitk,
    raster_of,
    readable_errors,
)

READ_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
WRITE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")

SAME_PLACE = 0.01
"""Voxels by which two grids' corners may differ and still count as one grid."""


def read_volume(
    path: PathLike,
    *,
    labels: PathLike | None = None,
    series: str | None = None,
    unit: Unit = "HU",
    dtype: torch.dtype = torch.float32,
) -> Volume:
    """Reads a CT from a NIfTI, NRRD or MetaImage file or from a folder of DICOM slices.

    Values come with the file's slope and intercept applied, geometry in LPS mm as ITK gives it
    (NIfTI's RAS is converted). Vector images become channels [C, D, H, W]; a fourth dimension of
    size 1 is dropped.

    Args:
        path: .nii, .nii.gz, .nrrd, .nhdr, .mha, .mhd, or a folder of single-slice DICOM files.
        labels: a label map on the same voxel grid, in any of these formats.
        series: Series Instance UID, where a DICOM folder holds several.
        unit: what the values are, "HU" or "mu" (1/mm); files do not say.
        dtype: of the values, float32 or another floating dtype.

    Returns:
        a Volume on the CPU.

    Raises:
        OSError: the file does not exist or cannot be opened.
        ImportError: SimpleITK is not installed.
        ValueError: not an image, truncated, not 3D, a spacing or direction that means nothing,
            values that are not finite, a folder without DICOM or with several series, labels on
            another grid or that are not whole numbers.
    """
    source = _existing(path)
    if unit not in AIR:
        raise ValueError(f'unit: expected "HU" or "mu", got {unit!r}')
    if not dtype.is_floating_point:
        raise TypeError(f"dtype: expected a floating dtype, got {dtype}")
    raster = _read_raster(source, series, np.float64 if dtype == torch.float64 else np.float32)
    try:
        volume = Volume(
            values=torch.from_numpy(raster.pixels).to(dtype),
            spacing=raster.spacing,
            origin=raster.origin,
            direction=torch.from_numpy(raster.direction.copy()),
            unit=unit,
        )
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    if labels is None:
        return volume
    return replace(volume, labels=_read_labels(_existing(labels), volume, source))


def _existing(path: PathLike) -> Path:
    """The path, if it can be opened and has a name this module reads."""
    if isinstance(path, (str, os.PathLike)) and Path(path).is_dir():
        return Path(path)
    source = existing_file(path)
    if not source.name.lower().endswith(READ_SUFFIXES):
        raise ValueError(
            f"{source}: expected one of {', '.join(READ_SUFFIXES)}, or the folder of a DICOM series"
        )
    return source


def _read_raster(source: Path, series: str | None, dtype: type | None) -> Raster:
    if source.is_dir():
        return dicom.read_series(source, series)
    if series is not None:
        raise ValueError(f"series: {source} is a file; only a DICOM folder holds series")
    sitk = load_simpleitk()
    header = checked_header(source)
    with readable_errors(source, "read"):
        image = sitk.ReadImage(os.fspath(source))
    raster = raster_of(image, source, dtype)
    if header is not None:
        nifti.check_scales(header, raster.spacing, raster.direction, os.fspath(source))
    return raster


def _read_labels(source: Path, volume: Volume, volume_source: Path) -> Tensor:
    """A label map [D, H, W], checked to lie on the volume's grid and to hold whole numbers."""
    raster = _read_raster(source, None, None)
    pixels = raster.pixels
    if pixels.shape != tuple(volume.values.shape[-3:]):
        raise ValueError(
            f"{source}: expected labels of shape {tuple(volume.values.shape[-3:])} (z, y, x) "
            f"as in {volume_source}, got {pixels.shape}"
        )
    grid = Volume(
        torch.zeros(pixels.shape), raster.spacing, raster.origin, torch.as_tensor(raster.direction)
    )
    width, height, depth = volume.shape_xyz
    ends = torch.cartesian_prod(
        *(torch.tensor([0.0, n - 1.0], dtype=torch.float64) for n in (width, height, depth))
    )
    moved = volume.world_to_index(grid.index_to_world(ends)) - ends
    if float(moved.abs().max()) > SAME_PLACE:
        raise ValueError(
            f"{source}: the labels' grid differs from that of {volume_source}: spacing "
            f"{grid.spacing} and {volume.spacing}, origin {grid.origin} and {volume.origin}, "
            f"direction {grid.direction.tolist()} and {volume.direction.tolist()}"
        )
    if np.issubdtype(pixels.dtype, np.floating):
        whole = np.isfinite(pixels) & (np.abs(pixels) < 2**31) & (pixels == np.rint(pixels))
        if not whole.all():
            first = tuple(int(i) for i in np.argwhere(~whole)[0])
            raise ValueError(
                f"{source}: expected whole numbers as labels, got {pixels[first]} at index {first}"
            )
        pixels = pixels.astype(np.int32)
    wider = {np.dtype(np.uint16): np.int32, np.dtype(np.uint32): np.int64}
    pixels = pixels.astype(wider.get(pixels.dtype, pixels.dtype), copy=False)
    return torch.from_numpy(pixels.astype(np.int64) if pixels.dtype == np.uint64 else pixels)


def write_volume(volume: Volume, path: PathLike, *, labels: PathLike | None = None) -> None:
    """Writes a volume; the file appears whole or not at all.

    Whole numbers that fit are stored as int16, others as float32 (float64 stays float64).
    Channels become vector pixels. The unit is not stored: read a volume in mu back with
    ``read_volume(path, unit="mu")``.

    Args:
        volume: values on any device; gradients are not kept.
        path: .nii, .nii.gz, .nrrd, .mha, .mhd (with its .raw beside it), or a name without suffix:
            a new folder of DICOM slices (HU only; int16 with slope and intercept, see
            ``drrkit.volume.dicom.write_series``). DICOM stacks are right-handed: a left-handed
            volume is written with its slices in reverse order, at the same place.
        labels: where to write the label map, one of the file names above.

    Raises:
        OSError: the place cannot be written to, or the disk is full.
        ImportError: SimpleITK is not installed.
        ValueError: an unknown suffix, no labels to write, mu or several channels for DICOM.
    """
    if not isinstance(volume, Volume):
        raise TypeError(f"volume: expected a Volume, got {type(volume).__name__}")
    target = _writable(path)
    as_dicom = not target.name.lower().endswith(WRITE_SUFFIXES)
    if as_dicom:
        volume = _checked_for_dicom(volume, target)
    rasters = [(target, _raster_of_values(volume))]
    if labels is not None:
        if volume.labels is None:
            raise ValueError("labels: this volume has no label map to write")
        label_target = _writable(labels)
        if not label_target.name.lower().endswith(WRITE_SUFFIXES):
            raise ValueError(f"labels: expected one of {', '.join(WRITE_SUFFIXES)}, got {labels}")
        pixels = volume.labels.cpu().numpy()
        rasters.append((label_target, rasters[0][1]._replace(pixels=pixels)))
    load_simpleitk()
    with ExitStack() as stack:
        for place, raster in rasters:
            staged = stack.enter_context(whole_file(place))
            if as_dicom and place is target:
                staged.mkdir()
                dicom.write_series(raster, staged)
            else:
                _write_raster(raster, staged, place)


def _writable(path: PathLike) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: expected a file name, got {type(path).__name__}")
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: the folder {target.parent} does not exist")
    is_file = target.name.lower().endswith(WRITE_SUFFIXES)
    if not is_file and target.suffix:
        raise ValueError(
            f"{target}: expected one of {', '.join(WRITE_SUFFIXES)}, or a name without suffix "
            "for a folder of DICOM slices"
        )
    if is_file and target.is_dir():
        raise IsADirectoryError(f"{target}: a folder has this name already")
    if not is_file and target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{target}: exists already; a DICOM series needs a new folder")
    return target


def _checked_for_dicom(volume: Volume, target: Path) -> Volume:
    """The volume as a DICOM stack can hold it: HU, one channel, right-handed."""
    if volume.unit != "HU":
        raise ValueError(f'{target}: DICOM slices hold "HU", this volume is in "{volume.unit}"')
    if volume.values.ndim == 4 and volume.values.shape[0] != 1:
        raise ValueError(
            f"{target}: DICOM slices hold one channel, got shape {tuple(volume.values.shape)}"
        )
    volume = replace(volume, values=volume.values.reshape(volume.values.shape[-3:]))
    if float(torch.linalg.det(volume.direction)) > 0:
        return volume
    last = torch.tensor([0.0, 0.0, volume.shape_xyz[2] - 1.0], dtype=torch.float64)
    return replace(
        volume,
        values=volume.values.flip(0),
        labels=None if volume.labels is None else volume.labels.flip(0),
        origin=tuple(volume.index_to_world(last).tolist()),
        direction=volume.direction * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64),
    )


def _raster_of_values(volume: Volume) -> Raster:
    """The volume's values as numpy, int16 where that loses nothing."""
    values = volume.values.detach().cpu()
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    if values.ndim == 4 and values.shape[0] == 1:
        values = values[0]
    low, high = (float(v) for v in torch.aminmax(values))
    if low >= -(2**15) and high < 2**15:
        whole = values.to(torch.int16)
        if torch.equal(whole.to(values.dtype), values):
            values = whole
    return Raster(values.numpy(), volume.spacing, volume.origin, volume.direction.numpy())


def _write_raster(raster: Raster, file: Path, target: Path) -> None:
    """Writes one file; ``target`` is the name it will get, for messages."""
    sitk = load_simpleitk()
    # An .mhd is kept uncompressed: readers of .mhd/.raw pairs often expect that.
    packed = file.suffix.lower() != ".mhd"
    with readable_errors(target, "write"):
        sitk.WriteImage(image_of(raster), os.fspath(file), packed)
    if file.name.lower().endswith((".nii", ".nii.gz")):
        try:
            nifti.check(file)
        except ValueError as error:
            raise OSError(
                f"{target}: the file was not written in full; the disk may be full"
            ) from error
