"""A registration as a film: the rendered CT's edges over the X-ray, step by step, as GIF or MP4."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drrkit.files import whole_file
from drrkit.geometry import Camera
from drrkit.report.path import (
    PathStep,
    bone_like_points,
    distances,
    registration_path,
    stage_spans,
    stage_starts,
)
from drrkit.report.pictures import overlay_edges
from drrkit.report.scene import orientation
from drrkit.report.screen import Screen
from drrkit.volume import Volume

__all__ = ["FILM_SUFFIXES", "film_frames", "save_film"]

FILM_SUFFIXES = (".gif", ".mp4")
FIRST_SECONDS, LAST_SECONDS = 1.0, 2.5
"""How long start and result stand still."""

GAP, TITLE, CHARTS, DPI = 12, 30, 190, 100  # pixels
LEAST_MM = 0.01  # charts of distances end here
PANELS = ("X-ray, edges of the rendered CT", "rendered CT")
GROUND, TEXT, QUIET, CURVE, NOW = "#111418", "#e6e9ee", "#8d98a5", "#4c9aff", "#ffb454"
Picture = np.ndarray
"""[rows, cols, 3] uint8."""


def save_film(
    volume: Volume,
    camera: Camera,
    xray: Tensor,
    result: dict[str, Any],
    path: str | os.PathLike[str],
    *,
    truth: Tensor | None = None,
    frames_per_second: float = 8.0,
    most_frames: int = 80,
    method: str = "joseph",
) -> None:
    """Writes the film of a registration; the file appears whole or not at all.

    Args:
        volume: in mu.
        camera: the X-ray's.
        xray: [rows, cols], or with leading dimensions of size 1, bone bright.
        result: what `drrkit register` writes or RegistrationResult.as_dict returns: the poses after
            every step are in it.
        path: .gif (needs matplotlib, which brings Pillow) or .mp4 (needs the program ffmpeg, too;
            the package imageio-ffmpeg brings one).
        truth: [4, 4] world_to_camera, where it is known: errors are told instead of distances from
            the result.
        frames_per_second: of the steps; start and result stand longer.
        most_frames: of a longer way, steps at equal distances are shown, start and result always.
        method: projector method, as in `render`.

    Raises:
        TypeError, ValueError: an unknown suffix, a result without its steps, or as `render`.
        ImportError: matplotlib is missing.
        OSError: there is no ffmpeg, or the place cannot be written to.
    """
    target = Path(path)
    if target.suffix.lower() not in FILM_SUFFIXES:
        raise ValueError(f"{target}: expected one of {', '.join(FILM_SUFFIXES)}")
    if not frames_per_second > 0:
        raise ValueError(f"frames_per_second: expected > 0, got {frames_per_second!r}")
    write = _write_gif if target.suffix.lower() == ".gif" else _write_mp4
    if write is _write_mp4:
        _ffmpeg()  # before anything is rendered
    options = {"truth": truth, "most_frames": most_frames, "method": method}
    frames = list(film_frames(volume, camera, xray, result, **options))
    seconds = [1.0 / frames_per_second] * len(frames)
    seconds[0], seconds[-1] = max(FIRST_SECONDS, seconds[0]), max(LAST_SECONDS, seconds[-1])
    with whole_file(target) as staged:
        write(frames, seconds, frames_per_second, staged)


def film_frames(
    volume: Volume,
    camera: Camera,
    xray: Tensor,
    result: dict[str, Any],
    *,
    truth: Tensor | None = None,
    most_frames: int = 80,
    method: str = "joseph",
) -> Iterator[Picture]:
    """The frames of `save_film`, [rows, cols, 3] uint8 of even size: a pose each, no pose twice."""
    if most_frames < 2:
        raise ValueError(f"most_frames: expected at least 2, got {most_frames!r}")
    path = registration_path(result)
    screen = Screen.of(camera, xray, most=640)
    reference = path[-1].world_to_camera if truth is None else truth
    away = distances(path, reference, bone_like_points(volume))
    shown = _shown(path, most_frames)
    charts = _Charts(screen, path, away, truth is not None)
    for number in shown:
        drr = screen.rendered(volume, path[number].world_to_camera, method)
        panels = (overlay_edges(screen.picture, screen.edges(drr)), screen.matched(drr))
        yield charts.frame(number, panels)


def _shown(path: Sequence[PathStep], most: int) -> list[int]:
    """The steps that a film shows: where the pose is a new one, and the end."""
    new = [0]
    for number, step in enumerate(path[1:], 1):
        if not torch.equal(step.world_to_camera, path[new[-1]].world_to_camera):
            new.append(number)
    if new[-1] != len(path) - 1:
        new.append(len(path) - 1)
    if len(new) <= most:
        return new
    return [new[round(k)] for k in np.linspace(0, len(new) - 1, most)]


@dataclass(frozen=True)
class _Curve:
    """A chart's values over the steps, and what marks how far the film has come."""

    values: list[float]
    progress: Any
    mark: Any

    def show(self, number: int) -> None:
        self.progress.set_data(range(number + 1), self.values[: number + 1])
        self.mark.set_data([number], [self.values[number]])


