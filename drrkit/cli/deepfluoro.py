"""DeepFluoro's HDF5 file for `drrkit convert` and `drrkit info`: listed, or one case as files."""

from __future__ import annotations

import csv
from pathlib import Path

import click
from torch import Tensor

from drrkit.cli.images import to_line
from drrkit.cli.poses import write_pose
from drrkit.files import whole_file
from drrkit.volume import load_simpleitk, write_volume
from drrkit.xray import (
    deepfluoro_contents,
    read_deepfluoro_specimen,
    read_deepfluoro_xray,
)

__all__ = ["deepfluoro_listing", "extract_deepfluoro"]


def deepfluoro_listing(path: Path) -> dict[str, int]:
    """The specimens and how many projections each has."""
    return {name: len(numbers) for name, numbers in deepfluoro_contents(path).items()}


def extract_deepfluoro(
    path: Path,
    specimen: str | None,
    projection: int | None,
    folder: Path,
    *,
    bone: str,
    border: int,
) -> None:
    """Writes a new folder with a CT, its labels, one X-ray, landmarks and the true pose.

    Raises:
        click.UsageError: specimen or projection are not given; lists what there is.
        OSError, ImportError, ValueError: as the readers; the folder exists already.
    """
    if specimen is None or projection is None:
        known = ", ".join(f"{name} (0 to {n - 1})" for name, n in deepfluoro_listing(path).items())
        raise click.UsageError(f"--specimen and --projection are needed; {path} has {known}.")
    if folder.exists():
        raise FileExistsError(f"{folder}: exists already; a new folder is needed")
    subject = read_deepfluoro_specimen(path, specimen)
    found = read_deepfluoro_xray(path, specimen, projection, bone=bone, border=border)
    for text in found.xray.warnings:
        click.echo(f"Warning: {text}.", err=True)
    camera, pose = found.xray.camera, found.xray.world_to_camera
    assert camera is not None and pose is not None
    with whole_file(folder) as staged:
        staged.mkdir()
        labels = None if subject.volume.labels is None else staged / "labels.nii.gz"
        write_volume(subject.volume, staged / "ct.nii.gz", labels=labels)
        line = to_line(path, found.xray.image, "intensity", None)
        _write_image(staged / "xray.mha", line[0, 0], found.xray.pixel_spacing or (1.0, 1.0))
        _write_landmarks(staged / "landmarks.csv", subject.landmarks, found.landmarks, camera.size)
        write_pose(staged / "pose.json", pose, camera)


def _write_image(path: Path, image: Tensor, pixel_spacing: tuple[float, float]) -> None:
    sitk = load_simpleitk()
    stored = sitk.GetImageFromArray(image.numpy())
    stored.SetSpacing(pixel_spacing[::-1])
    sitk.WriteImage(stored, str(path), True)


def _write_landmarks(
    path: Path, points: dict[str, Tensor], pixels: dict[str, Tensor], size: tuple[int, int]
) -> None:
    """name, x, y, z, row, col; a landmark outside the image has no pixel."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("name", "x", "y", "z", "row", "col"))
        for name, point in points.items():
            pixel = pixels[name].tolist() if name in pixels else [-1.0, -1.0]
            seen = all(0 <= x <= n - 1 for x, n in zip(pixel, size, strict=True))
            table.writerow((name, *point.tolist(), *(pixel if seen else ("", ""))))
