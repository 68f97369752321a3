"""`drrkit info`: what is installed; what was understood of a file; what a geometry looks like."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from torch.nn import functional

from drrkit import conversions as to
from drrkit.cli.command import Answer, command
from drrkit.cli.doctor import installation
from drrkit.cli.io import camera_as_dict, read_pose, refuse_overwriting, warn
from drrkit.cli.options import OutputFile, argument, option
from drrkit.files import FileWarning, whole_file
from drrkit.geometry import Camera
from drrkit.registration import Landmarks
from drrkit.volume import READ_SUFFIXES, DicomFile, Volume, inspect_volume, is_dicom, read_image
from drrkit.xray import STORAGE_SUFFIXES, deepfluoro_contents, read_calibration, read_xray

__all__ = ["info_command"]

POSES = (".tra", ".tfm", ".jts", ".jtak", ".jtp")
DESCRIBED = (*POSES, ".fcsv", ".mrk.json", ".csv", ".tsv", ".txt", ".xml", ".yml", ".yaml")
"""How files of landmarks, poses and cameras are named."""


@command("info")
def info_command(
    *,
    view: Path | None = argument(required=False),
    ct: Path | None = option("The CT that VIEW shows."),
    series: str | None = option("Series of a DICOM folder that holds several.", metavar="UID"),
    scene: Path | None = option("Drawing of C-arm and CT.", type=OutputFile(".svg")),
    picture: Path | None = option("Picture of the image in the file.", type=OutputFile(".png")),
) -> Answer:
    """Versions, what drrkit was compiled for, and the devices it can use.

    With VIEW alone, a CT, an X-ray, or a file of landmarks, poses or cameras: what was understood
    of it, what had to be assumed, and with --picture how an image looks; of DeepFluoro's HDF5 file
    the specimens are listed. With VIEW and
    --ct: what that geometry looks like, in a sentence and, with --scene, a picture; VIEW is a pose
    file, a result of register, or the DICOM image of a C-arm then.
    """
    if view is not None and view.suffix.lower() in (".h5", ".hdf5"):
        return _specimens(view)
    pose_file = view is not None and view.name.lower().endswith(".json")
    if view is not None and ct is None and scene is None and (not pose_file or _is_markups(view)):
        return _understood(view, series, picture)
    if view is not None:
        return _geometry(view, ct, series, scene)
    if any(given is not None for given in (ct, series, scene, picture)):
        raise click.UsageError("--ct, --series, --scene and --picture go with a VIEW.")
    found = installation()
    return Answer(found, "\n".join(_lines(found)))


def _lines(found: dict[str, Any]) -> list[str]:
    """An installation in words."""
    shown = [f"{name} {number or 'not installed'}" for name, number in found["versions"].items()]
    built = found["built_for"]
    kernels = "CPU and CUDA" if found["cuda_kernels"] else "CPU only"
    lines = [
        f"versions     {', '.join(shown)}",
        f"kernels      {kernels}, built for torch {built.get('torch', 'unknown')}",
    ]
    if built.get("cuda"):
        lines.append(
            f"             CUDA {built['cuda']}, nvcc {built['nvcc']}, architectures "
            f"{built['architectures']}"
        )
    lines.append(f"torch CUDA   {found['torch_cuda'] or 'none: a CPU build of torch'}")
    lines.append(f"platform     {found['platform']}")
    for device in found["devices"]:
        more = [
            f"{k.replace('_', ' ')} {v}" for k, v in device.items() if k not in ("device", "name")
        ]
        lines.append(f"device       {device['device']}: {device['name']}, {', '.join(more)}")
    return lines


def _specimens(path: Path) -> Answer:
    found = {name: len(numbers) for name, numbers in deepfluoro_contents(path).items()}
    lines = [f"{name}  {count} projections" for name, count in found.items()]
    return Answer({"specimens": found}, "\n".join(lines))


def _understood(path: Path, series: str | None, picture: Path | None) -> Answer:
    """What was understood of a CT or an X-ray."""
    from drrkit.report import save_image, to_display

    refuse_overwriting([picture], [path])
    if not path.is_dir() and path.name.lower().endswith(DESCRIBED):
        facts, notes, image = *_described(path), None
    else:
        facts, notes, image = _ct_facts(path, series) if _is_ct(path) else _xray_facts(path)
    lines = [f"{name:20} {value}" for name, value in facts.items()]
    lines += [f"{'remark':20} {note}" for note in notes] or ["no remarks"]
    if picture is not None:
        if image is None:
            raise click.UsageError(f"--picture: {path.name} holds no image.")
        save_image(to_display(image, window=(0.0, 100.0)), picture)
        lines.append(f"wrote {picture}")
    content = {
        "facts": facts,
        "remarks": list(notes),
        "picture": None if picture is None else str(picture),
    }
    return Answer(content, "\n".join(lines))


def _is_ct(path: Path) -> bool:
    """Whether a file is a volume: a folder, a CT in DICOM, or an image of three dimensions."""
    if path.is_dir():
        return True
    if path.name.lower().endswith(READ_SUFFIXES):
        shape = read_image(path).pixels.shape
        return len(shape) >= 3 and shape[0] > 1
    if not is_dicom(path):
        return False
    file = DicomFile(path)
    return file.text("Modality") == "CT" and not file.is_localizer()


def _ct_facts(path: Path, series: str | None) -> tuple[dict[str, str], tuple[str, ...], Tensor]:
    """Facts and remarks on a volume, and its middle slices side by side, z upwards."""
    volume, facts, notes = inspect_volume(path, series=series)
    low, high = torch.aminmax(volume.values)
    values = volume.values.reshape(-1, *volume.values.shape[-3:])[0]
    facts = {
        "kind": "volume",
        **facts,
        "voxels x, y, z": " x ".join(str(n) for n in volume.shape_xyz),
        "voxel size": " x ".join(f"{s:.5g}" for s in volume.spacing) + " mm",
        "first voxel (LPS)": ", ".join(f"{v:.5g}" for v in volume.origin) + " mm",
        "values": f"{float(low):g} to {float(high):g}, taken for {volume.unit}",
    }
    depth, height, width = values.shape
    planes = (values[depth // 2], values[:, height // 2].flip(0), values[:, :, width // 2].flip(0))
    rows = max(plane.shape[0] for plane in planes)
    padded = [functional.pad(p, (0, 4, 0, rows - p.shape[0]), value=float(low)) for p in planes]
    return facts, notes, torch.cat(padded, 1)


def _xray_facts(path: Path) -> tuple[dict[str, str], tuple[str, ...], Tensor]:
    """Facts and remarks on an X-ray, and its first frame as it is seen from the source."""
    xray = read_xray(path)
    frames, _, rows, cols = xray.image.shape
    low, high = torch.aminmax(xray.image)

    def known(value: object, words: str) -> str:
        return words if value is not None else "not known"

    spacing, camera = xray.pixel_spacing or (0.0, 0.0), xray.camera
    primary, secondary = xray.primary_deg, xray.secondary_deg
    angles = None
    if primary is not None and secondary is not None:
        angles = f"{float(primary[0]):g} (LAO +), {float(secondary[0]):g} (CRA +) degrees"
    facts = {
        "kind": "X-ray",
        **xray.facts,
        "frames, rows, cols": f"{frames} x {rows} x {cols}",
        "values": f"{float(low):g} to {float(high):g}",
        "what they mean": xray.kind or "not known: --xray-kind says it",
        "pixel spacing": known(xray.pixel_spacing, f"{spacing[0]:g} x {spacing[1]:g} mm"),
        "source to detector": known(camera, f"{float(camera.sdd):g} mm" if camera else ""),
        "source to isocentre": known(xray.sod, f"{xray.sod} mm"),
        "angles": angles or "not known",
        "masked": "nothing" if xray.mask is None else f"{1 - float(xray.mask.mean()):.1%}",
    }
    return facts, xray.warnings, xray.image[0, 0]


def _is_markups(path: Path) -> bool:
    return path.name.lower().endswith(".mrk.json")


def _described(path: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Facts and remarks on a file of landmarks, poses or cameras."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", FileWarning)
        facts = _poses_facts(path) or _points_facts(path) or _camera_facts(path)
    return facts, tuple(str(w.message).removeprefix(f"{path}: ") for w in told)


def _poses_facts(path: Path) -> dict[str, str]:
    readers = {".tra": to.read_autoscoper, ".tfm": to.read_itk_transform}
    readers |= dict.fromkeys((".jts", ".jtak", ".jtp"), to.read_jointtrack)
    if path.name.lower().endswith(POSES):
        poses = readers[path.suffix.lower()](path).reshape(-1, 4, 4)
        known = poses[poses.isfinite().all(-1).all(-1)]
        ends = [_numbers(end) for end in (known[:1, :3, 3], known[-1:, :3, 3])]
        return {
            "kind": "poses",
            "poses": f"{len(poses)}, {len(known)} of them known",
            "first and last shift": f"{ends[0]}; {ends[1]} mm",
        }
    if b"<RTKThreeDCircularGeometry" not in path.read_bytes()[:4096]:
        return {}
    sid, sdd, gantry, *_ = to.read_rtk_geometry(path)
    return {
        "kind": "RTK geometry",
        "projections": str(len(sid)),
        "source to isocentre": f"{_numbers(sid.unique())} mm",
        "source to detector": f"{_numbers(sdd.unique())} mm",
        "gantry angles": f"{float(gantry.min()):g} to {float(gantry.max()):g} degrees",
    }


def _points_facts(path: Path) -> dict[str, str]:
    """Of landmarks; nothing for a table without x, y and z, such as a MayaCam's."""
    if path.suffix.lower() in STORAGE_SUFFIXES and not _is_markups(path):
        return {}
    rows = to.read_landmark_rows(path)
    if not rows or not {"x", "y", "z"} <= set(rows[0]):
        return {}
    seen = Landmarks.read(path).points if "row" in rows[0] else torch.empty(0)
    points = torch.tensor([[float(row[axis]) for axis in "xyz"] for row in rows])
    return {
        "kind": "landmarks",
        "points": f"{len(rows)}, {len(seen)} of them with pixels",
        "from (LPS)": f"{_numbers(points.amin(0))} mm",
        "to (LPS)": f"{_numbers(points.amax(0))} mm",
    }


