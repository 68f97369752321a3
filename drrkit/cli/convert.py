"""`drrkit convert`: a view in the format of another tool, and back."""

from __future__ import annotations

import csv
import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import click
import torch
from torch import Tensor

from drrkit import conversions as to
from drrkit.cli.command import Answer, command
from drrkit.cli.io import (
    read_json,
    read_pose,
    refuse_overwriting,
    to_line,
    warn,
    write_json,
    write_pose,
)
from drrkit.cli.options import POSITIVE, Numbers, Size, argument, option
from drrkit.conversions import CameraView
from drrkit.files import whole_file
from drrkit.geometry import Camera, CArm, volume_center
from drrkit.report import save_image
from drrkit.volume import read_volume, write_volume
from drrkit.xray import (
    DEEPFLUORO_BONES,
    STORAGE_SUFFIXES,
    deepfluoro_contents,
    read_calibration,
    read_deepfluoro_specimen,
    read_deepfluoro_xray,
)

OPTIONS = {
    "volume": "--ct",
    "size": "--size",
    "sdd": "--sdd",
    "sod": "--sod",
    "pixel_spacing": "--pixel-spacing",
}
"""Options for what a converter may need besides the file, by the names of its arguments."""


def _to_rtk(camera: Camera, world_to_camera: Tensor, isocenter: Any = None) -> dict[str, Any]:
    (rows, _), (row, col) = camera.size, camera.pixel_spacing
    cx, cy = float(camera.K[0, 2]), float(camera.K[1, 2])
    origin = (-cx * col, -(rows - 1 - cy) * row)
    view = to.to_rtk(camera, world_to_camera, isocenter)
    return {**view._asdict(), "spacing": (col, row), "origin": origin, "size": camera.size}


def _from_rtk(
    view: to.RtkView, spacing: Any, origin: Any, size: Any, isocenter: Any = None
) -> CameraView:
    return to.from_rtk(view, size, tuple(spacing.tolist()), tuple(origin.tolist()), isocenter)


def _from_rtk_file(path: Path, size: Any, pixel_spacing: Any, isocenter: Any = None) -> CameraView:
    """RTK's geometry file, which does not hold where the images' pixels are: centred here."""
    (rows, cols), (row, col) = size, pixel_spacing
    origin = (-(cols - 1) / 2 * col, -(rows - 1) / 2 * row)
    return to.from_rtk(to.read_rtk_geometry(path), size, (col, row), origin, isocenter)


def _from_deepfluoro(view: to.DeepfluoroView) -> CameraView:
    size = (int(view.num_rows), int(view.num_cols))
    pitch = (float(view.pixel_row_spacing), float(view.pixel_col_spacing))
    return to.from_deepfluoro(view.intrinsic, view.extrinsic, view.cam_to_volume, size, pitch)


def _dicom_pose(view: to.DicomAngles, volume: Any) -> Tensor:
    angles = view.primary, view.secondary, view.source_to_isocenter
    return to.from_dicom_angles(*angles, volume, roll=view.roll, isocenter=view.isocenter)


def _slicer_pose(path: Path) -> Tensor:
    return to.read_itk_transform(path)[None]


FORMATS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "opencv": (to.to_opencv, to.from_opencv),
    "nanodrr": (to.to_nanodrr, to.from_nanodrr),
    "diffdrr": (to.to_diffdrr, to.from_diffdrr),
    "deepdrr": (to.to_deepdrr, to.from_deepdrr),
    "xreg": (to.to_xreg, to.from_xreg),
    "deepfluoro": (to.to_deepfluoro, _from_deepfluoro),
    "astra": (to.to_astra, to.from_astra),
    "leap": (to.to_leap, to.from_leap),
    "tigre": (to.to_tigre, to.from_tigre),
    "rtk": (_to_rtk, _from_rtk),
    "plastimatch": (to.to_plastimatch, to.from_plastimatch),
    "dicom": (to.to_dicom_angles, _dicom_pose),
    "prost": (to.to_prost, to.from_prost),
}
"""Tools whose views are JSON here: to a view and from it, with arguments found by their names. From
those without a camera comes the pose alone."""
FILES = ("slicer", "mayacam", "mayacam1")
"""Formats with files of their own: .tfm, .txt and .csv."""
CALIBRATIONS = ("opencv", "mayacam", "mayacam1")
"""Formats in which people write a K that they have measured."""


def _called(converter: Callable[..., Any], known: dict[str, Any]) -> Any:
    """Calls a converter with what is known of its arguments.

    Raises:
        click.UsageError: an option is missing.
        KeyError: something else is missing.
    """
    wanted = inspect.signature(converter).parameters
    needed = [n for n, p in wanted.items() if p.default is p.empty and known.get(n) is None]
    if missing := [OPTIONS[name] for name in needed if name in OPTIONS]:
        raise click.UsageError(f"this format needs {', '.join(missing)}.")
    if needed:
        raise KeyError(needed[0])
    return converter(**{name: known[name] for name in wanted if known.get(name) is not None})


