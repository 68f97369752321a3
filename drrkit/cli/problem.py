"""What register and view work on: a CT, an X-ray with its camera, and a start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import click
import torch
from torch import Tensor

from drrkit.cli.io import PoseFile, read_mask, read_pose, refuse_overwriting, to_line, warn
from drrkit.cli.options import (
    VIEWS,
    CameraOptions,
    CTOptions,
    PoseOptions,
    completions,
    device_option,
    method_option,
    option,
    part,
)
from drrkit.conversions import odd_place
from drrkit.geometry import Camera
from drrkit.registration import Landmarks
from drrkit.volume import Volume
from drrkit.xray import XRAY_KINDS, Xray, bone_is_bright, preprocess_xray, read_xray

FROM_FILE = "from the X-ray's file"


class XrayInput(NamedTuple):
    """An X-ray that was read: line integrals and weights [1, 1, rows, cols] or None.

    `kind` is what its pixels were taken for.
    """

    line: Tensor
    weights: Tensor | None
    file: Xray
    kind: str


@dataclass(frozen=True)
class XrayOptions:
    """How to read the X-ray; `load` does it."""

    xray_kind: str | None = option(
        "line: line integrals. display: a picture, bone bright. inverted: a picture, bone "
        "dark. intensity: proportional to photons, -log(I / I0) is taken.  [default: what a DICOM "
        "file says, else line]",
        type=click.Choice(XRAY_KINDS),
    )
    i0: float | None = option("Intensity without patient.  [default: the brightest pixel]")
    mask: Path | None = option("Image of pixel weights; 0 leaves a pixel out.")
    frame: int | None = option("Which image of a run, from 0; -1 is the last.")
    calibration: Path | None = option(
        "Camera and start: MayaCam (.txt, .csv) or OpenCV's K, R, t (.yml, .xml, .json), with "
        "--sdd."
    )
    preprocess: bool = option(
        "A detector's raw image: find polarity, I0, collimator and vignette, take -log."
    )

    def load(self, path: Path, sdd: float | None, device: torch.device) -> XrayInput:
        """Reads the X-ray; whatever its file had to be supplemented with is a warning."""
        if self.i0 is not None and not (self.i0 > 0 and math.isfinite(self.i0)):
            raise click.BadParameter(
                f"expected a positive number, got {self.i0}.", param_hint="--i0"
            )
        if path.is_dir():
            found = f"{path}: expected an X-ray image, got a folder"
            raise ValueError(f"{found}; if this is the CT, it comes first")
        xray = read_xray(path, frames=self.frame, calibration=self.calibration, sdd=sdd)
        if len(xray.image) != 1:
            found = f"{path}: expected one image, got a run of {len(xray.image)}"
            raise ValueError(f"{found}; --frame chooses one, and if this is the CT, it comes first")
        for text in xray.warnings:
            warn(f"{path}: {text}")
        kind = self.xray_kind or xray.kind or "line"
        if self.i0 is not None and kind != "intensity":
            raise click.UsageError("--i0 belongs to --xray-kind intensity.")
        line = to_line(path, xray.image, kind, self.i0)
        assumed = (self.xray_kind, xray.kind, self.preprocess) == (None, None, False)
        if assumed and not bone_is_bright(line):
            warn(
                f"{path}: bone looks dark, and should be bright: --xray-kind inverted or "
                "intensity converts, --preprocess finds the polarity"
            )
        weights = None if self.mask is None else read_mask(self.mask, line)
        if xray.mask is not None:
            weights = xray.mask if weights is None else weights * xray.mask
        return XrayInput(
            line.to(device), None if weights is None else weights.to(device), xray, kind
        )

    def prepared(self, xray: XrayInput, camera: Camera) -> XrayInput:
        """The X-ray preprocessed, if asked for; on the whole detector, masked, not cropped."""
        if not self.preprocess:
            return xray
        kind = self.xray_kind or xray.file.kind or "auto"
        raw = preprocess_xray(
            xray.file.image,
            camera,
            kind="line" if kind == "display" else kind,
            i0=self.i0,
            mask=xray.file.mask,
            crop=False,
        )
        mask = raw.mask.to(xray.line)
        weights = mask if xray.weights is None else xray.weights * mask
        return XrayInput(raw.image.to(xray.line), weights, xray.file, raw.kind)


class Problem(NamedTuple):
    """A registration to be done: the volume in mu, an X-ray, its camera, and a start [1, 4, 4]."""

    volume: Volume
    camera: Camera
    xray: XrayInput
    start: Tensor


@dataclass(frozen=True)
class ProblemOptions:
    """How CT, X-ray and start are read; `load` does it."""

    init: str | None = option(
        f"Where to start: a pose file, or one of {', '.join(VIEWS)}.  [default: where the "
        "X-ray's file says the C-arm stood]",
        metavar="POSE.json|VIEW",
        shell_complete=lambda ctx, param, word: completions(VIEWS, word, files=True),
    )
    landmarks: Path | None = option(
        "Where to start instead: a CSV or JSON file with x, y, z (mm, LPS), row, col of "
        "points seen in the X-ray, six or more; a few may be wrong."
    )
    xray: XrayOptions = part()
    position: PoseOptions = part()
    detector: CameraOptions = part()
    method: str = method_option()
    ct: CTOptions = part()
    device: torch.device = device_option()

    def load(
        self, ct: Path, xray: Path, outputs: Sequence[Path | None], searching: bool
    ) -> Problem:
        """Reads everything.

        Args:
            ct, xray: the files.
            outputs: files that will be written, and must not be any of the inputs.
            searching: where nothing says how the C-arm stood, an AP view is a start.

        Raises:
            click.UsageError: options that contradict each other, or of which one is missing.
            OSError, ValueError: files with unexpected content.
        """
        if self.landmarks is not None and self.init is not None:
            raise click.UsageError("Where to start? Give either --init or --landmarks.")
        if self.landmarks is not None and self.position != PoseOptions(None, None, None, None):
            raise click.UsageError("--landmarks give the start: no option of the C-arm goes along.")
        found = self.xray.load(xray, self.detector.sdd, self.device)
        view, stored = "", None
        if self.landmarks is None:
            view, stored = known_start(self.init, found.file, self.position.sod, searching)
        inputs = [ct, xray, self.xray.mask, self.xray.calibration, self.ct.labels, self.landmarks]
        refuse_overwriting(outputs, [*inputs, None if not stored else Path(self.init or "")])
        camera = xray_camera(self.detector, stored, xray, found.file)
        found = self.xray.prepared(found, camera)
        volume = self.ct.load(ct, self.device)
        start = self._start(volume, camera, found, view, stored)
        return Problem(volume, camera, found, start)

    def _start(
        self, volume: Volume, camera: Camera, xray: XrayInput, view: str, stored: PoseFile | None
    ) -> Tensor:
        if self.landmarks is not None:
            return landmark_start(self.landmarks, camera).to(self.device)
        if stored is not None:
            for text in odd_place(volume, camera, stored.world_to_camera):
                warn(f"{self.init}: {text}")
        known, position = stored and stored.world_to_camera, self.position
        if view == FROM_FILE:
            known = xray.file.start(volume, position.sod)[0]
            if xray.file.world_to_camera is None:
                position = replace(position, sod=None)  # it has been used with the file's angles
        return position.pose(volume, view, known)


def landmark_start(path: Path, camera: Camera) -> Tensor:
    """The pose [1, 4, 4] of the landmarks in a file; reports how well they agree.

    Raises OSError, ValueError as `Landmarks.read` and `Landmarks.fit`.
    """
    found = Landmarks.read(path).fit(camera)
    wrong = [str(i + 1) for i in range(len(found.inliers)) if not found.inliers[i]]
    click.echo(
        f"landmarks: {int(found.inliers.sum())} of {len(found.inliers)} agree, rms "
        f"{found.rms_px:.2f} px" + (f"; without number {', '.join(wrong)}" if wrong else ""),
        err=True,
    )
    return found.world_to_camera[None]


def known_start(
    init: str | None, xray: Xray, sod: float | None, searching: bool
) -> tuple[str, PoseFile | None]:
    """A view's name or FROM_FILE, or a pose file; sod in mm where given."""
    if init is None:
        distance = xray.sod if sod is None else sod
        if xray.world_to_camera is not None or None not in (xray.primary_deg, distance):
            return FROM_FILE, None
        if searching:
            return "AP", None
        if xray.primary_deg is not None:
            raise click.UsageError(
                "--sod is needed: the X-ray's file holds the C-arm's angles, but not how far its "
                "source is from the isocentre."
            )
        raise click.UsageError(
            "--init is needed: the X-ray's file does not say where the C-arm stood. A pose file, "
            f"one of {', '.join(VIEWS)}, or --stages global to search all around a frontal view; "
            "--landmarks is another way."
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
        warn(
            f"{xray}: --sdd is not given, and nothing says the source-to-detector distance: "
            f"{camera.sdd:g} mm is assumed. A wrong one makes the depth wrong, which neither loss "
            "nor confidence shows"
        )
    used = camera.pixel_spacing
    if spacing is not None and any(
        abs(a / b - 1) > 0.01 for a, b in zip(used, spacing, strict=True)
    ):
        warn(
            f"{xray} says pixels of {spacing[0]:.4g} x {spacing[1]:.4g} mm; "
            f"{used[0]:.4g} x {used[1]:.4g} mm are used"
        )
    return camera