class _Charts:
    """What stays the same in all frames: places, labels, whole curves."""

    def __init__(
        self, screen: Screen, path: Sequence[PathStep], away: Sequence[float], known: bool
    ) -> None:
        figure_class, canvas_class = _agg()
        rows, cols = screen.line.shape
        width, height = 2 * cols + 3 * GAP, TITLE + rows + GAP + CHARTS
        self.size = (height + height % 2, width + width % 2)
        self.path, self.away, self.rows, self.cols = path, away, rows, cols
        self.what = "mTRE" if known else "from the result"
        inches = [(n + 0.01) / DPI for n in reversed(self.size)]  # what is left over is cut off
        self.figure = figure_class(figsize=inches, dpi=DPI, facecolor=GROUND)
        self.canvas = canvas_class(self.figure)
        self.moving: list[Any] = []  # what frames differ by, and what lies over that
        self.windows = [self._window(place, path[-1].world_to_camera) for place in range(2)]
        self.title = self._text(GAP, TITLE / 2 + 2, "", size=10, color=TEXT)
        label = "mTRE, mm" if known else "mm from the result"
        distance = [max(value, LEAST_MM) for value in away]
        self.curves = [self._chart(0, distance, label, log=True)]
        self.curves.append(self._chart(1, _scaled_losses(path), "loss, a scale a stage"))
        self.canvas.draw()
        self.ground = self.canvas.copy_from_bbox(self.figure.bbox)

    def frame(self, number: int, panels: Sequence[Tensor]) -> Picture:
        """The picture of one step; panels [rows, cols] or [rows, cols, 3] uint8."""
        step = self.path[number]
        words = "start"
        if step.stage:
            stages = self.path[-1].stage
            words = f"stage {step.stage}/{stages}, {step.similarity}, step {step.step}"
            words += "" if step.loss is None else f", loss {step.loss:.4g}"
        self.title.set_text(f"{words}    {self.away[number]:.2f} mm {self.what}")
        for curve in self.curves:
            curve.show(number)
        for window, panel in zip(self.windows, panels, strict=True):
            pixels = panel if panel.dim() == 3 else panel[..., None].expand(-1, -1, 3)
            window.set_data(pixels.numpy())
        self.canvas.restore_region(self.ground)
        for artist in self.moving:
            self.figure.draw_artist(artist)
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()

    def _window(self, place: int, pose: Tensor) -> Any:
        """Where a picture is drawn, pixel by pixel, and the patient's directions at its edges."""
        from matplotlib.patheffects import withStroke

        rows, cols = self.rows, self.cols
        x = GAP + place * (cols + GAP)
        black = np.zeros((rows, cols, 3), np.uint8)
        window = self.figure.figimage(black, x, self.size[0] - TITLE - rows, origin="upper")
        self._moves(window)
        rim = withStroke(linewidth=2.5, foreground=GROUND)
        left, top, right, bottom = orientation(pose)
        middle = TITLE + rows / 2
        for word, across, down, side in (
            (PANELS[place], x + 8, TITLE + 14, "left"),
            (left, x + 8, middle, "left"),
            (right, x + cols - 8, middle, "right"),
            (top, x + cols / 2, TITLE + 14, "center"),
            (bottom, x + cols / 2, TITLE + rows - 14, "center"),
        ):
            self._text(across, down, word, color=NOW, ha=side, path_effects=[rim])
        return window

    def _text(self, x: float, y: float, words: str, size: float = 9, **look: Any) -> Any:
        """Words at pixels from the top left."""
        text = self.figure.text(
            x, self.size[0] - y, words, fontsize=size, va="center", transform=None, **look
        )
        return self._moves(text)

    def _moves(self, artist: Any) -> Any:
        artist.set_animated(True)
        self.moving.append(artist)
        return artist

    def _chart(self, place: int, values: list[float], label: str, log: bool = False) -> _Curve:
        height, width = self.size
        left = GAP + place * (self.cols + GAP) + 56
        bottom, tall = 40, CHARTS - 40 - 24
        wide = self.cols - 62
        axes = self.figure.add_axes(
            (left / width, bottom / height, wide / width, tall / height), facecolor=GROUND
        )
        whole = [(0, len(values))]  # losses of two stages have nothing in common
        for first, last in whole if log else stage_spans(self.path):
            axes.plot(range(first, last), values[first:last], color=QUIET, linewidth=1, alpha=0.6)
        if log:
            axes.set_yscale("log")
        for start, name in stage_starts(self.path):
            axes.axvline(start - 0.5, color=QUIET, linewidth=0.6, linestyle=":")
            axes.text(
                start - 0.45,
                1.02,
                name,
                fontsize=7,
                color=QUIET,
                transform=axes.get_xaxis_transform(),
            )
        axes.set_ylabel(label, color=TEXT, fontsize=8)
        axes.set_xlabel("step", color=TEXT, fontsize=8)
        axes.tick_params(colors=TEXT, labelsize=7)
        axes.set_xlim(-0.5, len(values) - 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True)
        for spine in axes.spines.values():
            spine.set_color(QUIET)
        (progress,) = axes.plot([], [], color=CURVE, linewidth=1.8)
        (mark,) = axes.plot([], [], "o", color=NOW, markersize=5, clip_on=False)
        return _Curve(values, self._moves(progress), self._moves(mark))


