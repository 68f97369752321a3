"""What register and view work on: a CT, an X-ray with its camera, and a start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor

from drrkit.cli.io import (
    PoseFile,
    read_mask,
    read_pose,
    read_rig,
    refuse_overwriting,
    to_line,
    warn,
)
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
from drrkit.registration import Landmarks, rig_of
from drrkit.volume import Volume
from drrkit.xray import XRAY_KINDS, Xray, bone_is_bright, preprocess_xray, read_xray

FROM_FILE = "from the X-ray's file"


class XrayInput(NamedTuple):
    """An X-ray that was read: line integrals [1, 1, rows, cols], and weights like it or None.

    Of a film, line integrals [T, 1, rows, cols]. `kind` is what its pixels were taken for.
    """

    line: Tensor
    weights: Tensor | None
    file: Xray
    kind: str

    def to(self, device: torch.device) -> XrayInput:
        """The same on a device."""
        weights = None if self.weights is None else self.weights.to(device)
        return self._replace(line=self.line.to(device), weights=weights)


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
    mask: tuple[Path, ...] = option(
        "Image of pixel weights; 0 leaves a pixel out. Of several X-rays, one each.", multiple=True
    )
    frame: int | None = option("Which image of a run, from 0; -1 is the last.")
    calibration: tuple[Path, ...] = option(
        "Camera and start: MayaCam (.txt, .csv) or OpenCV's K, R, t (.yml, .xml, .json), with "
        "--sdd. Of several X-rays, one each.",
        multiple=True,
    )
    preprocess: bool = option(
        "A detector's raw image: find polarity, I0, collimator and vignette, take -log."
    )

    def load(
        self,
        views: Sequence[Sequence[Path]],
        sdd: float | None,
        device: torch.device,
        film: bool = False,
    ) -> list[XrayInput]:
        """Reads the files of every view: one image, or as a film the images of all its files.

        What the files had to be supplemented with is a warning.
        """
        if self.i0 is not None and not (self.i0 > 0 and math.isfinite(self.i0)):
            raise click.BadParameter(
                f"expected a positive number, got {self.i0}.", param_hint="--i0"
            )
        given = {"--mask": self.mask, "--calibration": self.calibration}
        for name, files in given.items():
            if len(files) not in (0, len(views)):
                raise click.UsageError(
                    f"{name}: expected one for each of {len(views)} X-rays, got {len(files)}."
                )
        columns = (files or [None] * len(views) for files in given.values())
        return [
            self._view(files, film, mask, calibration, sdd).to(device)
            for files, mask, calibration in zip(views, *columns, strict=True)
        ]

    def _view(
        self,
        files: Sequence[Path],
        film: bool,
        mask: Path | None,
        calibration: Path | None,
        sdd: float | None,
    ) -> XrayInput:
        path = files[0]
        for folder in filter(Path.is_dir, files):
            found = f"{folder}: expected an X-ray image, got a folder"
            raise ValueError(f"{found}; if this is the CT, it comes first")
        read = [read_xray(f, frames=self.frame, calibration=calibration, sdd=sdd) for f in files]
        xray = read[0]
        if len(xray.image) != 1 and not film:
            found = f"{path}: expected one image, got a run of {len(xray.image)}"
            raise ValueError(f"{found}; --frame chooses one, and if this is the CT, it comes first")
        for file, other in zip(files, read, strict=True):
            if other.image.shape[-2:] != xray.image.shape[-2:]:
                shapes = ("x".join(map(str, one.image.shape[-2:])) for one in (xray, other))
                wanted, found = shapes
                raise ValueError(f"{file}: expected {wanted} pixels as {path} has, got {found}")
        xray = replace(xray, image=torch.cat([one.image for one in read]))
        for text in dict.fromkeys(text for one in read for text in one.warnings):
            warn(f"{path}: {text}")
        kind = self.xray_kind or xray.kind or "line"
        if self.i0 is not None and kind != "intensity":
            raise click.UsageError("--i0 belongs to --xray-kind intensity.")
        line = to_line(path, xray.image, kind, self.i0)
        assumed = (self.xray_kind, xray.kind, self.preprocess) == (None, None, False)
        if assumed and not bone_is_bright(line[0]):
            warn(
                f"{path}: bone looks dark, and should be bright: --xray-kind inverted or "
                "intensity converts, --preprocess finds the polarity"
            )
        weights = None if mask is None else read_mask(mask, line[:1])
        if xray.mask is not None:
            weights = xray.mask if weights is None else weights * xray.mask
        return XrayInput(line, weights, xray, kind)

    def prepared(self, xray: XrayInput, camera: Camera) -> XrayInput:
        """The X-ray preprocessed, if asked for; on the whole detector, masked, not cropped."""
        if not self.preprocess:
            return xray
        kind = self.xray_kind or xray.file.kind or "auto"
        raw = [
            preprocess_xray(
                image[None],
                camera,
                kind="line" if kind == "display" else kind,
                i0=self.i0,
                mask=xray.file.mask,
                crop=False,
            )
            for image in xray.file.image
        ]
        mask = torch.cat([one.mask for one in raw]).amin(0, keepdim=True).to(xray.line)
        weights = mask if xray.weights is None else xray.weights * mask
        line = torch.cat([one.image for one in raw]).to(xray.line)
        return XrayInput(line, weights, xray.file, raw[0].kind)


class Problem(NamedTuple):
    """A registration to be done: the volume in mu, X-rays with their cameras, a start [1, 4, 4].

    rig_to_camera is None for one X-ray, else [V, 4, 4].
    """

    volume: Volume
    cameras: list[Camera]
    xrays: list[XrayInput]
    rig_to_camera: Tensor | None
    start: Tensor

    @property
    def xray_kind(self) -> str:
        """What `register` is told of the X-rays' scale."""
        return "display" if self.xrays[0].kind in ("display", "inverted") else "line"

    def arguments(self, negative: bool = False) -> dict[str, Any]:
        """What `register` takes of it; negative: with the X-rays' negatives."""
        lines = [-xray.line if negative else xray.line for xray in self.xrays]
        views = {"camera": self.cameras, "xray": lines, "mask": [x.weights for x in self.xrays]}
        if self.rig_to_camera is None:
            return {name: given[0] for name, given in views.items()}
        return {**views, "rig_to_camera": self.rig_to_camera}

    def views(self, world_to_camera: Tensor) -> list[tuple[Camera, Tensor, Tensor]]:
        """Camera, line integrals and pose of every X-ray, where the first camera's is given."""
        rig = [torch.eye(4)] if self.rig_to_camera is None else self.rig_to_camera
        return [
            (camera, xray.line, one.to(world_to_camera) @ world_to_camera)
            for camera, xray, one in zip(self.cameras, self.xrays, rig, strict=True)
        ]


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
    rig: Path | None = option(
        "Cameras of several X-rays and how they stand to each other: a result of several, or JSON "
        "like its views, [{camera, rig_to_camera}, ...]."
    )
    xray: XrayOptions = part()
    position: PoseOptions = part()
    detector: CameraOptions = part()
    method: str = method_option()
    ct: CTOptions = part()
    device: torch.device = device_option()

    def load(
        self,
        ct: Path,
        xrays: Sequence[Sequence[Path]],
        outputs: Sequence[Path | None],
        searching: bool,
        film: bool = False,
    ) -> Problem:
        """Reads everything.

        Args:
            ct: its file or folder.
            xrays, film: the files of every view, see `XrayOptions.load`.
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
        if self.rig is not None and self.xray.calibration:
            raise click.UsageError("--rig and --calibration: give one of them.")
        rig = [] if self.rig is None else read_rig(self.rig)
        if rig and len(rig) != len(xrays):
            raise ValueError(f"{self.rig}: expected {len(xrays)} views, got {len(rig)}")
        found = self.xray.load(xrays, self.detector.sdd, self.device, film)
        if not rig:
            self._check_placed([xray.file for xray in found])
        view, stored = "", None
        if self.landmarks is None:
            view, stored = known_start(self.init, found[0].file, self.position.sod, searching)
        inputs = [ct, *(file for files in xrays for file in files), self.rig, self.landmarks]
        inputs += [*self.xray.mask, *self.xray.calibration, self.ct.labels]
        refuse_overwriting(outputs, [*inputs, None if not stored else Path(self.init or "")])
        known = rig or ([stored] if len(xrays) == 1 else [None] * len(xrays))
        cameras = [
            xray_camera(self.detector, geometry, files[0], one.file)
            for geometry, files, one in zip(known, xrays, found, strict=True)
        ]
        found = [self.xray.prepared(*one) for one in zip(found, cameras, strict=True)]
        volume = self.ct.load(ct, self.device)
        start = self._start(volume, cameras[0], found[0], view, stored)
        return Problem(volume, cameras, found, self._rig(rig, found, volume), start)

    def _rig(
        self, rig: Sequence[PoseFile], xrays: Sequence[XrayInput], volume: Volume
    ) -> Tensor | None:
        """How several cameras stand to each other, [V, 4, 4]."""
        if rig:
            return rig_of(torch.stack([view.world_to_camera for view in rig]))
        if len(xrays) == 1:
            return None
        return rig_of(torch.cat([x.file.start(volume, self.position.sod)[:1] for x in xrays]))

    def _check_placed(self, files: Sequence[Xray]) -> None:
        """Several X-rays say how their cameras stand: all by calibrations, or all by angles."""
        placed = [file.world_to_camera is not None for file in files]
        turned = all(
            None not in (file.primary_deg, file.sod or self.position.sod) for file in files
        )
        if len(files) > 1 and not all(placed) and (any(placed) or not turned):
            raise click.UsageError(
                "Several X-rays: how do their cameras stand to each other? Give --calibration for "
                "each, or --rig."
            )

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
