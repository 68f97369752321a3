"""`drrkit report`: a registration as one HTML page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from drrkit.cli.arguments import OutputFile, existing, refuse_overwriting
from drrkit.cli.options import CTOptions, device_option
from drrkit.cli.poses import read_pose
from drrkit.cli.register import XrayOptions
from drrkit.report import registration_page, save_page

__all__ = ["report_command"]


@click.command("report")
@click.argument("result", type=existing)
@click.option("--output", "-o", required=True, type=OutputFile(".html"), help="The page.")
@click.option("--ct", type=existing, help="Where the CT is now.  [default: where it was]")
@click.option("--xray", type=existing, help="Where the X-ray is now.  [default: where it was]")
@device_option
def report_command(
    result: Path, output: Path, ct: Path | None, xray: Path | None, device: torch.device
) -> None:
    """Write RESULT, what register wrote, as a page: images, overlays, numbers, geometry.

    The page holds everything in one file and needs neither a server nor a network. CT and X-ray are
    read again, from where the registration found them, relative to the current folder.
    """
    stored = read_pose(result)
    content = json.loads(result.read_text(encoding="utf-8"))
    inputs = content.get("inputs") if isinstance(content, dict) else None
    if not isinstance(inputs, dict) or stored.camera is None:
        raise ValueError(f"{result}: expected a result of drrkit register, got a bare pose file")
    ct, xray = ct or _there(result, inputs, "ct"), xray or _there(result, inputs, "xray")
    refuse_overwriting([output], [result, ct, xray])
    volume = _ct_options(inputs).load(ct, device)
    options = _xray_options(inputs)
    seen = options.load(xray, float(stored.camera.sdd), device)
    seen = options.prepared(seen, stored.camera)
    save_page(registration_page(volume, stored.camera, seen.line, content), output)


def _there(result: Path, inputs: dict[str, Any], name: str) -> Path:
    """The file as it was named, from the current folder or from the result's."""
    if not isinstance(inputs.get(name), str):
        raise ValueError(f"{result}: expected the name of the {name} under 'inputs'; say --{name}")
    for place in (Path(inputs[name]), result.parent / inputs[name]):
        if place.exists():
            return place
    raise FileNotFoundError(f"{inputs[name]}: not there any more; --{name} says where it is now")


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
