"""`drrkit report`: a registration as one HTML page, and as a film."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from drrkit.cli.arguments import OutputFile, existing, refuse_overwriting
from drrkit.cli.options import CTOptions, device_option
from drrkit.cli.poses import read_pose
from drrkit.cli.register import XrayOptions
from drrkit.geometry import Camera
from drrkit.registration import AUTO, SIMILARITIES, Stage
from drrkit.report import FILM_SUFFIXES, registration_page, save_film, save_page
from drrkit.volume import Volume

__all__ = ["report_command"]


@click.command("report")
@click.argument("result", type=existing)
@click.option("--output", "-o", type=OutputFile(".html"), help="The page.")
@click.option(
    "--film",
    type=OutputFile(*FILM_SUFFIXES),
    help="The way from the start to the result, step by step: .gif, or .mp4 where there is ffmpeg.",
)
@click.option(
    "--landscape",
    is_flag=True,
    help="Measure the loss about the found pose, along each axis and over pairs of them.",
)
@click.option(
    "--truth", type=existing, help="Pose file of the right pose: --film tells errors (mTRE)."
)
@click.option("--ct", type=existing, help="Where the CT is now.  [default: where it was]")
@click.option("--xray", type=existing, help="Where the X-ray is now.  [default: where it was]")
@device_option
def report_command(
    result: Path,
    output: Path | None,
    film: Path | None,
    landscape: bool,
    truth: Path | None,
    ct: Path | None,
    xray: Path | None,
    device: torch.device,
) -> None:
    """Write RESULT, what register wrote, as a page: images, overlays, numbers, geometry.

    The page holds everything in one file and needs neither a server nor a network. CT and X-ray are
    read again, from where the registration found them, relative to the current folder.
    """
    if output is None and film is None:
        raise click.UsageError("--output or --film is missing: what is to be written?")
    if truth is not None and film is None:
        raise click.UsageError("--truth belongs to --film.")
    stored = read_pose(result)
    content = json.loads(result.read_text(encoding="utf-8"))
    inputs = content.get("inputs") if isinstance(content, dict) else None
    if not isinstance(inputs, dict) or stored.camera is None:
        raise ValueError(f"{result}: expected a result of drrkit register, got a bare pose file")
    ct, xray = ct or _there(result, inputs, "ct"), xray or _there(result, inputs, "xray")
    refuse_overwriting([output, film], [result, ct, xray, truth])
    volume = _ct_options(inputs).load(ct, device)
    options = _xray_options(inputs)
    seen = options.load(xray, float(stored.camera.sdd), device)
    seen = options.prepared(seen, stored.camera)
    scene = (volume, stored.camera, seen.line, content)
    method = _method(content)
    if output is not None:
        around = _landscape(*scene, seen.weights, method) if landscape else None
        page = registration_page(*scene, method=method, source=result.name, landscape=around)
        save_page(page, output)
    if film is not None:
        right = None if truth is None else read_pose(truth).world_to_camera
        save_film(*scene, film, truth=right, method=method)


def _there(result: Path, inputs: dict[str, Any], name: str) -> Path:
    """The file as it was named, from the current folder or from the result's."""
    if not isinstance(inputs.get(name), str):
        raise ValueError(f"{result}: expected the name of the {name} under 'inputs'; say --{name}")
    for place in (Path(inputs[name]), result.parent / inputs[name]):
        if place.exists():
            return place
    raise FileNotFoundError(f"{inputs[name]}: not there any more; --{name} says where it is now")


def _method(content: dict[str, Any]) -> str:
    """The projector method of a registration; joseph where its result does not say."""
    settings = content.get("settings")
    return str(settings.get("method") or "joseph") if isinstance(settings, dict) else "joseph"


def _landscape(
    volume: Volume,
    camera: Camera,
    line: Tensor,
    content: dict[str, Any],
    mask: Tensor | None,
    method: str,
) -> Any:
    """The last stage's loss about the found pose; that of auto for a network's."""
    from drrkit.report.landscapes import pose_landscape

    last = (content.get("stages") or [{}])[-1]
    name = last.get("similarity")
    stage = Stage(
        name if name in SIMILARITIES else AUTO[-1].similarity,
        downsample=max(1, int(last.get("downsample") or 1)),
    )
    pose = torch.tensor(content["world_to_camera"], dtype=torch.float64)
    return pose_landscape(volume, camera, line, pose, stage, mask=mask, method=method)


def _ct_options(inputs: dict[str, Any]) -> CTOptions:
    energy, labels, select = (inputs.get(name) for name in ("energy_kev", "labels", "select"))
    options = CTOptions("HU" if energy is not None else "mu", energy, None, None, None)
    options = replace(options, series=inputs.get("series"))
    if labels is None or select is None:
        return options
    return replace(options, labels=Path(labels), select=tuple(select))


def _xray_options(inputs: dict[str, Any]) -> XrayOptions:
    mask, calibration = inputs.get("mask"), inputs.get("calibration")
    return XrayOptions(
        inputs.get("xray_kind"),
        inputs.get("i0"),
        None if mask is None else Path(mask),
        inputs.get("frame"),
        None if calibration is None else Path(calibration),
        bool(inputs.get("preprocess")),
    )
