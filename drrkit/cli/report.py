"""`drrkit report`: a registration as one HTML page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from drrkit.cli.command import Answer, command
from drrkit.cli.configuration import recorded_group
from drrkit.cli.io import read_pose, read_rig, refuse_overwriting
from drrkit.cli.options import CTOptions, OutputFile, argument, device_option, option
from drrkit.cli.problem import XrayOptions
from drrkit.cli.register import register_command
from drrkit.files import fingerprint
from drrkit.geometry import Camera
from drrkit.registration import AUTO, SIMILARITIES, Stage
from drrkit.report import pose_landscape, registration_page, save_page
from drrkit.volume import Volume


@command("report")
def report_command(
    *,
    result: Path = argument(),
    output: Path | None = option("The page.", "--output", "-o", type=OutputFile(".html")),
    film: str | None = option(hidden=True),
    landscape: bool = option(
        "Measure the loss about the found pose, along each axis and over pairs of them; needs "
        "drrkit[plots]."
    ),
    ct: Path | None = option("Where the CT is now.  [default: where it was]"),
    xray: tuple[Path, ...] = option(
        "Where the X-ray is now, or each of several.  [default: where it was]", multiple=True
    ),
    device: torch.device = device_option(),
) -> Answer:
    """Write RESULT, what register wrote, as a page: images, overlays, numbers, geometry.

    The page holds everything in one file and needs neither a server nor a network. CT and X-ray are
    read again, from where the registration found them, relative to the current folder.
    """
    if film is not None:
        raise click.UsageError("--film: films are no longer made; --output writes the page.")
    if output is None:
        raise click.UsageError("--output is missing: the page to write.")
    stored = read_pose(result)
    content = json.loads(result.read_text(encoding="utf-8"))
    run = content.get("run") if isinstance(content, dict) else None
    if not isinstance(run, dict) or run.get("command") != "register" or stored.camera is None:
        raise ValueError(f"{result}: expected a result of drrkit register, got a bare pose file")
    options = run.get("options")
    ct = ct or _there(result, options, "ct")[0]
    xrays = xray or (*_there(result, options, "xray"), *_there(result, options, "others"))
    views = read_rig(result) if content.get("views") else [stored]
    if len(xrays) != len(views):
        raise ValueError(f"{result}: expected {len(views)} X-rays, got {len(xrays)}; see --xray")
    refuse_overwriting([output], [result, ct, *xrays])
    volume = recorded_group(register_command, result, CTOptions).load(ct, device)
    seeing = recorded_group(register_command, result, XrayOptions)
    seen = seeing.load([[file] for file in xrays], float(stored.camera.sdd), device)
    pairs = [(one, view.camera) for one, view in zip(seen, views, strict=True)]
    first, *lines = [seeing.prepared(*pair) for pair in pairs]
    scene = (volume, stored.camera, first.line, content)
    method = str(options.get("method") or "joseph")
    around = _landscape(*scene, first.weights, method) if landscape else None
    page = registration_page(
        *scene,
        method=method,
        source=result.name,
        notes=_changed(content, ct=ct, xray=xrays[0]),
        landscape=around,
        others=[
            (view.camera, one.line, view.world_to_camera)
            for view, one in zip(views[1:], lines, strict=True)
            if view.camera is not None
        ],
    )
    save_page(page, output)
    return Answer({"written": [str(output)]}, f"wrote {output}")


def _there(result: Path, options: Any, name: str) -> list[Path]:
    """The files as they were named, from the current folder or from the result's."""
    given = options.get(name) if isinstance(options, dict) else None
    if name == "others":
        given = given or []
    found = []
    for one in given if isinstance(given, list) else [given]:
        if not isinstance(one, str):
            raise ValueError(f"{result}: expected the name of the {name} in its run; say --{name}")
        places = [place for place in (Path(one), result.parent / one) if place.exists()]
        if not places:
            raise FileNotFoundError(f"{one}: not there any more; --{name} says where it is now")
        found.append(places[0])
    return found


def _changed(content: dict[str, Any], **now: Path) -> list[str]:
    """A sentence for each file that is not the one that was registered, by its SHA-256."""
    then = content.get("files")
    found = []
    for name, path in now.items():
        known = (then.get(name) or {}).get("sha256") if isinstance(then, dict) else None
        if known is not None and known != fingerprint(path)["sha256"]:
            found.append(
                f"{path} is not the file that was registered: it has another SHA-256. The images "
                "below show it, the numbers are of the other one."
            )
    return found


def _landscape(
    volume: Volume,
    camera: Camera,
    line: Tensor,
    content: dict[str, Any],
    mask: Tensor | None,
    method: str,
) -> Any:
    """The last stage's loss about the found pose; that of auto for a network's."""
    last = (content.get("stages") or [{}])[-1]
    name = last.get("similarity")
    stage = Stage(
        name if name in SIMILARITIES else AUTO[-1].similarity,
        downsample=max(1, int(last.get("downsample") or 1)),
    )
    pose = torch.tensor(content["world_to_camera"], dtype=torch.float64)
    return pose_landscape(volume, camera, line, pose, stage, mask=mask, method=method)
