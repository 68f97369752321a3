"""Groups of options that several commands share: the CT, the camera, the pose."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import click
import torch
from torch import Tensor

from drrkit._native import METHODS
from drrkit.cli.arguments import Device, Integers, Number, NumberRange, Numbers, Size, existing
from drrkit.cli.poses import pixel_pitch
from drrkit.geometry import (
    Camera,
    CArm,
    perturb,
    view_ap,
    view_carm,
    view_left_lateral,
    view_pa,
    view_right_lateral,
    volume_center,
)
from drrkit.phantoms import FIELD_MM
from drrkit.report import nearest_side
from drrkit.volume import Volume, read_volume

__all__ = [
    "SDD",
    "SOD",
    "VIEWS",
    "CTOptions",
    "CameraOptions",
    "PoseOptions",
    "check_unit",
    "device_option",
    "group_of",
    "grouped",
    "method_option",
    "orientation",
    "phantom_options",
    "seed_option",
    "voxel_mm_option",
]

SDD, SOD, ENERGY_KEV = 1020.0, 800.0, 70.0
VIEWS = {
    "AP": view_ap,
    "PA": view_pa,
    "LEFT-LATERAL": view_left_lateral,
    "RIGHT-LATERAL": view_right_lateral,
}

method_option = click.option(
    "--method", type=click.Choice(METHODS), default="joseph", show_default=True, help="Projector."
)
device_option = click.option(
    "--device", type=Device(), default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
)

voxel_mm_option = click.option(
    "--voxel-mm",
    type=NumberRange(0, min_open=True),
    help="Resample CTs to cubes of this size.  [default: their own]",
)
phantom_options = (
    click.option(
        "--anatomy",
        type=click.Choice(list(FIELD_MM)),
        default="pelvis",
        show_default=True,
        help="Of the phantoms.",
    ),
    click.option(
        "--voxels",
        type=click.IntRange(8, 512),
        default=48,
        show_default=True,
        help="Of a phantom, along each side.",
    ),
)


def seed_option(whose: str) -> Callable[[Callable], Callable]:
    """--seed, of what the words say; torch takes no larger ones."""
    seeds = click.IntRange(0, 2**63 - 1)
    return click.option("--seed", type=seeds, default=0, show_default=True, help=whose)


def grouped(group: Any, name: str) -> Callable[[Callable], Callable]:
    """Gives a command the options of a group, collected in one argument `name` of that class.

    A group is a dataclass with OPTIONS; those of its fields that are groups are in PARTS.
    """

    def decorate(command: Callable) -> Callable:
        @functools.wraps(command)
        def collected(*args: Any, **kwargs: Any) -> Any:
            made = group_of(group, kwargs)
            return command(*args, **kwargs, **{name: made})

        for option in reversed(group.OPTIONS):
            collected = option(collected)
        return collected

    return decorate


def group_of(group: Any, values: dict[str, Any]) -> Any:
    """The group of what `values` holds for its fields, which are taken out."""
    parts = getattr(group, "PARTS", {})
    made = {
        field.name: group_of(parts[field.name], values)
        if field.name in parts
        else values.pop(field.name)
        for field in fields(group)
    }
    return group(**made)


@dataclass(frozen=True)
class CTOptions:
    """How to read the CT; `load` does it."""

    unit: Literal["HU", "mu"]
    energy: float | None
    labels: Path | None
    select: tuple[int, ...] | None
    series: str | None

    OPTIONS = (
        click.option(
            "--unit",
            type=click.Choice(["HU", "mu"]),
            default="HU",
            show_default=True,
            help="What the CT's values are; mu is 1/mm.",
        ),
        click.option(
            "--energy",
            type=Number(),
            help=f"Effective keV for HU to mu, 40 to 120.  [default: {ENERGY_KEV:g}]",
        ),
        click.option("--labels", type=existing, help="Label map on the CT's grid, with --select."),
        click.option("--select", type=Integers(), help="Labels to keep; all else becomes air."),
        click.option(
            "--series", metavar="UID", help="Series of a DICOM folder that holds several."
        ),
    )

    def load(self, path: Path, device: torch.device) -> Volume:
        """The CT in mu on the device.

        Raises:
            click.UsageError: options that contradict each other.
            OSError, ValueError: as read_volume; values that are not in the unit said.
        """
        if self.unit == "mu" and self.energy is not None:
            raise click.UsageError(
                "--energy converts HU; a CT with --unit mu is converted already."
            )
        volume = self.read(path)
        if volume.unit == "HU":
            volume = volume.to_mu(self.energy_kev)
        return volume.to(device)

    def read(self, path: Path) -> Volume:
        """The CT in its own unit, with the labels that are wanted; raises as `load`."""
        if (self.labels is None) != (self.select is None):
            raise click.UsageError("--labels and --select belong together: give both or none.")
        volume = read_volume(path, labels=self.labels, series=self.series, unit=self.unit)
        if volume.values.dim() != 3:
            raise ValueError(f"{path}: expected one value a voxel, got {volume.values.shape[0]}")
        check_unit(path, volume)
        return volume if self.select is None else volume.select(self.select)

    @property
    def energy_kev(self) -> float:
        """The energy of the conversion from HU."""
        return ENERGY_KEV if self.energy is None else self.energy


@dataclass(frozen=True)
class CameraOptions:
    """The detector; None where the user said nothing."""

    sdd: float | None
    size: tuple[int, int] | None
    pixel_spacing: tuple[float, float] | None
    principal_point: tuple[float, float] | None
    parallel: bool

    OPTIONS = (
        click.option("--sdd", type=Number(), help=f"Source to detector, mm.  [default: {SDD:g}]"),
        click.option(
            "--size", type=Size(), help="Detector's pixels.  [default: the X-ray's, or 256x256]"
        ),
        click.option(
            "--pixel-spacing",
            type=Numbers("MM[,MM]", (1, 2), positive=True),
            help="Pitch at the detector, one or ROW,COL.  [default: the X-ray file's, or 1.4]",
        ),
        click.option(
            "--principal-point",
            type=Numbers("COL,ROW", (2,)),
            help="Pixel at the foot of the source.  [default: the detector's centre]",
        ),
        click.option("--parallel", is_flag=True, help="Parallel rays instead of a cone."),
    )

    def camera(
        self, stored: Camera | None, size: tuple[int, int], spacing: tuple[float, float]
    ) -> Camera:
        """The camera: options first, then a pose file's camera, then the size and spacing given.

        A stored camera whose size is changed keeps its principal point relative to the centre.

        Raises:
            ValueError: an option out of bounds, or one that would lose a stored camera's skew.
        """
        beam = "parallel" if self.parallel else "cone"
        if stored is None:
            sdd = SDD if self.sdd is None else self.sdd
            pitch = self.pixel_spacing or spacing
            return CArm(sdd, self.size or size, pitch, self.principal_point, beam=beam)
        if self == CameraOptions(None, None, None, None, False):
            return stored
        if float(stored.K[0, 1]) != 0.0:
            raise ValueError("camera: the pose file's K has a skew; geometry options would lose it")
        (old_rows, old_cols), (rows, cols) = stored.size, self.size or stored.size
        foot = self.principal_point or (
            float(stored.K[0, 2]) + (cols - old_cols) / 2,
            float(stored.K[1, 2]) + (rows - old_rows) / 2,
        )
        sdd = float(stored.sdd) if self.sdd is None else self.sdd
        pitch = self.pixel_spacing or pixel_pitch(stored)
        beam = "parallel" if self.parallel else stored.beam
        return CArm(sdd, (rows, cols), pitch, foot, beam=beam)


@dataclass(frozen=True)
class PoseOptions:
    """Where the C-arm stands, as degrees and mm; None where the user said nothing."""

    primary: float | None
    secondary: float | None
    sod: float | None
    xi: tuple[float, ...] | None

    OPTIONS = (
        click.option(
            "--primary",
            type=NumberRange(-360, 360),
            help="Turn of an AP or PA view about the patient, LAO +.",
        ),
        click.option(
            "--secondary",
            type=NumberRange(-360, 360),
            help="Then about the tilted transverse axis, CRA +.",
        ),
        click.option(
            "--sod", type=Number(), help=f"Source to the CT's centre, mm.  [default: {SOD:g}]"
        ),
        click.option(
            "--xi",
            type=Numbers("RX,RY,RZ,X,Y,Z", (6,)),
            help="Then move the patient: rotation vector in degrees about the CT's centre, and mm; "
            "camera axes.",
        ),
    )

    def pose(self, volume: Volume, view: str, stored: Tensor | None) -> Tensor:
        """world_to_camera [1, 4, 4] on the volume's device: a stored pose or a named view, moved.

        Raises:
            click.UsageError: options that do not go with the stored pose or the view.
        """
        if stored is None:
            pose = self._named(volume, view)
        else:
            for name in ("primary", "secondary", "sod"):
                if getattr(self, name) is not None:
                    raise click.UsageError(f"--{name} goes with a named view, not a pose file.")
            pose = stored[None].to(volume.values.device)
        if self.xi is None:
            return pose
        xi = [math.radians(angle) for angle in self.xi[:3]] + list(self.xi[3:])
        return perturb(pose, pose.new_tensor([xi]), volume_center(volume))

    def _named(self, volume: Volume, view: str) -> Tensor:
        sod = SOD if self.sod is None else self.sod
        angles = [math.radians(angle or 0.0) for angle in (self.primary, self.secondary)]
        if self.primary is None and self.secondary is None:
            return VIEWS[view](volume, sod)
        if view not in ("AP", "PA"):
            raise click.UsageError(f"--primary and --secondary turn an AP or PA view, not {view}.")
        return view_carm(volume, sod, *angles, base=view)


def orientation(world_to_camera: Tensor) -> str:
    """How an image lies, in words: which side of the patient is right, down and at the source."""
    rows = world_to_camera.reshape(4, 4)[:3, :3].cpu()
    return (
        f"image right = patient's {nearest_side(rows[0])}, down = {nearest_side(rows[1])}, "
        f"source {nearest_side(-rows[2])}"
    )


def check_unit(path: Path, volume: Volume) -> None:
    """Refuses values that cannot be in the volume's unit: the other one, most likely."""
    low, high = (float(value) for value in torch.aminmax(volume.values))
    found = f"got values from {low:g} to {high:g}"
    if volume.unit == "HU" and 0 < max(abs(low), abs(high)) <= 10:
        raise ValueError(
            f"{path}: expected Hounsfield units (air -1000, water 0), {found}, which look like "
            "attenuation in 1/mm: --unit mu says so"
        )
    if volume.unit == "mu" and (low < -0.5 or high > 10):
        raise ValueError(
            f"{path}: expected attenuation in 1/mm (water about 0.02), {found}, which look like "
            "Hounsfield units: leave out --unit mu"
        )
    if volume.unit == "HU" and low >= 0 and high > 500:
        click.echo(
            f"Warning: {path} has no value below 0, {found}: are these Hounsfield units? "
            "Air is -1000.",
            err=True,
        )
