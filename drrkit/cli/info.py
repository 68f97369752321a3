"""`drrkit info`: what is installed; what a geometry looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from drrkit.cli.answers import Answer
from drrkit.cli.arguments import OutputFile, existing
from drrkit.cli.installation import describe
from drrkit.cli.poses import read_pose
from drrkit.cli.verbs import verb
from drrkit.files import whole_file

__all__ = ["info_command"]


@verb("info")
@click.argument("pose", type=existing, required=False)
@click.option("--ct", type=existing, help="The CT that POSE places.")
@click.option("--scene", type=OutputFile(".svg"), help="Drawing of C-arm and CT.")
def info_command(pose: Path | None, ct: Path | None, scene: Path | None) -> Answer:
    """Versions, what drrkit was compiled for, and the devices it can use.

    With POSE, a pose file or a result of register, and --ct: what that geometry looks like. With
    DeepFluoro's HDF5 file: its specimens.
    """
    if pose is not None and pose.suffix.lower() in (".h5", ".hdf5"):
        from drrkit.cli.deepfluoro import deepfluoro_listing

        listing = deepfluoro_listing(pose)
        lines = [f"{name}  {count} projections" for name, count in listing.items()]
        return Answer({"specimens": listing}, "\n".join(lines))
    if pose is not None:
        return _geometry(pose, ct, scene)
    if ct is not None or scene is not None:
        raise click.UsageError("--ct and --scene go with a POSE.")
    found = describe()
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


def _geometry(pose: Path, ct: Path | None, scene: Path | None) -> Answer:
    from drrkit.report.scene import describe_geometry, scene_svg
    from drrkit.volume import read_volume

    stored = read_pose(pose)
    if stored.camera is None:
        raise ValueError(f"{pose}: expected a pose file with its camera")
    if ct is None:
        raise click.UsageError("--ct is needed: where the C-arm stands is told about a patient.")
    volume = read_volume(ct)
    text = describe_geometry(volume, stored.camera, stored.world_to_camera)
    if scene is not None:
        with whole_file(scene) as file:
            file.write_text(scene_svg(volume, stored.camera, [stored.world_to_camera]))
    return Answer({"geometry": text}, text)