def _scaled_losses(path: Sequence[PathStep]) -> list[float]:
    """Losses from 0, the lowest of their stage, to 1, its highest; the start has none."""
    found = []
    for _, group in groupby(path, key=lambda step: step.stage):
        losses = [np.nan if step.loss is None else step.loss for step in group]
        known = [loss for loss in losses if np.isfinite(loss)]
        low, high = (min(known), max(known)) if known else (0.0, 0.0)
        found += [(loss - low) / ((high - low) or 1.0) for loss in losses]
    return found


def _agg() -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"{error}: pip install 'drrkit[films]' brings it") from error
    return Figure, FigureCanvasAgg


def _write_gif(
    frames: Sequence[Picture], seconds: Sequence[float], rate: float, file: Path
) -> None:
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    sample = np.concatenate([frames[0], frames[len(frames) // 2], frames[-1]])
    # One palette and no dither: what does not change between frames stays the same and costs none.
    palette = Image.fromarray(sample).quantize(256)
    plain = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    durations = [round(1000 * span) for span in seconds]
    plain[0].save(
        file, save_all=True, append_images=plain[1:], duration=durations, loop=0, optimize=False
    )


def _write_mp4(
    frames: Sequence[Picture], seconds: Sequence[float], rate: float, file: Path
) -> None:
    rows, cols, _ = frames[0].shape
    command = [_ffmpeg(), "-loglevel", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{cols}x{rows}", "-r", f"{rate:g}", "-i", "-", "-c:v", "libx264"]
    command += ["-pix_fmt", "yuv420p", "-crf", "18", "-movflags", "+faststart", os.fspath(file)]
    shown = [
        frame.tobytes()
        for frame, span in zip(frames, seconds, strict=True)
        for _ in range(max(1, round(span * rate)))
    ]
    done = subprocess.run(command, input=b"".join(shown), capture_output=True)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise OSError(f"ffmpeg could not write the film: {said[-1] if said else 'no reason given'}")


def _ffmpeg() -> str:
    """The program: that of the system, else that of the package imageio-ffmpeg."""
    found = shutil.which("ffmpeg")
    if found is not None:
        return found
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise OSError(
            "an .mp4 film needs the program ffmpeg: install it, or pip install 'drrkit[films]'; a "
            ".gif needs neither"
        ) from error
