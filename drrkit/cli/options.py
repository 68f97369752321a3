"""How options are declared, and those that several commands share: CT, camera, pose, device, seed.

A command is a function, and a group of options a dataclass; `option` and `argument` are the
defaults of their parameters and fields. The type follows from the annotation where none is given: a
bool is a flag, a float any finite number, a Path one that exists, a Literal one of its words.
"""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click
import torch
from click.shell_completion import CompletionItem
from torch import Tensor

from drrkit._native import METHODS
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
from drrkit.volume import UNITS_MM, Volume, read_mesh, read_volume

SDD, SOD, ENERGY_KEV = 1020.0, 800.0, 70.0
SIZE, PIXEL_SPACING = (256, 256), (1.4, 1.4)
VIEWS = {
    "AP": view_ap,
    "PA": view_pa,
    "LEFT-LATERAL": view_left_lateral,
    "RIGHT-LATERAL": view_right_lateral,
}

MESHES = (".stl", ".ply", ".obj")

# ---- parameter types: they convert a word, or fail and name what was expected


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


POSITIVE, COUNT = NumberRange(0, min_open=True), click.IntRange(1)


class Numbers(click.ParamType):
    """Finite numbers separated by commas.

    Args:
        name: shown in the help.
        counts: how many numbers may come, any if empty; a single one stands for all when 1 is
            among them.
        kind: float, or int for whole numbers.
        positive: refuse zero and less.
    """

    separator = ","

    def __init__(
        self, name: str, counts: tuple[int, ...] = (), kind: type = float, positive: bool = False
    ) -> None:
        self.name, self.counts, self.kind, self.positive = name, counts, kind, positive

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self.kind(word) for word in value.split(","))
        except ValueError:
            numbers = ()
        usable = all(math.isfinite(n) and (n > 0 or not self.positive) for n in numbers)
        if not numbers or not usable or (self.counts and len(numbers) not in self.counts):
            words = " or ".join(map(str, self.counts)), "positive" * self.positive
            words = *words, "whole" * (self.kind is int), "numbers separated by commas"
            self.fail(f"expected {' '.join(filter(None, words))}, got {value!r}.", param, ctx)
        return numbers * max(self.counts, default=1) if len(numbers) == 1 else numbers


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
        path, problem = Path(value), None
        if not path.name.lower().endswith(self.suffixes):
            problem = f"expected a file name ending in {', '.join(self.suffixes)}, got {value!r}."
        elif not path.parent.is_dir():
            problem = f"the folder {str(path.parent)!r} does not exist."
        elif path.is_dir():
            problem = f"{value!r} is a folder."
        elif not os.access(path.parent, os.W_OK):
            problem = f"the folder {str(path.parent)!r} cannot be written to."
        return path if problem is None else self.fail(problem, param, ctx)


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

    Files come first: bash drops the proposals before them.
    """
    found = [CompletionItem(n) for n in names if n.lower().startswith(incomplete.lower())]
    return [CompletionItem(incomplete, type="file")] * files + found


# ---- declarations


def option(help: str | None = None, *flags: str, **settings: Any) -> Any:
    """An option of the command line.

    Args:
        help: its line in the help.
        flags: default the name of the parameter or field, in dashes.
        settings: of `click.Option`.
    """
    return field(metadata={"class": click.Option, "flags": flags, "help": help, **settings})


def argument(**settings: Any) -> Any:
    """An argument of the command line; settings of `click.Argument`."""
    return field(metadata={"class": click.Argument, "flags": (), **settings})


def part() -> Any:
    """A field of a group that is a group itself, a dataclass."""
    return field()


def _declared(owner: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, annotation and declaration of what a command or a group takes, groups included."""
    given = getattr(owner, "__dataclass_fields__", None)
    if given is None:
        given = {p.name: p.default for p in inspect.signature(owner).parameters.values()}
    for name, hint in get_type_hints(owner).items():
        declared = getattr(given.get(name), "metadata", {})
        if name in given and (declared or is_dataclass(hint)):  # others keep their defaults
            yield name, hint, declared


def parameters(owner: Any) -> list[click.Parameter]:
    """The options and arguments of a command's function or of a group, in their order."""
    found: list[click.Parameter] = []
    for name, hint, declared in _declared(owner):
        if is_dataclass(hint):
            found += parameters(hint)
            continue
        settings = {**_type_of(hint), **declared}
        kind, flags = settings.pop("class"), settings.pop("flags")
        flags = flags or ((f"--{name.replace('_', '-')}",) if kind is click.Option else ())
        found.append(kind([name, *flags], **settings))
    return found


def _type_of(hint: Any) -> dict[str, Any]:
    """The settings that follow from an annotation."""
    if NoneType in get_args(hint):
        hint = next(kind for kind in get_args(hint) if kind is not NoneType)
    if get_origin(hint) is tuple:
        hint = get_args(hint)[0]
    if hint is bool:
        return {"is_flag": True}
    if get_origin(hint) is Literal:
        return {"type": click.Choice(get_args(hint))}
    types = {
        float: Number(),
        int: click.INT,
        Path: click.Path(exists=True, path_type=Path),
        torch.device: Device(),
    }
    return {"type": types[hint]} if hint in types else {}


def collected(owner: Any, values: dict[str, Any]) -> Any:
    """Calls a command's function, or makes a group, with its part of a command line's values."""
    return owner(
        **{
            name: collected(hint, values) if is_dataclass(hint) else values[name]
            for name, hint, _ in _declared(owner)
        }
    )


