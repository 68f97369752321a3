"""Volumes from and to files: NIfTI, NRRD, MetaImage and DICOM series."""

from __future__ import annotations

import math
import os
import warnings
import zlib
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from drrkit.files import FileWarning, PathLike, existing_file, whole_file
from drrkit.volume.data import AIR, Unit, Volume
from drrkit.volume.dicom_file import is_dicom
from drrkit.volume.dicom_series import ONE_SLICE, read_series
from drrkit.volume.dicom_writing import write_series
from drrkit.volume.nifti import read_nifti, write_nifti
from drrkit.volume.nrrd_metaimage import read_metaimage, read_nrrd
from drrkit.volume.rasters import Raster, axes_letters, image_of, readable_errors

READ_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
WRITE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")

POSSIBLE_HU = (-1100.0, 10_000.0)
"""What lies beyond is no tissue."""
SAME_PLACE = 0.05
"""Voxels by which two grids' corners may differ and still count as one lattice."""


class InspectedVolume(NamedTuple):
    """A volume with what its file says, by name, and the remarks that are warnings otherwise."""

    volume: Volume
    facts: dict[str, str]
    notes: tuple[str, ...]


def read_volume(
    path: PathLike,
    *,
    labels: PathLike | None = None,
    series: str | None = None,
    unit: Unit = "HU",
    dtype: torch.dtype = torch.float32,
) -> Volume:
    """Reads a CT from a NIfTI, NRRD or MetaImage file or from a folder of DICOM slices.

    Values come with the file's slope and intercept applied, geometry in LPS mm (NIfTI's RAS is
    converted). Padding that a DICOM header names is air. Vector images become channels
    [C, D, H, W]; a fourth dimension of size 1 is dropped. What a file leaves open or says wrongly
    is a FileWarning.

    Args:
        path: .nii, .nii.gz, .nrrd, .nhdr, .mha, .mhd, a folder of DICOM slices, or a multi-frame
            (Enhanced CT) DICOM file.
        labels: a label map on the voxel lattice of the volume, in any of these formats; it may be
            a part of it, and its axes may be stored in another order.
        series: Series Instance UID, where a DICOM folder holds several.
        unit: what the values are, "HU" or "mu" (1/mm); files do not say.
        dtype: of the values, float32 or another floating dtype.

    Returns:
        a Volume on the CPU.

    Raises:
        OSError: the file does not exist or cannot be opened.
        ValueError: not an image, truncated, not 3D, no CT, a spacing or direction that means
            nothing, values that are not finite, a folder without DICOM or with several series,
            labels on another lattice or that are not whole numbers.
    """
    found = inspect_volume(path, series=series, unit=unit, dtype=dtype)
    volume, notes = found.volume, found.notes
    if ONE_SLICE in notes:
        raise ValueError(f"{path}: {ONE_SLICE}")
    if labels is not None:
        marks, more = _read_labels(_existing(labels), volume, Path(path))
        volume, notes = replace(volume, labels=marks), (*notes, *more)
    for note in notes:
        warnings.warn(f"{path}: {note}", FileWarning, stacklevel=2)
    return volume


def inspect_volume(
    path: PathLike,
    *,
    series: str | None = None,
    unit: Unit = "HU",
    dtype: torch.dtype = torch.float32,
) -> InspectedVolume:
    """As `read_volume`, with what was understood of the file; it warns of nothing."""
    source = _existing(path)
    if unit not in AIR:
        raise ValueError(f'unit: expected "HU" or "mu", got {unit!r}')
    if not dtype.is_floating_point:
        raise TypeError(f"dtype: expected a floating dtype, got {dtype}")
    raster = _read_raster(
        source, series, np.float64 if dtype == torch.float64 else np.float32, AIR[unit]
    )
    dims = raster.pixels.ndim - ("channels" in raster.facts)
    if dims < 3:
        raise ValueError(f"{source}: expected a 3D image, got {dims}D")
    notes, pixels = list(raster.notes), raster.pixels
    if unit == "HU":
        pixels = _without_padding(pixels, notes)
        low, high = (float(end) for end in torch.aminmax(torch.from_numpy(pixels)))
        if pixels.ndim == 4 and len(pixels) in (3, 4) and 0 <= low <= 1 < high <= 255:
            raise ValueError(f"{source}: expected a single-channel image, got colours")
        if 0 <= low < high or 0 < max(-low, high) <= 10:
            notes.append(
                f"values from {low:g} to {high:g}, though air has -1000 HU: is this attenuation "
                '(unit="mu"), or another scale, or is the intercept missing?'
            )
    spacing = raster.spacing
    if max(spacing) > 50 or min(spacing) < 1e-3 or max(spacing) > 100 * min(spacing):
        notes.append(
            f"voxels of {spacing[0]:.4g} x {spacing[1]:.4g} x {spacing[2]:.4g} mm: is the unit of "
            "length in its header right?"
        )
    try:
        volume = Volume(
            values=torch.from_numpy(pixels).to(dtype),
            spacing=raster.spacing,
            origin=raster.origin,
            direction=torch.from_numpy(raster.direction.copy()),
            unit=unit,
        )
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    facts = {**raster.facts, "orientation": axes_letters(raster.direction)}
    return InspectedVolume(volume, facts, tuple(notes))


