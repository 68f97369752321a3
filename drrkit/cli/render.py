"""`drrkit render`: a DRR of a CT."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from drrkit.cli.arguments import Numbers, OutputFile, existing, refuse_overwriting
from drrkit.cli.options import (
    VIEWS,
    CameraOptions,
    CTOptions,
    PoseOptions,
    device_option,
    grouped,
    method_option,
    orientation,
)
from drrkit.cli.poses import pixel_pitch, read_pose, write_pose
from drrkit.projector import render
from drrkit.report import (
    IMAGE_SUFFIXES,
    line_to_absorption,
    line_to_transmission,
    save_image,
    to_display,
)

__all__ = ["render_command"]

SIZE, PIXEL_SPACING = (256, 256), (1.4, 1.4)
CONVERSIONS = {
    "line": lambda line: line,
    "absorption": line_to_absorption,
    "transmission": line_to_transmission,
}


@click.command("render", epilog="A geometry option overrides what the pose file says.")
@click.argument("ct", type=existing)
@click.option(
    "--output",
    "-o",
    required=True,
    type=OutputFile(*IMAGE_SUFFIXES),
    help=".png: a display image. .npy, .tif, .nii.gz, .nrrd, .mha: line integrals, float32.",
)
@click.option(
    "--view",
    type=click.Choice(list(VIEWS), case_sensitive=False),
    help="Named view.  [default: AP]",
)
@click.option("--pose", "pose_path", type=existing, help="Pose file (JSON), instead of --view.")
@click.option("--save-pose", type=OutputFile(".json"), help="Write the complete geometry.")
@grouped(PoseOptions, "placing")
@grouped(CameraOptions, "detector")
@click.option("--supersample", type=click.IntRange(1, 16), default=1, help="N x N rays a pixel.")
@method_option
@click.option("--step", type=float, help="Of trilinear samples, mm.  [default: half a voxel]")
@grouped(CTOptions, "reading")
@device_option
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
@click.option("--invert", is_flag=True, help="PNG only: exchange black and white.")
def render_command(
    ct: Path,
    output: Path,
    view: str | None,
    pose_path: Path | None,
    save_pose: Path | None,
    placing: PoseOptions,
    detector: CameraOptions,
    supersample: int,
    method: str,
    step: float | None,
    reading: CTOptions,
    device: torch.device,
    display: str | None,
    window: tuple[float, float] | None,
    invert: bool,
) -> None:
    """Render an X-ray image (DRR) of CT: NIfTI, NRRD, MetaImage or the folder of a DICOM series."""
    is_picture = output.name.lower().endswith(".png")
    if not is_picture and (display is not None or window is not None or invert):
        raise click.UsageError(
            f"--display, --window and --invert make pictures; {output.name} takes line integrals."
        )
    if view is not None and pose_path is not None:
        raise click.UsageError("--view and --pose: give one of them.")
    refuse_overwriting([output, save_pose], [ct, pose_path, reading.labels])
    stored = None if pose_path is None else read_pose(pose_path)
    camera = detector.camera(stored and stored.camera, SIZE, PIXEL_SPACING)
    volume = reading.load(ct, device)
    pose = placing.pose(volume, (view or "AP").upper(), stored and stored.world_to_camera)
    with torch.no_grad():
        line = render(volume, camera, pose, supersample=supersample, method=method, step=step)
    image = line
    if is_picture:
        image = CONVERSIONS[display or "line"](line)
        image = to_display(image, window=window or (0.5, 99.5), invert=invert)
    save_image(image, output, pixel_spacing=pixel_pitch(camera))
    if save_pose is not None:
        settings = {"method": method, "step": step, "supersample": supersample}
        energy = reading.energy_kev if reading.unit == "HU" else None
        write_pose(save_pose, pose, camera, ct=str(ct), energy_kev=energy, **settings)
    low, high = (float(value) for value in torch.aminmax(line))
    rows, cols = camera.size
    pitch = " x ".join(f"{p:.4g}" for p in pixel_pitch(camera))
    click.echo(
        f"{output}: {rows}x{cols} pixels of {pitch} mm, line integrals {low:.3g} to {high:.3g}"
    )
    click.echo(orientation(pose))
    if high <= 0:
        click.echo("Warning: no ray meets the CT; the image is empty.", err=True)
