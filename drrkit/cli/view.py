"""`drrkit view`: CT and X-ray on a local page, the pose moved by hand or by registration."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click
from torch import Tensor

from drrkit.cli.command import Answer, command, give
from drrkit.cli.configuration import run_record
from drrkit.cli.demo import phantom_scene
from drrkit.cli.io import write_pose
from drrkit.cli.options import OutputFile, argument, option
from drrkit.cli.problem import ProblemOptions
from drrkit.viewer import Session


@command("view")
def view_command(
    *,
    ct: Path | None = argument(required=False),
    xray: Path | None = argument(required=False),
    output: Path | None = option(
        "Where the page may save the pose, and only there.",
        "--output",
        "-o",
        type=OutputFile(".json"),
    ),
    port: int = option(
        "Port of the page, on this machine only.  [default: a free one]",
        type=click.IntRange(0, 65535),
        default=0,
    ),
    no_browser: bool = option("Print the address only; open no browser."),
    given: ProblemOptions,
) -> None:
    """Show CT and XRAY on a page in the browser; without them a phantom and its X-ray.

    Move the pose with mouse, keys and sliders while the DRR follows, lay it over the X-ray, choose
    a loss, register and watch. Where nothing says how the C-arm stood, the page starts with an AP
    view. It is served to this machine only, under an address that cannot be guessed, until Ctrl-C.
    Needs the packages of drrkit[view].
    """
    from drrkit.viewer import serve

    if (ct is None) != (xray is None):
        raise click.UsageError("XRAY is missing: give a CT and an X-ray, or neither.")
    if ct is None or xray is None:
        if given.init is not None or given.landmarks is not None:
            raise click.UsageError(
                "--init goes with a CT and an X-ray, and --landmarks too; the phantom has its own "
                "start."
            )
        scene, title = phantom_scene(seed=0), "torso phantom"
        volume = scene.ct.to_mu().to(given.device)
        start = given.position.pose(volume, "AP", scene.start[0])
        camera, line, weights = scene.camera, scene.xray.to(given.device), None
    else:
        # As before a search: an unknown start is an AP view, to be moved by hand.
        found, title = given.load(ct, [[xray]], [output], searching=True), f"{ct.name}, {xray.name}"
        volume, (camera,), ((line, weights, *_),), _, start = found
    ctx, run = click.get_current_context(), run_record()

    def announce(address: str) -> None:
        give(ctx, Answer({"address": address}, f"{address} (Ctrl-C ends it)"))

    def save(place: Path, pose: Tensor, known: dict[str, Any]) -> str:
        write_pose(place, pose, camera, run=run, **known)
        return str(place)

    session = Session(
        volume,
        camera,
        line,
        start,
        mask=weights,
        method=given.method,
        save=None if output is None else partial(save, output),
    )

    serve(session, port=port, title=title, browser=not no_browser, announce=announce)