def _without_padding(pixels: np.ndarray, notes: list[str]) -> np.ndarray:
    """Pixels [..., z, y, x] in HU, with padding that no header names as air.

    That is a plateau at the end of the scale, of one voxel in a thousand at least, whose value no
    patient has; above, where metal may be, it begins at an edge of the box, outside of the field.
    """
    while True:
        ends = [float(end) for end in torch.aminmax(torch.from_numpy(pixels))]
        odd = [v for v in ends if math.isfinite(v) and not POSSIBLE_HU[0] <= v <= POSSIBLE_HU[1]]
        for value in odd:
            plateau = pixels == value
            share = float(plateau.mean())
            if share > max(1e-3, 15 / plateau.size) and (value < 0 or _at_an_edge(plateau)):
                pixels = np.where(plateau, pixels.dtype.type(AIR["HU"]), pixels)
                notes.append(
                    f"{share:.1%} of the voxels have {value:g} HU: taken for padding that the "
                    "header does not name: air"
                )
                break
        else:
            notes += [
                f"values of {value:g} HU: padding that the header does not name, or signed values "
                "declared unsigned?"
                for value in odd
                if not 2 * POSSIBLE_HU[0] <= value <= POSSIBLE_HU[1]
            ]
            return pixels


def _at_an_edge(mask: np.ndarray) -> bool:
    """Whether something of a mask [..., z, y, x] lies on one of the box's twelve edges."""
    z, y, x = (slice(None, None, max(n - 1, 1)) for n in mask.shape[-3:])
    edges = (mask[..., z, y, :], mask[..., z, :, x], mask[..., y, x])
    return any(bool(edge.any()) for edge in edges)


def _existing(path: PathLike) -> Path:
    """The path, if it can be opened and is of a kind this module reads."""
    if isinstance(path, (str, os.PathLike)) and Path(path).is_dir():
        return Path(path)
    source = existing_file(path)
    if not source.name.lower().endswith(READ_SUFFIXES) and not is_dicom(source):
        raise ValueError(
            f"{source}: expected one of {', '.join(READ_SUFFIXES)}, or the folder of a DICOM series"
        )
    return source


def _read_raster(source: Path, series: str | None, dtype: Any, air: float) -> Raster:
    if not source.name.lower().endswith(READ_SUFFIXES) or source.is_dir():
        return read_series(source, series, air, dtype or np.float32)
    if series is not None:
        raise ValueError(f"series: {source} is a file; only a DICOM folder holds series")
    return read_image(source, dtype)


def read_image(path: Path, dtype: Any = None) -> Raster:
    """Pixels and place of a .nii, .nii.gz, .nrrd, .nhdr, .mha or .mhd; into `dtype` if given.

    Raises:
        OSError: the file cannot be opened.
        ValueError: not such a file, truncated, or a header that contradicts itself.
    """
    name = path.name.lower()
    read = read_nrrd if name.endswith((".nrrd", ".nhdr")) else read_metaimage
    try:
        return (read_nifti if name.endswith((".nii", ".nii.gz")) else read)(path, dtype)
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path}: the file is truncated or damaged: {error}") from error


def _read_labels(
    source: Path, volume: Volume, volume_source: Path
) -> tuple[Tensor, tuple[str, ...]]:
    """A label map [D, H, W] of whole numbers, put on the volume's grid, and remarks."""
    raster = _read_raster(source, None, None, 0.0)
    pixels = raster.pixels
    if pixels.ndim != 3:
        raise ValueError(
            f"{source}: expected one label map [z, y, x], got shape {pixels.shape}: segments that "
            "overlap are stored in layers; export them as one label map"
        )
    if np.issubdtype(pixels.dtype, np.floating):
        whole = np.isfinite(pixels) & (np.abs(pixels) < 2**31) & (pixels == np.rint(pixels))
        if not whole.all():
            first = tuple(int(i) for i in np.argwhere(~whole)[0])
            raise ValueError(
                f"{source}: expected whole numbers as labels, got {pixels[first]} at index {first}"
            )
        pixels = pixels.astype(np.int32)
    pixels, lost = _on_lattice(source, pixels, raster, volume, volume_source)
    notes = [f"{source}: {note}" for note in raster.notes]
    if lost:
        notes.append(f"{source}: {lost} labelled voxels lie outside the volume: left out")
    wider = {np.dtype(np.uint16): np.int32, np.dtype(np.uint32): np.int64}
    pixels = pixels.astype(wider.get(pixels.dtype, pixels.dtype), copy=False)
    pixels = pixels.astype(np.int64) if pixels.dtype == np.uint64 else pixels
    return torch.from_numpy(np.ascontiguousarray(pixels)), tuple(notes)


