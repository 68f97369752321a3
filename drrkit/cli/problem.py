"""What a registration is about: a CT, an X-ray with its camera, and a start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import click
import torch
from torch import Tensor

from drrkit.cli.arguments import completions, refuse_overwriting
from drrkit.cli.landmarks import check_alone, landmark_start, landmarks_option
from drrkit.cli.options import (
    VIEWS,
    CameraOptions,
    CTOptions,
    PoseOptions,
    device_option,
    method_option,
)
from drrkit.cli.poses import PoseFile, pixel_pitch, read_pose
from drrkit.cli.xrays import Seen, XrayOptions
from drrkit.geometry import Camera
from drrkit.volume import Volume
from drrkit.xray import Xray

__all__ = ["Problem", "ProblemOptions"]

FROM_FILE = "from the X-ray's file"


class Problem(NamedTuple):
    """A registration to be done: the volume in mu, the X-ray's camera, and a start [1, 4, 4].

    line and weights are the X-ray's line integrals and pixel weights (or None), [1, 1, rows, cols].
    """

    volume: Volume
    camera: Camera
    line: Tensor
    weights: Tensor | None
    start: Tensor


@dataclass(frozen=True)
class ProblemOptions:
    """How CT, X-ray and start are read; `load` does it."""

    init: str | None
    landmarks: Path | None
    seeing: XrayOptions
    placing: PoseOptions
    detector: CameraOptions
    method: str
    reading: CTOptions
    device: torch.device

    PARTS: ClassVar[dict[str, Any]] = {
        "seeing": XrayOptions,
        "placing": PoseOptions,
        "detector": CameraOptions,
        "reading": CTOptions,
    }
    OPTIONS = (
        click.option(
            "--init",
            metavar="POSE.json|VIEW",
            shell_complete=lambda ctx, param, word: completions(VIEWS, word, files=True),
            help=f"Where to start: a pose file, or one of {', '.join(VIEWS)}.  [default: where the "
            "X-ray's file says the C-arm stood]",
        ),
        landmarks_option,
        *XrayOptions.OPTIONS,
        *PoseOptions.OPTIONS,
        *CameraOptions.OPTIONS,
        method_option,
        *CTOptions.OPTIONS,
        device_option,
    )

    def load(
        self, ct: Path, xray: Path, outputs: Sequence[Path | None], searching: bool
    ) -> Problem:
        """Reads everything.

        Args:
            ct, xray: the files.
            outputs: what is going to be written, and must not be any of the inputs.
            searching: where nothing says how the C-arm stood, an AP view is a start.

        Raises:
            click.UsageError: options that contradict each other, or of which one is missing.
            OSError, ValueError: files that are not what they should be.
        """
        self.seeing.check()
        if self.landmarks is not None:
            check_alone(self.init, self.placing)
        seen = self.seeing.load(xray, self.detector.sdd, self.device)
        view, stored = "", None
        if self.landmarks is None:
            view, stored = known_start(self.init, seen.file, self.placing.sod, searching)
        reading, seeing = self.reading, self.seeing
        inputs = [ct, xray, seeing.mask, seeing.calibration, reading.labels, self.landmarks]
        refuse_overwriting(outputs, [*inputs, None if not stored else Path(self.init or "")])
        camera = xray_camera(self.detector, stored, xray, seen.file)
        seen = seeing.prepared(seen, camera)
        volume = reading.load(ct, self.device)
        start = self._start(volume, camera, seen, view, stored)
        return Problem(volume, camera, seen.line, seen.weights, start)

    def _start(
        self, volume: Volume, camera: Camera, seen: Seen, view: str, stored: PoseFile | None
    ) -> Tensor:
        if self.landmarks is not None:
            return landmark_start(self.landmarks, camera).to(self.device)
        told, placing = stored and stored.world_to_camera, self.placing
        if view == FROM_FILE:
            told = seen.file.start(volume, placing.sod)[0]
            if seen.file.world_to_camera is None:
                placing = replace(placing, sod=None)  # it has been used with the file's angles
        return placing.pose(volume, view, told)


def known_start(
    init: str | None, xray: Xray, sod: float | None, searching: bool
) -> tuple[str, PoseFile | None]:
    """A view's name or FROM_FILE, or a pose file; sod in mm where the user said it."""
    if init is None:
        distance = xray.sod if sod is None else sod
        if xray.world_to_camera is not None or None not in (xray.primary_deg, distance):
            return FROM_FILE, None
        if searching:
            return "AP", None
        if xray.primary_deg is not None:
            raise click.UsageError(
                "--sod is needed: the X-ray's file tells the C-arm's angles, but not how far its "
                "source is from the isocentre."
            )
        raise click.UsageError(
            "--init is needed: the X-ray's file does not say where the C-arm stood. A pose file, "
            f"one of {', '.join(VIEWS)}, or --stages global to search all around a frontal view; "
            "--landmarks would do, too."
        )
    if init.upper() in VIEWS:
        return init.upper(), None
    path = Path(init)
    if not path.is_file():
        raise click.BadParameter(
            f"expected a pose file or one of {', '.join(VIEWS)}; there is no file {init!r}.",
            param_hint="--init",
        )
    return "", read_pose(path)


def xray_camera(detector: CameraOptions, stored: PoseFile | None, xray: Path, file: Xray) -> Camera:
    """The X-ray's camera, or an error that says what is not known or does not fit."""
    size = (int(file.image.shape[-2]), int(file.image.shape[-1]))
    spacing = file.pixel_spacing
    known = (stored and stored.camera) or file.camera
    if not (detector.pixel_spacing or known) and spacing is None:
        raise click.UsageError(
            f"--pixel-spacing is needed: neither {xray.name} nor --init says the detector's pitch."
        )
    camera = detector.camera(known, size, spacing or (1.0, 1.0))
    if tuple(camera.size) != size:
        rows, cols = camera.size
        raise ValueError(
            f"{xray}: expected an X-ray of {rows}x{cols} pixels as the geometry says, got "
            f"{size[0]}x{size[1]}"
        )
    if known is None and detector.sdd is None and not detector.parallel:
        click.echo(
            f"Warning: {xray}: --sdd is not given, and nothing says the source-to-detector "
            f"distance: {camera.sdd:g} mm is assumed. A wrong one makes the depth wrong, which "
            "neither loss nor confidence shows.",
            err=True,
        )
    used = pixel_pitch(camera)
    if spacing is not None and any(
        abs(a / b - 1) > 0.01 for a, b in zip(used, spacing, strict=True)
    ):
        click.echo(
            f"Warning: {xray} says pixels of {spacing[0]:.4g} x {spacing[1]:.4g} mm; "
            f"{used[0]:.4g} x {used[1]:.4g} mm are used.",
            err=True,
        )
    return camera
