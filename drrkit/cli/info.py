"""`drrkit info`: what is installed; what a geometry looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from torch import Tensor

from drrkit.cli.command import Answer, command
from drrkit.cli.doctor import installation
from drrkit.cli.io import camera_as_dict, read_pose, refuse_overwriting
from drrkit.cli.options import OutputFile, existing
from drrkit.files import whole_file
from drrkit.geometry import Camera
from drrkit.volume import Volume
from drrkit.xray import deepfluoro_contents, read_xray

__all__ = ["info_command"]


@command("info")
@click.argument("view", type=existing, required=False)
@click.option("--ct", type=existing, help="The CT that VIEW shows.")
@click.option("--series", metavar="UID", help="Series of a DICOM folder that holds several.")
@click.option("--scene", type=OutputFile(".svg"), help="Drawing of C-arm and CT.")
def info_command(
    view: Path | None, ct: Path | None, series: str | None, scene: Path | None
) -> Answer:
    """Versions, what drrkit was compiled for, and the devices it can use.

    With VIEW and --ct: what that geometry looks like, in a sentence and, with --scene, a picture.
    VIEW is a pose file, a result of register, or the DICOM image of a C-arm; of DeepFluoro's HDF5
    file the specimens are listed.
    """
    if view is not None and view.suffix.lower() in (".h5", ".hdf5"):
        return _specimens(view)
    if view is not None:
        return _geometry(view, ct, series, scene)
    if ct is not None or series is not None or scene is not None:
        raise click.UsageError("--ct, --series and --scene go with a VIEW.")
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
        "geometry": found.as_dict(),
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
        click.echo(f"Warning: {path}: {text}.", err=True)
    if xray.camera is None:
        raise ValueError(
            f"{path}: expected a pose file (.json) or an X-ray that knows its geometry; this one "
            "does not say its pixel spacing and source-to-detector distance"
        )
    try:
        return xray.camera, xray.start(volume)[0]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
