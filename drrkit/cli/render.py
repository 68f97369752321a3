"""`drrkit render`: a DRR of a CT."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from drrkit.cli.answers import Answer
from drrkit.cli.arguments import Number, Numbers, existing
from drrkit.cli.options import grouped
from drrkit.cli.poses import pixel_pitch
from drrkit.cli.shots import ShotOptions
from drrkit.cli.verbs import verb
from drrkit.projector import render
from drrkit.report import line_to_absorption, line_to_transmission, to_display

__all__ = ["render_command"]

CONVERSIONS = {
    "line": lambda line: line,
    "absorption": line_to_absorption,
    "transmission": line_to_transmission,
}


@verb("render", epilog="A geometry option overrides what the pose file says.")
@click.argument("ct", type=existing)
@grouped(ShotOptions, "wanted")
@click.option("--supersample", type=click.IntRange(1, 16), default=1, help="N x N rays a pixel.")
@click.option("--step", type=Number(), help="Of trilinear samples, mm.  [default: half a voxel]")
@click.option(
    "--display",
    type=click.Choice(list(CONVERSIONS)),
    help="PNG only: line integrals, 1 - exp(-I) or exp(-I) (bone dark).  [default: line]",
)
@click.option(
    "--window",
    type=Numbers("LOW,HIGH", (2,)),
    help="PNG only: percentiles shown black and white.  [default: 0.5,99.5]",
)
@click.pass_context
def render_command(
    ctx: click.Context,
    ct: Path,
    wanted: ShotOptions,
    supersample: int,
    step: float | None,
    display: str | None,
    window: tuple[float, float] | None,
) -> Answer:
    """Render an X-ray image (DRR) of CT: NIfTI, NRRD, MetaImage or the folder of a DICOM series."""
    if not wanted.is_picture and (display is not None or window is not None or wanted.invert):
        raise click.UsageError(
            "--display, --window and --invert make pictures; "
            f"{wanted.output.name} takes line integrals."
        )
    shot = wanted.load(ct, in_hu=False)
    with torch.no_grad():
        line = render(*shot, supersample=supersample, method=wanted.method, step=step)
    image = line
    if wanted.is_picture:
        image = CONVERSIONS[display or "line"](line)
        image = to_display(image, window=window or (0.5, 99.5), invert=wanted.invert)
    content = wanted.write(ctx, shot, image)
    low, high = (float(value) for value in torch.aminmax(line))
    if high <= 0:
        click.echo("Warning: no ray meets the CT; the image is empty.", err=True)
    rows, cols = shot.camera.size
    pitch = " x ".join(f"{p:.4g}" for p in pixel_pitch(shot.camera))
    return Answer(
        {**content, "line_integrals": [low, high]},
        f"{wanted.output}: {rows}x{cols} pixels of {pitch} mm, line integrals {low:.3g} to "
        f"{high:.3g}\n{content['orientation']}",
    )
