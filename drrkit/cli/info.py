"""`drrkit info`: what is installed, what drrkit was compiled for, and which devices are there."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import torch

from drrkit import __version__
from drrkit.cli.arguments import OutputFile, existing
from drrkit.cli.poses import read_pose
from drrkit.files import whole_file

__all__ = ["info_command", "versions"]

PACKAGES = ("torch", "numpy", "SimpleITK", "cma", "click", "tqdm")


def versions() -> dict[str, str | None]:
    """Versions of drrkit, Python and the packages drrkit uses; None for what is not installed."""
    found: dict[str, str | None] = {"drrkit": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    found["torch"] = torch.__version__  # with its build, e.g. +cpu
    return found


def describe() -> dict[str, Any]:
    """Everything `drrkit info` prints."""
    from drrkit import _C

    try:
        from drrkit import _build
    except ImportError:
        built: dict[str, Any] = {}
    else:
        names = ("torch", "cuda", "nvcc", "architectures", "python")
        built = {name: getattr(_build, name.upper(), None) for name in names}
    devices = [
        {
            "device": "cpu",
            "name": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "instructions": _C.cpu_capability(),
        }
    ]
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "device": f"cuda:{index}",
                "name": card.name,
                "capability": f"{card.major}.{card.minor}",
                "memory_gib": round(card.total_memory / 2**30, 1),
                "usable": bool(_C.has_cuda),
            }
        )
    return {
        "versions": versions(),
        "built_for": built,
        "cuda_kernels": bool(_C.has_cuda),
        "torch_cuda": torch.version.cuda,
        "platform": platform.platform(),
        "devices": devices,
    }


@click.command("info")
@click.argument("pose", type=existing, required=False)
@click.option("--ct", type=existing, help="The CT that POSE places.")
@click.option("--scene", type=OutputFile(".svg"), help="Drawing of C-arm and CT.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info_command(pose: Path | None, ct: Path | None, scene: Path | None, as_json: bool) -> None:
    """Versions, what drrkit was compiled for, and the devices it can use.

    With POSE, a pose file or a result of register, and --ct: what that geometry looks like. With
    DeepFluoro's HDF5 file: its specimens.
    """
    if pose is not None and pose.suffix.lower() in (".h5", ".hdf5"):
        from drrkit.cli.deepfluoro import deepfluoro_listing

        listing = deepfluoro_listing(pose)
        lines = [f"{name}  {count} projections" for name, count in listing.items()]
        click.echo(json.dumps(listing) if as_json else "\n".join(lines))
        return
    if pose is not None:
        _show_geometry(pose, ct, scene, as_json)
        return
    if ct is not None or scene is not None:
        raise click.UsageError("--ct and --scene go with a POSE.")
    found = describe()
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    shown = [f"{name} {number or 'not installed'}" for name, number in found["versions"].items()]
    click.echo(f"versions     {', '.join(shown)}")
    built = found["built_for"]
    kernels = "CPU and CUDA" if found["cuda_kernels"] else "CPU only"
    click.echo(f"kernels      {kernels}, built for torch {built.get('torch', 'unknown')}")
    if built.get("cuda"):
        click.echo(
            f"             CUDA {built['cuda']}, nvcc {built['nvcc']}, architectures "
            f"{built['architectures']}"
        )
    click.echo(f"torch CUDA   {found['torch_cuda'] or 'none: a CPU build of torch'}")
    click.echo(f"platform     {found['platform']}")
    for device in found["devices"]:
        more = [
            f"{k.replace('_', ' ')} {v}" for k, v in device.items() if k not in ("device", "name")
        ]
        click.echo(f"device       {device['device']}: {device['name']}, {', '.join(more)}")


def _show_geometry(pose: Path, ct: Path | None, scene: Path | None, as_json: bool) -> None:
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
    click.echo(json.dumps({"geometry": text}) if as_json else text)