def _camera_facts(path: Path) -> dict[str, str]:
    try:
        (camera, pose, _), distortion = read_calibration(path, None)
        sdd = f"{float(camera.sdd):g} mm"
    except ValueError as error:
        if not str(error).startswith("sdd:"):
            raise
        (camera, pose, _), distortion = read_calibration(path, None, 1000.0)  # K is what it is
        sdd = "not in the file: --sdd says it"
    source = torch.linalg.inv(pose)[0, :3, 3]
    return {
        "kind": "calibration",
        "rows, cols": "{} x {}".format(*camera.size),
        "focal length": f"{_numbers(camera.K.diag()[:2])} pixels",
        "foot of the source": "column {:g}, row {:g}".format(*camera.K[:2, 2].tolist()),
        "source (LPS)": f"{_numbers(source)} mm",
        "source to detector": sdd,
        "lens distortion": "none" if distortion is None else _numbers(distortion),
    }


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:.5g}" for value in values.flatten().tolist())


def _geometry(view: Path, ct: Path | None, series: str | None, scene: Path | None) -> Answer:
    from drrkit.report import placement, scene_svg
    from drrkit.volume import read_volume

    if ct is None:
        raise click.UsageError(
            f"--ct is needed: the CT that {view.name}, a pose file or a C-arm's DICOM image, shows."
        )
    refuse_overwriting([scene], [view, ct])
    volume = read_volume(ct, series=series)
    camera, pose = _view(view, volume)
    found = placement(volume, camera, pose)
    text = found.sentence()
    if scene is not None:
        with whole_file(scene) as file:
            file.write_text(scene_svg(volume, camera, [pose]), encoding="utf-8")
        text += f"\nwrote {scene}"
    content = {
        "sentence": found.sentence(),
        "geometry": asdict(found),
        "world_to_camera": pose.tolist(),
        "camera": camera_as_dict(camera),
        "scene": None if scene is None else str(scene),
    }
    return Answer(content, text)


def _view(path: Path, volume: Volume) -> tuple[Camera, Tensor]:
    """Camera and pose [4, 4] of a pose file, or of an X-ray whose file knows them."""
    if path.suffix.lower() == ".json":
        stored = read_pose(path)
        if stored.camera is None:
            raise ValueError(f"{path}: expected a pose file with its camera")
        return stored.camera, stored.world_to_camera
    xray = read_xray(path)
    for text in xray.warnings:
        warn(f"{path}: {text}")
    if xray.camera is None:
        raise ValueError(
            f"{path}: expected a pose file (.json) or an X-ray that knows its geometry; this one "
            "does not say its pixel spacing and source-to-detector distance"
        )
    try:
        return xray.camera, xray.start(volume)[0]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
