"""`drrkit register`: the pose of a CT in an X-ray."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor

from drrkit.cli.arguments import OutputFile, existing, refuse_overwriting
from drrkit.cli.images import read_mask, to_line
from drrkit.cli.info import versions
from drrkit.cli.landmarks import landmark_start, landmarks_option
from drrkit.cli.options import (
    VIEWS,
    CameraOptions,
    CTOptions,
    PoseOptions,
    device_option,
    grouped,
    method_option,
)
from drrkit.cli.poses import PoseFile, camera_as_dict, pixel_pitch, read_pose, write_json
from drrkit.cli.similarities import SimilarityName, plain_stages, similarity_stages
from drrkit.geometry import Camera, se3_log, volume_center
from drrkit.registration import (
    AUTO,
    PIPELINES,
    RegistrationResult,
    Search,
    Stage,
    register,
)
from drrkit.report import pose_overlays, save_image
from drrkit.volume import Volume
from drrkit.xray import XRAY_KINDS, Xray, preprocess_xray, read_xray

__all__ = [
    "FROM_FILE",
    "XrayOptions",
    "known_start",
    "move_between",
    "register_command",
    "xray_camera",
]

INTERRUPTED = 130
MIN_CONFIDENCE = 0.5
FROM_FILE = "from the X-ray's file"
FAR_DEG, FAR_MM = 45.0, 150.0  # beyond what a local optimiser is started from


class Stages(click.ParamType):
    """auto, global, or SIMILARITY:DOWNSAMPLE[:STEPS] separated by commas: stages."""

    name = "STAGES"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Stage | Search, ...]:
        if isinstance(value, tuple):
            return value
        if value in PIPELINES:
            return PIPELINES[value]
        try:
            return tuple(self._stage(*word.split(":")) for word in value.split(","))
        except (TypeError, ValueError) as error:
            self.fail(
                "expected auto, global, or SIMILARITY:DOWNSAMPLE[:STEPS] separated by commas, such "
                f"as ncc:4,gradient_ncc:1, got {value!r} ({error}).",
                param,
                ctx,
            )

    def _stage(self, similarity: str, downsample: str, steps: str = "100") -> Stage:
        factor = int(downsample)
        # As in the stages of auto: large steps where pixels are large.
        return Stage(
            similarity,
            downsample=factor,
            supersample=2 if factor > 2 else 1,
            iterations=int(steps),
            step=1.0 * factor,
            final_step=0.05 * factor,
        )


class Seen(NamedTuple):
    """An X-ray that has been read: line integrals and weights [1, 1, rows, cols] or None."""

    line: Tensor
    weights: Tensor | None
    file: Xray


@dataclass(frozen=True)
class XrayOptions:
    """How to read the X-ray; `load` does it."""

    xray_kind: str | None
    i0: float | None
    mask: Path | None
    frame: int | None
    calibration: Path | None
    preprocess: bool = False

    OPTIONS = (
        click.option(
            "--xray-kind",
            type=click.Choice(XRAY_KINDS),
            help="line: line integrals. display: a picture, bone bright. inverted: a picture, "
            "bone dark. intensity: proportional to photons, -log(I / I0) is taken.  "
            "[default: what a DICOM file says, else line]",
        ),
        click.option(
            "--i0", type=float, help="Intensity without patient.  [default: the brightest pixel]"
        ),
        click.option("--mask", type=existing, help="Image of pixel weights; 0 leaves a pixel out."),
        click.option("--frame", type=int, help="Which image of a run, from 0; -1 is the last."),
        click.option(
            "--calibration",
            type=existing,
            help="Camera and start: MayaCam (.txt, .csv) or OpenCV's K, R, t (.yml, .xml, .json), "
            "with --sdd.",
        ),
        click.option(
            "--preprocess",
            is_flag=True,
            help="A detector's raw image: find polarity, I0, collimator and vignette, take -log.",
        ),
    )

    def check(self) -> None:
        """Raises click.UsageError for options that contradict each other."""
        if self.i0 is not None and not (self.i0 > 0 and math.isfinite(self.i0)):
            raise click.BadParameter(
                f"expected a positive number, got {self.i0}.", param_hint="--i0"
            )

    def load(self, path: Path, sdd: float | None, device: torch.device) -> Seen:
        """Reads the X-ray; what its file had to be supplemented with is told as a warning."""
        if path.is_dir():
            raise ValueError(f"{path}: expected an image file, got a folder")
        xray = read_xray(path, frames=self.frame, calibration=self.calibration, sdd=sdd)
        if len(xray.image) != 1:
            raise ValueError(
                f"{path}: expected one image, got a run of {len(xray.image)}; --frame chooses one"
            )
        for text in xray.warnings:
            click.echo(f"Warning: {path}: {text}.", err=True)
        kind = self.xray_kind or xray.kind or "line"
        if self.i0 is not None and kind != "intensity":
            raise click.UsageError("--i0 belongs to --xray-kind intensity.")
        line = to_line(path, xray.image, kind, self.i0)
        weights = None if self.mask is None else read_mask(self.mask, line)
        if xray.mask is not None:
            weights = xray.mask if weights is None else weights * xray.mask
        return Seen(line.to(device), None if weights is None else weights.to(device), xray)

    def prepared(self, seen: Seen, camera: Camera) -> Seen:
        """The X-ray preprocessed, if that is wanted; on the whole detector, masked, not cropped."""
        if not self.preprocess:
            return seen
        kind = self.xray_kind or seen.file.kind or "auto"
        raw = preprocess_xray(
            seen.file.image,
            camera,
            kind="line" if kind == "display" else kind,
            i0=self.i0,
            mask=seen.file.mask,
            crop=False,
        )
        mask = raw.mask.to(seen.line)
        weights = mask if seen.weights is None else seen.weights * mask
        return Seen(raw.image.to(seen.line), weights, seen.file)


@click.command("register", epilog="A geometry option overrides what the pose file says.")
@click.argument("ct", type=existing)
@click.argument("xray", type=existing)
@click.option(
    "--init",
    metavar="POSE.json|VIEW",
    help=f"Where to start: a pose file, or one of {', '.join(VIEWS)}.  [default: where the X-ray's "
    "file says the C-arm stood]",
)
@landmarks_option
@click.option(
    "--output", "-o", required=True, type=OutputFile(".json"), help="The result, a pose file too."
)
@click.option("--overlay", type=OutputFile(".png"), help="Picture of the pose before and after.")
@grouped(XrayOptions, "seeing")
@click.option(
    "--similarity",
    type=SimilarityName(),
    help="Similarity of all stages; or the file of a trained one, whose descent comes first.",
)
@click.option(
    "--stages",
    type=Stages(),
    default="auto",
    show_default=True,
    help="auto: coarse to fine from a start nearby. global: search all around the start first. "
    "SIMILARITY:DOWNSAMPLE[:STEPS],...: your own.",
)
@click.option(
    "--min-confidence",
    type=click.FloatRange(0, 1),
    default=MIN_CONFIDENCE,
    show_default=True,
    help="Confidence below which the result is not accepted (exit code 1).",
)
@grouped(PoseOptions, "placing")
@grouped(CameraOptions, "detector")
@method_option
@grouped(CTOptions, "reading")
@device_option
@click.option("--quiet", "-q", is_flag=True, help="No progress bar.")
@click.pass_context
def register_command(
    ctx: click.Context,
    ct: Path,
    xray: Path,
    init: str | None,
    landmarks: Path | None,
    output: Path,
    overlay: Path | None,
    seeing: XrayOptions,
    similarity: str | Path | None,
    stages: tuple[Stage | Search, ...],
    min_confidence: float,
    placing: PoseOptions,
    detector: CameraOptions,
    method: str,
    reading: CTOptions,
    device: torch.device,
    quiet: bool,
) -> None:
    """Find the pose of CT in XRAY: DICOM, .npy, .png, .tif, NIfTI, NRRD or MetaImage.

    A C-arm's DICOM file says where detector and source stood; other formats need --pixel-spacing,
    --sdd and --init, or --calibration. Pixels must be bright where the patient attenuates;
    --xray-kind converts others. Gain and offset do not matter, and with --similarity mi no
    remapping does. Ctrl-C writes the best pose so far.
    """
    began = time.perf_counter()
    seeing.check()
    stages = _with_similarity(stages, similarity, device)
    seen = seeing.load(xray, detector.sdd, device)
    view, stored = ("", None) if landmarks else known_start(init, seen.file, stages)
    inputs = [ct, xray, seeing.mask, seeing.calibration, reading.labels, landmarks]
    refuse_overwriting([output, overlay], [*inputs, None if not stored else Path(init or "")])
    camera = xray_camera(detector, stored, xray, seen.file)
    seen = seeing.prepared(seen, camera)
    line = seen.line
    volume = reading.load(ct, device)
    if landmarks:
        start = landmark_start(landmarks, camera, init, placing).to(device)
    else:
        told = stored and stored.world_to_camera
        if view == FROM_FILE:
            told = seen.file.start(volume)[0]
        start = placing.pose(volume, view, told)
    with _warnings_told():
        result = register(
            volume,
            camera,
            line,
            start,
            stages=stages,
            mask=seen.weights,
            method=method,
            progress=not quiet,
        )
    judged = _judged(result, min_confidence, start[0], volume)
    write_json(
        output,
        {
            "schema": "drrkit.registration",
            **result.as_dict(),
            **judged,
            "camera": camera_as_dict(camera),
            "inputs": _inputs(ct, xray, init, landmarks, seeing, reading),
            "settings": _settings(method, device, stages),
            "versions": versions(),
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "total_seconds": time.perf_counter() - began,
        },
    )
    if overlay is not None:
        poses = [start[0], result.world_to_camera]
        save_image(pose_overlays(volume, camera, line, poses, method=method), overlay)
    ctx.exit(_verdict(result, judged, searched=isinstance(stages[0], Search)))


def motion_as_dict(before: Tensor, after: Tensor, volume: Volume) -> dict[str, Any]:
    """How far one pose [4, 4] is from another, in degrees and mm about the volume's centre."""
    xi = move_between(before, after, volume_center(volume))
    rotation, translation = torch.rad2deg(xi[:3]), xi[3:]
    return {
        "rotation_deg": float(rotation.norm()),
        "translation_mm": float(translation.norm()),
        "xi_deg_mm": [*rotation.tolist(), *translation.tolist()],
    }


