"""`drrkit view`: CT and X-ray on a local page, the pose moved by hand or by registration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from torch import Tensor

from drrkit.cli.command import Answer, command, give
from drrkit.cli.configuration import run_record
from drrkit.cli.demo import random_offset
from drrkit.cli.io import write_pose
from drrkit.cli.options import PIXEL_SPACING, SDD, SIZE, SOD, OutputFile, argument, option
from drrkit.cli.problem import ProblemOptions
from drrkit.geometry import Camera, CArm, perturb, view_ap, volume_center
from drrkit.phantoms import torso
from drrkit.viewer import Session
from drrkit.xray import simulate_xray

PHANTOM_MM = 3.0


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
        "Of the page, on this machine only.  [default: one that is free]",
        type=click.IntRange(0, 65535),
        default=0,
    ),
    no_browser: bool = option("Only print the address, open no browser."),
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
        session, title = _of_phantom(given, output), "torso phantom"
    else:
        session, title = _of_files(ct, xray, given, output), f"{ct.name}, {xray.name}"

    ctx = click.get_current_context()

    def announce(address: str) -> None:
        give(ctx, Answer({"address": address}, f"{address} (Ctrl-C ends it)"))

    serve(session, port=port, title=title, browser=not no_browser, announce=announce)


def _of_files(ct: Path, xray: Path, given: ProblemOptions, output: Path | None) -> Session:
    """A session of what the user gave, read as `drrkit register` does."""
    # As before a search: an unknown start is an AP view, to be moved by hand.
    problem = given.load(ct, xray, [output], searching=True)
    return Session(
        problem.volume,
        problem.camera,
        problem.line,
        problem.start,
        mask=problem.weights,
        method=given.method,
        save=_saver(output, problem.camera),
    )


def _of_phantom(given: ProblemOptions, output: Path | None) -> Session:
    """A session of the torso, its X-ray in AP and a start 10-15 degrees and 20-30 mm off."""
    ct = torso(PHANTOM_MM)
    camera = CArm(SDD, SIZE, PIXEL_SPACING)
    truth = view_ap(ct, SOD)
    xray = simulate_xray(ct, camera, truth, seed=0).to(given.device)
    volume = ct.to_mu().to(given.device)
    start = perturb(truth, random_offset(0), volume_center(ct))
    start = given.position.pose(volume, "AP", start[0])
    save = _saver(output, camera)
    return Session(volume, camera, xray, start, method=given.method, save=save)


def _saver(output: Path | None, camera: Camera) -> Any:
    """Writes the pose into the file named; None where none was."""
    if output is None:
        return None
    run = run_record()

    def save(pose: Tensor, known: dict[str, Any]) -> str:
        write_pose(output, pose, camera, run=run, **known)
        return str(output)

    return save
