"""Pairs of X-ray and pose from folders, and simulated ones where there are none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from drrkit.cli.images import to_line
from drrkit.cli.options import SDD, phantom_options, voxel_mm_option
from drrkit.cli.poses import read_pose
from drrkit.fields import Pairs, check_subjects, random_views
from drrkit.geometry import Camera, CArm
from drrkit.phantoms import random_anatomy
from drrkit.training import generator
from drrkit.volume import Volume, read_volume
from drrkit.xray import (
    DICOM_SUFFIXES,
    PICTURE_SUFFIXES,
    RASTER_SUFFIXES,
    XRAY_KINDS,
    read_xray,
    simulate_xray,
)

__all__ = ["PairOptions", "read_pairs"]

FILE, FOLDER = click.Path(exists=True), click.Path(exists=True, file_okay=False)
IMAGE_SUFFIXES = (".npy", *PICTURE_SUFFIXES, *RASTER_SUFFIXES, *DICOM_SUFFIXES)


@dataclass(frozen=True)
class PairOptions:
    """Whose X-rays, of which kind; `load` reads or simulates them."""

    pairs: tuple[tuple[str, str], ...]
    validate_on: tuple[tuple[str, str], ...]
    xray_kind: str
    voxel_mm: float | None
    phantoms: int
    anatomy: str
    voxels: int
    views: int
    pixels: int

    OPTIONS = (
        click.option(
            "--pairs",
            type=(FILE, FOLDER),
            multiple=True,
            metavar="CT FOLDER",
            help="A subject's CT in HU and a folder of its X-rays with their poses: NAME.npy (or "
            ".png, .nii.gz ...) and the pose file NAME.json with a camera. May be repeated, one a "
            "subject.  [default: phantoms]",
        ),
        click.option(
            "--validate-on",
            type=(FILE, FOLDER),
            multiple=True,
            metavar="CT FOLDER",
            help="The same, of subjects that are not trained on.",
        ),
        click.option(
            "--xray-kind",
            type=click.Choice(XRAY_KINDS),
            default="line",
            show_default=True,
            help="What the X-rays' pixels are, as in drrkit register.",
        ),
        voxel_mm_option,
        click.option(
            "--phantoms",
            type=click.IntRange(1),
            default=4,
            show_default=True,
            help="Without --pairs: so many random phantoms; of several the last one validates.",
        ),
        *phantom_options,
        click.option(
            "--views",
            type=click.IntRange(2),
            default=133,
            show_default=True,
            help="Simulated X-rays of a phantom.",
        ),
        click.option(
            "--pixels",
            type=click.IntRange(8),
            default=128,
            show_default=True,
            help="Of a simulated X-ray, along each side.",
        ),
    )

    def load(self, seed: int, device: torch.device) -> tuple[list[Pairs], list[Pairs]]:
        """Pairs to train on and to validate on, of different subjects.

        Raises:
            click.UsageError: --validate-on without --pairs.
            OSError, ValueError: files that are not what they should be; one subject in both.
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
        volume = read_volume(ct).to(dtype=torch.float32)
        if self.voxel_mm is not None:
            volume = volume.resample((self.voxel_mm,) * 3)
        return read_pairs(ct.name.split(".")[0], volume.to_mu(), folder, self.xray_kind)

    def _simulated(self, number: int, seed: int) -> Pairs:
        ct = random_anatomy(self.anatomy, number, shape=self.voxels)
        camera = CArm(SDD, (self.pixels, self.pixels), 128 * 2.176 / self.pixels)
        poses = random_views(ct, self.views, number, turn=math.radians(25.0))
        noise = int(torch.randint(1 << 30, (1,), generator=generator(seed, number)))
        xrays = [simulate_xray(ct, camera, pose, seed=noise + k) for k, pose in enumerate(poses)]
        return Pairs(f"{self.anatomy}-{number}", ct.to_mu(), camera, torch.cat(xrays), poses)


def read_pairs(subject: str, volume: Volume, folder: Path, xray_kind: str = "line") -> Pairs:
    """All X-rays of a folder that have a pose file beside them, in the order of their names.

    Args:
        subject, volume: as for Pairs.
        folder: NAME.json (a pose file with a camera) and NAME with an image's ending.
        xray_kind: see `drrkit.cli.images.to_line`.

    Raises:
        OSError, ValueError: a file that is not what it should be, a pose without a camera or
            without an image, X-rays of different cameras, or no X-rays.
    """
    poses, images, first = [], [], None
    for path in sorted(folder.glob("*.json")):
        pose, camera = read_pose(path)
        if camera is None:
            raise ValueError(f"{path}: expected a camera beside the pose")
        if first is not None and not _same(camera, first):
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
    candidates: Sequence[Path] = [pose.with_name(pose.stem + end) for end in IMAGE_SUFFIXES]
    found = [path for path in candidates if path.exists()]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ValueError(f"{pose}: expected one image {pose.stem}.* beside it, found {names}")
    return found[0]


def _same(a: Camera, b: Camera) -> bool:
    described: list[Any] = [(c.K.tolist(), tuple(c.size), float(c.sdd), c.beam) for c in (a, b)]
    return described[0] == described[1]
