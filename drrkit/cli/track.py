"""`drrkit track`: the poses of a CT or an implant in the frames of a film."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import click
import torch
from torch import Tensor

from drrkit.cli.command import Answer, command
from drrkit.cli.io import read_rig
from drrkit.cli.options import (
    POSITIVE,
    OutputFile,
    argument,
    option,
    quiet_option,
    seed_option,
)
from drrkit.cli.problem import Problem, ProblemOptions
from drrkit.cli.register import INTERRUPTED, Stages
from drrkit.conversions import write_autoscoper, write_jointtrack
from drrkit.files import whole_file
from drrkit.geometry import Camera, project_points, volume_center
from drrkit.registration import (
    FORMATIONS,
    PIPELINES,
    Search,
    SequenceResult,
    Stage,
    motion_of,
    register_sequence,
    smooth_poses,
)
from drrkit.report import pose_overlays, save_image, save_page, tiled, track_page
from drrkit.volume import Volume

SHOWN, ACROSS, PANEL = 16, 4, (300, 600)
"""Of the contact sheet: at most so many frames, side by side, and pixel rows of each."""
SPARE, SMALLEST = 0.2, 16
"""Of its windows: what is shown beside the volume, a share of its size, and the fewest pixels."""

SIX = ("rx_deg", "ry_deg", "rz_deg", "x_mm", "y_mm", "z_mm")
COLUMNS = (
    *("frame", "lost", "accepted", "confidence", "confidence_10mm", "agreement", "loss"),
    *SIX,
    *(f"p{row}{col}" for row in range(3) for col in range(4)),
    *(f"sigma_{name}" for name in SIX),
    *("attempts", "seconds", "reasons"),
)


def film_files(path: Path) -> list[Path]:
    """A folder's files, 2 before 10; those that a .txt file lists, one a line; or the file alone.

    Raises ValueError where there are none.
    """
    if path.is_dir():
        files = [file for file in path.iterdir() if file.is_file() and file.name[0] != "."]
        files.sort(key=lambda f: [(len(w), w) for w in re.split(r"(\d+)", f.name)])
    elif path.suffix.lower() == ".txt":
        lines = path.read_text(encoding="utf-8").splitlines()
        files = [path.parent / line.strip() for line in lines if line.strip()]
    else:
        return [path]
    if not files:
        raise ValueError(f"{path}: expected the files of frames, got none")
    return files


@command("track")
def track_command(
    *,
    ct: Path = argument(),
    frames: tuple[Path, ...] = argument(nargs=-1, required=True),
    output: Path = option(
        "The table: a row per frame.", "--output", "-o", required=True, type=OutputFile(".csv")
    ),
    poses: Path | None = option(
        "The poses for other programs: .tra where the CT lies in the calibration's coordinates, "
        "or without one in the camera's; .jts, .jtak of a surface. Lost frames have none.",
        type=OutputFile(".tra", ".jts", ".jtak"),
    ),
    sheet: Path | None = option(
        f"Contact sheet: overlays of at most {SHOWN} frames.", type=OutputFile(".png")
    ),
    page: Path | None = option(
        "Page with the six numbers over time and the contact sheet.", type=OutputFile(".html")
    ),
    given: ProblemOptions,
    stages: tuple[Stage | Search, ...] = option(
        "Of the first frame, as in register. Those of a part follow it as one.",
        type=Stages(),
        default="auto",
    ),
    smooth: float | None = option(
        "Smooth the poses over about so many frames to each side, and fill lost ones in.  "
        "[default: as found]",
        type=POSITIVE,
    ),
    formation: str = option("As in register.", type=click.Choice(FORMATIONS), default="auto"),
    gain: float = option("As in register.", type=POSITIVE, default=1.0),
    seed: int = seed_option("Seed of the starts that stages draw."),
    quiet: bool = quiet_option(),
) -> Answer:
    """Follow CT, or the surface of an implant, through FRAMES: one pose per frame.

    FRAMES are images of one size, runs of them (multi-page TIFF, cine DICOM, .npy), folders, or
    .txt files that list names. In one view all of them are a film, in their order; with a
    --calibration for each camera, or a --rig, each is the film of one view. Every frame starts
    from the last one. A frame is lost when it agrees less than others and a wider search does not
    confirm it; the first one is judged on its own. The six numbers are the motion since the first
    frame that is not lost: a rotation vector and a shift about the CT's centre, in camera axes.
    Exit code 1: frames are lost. Ctrl-C writes the frames so far.
    """
    count = len(given.xray.calibration) if given.rig is None else len(read_rig(given.rig))
    films = [film_files(path) for path in frames]
    if count < 2:
        films = [[file for film in films for file in film]]
    elif len(films) != count:
        raise click.UsageError(
            f"FRAMES: expected a film for each of {count} cameras, got {len(films)}."
        )
    outputs = [output, poses, sheet, page]
    problem = given.load(ct, films, outputs, isinstance(stages[0], Search), film=True)
    lengths = [len(xray.line) for xray in problem.xrays]
    for film, length in zip(films, lengths, strict=True):
        if length != lengths[0]:
            raise ValueError(
                f"{film[0]}: expected {lengths[0]} frames as {films[0][0]} has, got {length}"
            )
    arguments = problem.arguments()
    track = register_sequence(
        problem.volume,
        arguments.pop("camera"),
        arguments.pop("xray"),
        problem.start,
        first=next((name for name, known in PIPELINES.items() if known is stages), stages),
        method=given.method,
        formation=formation,
        gain=gain,
        xray_kind=problem.xray_kind,
        seed=seed,
        progress=not quiet,
        **arguments,
    )
    if not track.frames:
        raise click.Abort
    center, known = volume_center(problem.volume), ~torch.tensor(track.lost)
    found = track.world_to_camera
    if smooth is not None and bool(known.any()):
        found, known = smooth_poses(found, center, smooth, known), known | True
    origin = int(known.int().argmax())
    motion = motion_of(found[origin], found, center).cpu()
    motion[:, :3] = torch.rad2deg(motion[:, :3])
    _write_table(output, track, found, motion)
    if poses is not None:
        told = torch.where(known[:, None, None].to(found.device), found, torch.nan)
        _write_poses(poses, problem, told)
    drawn = None
    if sheet is not None or page is not None:
        drawn = _contact_sheet(problem, found, given.method)
    if sheet is not None and drawn is not None:
        save_image(drawn, sheet)
    lost = [number for number, one in enumerate(track.lost) if one]
    words = f"{len(found)} frames in {track.seconds:.1f} s, {len(lost)} lost"
    if page is not None and drawn is not None:
        motion[~known] = torch.nan
        title = f"{ct.name} in {frames[0].name}: {words}"
        save_page(track_page(title, drawn, motion, track.confidence), page)
    if lost:
        shown = ", ".join(map(str, lost))
        click.echo(f"Lost: {shown}. See --page, and begin where the start is sure.", err=True)
    content = {
        "written": [str(path) for path in outputs if path is not None],
        "lost": lost,
        "confidence": track.confidence,
        "world_to_camera": found.tolist(),
        "stop_reason": track.stop_reason,
        "seconds": track.seconds,
    }
    code = INTERRUPTED if track.stop_reason == "interrupted" else int(bool(lost))
    return Answer(content, f"{output}: {words}", code)


def _write_table(path: Path, track: SequenceResult, poses: Tensor, motion: Tensor) -> None:
    """A row of COLUMNS for every frame; what is not known is empty."""
    with whole_file(path) as staged, staged.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for number, one in enumerate(track.frames):
            sigma = [None] * 6 if one.sigma is None else one.sigma.cpu().clone()
            if isinstance(sigma, Tensor):
                sigma[:3] = torch.rad2deg(sigma[:3])
                sigma = sigma.tolist()
            table.writerow(
                (
                    *(number, int(track.lost[number]), int(one.accepted)),
                    *(one.confidence, one.confidence_10mm, one.agreement, one.loss),
                    *motion[number].tolist(),
                    *poses[number, :3].flatten().tolist(),
                    *sigma,
                    *(track.attempts[number], one.seconds, " ".join(one.reasons)),
                )
            )


def _write_poses(path: Path, problem: Problem, poses: Tensor) -> None:
    """Poses [T, 4, 4] as a track of Autoscoper's or JointTrack's, by the suffix."""
    if path.suffix.lower() != ".tra":
        return write_jointtrack(path, poses)
    placed = problem.xrays[0].file.world_to_camera
    if placed is not None:
        poses = torch.linalg.inv(placed.reshape(-1, 4, 4)[0].to(poses)) @ poses
    return write_autoscoper(path, poses)


def _contact_sheet(problem: Problem, poses: Tensor, method: str) -> Tensor:
    """Overlays of frames at equal distances, of every view side by side, about where CT is seen."""
    chosen = list(range(0, len(poses), -(-len(poses) // SHOWN)))
    columns = []
    for camera, line, seen in problem.views(poses[chosen]):
        rows, cols = _surroundings(problem.volume, camera, seen)
        part = camera.crop(rows.start, cols.start, rows.stop - rows.start, cols.stop - cols.start)
        columns.append(
            [
                pose_overlays(problem.volume, part, frame, [pose], method=method, rows=PANEL)
                for frame, pose in zip(line[chosen][..., rows, cols], seen, strict=True)
            ]
        )
    cells = [tiled([views]) for views in zip(*columns, strict=True)]
    return tiled([cells[first : first + ACROSS] for first in range(0, len(cells), ACROSS)])


def _surroundings(volume: Volume, camera: Camera, poses: Tensor) -> list[slice]:
    """The rows and columns in which the volume is seen at poses [T, 4, 4], and some more."""
    ends = torch.cartesian_prod(*(torch.tensor((0.0, n - 1.0)) for n in volume.shape_xyz))
    pixels = project_points(camera, poses, volume.index_to_world(ends.to(poses)))
    pixels = pixels.nan_to_num().flatten(0, 1)
    window = []
    for places, size in zip(pixels.unbind(-1), camera.size, strict=True):
        low, high = float(places.min()), float(places.max())
        first = max(0, int(low - SPARE * (high - low)))
        last = min(size, int(high + SPARE * (high - low)) + 1)
        window.append(slice(first, last) if last - first > SMALLEST else slice(0, size))
    return window