@command("convert")
def convert_command(
    *,
    view: Path = argument(),
    source: str | None = option("VIEW's format.", "--from", type=click.Choice([*FORMATS, *FILES])),
    target: str | None = option("What to write.", "--to", type=click.Choice([*FORMATS, *FILES])),
    output: Path = option(
        "The file, or folder.", "--output", "-o", required=True, type=click.Path(path_type=Path)
    ),
    ct: Path | None = option("The CT, for tools whose world is the volume's."),
    size: tuple[int, int] | None = option(
        "Size of the image, where the format does not hold it.", type=Size()
    ),
    pixel_spacing: tuple[float, ...] | None = option(
        type=Numbers("MM[,MM]", (1, 2), positive=True)
    ),
    sdd: float | None = option("Source to detector, mm.", type=POSITIVE),
    sod: float | None = option("Source to isocentre, mm.", type=POSITIVE),
    specimen: str | None = option("Specimen of DeepFluoro's file, such as 17-1882."),
    projection: int | None = option(
        "Number of the specimen's X-ray, from 0.", type=click.IntRange(0)
    ),
    bone: str = option(type=click.Choice(DEEPFLUORO_BONES), default="pelvis"),
    border: int = option(
        "Pixels of DeepFluoro's images cut off all around.", type=click.IntRange(0), default=50
    ),
) -> Answer:
    """Convert VIEW, a pose file or result of register, to another tool's format, or from it.

    Without --from, VIEW is a drrkit pose file; without --to, one is written. slicer writes an ITK
    transform (.tfm) that places the CT in the C-arm's coordinates in 3D Slicer; mayacam and
    mayacam1 write a calibration for XMALab and Autoscoper; --from opencv reads .yml, .xml and
    .json as OpenCV's FileStorage writes them; rtk is its geometry file if that ends in .xml; all
    others are JSON with the names that the tool uses.

    --from deepfluoro takes the data set's HDF5 file, too, and then writes a folder: ct.nii.gz,
    labels.nii.gz, xray.mha (line integrals, patient head up), landmarks.csv, and pose.json with
    the true pose.
    """
    if source == "deepfluoro" and view.suffix.lower() in (".h5", ".hdf5"):
        if target is not None:
            raise click.UsageError("an HDF5 file becomes a folder; convert its pose.json after.")
        _extract_deepfluoro(view, specimen, projection, output, bone=bone, border=border)
        return Answer({"written": str(output), "from": source}, f"wrote {output}")
    if source == target:
        raise click.UsageError("give --from or --to: a pose file stays a pose file.")
    refuse_overwriting([output], [view, ct])
    volume = None if ct is None else read_volume(ct)
    known = {"volume": volume, "size": size, "pixel_spacing": pixel_spacing, "sdd": sdd, "sod": sod}
    known["isocenter"] = None if volume is None else volume_center(volume)
    camera, pose, flip = _read(view, source, known)
    if len(pose) != 1:
        raise ValueError(f"{view}: expected one view, got {len(pose)}")
    odd = [] if source is None else to.odd_camera(camera, matrix=source in CALIBRATIONS)
    for text in [*odd, *(() if volume is None else to.odd_place(volume, camera, pose))]:
        warn(f"{view}: {text}")
    _write(output, target, {**known, "camera": camera, "world_to_camera": pose})
    if flip:
        axes = " and ".join("rows" if dim == -2 else "columns" for dim in flip)
        click.echo(f"Note: flip the {axes} of this tool's images to get drrkit's.", err=True)
    content = {"written": str(output), "from": source, "to": target, "flip": list(flip or ())}
    return Answer(content, f"wrote {output}")


def _read(path: Path, tool: str | None, known: dict[str, Any]) -> CameraView:
    if tool is None:
        stored = read_pose(path)
        if stored.camera is None:
            raise ValueError(f"{path}: expected a pose file with its camera")
        return CameraView(stored.camera, stored.world_to_camera[None])
    if tool == "opencv" and path.suffix.lower() in STORAGE_SUFFIXES:
        view, distortion = read_calibration(path, known["size"], known["sdd"])
        if distortion is not None:
            warn("the lens distortion is left out")
        return view
    files = {"slicer": _slicer_pose, **dict.fromkeys(("mayacam", "mayacam1"), to.read_mayacam)}
    if tool in files or (tool == "rtk" and path.suffix.lower() == ".xml"):
        return _with_camera(
            _called(files.get(tool, _from_rtk_file), {**known, "path": path}), known
        )
    converter = FORMATS[tool][1]
    entry = read_json(path)
    try:
        if not isinstance(entry, dict):
            raise TypeError(f"expected an object, got {type(entry).__name__}")
        own = {name: _tensor(value) for name, value in entry.items() if name not in known}
        if "view" in (hints := get_type_hints(converter)):
            own["view"] = _view(hints["view"], entry)
        return _with_camera(_called(converter, {**own, **known}), known)
    except KeyError as error:
        raise ValueError(f"{path}: {error.args[0]!r} of a {tool} view is missing") from None
    except TypeError as error:
        raise ValueError(f"{path}: not a {tool} view: {error}") from None


