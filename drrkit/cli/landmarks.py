"""A start from landmarks, for `drrkit register --landmarks`."""

from __future__ import annotations

from pathlib import Path

import click
from torch import Tensor

from drrkit.cli.arguments import existing
from drrkit.cli.options import PoseOptions
from drrkit.geometry import Camera
from drrkit.registration import Landmarks

__all__ = ["check_alone", "landmark_start", "landmarks_option"]

landmarks_option = click.option(
    "--landmarks",
    type=existing,
    help="Where to start instead: a CSV or JSON file with x, y, z (mm, LPS), row, col of points "
    "seen in the X-ray, six or more; a few may be wrong.",
)


def check_alone(init: str | None, placing: PoseOptions) -> None:
    """Raises click.UsageError when besides landmarks another option says where to start."""
    if init is not None:
        raise click.UsageError("Where to start? Give either --init or --landmarks.")
    if any(value is not None for value in vars(placing).values()):
        raise click.UsageError("--landmarks say where to start: no option of the C-arm goes along.")


def landmark_start(path: Path, camera: Camera) -> Tensor:
    """The pose [1, 4, 4] of the landmarks in a file; says how well they agree.

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
