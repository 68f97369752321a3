"""`drrkit render`: a DRR of a CT; and the options of all commands that make an image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import click
import torch
from torch import Tensor

from drrkit.cli.command import Answer, command
from drrkit.cli.configuration import run_record
from drrkit.cli.io import camera_as_dict, read_pose, refuse_overwriting, warn, write_pose
from drrkit.cli.options import (
    VIEWS,
    CameraOptions,
    CTOptions,
    Numbers,
    OutputFile,
    PoseOptions,
    argument,
    device_option,
    method_option,
    option,
    part,
)
from drrkit.geometry import Camera
from drrkit.projector import render
from drrkit.report import (
    IMAGE_SUFFIXES,
    line_to_absorption,
    line_to_transmission,
    nearest_side,
    save_image,
    to_display,
)
from drrkit.volume import Volume

CONVERSIONS = {
    "line": lambda line: line,
    "absorption": line_to_absorption,
    "transmission": line_to_transmission,
}


class PosedCT(NamedTuple):
    """A CT, a camera and its pose [1, 4, 4]."""

    volume: Volume
    camera: Camera
    pose: Tensor


@dataclass(frozen=True)
class ImageOptions:
    """Where the C-arm stands, its detector, how the CT is read, what is written."""

    output: Path = option(
        ".png: a display image. .npy, .tif, .nii.gz, .nrrd, .mha: float32, on the scale of "
        "line integrals.",
        "--output",
        "-o",
        required=True,
        type=OutputFile(*IMAGE_SUFFIXES),
    )
    view: str | None = option(
        "Named view.  [default: AP]", type=click.Choice(list(VIEWS), case_sensitive=False)
    )
    pose_path: Path | None = option("Pose file (JSON), instead of --view.", "--pose")
    save_pose: Path | None = option("Write the complete geometry.", type=OutputFile(".json"))
    position: PoseOptions = part()
    detector: CameraOptions = part()
    method: str = method_option()
    ct: CTOptions = part()
    device: torch.device = device_option()
    invert: bool = option("PNG only: exchange black and white.")

    @property
    def is_picture(self) -> bool:
        """Whether a picture is written, and not numbers."""
        return self.output.name.lower().endswith(".png")

    def load(self, path: Path, in_hu: bool) -> PosedCT:
        """The CT, in HU or in mu, and camera and pose, on the device.

        Raises:
            click.UsageError: options that contradict each other.
            OSError, ValueError: files with unexpected content.
        """
        if self.view is not None and self.pose_path is not None:
            raise click.UsageError("--view and --pose: give one of them.")
        inputs = [path, self.pose_path, self.ct.labels]
        refuse_overwriting([self.output, self.save_pose], inputs)
        stored = None if self.pose_path is None else read_pose(self.pose_path)
        camera = self.detector.camera(stored and stored.camera)
        volume = self.ct.read(path).to(self.device) if in_hu else self.ct.load(path, self.device)
        view = (self.view or "AP").upper()
        pose = self.position.pose(volume, view, stored and stored.world_to_camera)
        return PosedCT(volume, camera, pose)

    def write(self, posed: PosedCT, image: Tensor, numbers: Tensor, what: str) -> Answer:
        """Writes the image and, where asked for, the pose; what: the numbers that it shows."""
        pitch = [float(p) for p in posed.camera.pixel_spacing]
        save_image(image, self.output, pixel_spacing=pitch)
        if self.save_pose is not None:
            write_pose(self.save_pose, posed.pose, posed.camera, run=run_record())
        low, high = (float(value) for value in torch.aminmax(numbers))
        content = {
            "written": str(self.output),
            "pose_file": None if self.save_pose is None else str(self.save_pose),
            "world_to_camera": posed.pose.reshape(4, 4).tolist(),
            "camera": camera_as_dict(posed.camera),
            "orientation": orientation(posed.pose),
            what.replace(" ", "_"): [low, high],
        }
        size = "x".join(map(str, posed.camera.size))
        return Answer(
            content,
            f"{self.output}: {size} pixels of {pitch[0]:.4g} x {pitch[1]:.4g} mm, {what} "
            f"{low:.3g} to {high:.3g}\n{content['orientation']}",
        )


def orientation(world_to_camera: Tensor) -> str:
    """How an image lies, in words: which side of the patient is right, down and at the source."""
    right, down, beam = world_to_camera.reshape(4, 4)[:3, :3].cpu()
    return (
        f"image right = patient's {nearest_side(right)}, down = {nearest_side(down)}, "
        f"source {nearest_side(-beam)}"
    )


@command("render", epilog="A geometry option overrides the pose file.")
def render_command(
    *,
    ct: Path = argument(),
    how: ImageOptions,
    supersample: int = option("N x N rays per pixel.", type=click.IntRange(1, 16), default=1),
    step: float | None = option("Distance of trilinear samples, mm.  [default: half a voxel]"),
    display: str | None = option(
        "PNG only: line integrals, 1 - exp(-I) or exp(-I) (bone dark).  [default: line]",
        type=click.Choice(list(CONVERSIONS)),
    ),
    window: tuple[float, float] | None = option(
        "PNG only: percentiles shown black and white.  [default: 0.5,99.5]",
        type=Numbers("LOW,HIGH", (2,)),
    ),
) -> Answer:
    """Render an X-ray image (DRR) of CT: NIfTI, NRRD, MetaImage or the folder of a DICOM series."""
    if not how.is_picture and (display is not None or window is not None or how.invert):
        raise click.UsageError(
            "--display, --window and --invert make pictures; "
            f"{how.output.name} takes line integrals."
        )
    posed = how.load(ct, in_hu=False)
    with torch.no_grad():
        line = render(*posed, supersample=supersample, method=how.method, step=step)
    image = line
    if how.is_picture:
        image = CONVERSIONS[display or "line"](line)
        image = to_display(image, window=window or (0.5, 99.5), invert=how.invert)
    if float(line.max()) <= 0:
        warn("no ray meets the CT; the image is empty")
    return how.write(posed, image, line, "line integrals")
