"""`drrkit train nett` and `drrkit train mnerf`: scenes that learn from X-rays with known poses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import click
import torch

from drrkit.cli.command import Answer, command
from drrkit.cli.io import camera_as_dict, read_pose, to_line
from drrkit.cli.options import COUNT, POSITIVE, SDD, NumberRange, option
from drrkit.cli.train import (
    ScanOptions,
    TrainingOptions,
    run_training,
)
from drrkit.fields import (
    FORMATIONS,
    IMAGE_LOSSES,
    LOCAL_FEATURES,
    ImageObjective,
    MNeRF,
    MNeRFTask,
    NeTT,
    NeTTTask,
    Pairs,
    check_subjects,
    random_views,
    save_field,
)
from drrkit.geometry import CArm
from drrkit.training import generator
from drrkit.volume import Volume
from drrkit.xray import (
    DICOM_SUFFIXES,
    PICTURE_SUFFIXES,
    RASTER_SUFFIXES,
    XRAY_KINDS,
    read_xray,
    simulate_xray,
)

FILE, FOLDER = click.Path(exists=True), click.Path(exists=True, file_okay=False)
IMAGE_SUFFIXES = (".npy", *PICTURE_SUFFIXES, *RASTER_SUFFIXES, *DICOM_SUFFIXES)


@dataclass(frozen=True)
class PosedXrayOptions(ScanOptions):
    """X-rays with known poses and their CTs; `load` reads or simulates them."""

    pairs: tuple[tuple[str, str], ...] = option(
        "A subject's CT in HU and a folder of its X-rays with their poses: NAME.npy (or .png, "
        ".nii.gz ...) and the pose file NAME.json with a camera. May be repeated, once per "
        "subject.  [default: phantoms]",
        type=(FILE, FOLDER),
        multiple=True,
        metavar="CT FOLDER",
    )
    validate_on: tuple[tuple[str, str], ...] = option(
        "Like --pairs, of subjects to validate on.",
        type=(FILE, FOLDER),
        multiple=True,
        metavar="CT FOLDER",
    )
    xray_kind: str = option(
        "What the X-rays' pixels are, as in drrkit register.",
        type=click.Choice(XRAY_KINDS),
        default="line",
    )
    phantoms: int = option(
        "Number of random phantoms without --pairs; of several the last is validated on.",
        type=COUNT,
        default=4,
    )
    views: int = option("Simulated X-rays of a phantom.", type=click.IntRange(2), default=133)
    pixels: int = option(
        "Pixels of a simulated X-ray along each side.", type=click.IntRange(8), default=128
    )

    def load(self, seed: int, device: torch.device) -> tuple[list[Pairs], list[Pairs]]:
        """X-rays with poses to train on and to validate on, of different subjects.

        Raises:
            click.UsageError: --validate-on without --pairs.
            OSError, ValueError: files with unexpected content; one subject in both.
        """
        if self.validate_on and not self.pairs:
            raise click.UsageError("--validate-on needs --pairs.")
        if self.pairs:
            given = (self.pairs, self.validate_on)
            parts = [[self._read(Path(ct), Path(x)) for ct, x in part] for part in given]
        else:
            drawn = [self._simulated(number, seed) for number in range(self.phantoms)]
            last = len(drawn) - 1 if len(drawn) > 1 else len(drawn)
            parts = [drawn[:last], drawn[last:]]
        train, validation = ([one.to(device) for one in part] for part in parts)
        check_subjects([*train, *validation])
        return train, validation

    def _read(self, ct: Path, folder: Path) -> Pairs:
        volume = self.read(ct).to_mu()
        return read_posed_xrays(ct.name.split(".")[0], volume, folder, self.xray_kind)

    def _simulated(self, number: int, seed: int) -> Pairs:
        ct = self.phantom(number)
        camera = CArm(SDD, (self.pixels, self.pixels), 128 * 2.176 / self.pixels)
        poses = random_views(ct, self.views, number, turn=math.radians(25.0))
        noise = int(torch.randint(1 << 30, (1,), generator=generator(seed, number)))
        xrays = [simulate_xray(ct, camera, pose, seed=noise + k) for k, pose in enumerate(poses)]
        return Pairs(f"{self.anatomy}-{number}", ct.to_mu(), camera, torch.cat(xrays), poses)


def read_posed_xrays(subject: str, volume: Volume, folder: Path, xray_kind: str = "line") -> Pairs:
    """All X-rays of a folder that have a pose file beside them, in the order of their names.

    Args:
        subject, volume: as for Pairs.
        folder: NAME.json (a pose file with a camera) and NAME with an image's ending.
        xray_kind: see `drrkit.cli.io.to_line`.

    Raises:
        OSError, ValueError: a file with unexpected content, a pose without a camera or without an
            image, X-rays of different cameras, or no X-rays.
    """
    poses, images, first = [], [], None
    for path in sorted(folder.glob("*.json")):
        pose, camera = read_pose(path)
        if camera is None:
            raise ValueError(f"{path}: expected a camera beside the pose")
        if first is not None and camera_as_dict(camera) != camera_as_dict(first):
            raise ValueError(f"{path}: expected the camera of the other X-rays in {folder}")
        first = first or camera
        image = _beside(path)
        pixels = read_xray(image).image
        if tuple(pixels.shape[-2:]) != tuple(camera.size):
            rows, cols = camera.size
            raise ValueError(
                f"{image}: expected {rows}x{cols} pixels as the camera has, "
                f"got {pixels.shape[-2]}x{pixels.shape[-1]}"
            )
        poses.append(pose)
        images.append(to_line(image, pixels, xray_kind, None))
    if first is None:
        raise ValueError(f"{folder}: expected X-rays with pose files (*.json), found none")
    return Pairs(subject, volume, first, torch.cat(images).float(), torch.stack(poses))


def _beside(pose: Path) -> Path:
    """The image that belongs to a pose file."""
    candidates = (pose.with_name(pose.stem + end) for end in IMAGE_SUFFIXES)
    found = [path for path in candidates if path.exists()]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ValueError(f"{pose}: expected one image {pose.stem}.* beside it, found {names}")
    return found[0]


@dataclass(frozen=True)
class ObjectiveOptions(ImageObjective):
    """How images are compared."""

    loss: str = option("Loss of the images.", type=click.Choice(list(IMAGE_LOSSES)), default="mse")
    formation: str = option(
        "rc: X-rays are like line integrals; vr: like 1 - exp(-I).",
        type=click.Choice(list(FORMATIONS)),
        default="rc",
    )
    normalised: bool = option(
        "Compare images mapped to [0, 1], or as they are.", "--normalised/--absolute", default=True
    )
    rate: float = option("Learning rate at the start.", type=POSITIVE, default=5e-3)
    final_rate: float = option("Learning rate at the end.", type=POSITIVE, default=5e-4)


@command("nett")
def nett_command(
    *,
    features: tuple[str, ...] = option(
        "Inputs of the network besides the density; may be repeated.",
        type=click.Choice(list(LOCAL_FEATURES)),
        multiple=True,
    ),
    octaves: int = option("Octaves of the positional encoding.", type=click.IntRange(0), default=5),
    width: int = option("Neurons per layer.", type=COUNT, default=64),
    depth: int = option("Hidden layers.", type=COUNT, default=3),
    batch: int = option("X-rays per step.", type=COUNT, default=4),
    compared: ObjectiveOptions,
    data: PosedXrayOptions,
    how: TrainingOptions,
) -> Answer | None:
    """Train NeTT, which tunes CTs until their DRRs look like X-rays; it serves other patients, too.

    Writes nett.pt. Published as a part of DiffProj (arXiv 2308.00214).
    """
    train, validation = data.load(how.seed, how.own_device)
    torch.manual_seed(how.seed)
    nett = NeTT(octaves=octaves, width=width, depth=depth, features=features).to(how.own_device)
    task = NeTTTask(
        nett,
        train,
        validation,
        objective=compared,
        steps=how.steps,
        batch=batch,
        seed=how.seed,
    )
    parts = {"train": train, "validation": validation}
    split = {part: [one.subject for one in held] for part, held in parts.items()}
    notes = {"steps": how.steps, "split": split}
    return run_training(task, nett, how, notes, "nett.pt", lambda path, _: save_field(nett, path))


@dataclass(frozen=True)
class FieldOptions:
    """The network of a neural field, and the distance of its samples."""

    octaves: int = option("Octaves of the positional encoding.", type=click.IntRange(0), default=6)
    width: int = option("Neurons per layer.", type=COUNT, default=64)
    depth: int = option("Hidden layers.", type=COUNT, default=4)
    skip: int | None = option("Hidden layer that gets the position again.", type=COUNT)
    levels: int = option(
        "Levels of learned features on nested grids: fine structure in far fewer steps.",
        type=click.IntRange(0),
        default=0,
    )
    cell: float | None = option("Cell size of the finest level, mm.", type=POSITIVE)
    step: float | None = option("Distance between samples, mm.", type=POSITIVE)


@command("mnerf")
def mnerf_command(
    *,
    shape: FieldOptions,
    threshold: float | None = option(
        "Threshold of the body, 1/mm.  [default: 0.01, half of water's]"
    ),
    margin: float = option("Margin about the body, mm.", type=NumberRange(0), default=5.0),
    images: int = option("X-rays per step.", type=COUNT, default=8),
    rays: int = option("Rays per X-ray.", type=COUNT, default=128),
    held_out: int = option("X-rays to validate on.", type=COUNT, default=4),
    compared: ObjectiveOptions,
    data: PosedXrayOptions,
    how: TrainingOptions,
) -> Answer | None:
    """Train mNeRF, a neural field of one subject's attenuation, zero outside the body's mask.

    Writes mnerf.pt. With --absolute X-rays are line integrals and the field is in 1/mm. Without
    --pairs the first phantom is the subject.
    """
    if len(data.pairs) > 1 or data.validate_on:
        raise click.UsageError("A field is of one subject: give --pairs once, no --validate-on.")
    (xrays, *_), _ = data.load(how.seed, how.own_device)
    train, validation = xrays.held_out(held_out, how.seed)
    torch.manual_seed(how.seed)
    field = MNeRF.inside(train.volume, threshold, margin, **vars(shape))
    task = MNeRFTask(
        field,
        train,
        validation,
        objective=compared,
        steps=how.steps,
        images=images,
        rays=rays,
        seed=how.seed,
    )
    notes = {"steps": how.steps, "subject": xrays.subject}
    return run_training(
        task, field, how, notes, "mnerf.pt", lambda path, _: save_field(field, path)
    )