def move_between(before: Tensor, after: Tensor, center: Tensor) -> Tensor:
    """The xi [6] (rad, mm) with perturb(before, xi, center) = after; poses [4, 4], center [3]."""
    shift = torch.eye(4, dtype=torch.float64, device=before.device)
    shift[:3, 3] = before[:3, :3] @ center + before[:3, 3]
    motion = torch.linalg.inv(shift) @ after @ torch.linalg.inv(before) @ shift
    return se3_log(motion)


@contextmanager
def _warnings_told() -> Iterator[None]:
    """Warnings as lines of this command's own, not as Python's."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in told:
        click.echo(f"Warning: {warning.message}", err=True)


def _with_similarity(
    stages: tuple[Stage | Search, ...], similarity: str | Path | None, device: torch.device
) -> tuple[Stage | Search, ...]:
    """The stages of auto with another similarity in all of them, or with a trained one first."""
    if similarity is None:
        return stages
    if stages is not AUTO:
        raise click.UsageError("--similarity changes the stages of auto; --stages names its own.")
    return similarity_stages(similarity, device)


def known_start(
    init: str | None, xray: Xray, stages: tuple[Stage | Search, ...]
) -> tuple[str, PoseFile | None]:
    """A view's name or FROM_FILE, or a pose file."""
    if init is None:
        known = xray.world_to_camera is not None or None not in (xray.primary_deg, xray.sod)
        if known:
            return FROM_FILE, None
        if isinstance(stages[0], Search):
            return "AP", None
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


