"""Types of values, and the options that several commands share: CT, camera, pose, device, seed."""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import click
import torch
from click.shell_completion import CompletionItem
from torch import Tensor

from drrkit._native import METHODS
from drrkit.cli.io import pixel_pitch
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
from drrkit.volume import Volume, read_volume

SDD, SOD, ENERGY_KEV = 1020.0, 800.0, 70.0
VIEWS = {
    "AP": view_ap,
    "PA": view_pa,
    "LEFT-LATERAL": view_left_lateral,
    "RIGHT-LATERAL": view_right_lateral,
}

# ---- types: each turns a word into a value or says what it expected

existing = click.Path(exists=True, path_type=Path)


class Size(click.ParamType):
    """ROWSxCOLS in pixels, or one number for a square: (rows, cols)."""

    name = "ROWSxCOLS"
    separator = "x"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d{1,6})(?:[xX](\d{1,6}))?", value.strip())
        rows, cols = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if rows < 1 or cols < 1:
            self.fail(f"expected ROWSxCOLS pixels such as 256x256, got {value!r}.", param, ctx)
        return rows, cols


class _Finite(click.ParamType):
    """Refuses nan and infinity, which click's own numbers accept."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"expected a finite number, got {value!r}.", param, ctx)
        return number


class Number(_Finite, click.types.FloatParamType):
    """A finite number."""


class NumberRange(_Finite, click.FloatRange):
    """A finite number in a range."""


class Numbers(click.ParamType):
    """Finite numbers separated by commas.

    Args:
        name: shown in the help.
        counts: how many numbers may come; a single one stands for all when 1 is among them.
        positive: refuse zero and less.
    """

    separator = ","

    def __init__(self, name: str, counts: tuple[int, ...], positive: bool = False) -> None:
        self.name, self.counts, self.positive = name, counts, positive

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(word) for word in value.split(","))
        except ValueError:
            numbers = ()
        usable = all(math.isfinite(n) and (n > 0 or not self.positive) for n in numbers)
        if len(numbers) not in self.counts or not usable:
            kind = "positive numbers" if self.positive else "numbers"
            wanted = " or ".join(map(str, self.counts))
            self.fail(f"expected {wanted} {kind} separated by commas, got {value!r}.", param, ctx)
        return numbers * max(self.counts) if len(numbers) == 1 else numbers


class Integers(click.ParamType):
    """Whole numbers separated by commas, at least one."""

    name = "N,N,..."
    separator = ","

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(word) for word in value.split(","))
        except ValueError:
            self.fail(f"expected whole numbers separated by commas, got {value!r}.", param, ctx)


class OutputFile(click.ParamType):
    """A file to write, checked before any work is done: its suffix, and that its folder is there.

    Args:
        suffixes: the endings it may have.
    """

    name = "FILE"

    def __init__(self, *suffixes: str) -> None:
        self.suffixes = suffixes

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[CompletionItem]:
        return completions((), incomplete, files=True)

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        path = Path(value)
        if not path.name.lower().endswith(self.suffixes):
            choices = ", ".join(self.suffixes)
            self.fail(f"expected a file name ending in {choices}, got {value!r}.", param, ctx)
        if not path.parent.is_dir():
            self.fail(f"the folder {str(path.parent)!r} does not exist.", param, ctx)
        if path.is_dir():
            self.fail(f"{value!r} is a folder.", param, ctx)
        if not os.access(path.parent, os.W_OK):
            self.fail(f"the folder {str(path.parent)!r} cannot be written to.", param, ctx)
        return path


class Device(click.ParamType):
    """auto (a GPU where drrkit and torch can use one), cpu, cuda or cuda:N: a torch.device."""

    name = "DEVICE"

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[CompletionItem]:
        return completions(("auto", "cpu", "cuda"), incomplete)

    def convert(self, value: Any, param: Any, ctx: Any) -> torch.device:
        if isinstance(value, torch.device):
            return value
        from drrkit import _C

        if value == "auto":
            return torch.device("cuda" if _C.has_cuda and torch.cuda.is_available() else "cpu")
        if value == "cpu":
            return torch.device("cpu")
        if not re.fullmatch(r"cuda(:\d{1,3})?", value):
            self.fail(f"expected auto, cpu, cuda or cuda:N, got {value!r}.", param, ctx)
        if not _C.has_cuda:
            self.fail("this drrkit was built without CUDA; see drrkit info.", param, ctx)
        device, count = torch.device(value), torch.cuda.device_count()
        if (device.index or 0) >= count:
            self.fail(f"{value!r}: torch sees {count} CUDA devices.", param, ctx)
        return device


def completions(names: Iterable[str], incomplete: str, files: bool = False) -> list[CompletionItem]:
    """What a shell proposes for a word: the names that begin like it, and files.

    Files come first: bash discards earlier proposals when it is told to propose files.
    """
    found = [CompletionItem(n) for n in names if n.lower().startswith(incomplete.lower())]
    return [CompletionItem(incomplete, type="file")] * files + found


# ---- groups of options


def option(*flags: str, like: Any = None, **settings: Any) -> Any:
    """A field of a group that is an option of the command line.

    Args:
        flags: default the field's name, in dashes.
        like: a decorator that `click.option` returned, of the field's name, instead of settings.
        settings: of `click.option`.
    """
    return field(metadata={"flags": flags, "like": like, "settings": settings})


def part(group: type) -> Any:
    """A field of a group that is a group itself."""
    return field(metadata={"part": group})


def grouped(group: type, name: str) -> Callable[[Callable], Callable]:
    """Gives a command the options of a group, collected in one argument `name` of that class.

    A group is a dataclass whose fields are made by `option` and `part`.
    """

    def decorate(command: Callable) -> Callable:
        @functools.wraps(command)
        def collected(*args: Any, **kwargs: Any) -> Any:
            made = taken_from(group, kwargs)
            return command(*args, **kwargs, **{name: made})

        for decorator in reversed(list(_decorators(group))):
            collected = decorator(collected)
        return collected

    return decorate


def taken_from(group: Any, values: dict[str, Any]) -> Any:
    """The group with the values of its fields, which are removed from `values`."""
    made = {
        one.name: taken_from(one.metadata["part"], values)
        if "part" in one.metadata
        else values.pop(one.name)
        for one in fields(group)
    }
    return group(**made)


def _decorators(group: Any) -> Iterable[Callable]:
    for one in fields(group):
        if "part" in one.metadata:
            yield from _decorators(one.metadata["part"])
        elif one.metadata["like"] is not None:
            yield one.metadata["like"]
        else:
            flags = one.metadata["flags"] or (f"--{one.name.replace('_', '-')}",)
            yield click.option(one.name, *flags, **one.metadata["settings"])


method_option = click.option(
    "--method", type=click.Choice(METHODS), default="joseph", help="Projector."
)
device_option = click.option(
    "--device", type=Device(), default="auto", help="auto, cpu, cuda or cuda:N."
)
quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")


def seed_option(use: str) -> Callable[[Callable], Callable]:
    """--seed, with its use in words; torch accepts none larger."""
    return click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, help=use)


def out_option(content: str, **settings: Any) -> Callable[[Callable], Callable]:
    """--out, a folder for this content, made if missing; required unless settings say otherwise."""
    kind = click.Path(file_okay=False, path_type=Path)
    return click.option("--out", type=kind, help=content, **(settings or {"required": True}))


@dataclass(frozen=True)
class CTOptions:
    """How to read the CT; `load` does it."""

    unit: Literal["HU", "mu"] = option(
        type=click.Choice(["HU", "mu"]), default="HU", help="What the CT's values are; mu is 1/mm."
    )
    energy: float | None = option(
        type=Number(), help=f"Effective keV for HU to mu, 40 to 120.  [default: {ENERGY_KEV:g}]"
    )
    labels: Path | None = option(type=existing, help="Label map on the CT's grid, with --select.")
    select: tuple[int, ...] | None = option(
        type=Integers(), help="Labels to keep; all else becomes air."
    )
    series: str | None = option(metavar="UID", help="Series of a DICOM folder that holds several.")

    def load(self, path: Path, device: torch.device) -> Volume:
        """The CT in mu on the device.

        Raises:
            click.UsageError: options that contradict each other.
            OSError, ValueError: as read_volume; values that cannot be in the unit given.
        """
        if self.unit == "mu" and self.energy is not None:
            raise click.UsageError(
                "--energy converts HU; a CT with --unit mu is converted already."
            )
        volume = self.read(path)
        if volume.unit == "HU":
            volume = volume.to_mu(ENERGY_KEV if self.energy is None else self.energy)
        return volume.to(device)

    def read(self, path: Path) -> Volume:
        """The CT in its own unit, with the selected labels; raises as `load`."""
        if (self.labels is None) != (self.select is None):
            raise click.UsageError("--labels and --select belong together: give both or none.")
        volume = read_volume(path, labels=self.labels, series=self.series, unit=self.unit)
        if volume.values.dim() != 3:
            channels = volume.values.shape[0]
            raise ValueError(f"{path}: expected a single-channel volume, got {channels} channels")
        check_unit(path, volume)
        return volume if self.select is None else volume.select(self.select)


@dataclass(frozen=True)
class CameraOptions:
    """The detector; None where nothing was given."""

    sdd: float | None = option(type=Number(), help=f"Source to detector, mm.  [default: {SDD:g}]")
    size: tuple[int, int] | None = option(
        type=Size(), help="Detector's pixels.  [default: the X-ray's, or 256x256]"
    )
    pixel_spacing: tuple[float, float] | None = option(
        type=Numbers("MM[,MM]", (1, 2), positive=True),
        help="Pitch at the detector, one or ROW,COL.  [default: the X-ray file's, or 1.4]",
    )
    principal_point: tuple[float, float] | None = option(
        type=Numbers("COL,ROW", (2,)),
        help="Pixel at the foot of the source.  [default: the detector's centre]",
    )
    parallel: bool = option(is_flag=True, help="Parallel rays instead of a cone.")

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
            origin = "assumed" if self.sdd is None and not self.parallel else "user"
            pitch, foot = self.pixel_spacing or spacing, self.principal_point
            return CArm(sdd, self.size or size, pitch, foot, beam=beam, origin=origin)
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
    """Where the C-arm stands, in degrees and mm; None where nothing was given."""

    primary: float | None = option(
        type=NumberRange(-360, 360), help="Turn of an AP or PA view about the patient, LAO +."
    )
    secondary: float | None = option(
        type=NumberRange(-360, 360), help="Then about the tilted transverse axis, CRA +."
    )
    sod: float | None = option(
        type=Number(), help=f"Source to the CT's centre, mm.  [default: {SOD:g}]"
    )
    xi: tuple[float, ...] | None = option(
        type=Numbers("RX,RY,RZ,X,Y,Z", (6,)),
        help="Then move the patient: rotation vector in degrees about the CT's centre, and mm; "
        "camera axes.",
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


def check_unit(path: Path, volume: Volume) -> None:
    """Raises ValueError for values that cannot be in the volume's unit: the other one, probably."""
    low, high = (float(value) for value in torch.aminmax(volume.values))
    found = f"got values from {low:g} to {high:g}"
    if volume.unit == "HU" and 0 < max(abs(low), abs(high)) <= 10:
        raise ValueError(
            f"{path}: expected Hounsfield units (air -1000, water 0), {found}, which look like "
            "attenuation in 1/mm: use --unit mu"
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
