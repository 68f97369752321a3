"""Images that `drrkit render` and `drrkit simulate` make: of which CT, from where, into what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import click
import torch
from torch import Tensor

from drrkit.cli.arguments import OutputFile, existing, refuse_overwriting
from drrkit.cli.configuration import run_record
from drrkit.cli.options import (
    VIEWS,
    CameraOptions,
    CTOptions,
    PoseOptions,
    device_option,
    method_option,
    orientation,
)
from drrkit.cli.poses import camera_as_dict, pixel_pitch, read_pose, write_pose
from drrkit.geometry import Camera
from drrkit.report import IMAGE_SUFFIXES, save_image
from drrkit.volume import Volume

__all__ = ["Shot", "ShotOptions"]

SIZE, PIXEL_SPACING = (256, 256), (1.4, 1.4)


class Shot(NamedTuple):
    """A CT, a camera and its pose [1, 4, 4]."""

    volume: Volume
    camera: Camera
    pose: Tensor


@dataclass(frozen=True)
class ShotOptions:
    """Where the C-arm stands, what its detector is like, how the CT is read, what is written."""

    output: Path
    view: str | None
    pose_path: Path | None
    save_pose: Path | None
    placing: PoseOptions
    detector: CameraOptions
    method: str
    reading: CTOptions
    device: torch.device
    invert: bool

    PARTS: ClassVar[dict[str, Any]] = {
        "placing": PoseOptions,
        "detector": CameraOptions,
        "reading": CTOptions,
    }
    OPTIONS = (
        click.option(
            "--output",
            "-o",
            required=True,
            type=OutputFile(*IMAGE_SUFFIXES),
            help=".png: a display image. .npy, .tif, .nii.gz, .nrrd, .mha: float32, on the scale "
            "of line integrals.",
        ),
        click.option(
            "--view",
            type=click.Choice(list(VIEWS), case_sensitive=False),
            help="Named view.  [default: AP]",
        ),
        click.option(
            "--pose", "pose_path", type=existing, help="Pose file (JSON), instead of --view."
        ),
        click.option("--save-pose", type=OutputFile(".json"), help="Write the complete geometry."),
        *PoseOptions.OPTIONS,
        *CameraOptions.OPTIONS,
        method_option,
        *CTOptions.OPTIONS,
        device_option,
        click.option("--invert", is_flag=True, help="PNG only: exchange black and white."),
    )

    @property
    def is_picture(self) -> bool:
        """Whether a picture is written, and not numbers."""
        return self.output.name.lower().endswith(".png")

    def load(self, ct: Path, in_hu: bool) -> Shot:
        """The CT, in HU or in mu, and camera and pose, on the device.

        Raises:
            click.UsageError: options that contradict each other.
            OSError, ValueError: files that are not what they should be.
        """
        if self.view is not None and self.pose_path is not None:
            raise click.UsageError("--view and --pose: give one of them.")
        inputs = [ct, self.pose_path, self.reading.labels]
        refuse_overwriting([self.output, self.save_pose], inputs)
        stored = None if self.pose_path is None else read_pose(self.pose_path)
        camera = self.detector.camera(stored and stored.camera, SIZE, PIXEL_SPACING)
        if in_hu:
            volume = self.reading.read(ct).to(self.device)
        else:
            volume = self.reading.load(ct, self.device)
        view = (self.view or "AP").upper()
        pose = self.placing.pose(volume, view, stored and stored.world_to_camera)
        return Shot(volume, camera, pose)

    def write(self, ctx: click.Context, shot: Shot, image: Tensor) -> dict[str, Any]:
        """Writes the image and, where wanted, the pose; what there is to tell, as JSON has it."""
        save_image(image, self.output, pixel_spacing=pixel_pitch(shot.camera))
        if self.save_pose is not None:
            write_pose(self.save_pose, shot.pose, shot.camera, run=run_record(ctx))
        return {
            "written": str(self.output),
            "pose_file": None if self.save_pose is None else str(self.save_pose),
            "world_to_camera": shot.pose.reshape(4, 4).tolist(),
            "camera": camera_as_dict(shot.camera),
            "orientation": orientation(shot.pose),
        }
