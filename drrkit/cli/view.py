"""`drrkit view`: CT and X-ray on a local page, the pose moved by hand or by registration."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from drrkit.cli.arguments import OutputFile, existing, refuse_overwriting
from drrkit.cli.demo import random_offset
from drrkit.cli.options import (
    SDD,
    SOD,
    VIEWS,
    CameraOptions,
    CTOptions,
    PoseOptions,
    device_option,
    grouped,
    method_option,
)
from drrkit.cli.poses import write_pose
from drrkit.cli.register import FROM_FILE, XrayOptions, known_start, xray_camera
from drrkit.geometry import Camera, CArm, perturb, view_ap, volume_center
from drrkit.phantoms import torso
from drrkit.registration import Search
from drrkit.viewer import Session
from drrkit.xray import SPECTRUM_90KV, simulate_xray

__all__ = ["view_command"]

PHANTOM_SIZE, PHANTOM_PIXEL, PHANTOM_VOXEL = (256, 256), 1.4, 3.0  # mm


@click.command("view")
@click.argument("ct", type=existing, required=False)
@click.argument("xray", type=existing, required=False)
@click.option(
    "--init",
    metavar="POSE.json|VIEW",
    help=f"Where to start: a pose file, or one of {', '.join(VIEWS)}.  [default: where the X-ray's "
    "file says the C-arm stood, else AP]",
)
@click.option(
    "--output",
    "-o",
    type=OutputFile(".json"),
    help="Where the page may save the pose, and only there.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Of the page, on this machine only.  [default: one that is free]",
)
@click.option("--no-browser", is_flag=True, help="Only print the address, open no browser.")
@grouped(XrayOptions, "seeing")
@grouped(PoseOptions, "placing")
@grouped(CameraOptions, "detector")
@method_option
@grouped(CTOptions, "reading")
@device_option
def view_command(
    ct: Path | None,
    xray: Path | None,
    init: str | None,
    output: Path | None,
    port: int,
    no_browser: bool,
    seeing: XrayOptions,
    placing: PoseOptions,
    detector: CameraOptions,
    method: str,
    reading: CTOptions,
    device: torch.device,
) -> None:
    """Show CT and XRAY on a page in the browser; without them a phantom and its X-ray.

    Move the pose with mouse, keys and sliders while the DRR follows, lay it over the X-ray, choose
    a loss, register and watch. The page is served to this machine only, under an address that
    cannot be guessed, until Ctrl-C. Needs the packages of drrkit[view].
    """
    try:
        from drrkit.viewer.server import serve
    except ImportError as error:
        raise ImportError(f"{error}: pip install 'drrkit[view]' brings it") from error
    if (ct is None) != (xray is None):
        raise click.UsageError("XRAY is missing: give a CT and an X-ray, or neither.")
    if ct is None and init is not None:
        raise click.UsageError("--init goes with a CT and an X-ray; the phantom has its own start.")
    saving = {"method": method, "output": output}
    if ct is None or xray is None:
        session, title = _of_phantom(placing, device, saving), "torso phantom"
    else:
        refuse_overwriting([output], [ct, xray, seeing.mask, seeing.calibration, reading.labels])
        title = f"{ct.name}, {xray.name}"
        session = _of_files(ct, xray, init, seeing, placing, detector, reading, device, saving)
    serve(session, port=port, title=title, browser=not no_browser, announce=_announce)


def _announce(address: str) -> None:
    click.echo(f"{address} (Ctrl-C ends it)")


def _of_files(
    ct: Path,
    xray: Path,
    init: str | None,
    seeing: XrayOptions,
    placing: PoseOptions,
    detector: CameraOptions,
    reading: CTOptions,
    device: torch.device,
    saving: dict[str, Any],
) -> Session:
    """A session of what the user gave, read as `drrkit register` does."""
    seeing.check()
    seen = seeing.load(xray, detector.sdd, device)
    # As before a search: a start that nobody knows is an AP view, to be moved by hand.
    view, stored = known_start(init, seen.file, (Search(),))
    if stored:
        refuse_overwriting([saving["output"]], [Path(init or "")])
    camera = xray_camera(detector, stored, xray, seen.file)
    volume = reading.load(ct, device)
    told = stored and stored.world_to_camera
    if view == FROM_FILE:
        told = seen.file.start(volume)[0]
    start = placing.pose(volume, view, told)
    save = _saver(saving["output"], camera, {"ct": str(ct), "xray": str(xray)})
    return Session(
        volume, camera, seen.line, start, mask=seen.weights, method=saving["method"], save=save
    )


def _of_phantom(placing: PoseOptions, device: torch.device, saving: dict[str, Any]) -> Session:
    """A session of the torso, its X-ray in AP and a start 10-15 degrees and 20-30 mm off."""
    ct = torso(PHANTOM_VOXEL)
    camera = CArm(SDD, PHANTOM_SIZE, PHANTOM_PIXEL)
    truth = view_ap(ct, SOD)
    xray = simulate_xray(ct, camera, truth, energy_kev=SPECTRUM_90KV, seed=0)
    volume = ct.to_mu().to(device)
    start = perturb(truth, random_offset(0), volume_center(ct)).to(device)
    start = placing.pose(volume, "AP", start[0].cpu())
    save = _saver(saving["output"], camera, {"ct": "torso phantom"})
    return Session(volume, camera, xray.to(device), start, method=saving["method"], save=save)


def _saver(output: Path | None, camera: Camera, inputs: dict[str, Any]) -> Any:
    """What writes the pose into the file that the user named; None where none was."""
    return None if output is None else partial(_save, output, camera, inputs)


def _save(
    output: Path, camera: Camera, inputs: dict[str, Any], pose: Tensor, known: dict[str, Any]
) -> str:
    write_pose(output, pose, camera, inputs=inputs, **known)
    return str(output)