def _with_camera(found: CameraView | Tensor, known: dict[str, Any]) -> CameraView:
    """The view; a pose alone gets the camera of the options."""
    return CameraView(_called(CArm, known), found) if isinstance(found, Tensor) else found


def _write(path: Path, tool: str | None, known: dict[str, Any]) -> None:
    camera, pose = known["camera"], known["world_to_camera"]
    if tool is None:
        write_pose(path, pose, camera)
    elif tool == "slicer":
        to.write_itk_transform(path, pose)
    elif tool in ("mayacam", "mayacam1"):
        to.write_mayacam(path, camera, pose, version=1 if tool == "mayacam1" else 2)
    elif tool == "rtk" and path.suffix.lower() == ".xml":
        to.write_rtk_geometry(path, to.to_rtk(camera, pose, known["isocenter"]))
    else:
        converter, back = FORMATS[tool]
        found = _called(converter, known)
        if isinstance(found, Tensor):
            found = {next(iter(inspect.signature(back).parameters)): found}
        elif not isinstance(found, dict):
            if type(found) in (list, tuple):  # several views; a view and the axes to flip
                found = found[0]
            found = vars(found) if is_dataclass(found) else found._asdict()
        plain = {n: v.tolist() if isinstance(v, Tensor) else v for n, v in found.items()}
        write_json(path, {"tool": tool, **plain})


def _tensor(value: Any) -> Any:
    """Lists of numbers as float64 tensors; numbers, words and None as they are."""
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else value


def _view(kind: Any, entry: dict[str, Any]) -> Any:
    """The named tuple or dataclass of a format from JSON."""
    pairs = {"nDetector", "dDetector", "offDetector"}
    names = kind.__dataclass_fields__ if is_dataclass(kind) else kind._fields
    as_tuple = set(names) if is_dataclass(kind) else pairs
    return kind(
        **{
            name: tuple(entry[name])
            if name in as_tuple and isinstance(entry[name], list)
            else _tensor(entry[name])
            for name in names
        }
    )


def _extract_deepfluoro(
    path: Path,
    specimen: str | None,
    projection: int | None,
    folder: Path,
    *,
    bone: str,
    border: int,
) -> None:
    """Writes a new folder with a CT, its labels, one X-ray, landmarks and the true pose.

    Raises:
        click.UsageError: specimen or projection are not given; lists what there is.
        OSError, ImportError, ValueError: as the readers; the folder exists already.
    """
    if specimen is None or projection is None:
        contents = deepfluoro_contents(path).items()
        found = ", ".join(f"{name} (0 to {len(numbers) - 1})" for name, numbers in contents)
        raise click.UsageError(f"--specimen and --projection are needed; {path} has {found}.")
    if folder.exists():
        raise FileExistsError(f"{folder}: exists already; a new folder is needed")
    subject = read_deepfluoro_specimen(path, specimen)
    found = read_deepfluoro_xray(path, specimen, projection, bone=bone, border=border)
    for text in found.xray.warnings:
        warn(text)
    camera, pose = found.xray.camera, found.xray.world_to_camera
    assert camera is not None and pose is not None
    with whole_file(folder) as staged:
        staged.mkdir()
        labels = None if subject.volume.labels is None else staged / "labels.nii.gz"
        write_volume(subject.volume, staged / "ct.nii.gz", labels=labels)
        line = to_line(path, found.xray.image, "intensity", None)
        save_image(line, staged / "xray.mha", pixel_spacing=found.xray.pixel_spacing)
        _write_landmarks(staged / "landmarks.csv", subject.landmarks, found.landmarks, camera.size)
        write_pose(staged / "pose.json", pose, camera)


def _write_landmarks(
    path: Path, points: dict[str, Tensor], pixels: dict[str, Tensor], size: tuple[int, int]
) -> None:
    """name, x, y, z, row, col; a landmark outside the image has no pixel."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("name", "x", "y", "z", "row", "col"))
        for name, point in points.items():
            pixel = pixels[name].tolist() if name in pixels else [-1.0, -1.0]
            seen = all(0 <= x <= n - 1 for x, n in zip(pixel, size, strict=True))
            table.writerow((name, *point.tolist(), *(pixel if seen else ("", ""))))
