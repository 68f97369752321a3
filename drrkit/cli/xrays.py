"""How the command line reads X-rays: what their pixels mean, which of them count."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import click
import torch
from torch import Tensor

from drrkit.cli.arguments import Number, existing
from drrkit.cli.images import read_mask, to_line
from drrkit.geometry import Camera
from drrkit.xray import XRAY_KINDS, Xray, bone_is_bright, preprocess_xray, read_xray

__all__ = ["Seen", "XrayOptions"]


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
            "--i0", type=Number(), help="Intensity without patient.  [default: the brightest pixel]"
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
            found = f"{path}: expected an X-ray image, got a folder"
            raise ValueError(f"{found}; if this is the CT, it comes first")
        xray = read_xray(path, frames=self.frame, calibration=self.calibration, sdd=sdd)
        if len(xray.image) != 1:
            found = f"{path}: expected one image, got a run of {len(xray.image)}"
            raise ValueError(f"{found}; --frame chooses one, and if this is the CT, it comes first")
        for text in xray.warnings:
            click.echo(f"Warning: {path}: {text}.", err=True)
        kind = self.xray_kind or xray.kind or "line"
        if self.i0 is not None and kind != "intensity":
            raise click.UsageError("--i0 belongs to --xray-kind intensity.")
        line = to_line(path, xray.image, kind, self.i0)
        if not self.preprocess and not bone_is_bright(line):
            click.echo(
                f"Warning: {path}: bone looks dark, and should be bright: --xray-kind inverted "
                "or intensity converts, --preprocess finds out.",
                err=True,
            )
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