def _on_lattice(
    source: Path, pixels: np.ndarray, raster: Raster, volume: Volume, volume_source: Path
) -> tuple[np.ndarray, int]:
    """Labels with the volume's shape and order of axes, 0 where there are none.

    Also how many labelled voxels lie outside the volume. Raises ValueError where the voxels of the
    one grid do not coincide with those of the other.
    """
    grid = Volume(
        torch.zeros(1, 1, 1), raster.spacing, raster.origin, torch.as_tensor(raster.direction)
    )
    to_volume = np.linalg.solve(volume.affine.cpu().numpy(), grid.affine.numpy())
    turn, start = np.rint(to_volume[:3, :3]), np.rint(to_volume[:3, 3])
    shape = np.array(pixels.shape[::-1])
    corners = np.stack(np.meshgrid(*((0, n - 1) for n in shape), indexing="ij"), -1).reshape(-1, 3)
    moved = corners @ to_volume[:3, :3].T + to_volume[:3, 3]
    apart = float(np.abs(moved - (corners @ turn.T + start)).max())
    last = shape @ turn.T - turn.sum(1) + start
    low, high = np.minimum(start, last).astype(int), np.maximum(start, last).astype(int) + 1
    first, stop = np.maximum(low, 0), np.minimum(high, volume.shape_xyz)
    one_to_one = np.array_equal(np.abs(turn) @ np.ones(3), np.ones(3))
    # A part of the volume, or more than it along an axis; anything else is another place.
    nested = ((low >= 0) & (high <= volume.shape_xyz)) | ((low <= 0) & (high >= volume.shape_xyz))
    if apart > SAME_PLACE or not one_to_one or not nested.all() or (first >= stop).any():
        raise ValueError(
            f"{source}: the labels' grid differs from that of {volume_source}: shape (z, y, x) "
            f"{pixels.shape} and {tuple(volume.values.shape[-3:])}, spacing {grid.spacing} and "
            f"{volume.spacing}, origin {grid.origin} and {volume.origin}, direction "
            f"{grid.direction.tolist()} and {volume.direction.tolist()}; resample one "
            "onto the other"
        )
    from_axis = np.abs(turn).argmax(1)  # of the labels, for x, y, z of the volume
    pixels = np.transpose(pixels, [2 - from_axis[a] for a in (2, 1, 0)])
    pixels = np.flip(pixels, tuple(2 - a for a in range(3) if turn[a, from_axis[a]] < 0))
    if pixels.shape == tuple(volume.values.shape[-3:]) and not low.any():
        return pixels, 0
    result = np.zeros(volume.values.shape[-3:], pixels.dtype)
    within = tuple(slice(a, b) for a, b in zip(first - low, stop - low, strict=True))[::-1]
    target = tuple(slice(a, b) for a, b in zip(first, stop, strict=True))[::-1]
    result[target] = pixels[within]
    return result, int(np.count_nonzero(pixels)) - int(np.count_nonzero(pixels[within]))


def write_volume(volume: Volume, path: PathLike, *, labels: PathLike | None = None) -> None:
    """Writes a volume; the file appears whole or not at all.

    Whole numbers that fit are stored as int16, others as float32 (float64 stays float64).
    Channels become vector pixels. The unit is not stored: read a volume in mu back with
    ``read_volume(path, unit="mu")``.

    Args:
        volume: values on any device; gradients are not kept.
        path: .nii, .nii.gz, .nrrd, .mha, .mhd (with its .raw beside it), or a name without suffix:
            a new folder of DICOM slices (HU only; int16 with slope and intercept, see
            ``write_series``). DICOM stacks are right-handed: a left-handed
            volume is written with its slices in reverse order, at the same place.
        labels: where to write the label map, one of the file names above.

    Raises:
        OSError: the place cannot be written to, or the disk is full.
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
    with ExitStack() as stack:
        for place, raster in rasters:
            staged = stack.enter_context(whole_file(place))
            if as_dicom and place is target:
                staged.mkdir()
                write_series(raster, staged)
            else:
                write_image(raster, staged)


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


def write_image(raster: Raster, file: Path) -> None:
    """Writes one file in the format of its suffix. Raises OSError when it cannot be written."""
    if file.name.lower().endswith((".nii", ".nii.gz")):
        try:
            write_nifti(raster, file)
        except OSError as error:
            raise OSError(f"{file.name}: not written, the disk may be full ({error})") from error
        return
    import SimpleITK as sitk

    # An .mhd is kept uncompressed: readers of .mhd/.raw pairs often expect that.
    with readable_errors(file.name, "write"):
        sitk.WriteImage(image_of(raster), os.fspath(file), file.suffix.lower() != ".mhd")