def method_option() -> Any:
    """--method, how rays are integrated."""
    return option("Projector.", type=click.Choice(METHODS), default="joseph")


def device_option() -> Any:
    """--device."""
    return option("auto, cpu, cuda or cuda:N.", default="auto")


def quiet_option() -> Any:
    """--quiet."""
    return option("No progress on stderr.", "--quiet", "-q")


def seed_option(use: str) -> Any:
    """--seed, with its use in words; torch accepts none larger."""
    return option(use, type=click.IntRange(0, 2**63 - 1), default=0)


def out_option(content: str, **settings: Any) -> Any:
    """--out, a folder for this content, made if missing; required unless settings say otherwise."""
    kind = click.Path(file_okay=False, path_type=Path)
    return option(content, type=kind, **(settings or {"required": True}))


# ---- groups that several commands share


def read_ct(path: Path, *, unit: Literal["HU", "mu"] = "HU", **where: Any) -> Volume:
    """A CT of one channel, checked to be in its unit.

    Args:
        path: a file, or the folder of a DICOM series.
        unit: of its values.
        where: labels and series, as for `read_volume`.

    Raises:
        OSError, ValueError: as read_volume; several channels; values that cannot be in this unit.
    """
    volume = read_volume(path, unit=unit, **where)
    if volume.values.dim() != 3:
        channels = volume.values.shape[0]
        raise ValueError(f"{path}: expected a single-channel volume, got {channels} channels")
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
    return volume


@dataclass(frozen=True)
class CTOptions:
    """How to read the CT; `load` does it."""

    unit: Literal["HU", "mu"] = option("What the CT's values are; mu is 1/mm.", default="HU")
    energy: float | None = option(
        f"Effective keV for HU to mu, 40 to 120.  [default: {ENERGY_KEV:g}]"
    )
    labels: Path | None = option("Label map on the CT's grid, with --select.")
    select: tuple[int, ...] | None = option(
        "Labels to keep; all else becomes air.", type=Numbers("N,N,...", kind=int)
    )
    series: str | None = option("Series of a DICOM folder that holds several.", metavar="UID")
    mu: float = option(
        f"Attenuation of a surface ({', '.join(MESHES)}), which may stand for CT, 1/mm.",
        type=POSITIVE,
        default=0.3,
    )
    mesh_unit: str | None = option(
        f"Unit of the surface's coordinates: {', '.join(UNITS_MM)}.  [default: mm]",
        type=click.Choice(list(UNITS_MM)),
    )

    def load(self, path: Path, device: torch.device) -> Volume:
        """The CT in mu on the device.

        Raises:
            click.UsageError: options that contradict each other.
            OSError, ValueError: as read_ct.
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
        if path.suffix.lower() in MESHES:
            volume = read_mesh(path, self.mu, units=self.mesh_unit)
            pairs = zip(volume.shape_xyz, volume.spacing, strict=True)
            size = " x ".join(f"{(count - 2) * step:.3g}" for count, step in pairs)
            click.echo(f"{path.name}: a surface of {size} mm", err=True)
            return volume
        volume = read_ct(path, unit=self.unit, labels=self.labels, series=self.series)
        return volume if self.select is None else volume.select(self.select)


@dataclass(frozen=True)
class CameraOptions:
    """The detector; None where nothing was given."""

    sdd: float | None = option(f"Source to detector, mm.  [default: {SDD:g}]")
    size: tuple[int, int] | None = option(
        "Detector's pixels.  [default: the X-ray's, or 256x256]", type=Size()
    )
    pixel_spacing: tuple[float, float] | None = option(
        "Pitch at the detector, one or ROW,COL.  [default: the X-ray file's, or 1.4]",
        type=Numbers("MM[,MM]", (1, 2), positive=True),
    )
    principal_point: tuple[float, float] | None = option(
        "Pixel at the foot of the source.  [default: the detector's centre]",
        type=Numbers("COL,ROW", (2,)),
    )
    parallel: bool = option("Parallel rays instead of a cone.")

    def camera(
        self,
        stored: Camera | None,
        size: tuple[int, int] = SIZE,
        spacing: tuple[float, float] = PIXEL_SPACING,
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
        beam = "parallel" if self.parallel else stored.beam
        return CArm(sdd, (rows, cols), self.pixel_spacing or stored.pixel_spacing, foot, beam=beam)


@dataclass(frozen=True)
class PoseOptions:
    """Where the C-arm stands, in degrees and mm; None where nothing was given."""

    primary: float | None = option(
        "Turn of an AP or PA view about the patient, LAO +.", type=NumberRange(-360, 360)
    )
    secondary: float | None = option(
        "Turn about the tilted transverse axis after that, CRA +.", type=NumberRange(-360, 360)
    )
    sod: float | None = option(f"Source to the CT's centre, mm.  [default: {SOD:g}]")
    xi: tuple[float, ...] | None = option(
        "Move the patient from there: rotation vector in degrees about the CT's centre, mm; camera "
        "axes.",
        type=Numbers("RX,RY,RZ,X,Y,Z", (6,)),
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
        if self.primary is None and self.secondary is None:
            return VIEWS[view](volume, sod)
        if view not in ("AP", "PA"):
            raise click.UsageError(f"--primary and --secondary turn an AP or PA view, not {view}.")
        angles = (math.radians(angle or 0.0) for angle in (self.primary, self.secondary))
        return view_carm(volume, sod, *angles, base=view)