def _inputs(
    ct: Path,
    xray: Path,
    init: str | None,
    landmarks: Path | None,
    seeing: XrayOptions,
    reading: CTOptions,
) -> dict[str, Any]:
    """What was registered, for the result: file names as the user gave them."""
    return {
        "ct": str(ct),
        "xray": str(xray),
        "init": init,
        "landmarks": None if landmarks is None else str(landmarks),
        "xray_kind": seeing.xray_kind,
        "mask": None if seeing.mask is None else str(seeing.mask),
        "frame": seeing.frame,
        "calibration": None if seeing.calibration is None else str(seeing.calibration),
        "i0": seeing.i0,
        "preprocess": seeing.preprocess,
        "energy_kev": reading.energy_kev if reading.unit == "HU" else None,
        "labels": None if reading.labels is None else str(reading.labels),
        "select": reading.select,
        "series": reading.series,
    }


def _settings(
    method: str, device: torch.device, stages: tuple[Stage | Search, ...]
) -> dict[str, Any]:
    """How the registration was run, for the result."""
    return {"method": method, "device": str(device), "stages": plain_stages(stages)}


def _judged(
    result: RegistrationResult, min_confidence: float, start: Tensor, volume: Volume
) -> dict[str, Any]:
    """Whether the result is accepted, and how far it lies from its start [4, 4]."""
    return {
        "accepted": math.isfinite(result.loss) and result.confidence >= min_confidence,
        "min_confidence": min_confidence,
        "initial_world_to_camera": start.tolist(),
        "motion": motion_as_dict(start, result.world_to_camera, volume),
    }


def _verdict(result: RegistrationResult, judged: dict[str, Any], searched: bool) -> int:
    """Prints what came out; the exit code."""
    motion = judged["motion"]
    angle, distance = motion["rotation_deg"], motion["translation_mm"]
    click.echo(
        f"moved {angle:.2f} degrees and {distance:.2f} mm; loss {result.loss:.4f}, confidence "
        f"{result.confidence:.3f}, {result.stop_reason} after {result.seconds:.1f} s"
    )
    if result.stop_reason == "interrupted":
        return INTERRUPTED
    if not judged["accepted"]:
        click.echo(
            f"Not accepted: confidence {result.confidence:.3f} is below "
            f"{judged['min_confidence']:g}. Is "
            "bone bright in the X-ray (--xray-kind)? Is the start near, and the geometry right?",
            err=True,
        )
        return 1
    if not searched and (angle > FAR_DEG or distance > FAR_MM):
        click.echo("Warning: the pose ended far from its start; look at --overlay.", err=True)
    return 0
