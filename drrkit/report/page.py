"""A registration as one HTML page that works without a server or a network."""

from __future__ import annotations

import base64
import html
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drrkit.files import whole_file
from drrkit.geometry import Camera, volume_center
from drrkit.report import facts
from drrkit.report.charts import can_draw, line_chart, table
from drrkit.report.convergence import (
    SCALES,
    PoseLandscape,
    bone_like_points,
    convergence,
    landscape_charts,
)
from drrkit.report.facts import edge_letters
from drrkit.report.pictures import (
    Screen,
    checkerboard,
    data_uri,
    difference,
    overlay_edges,
    to_display,
)
from drrkit.report.scene import scene_svg
from drrkit.volume import Volume

STATIC = Path(__file__).parent / "static"
DOTS = 1500
UNCERTAINTY = (
    "From the curvature and the residuals of the last stage. Accounts for noise and for model "
    "errors that differ from block to block of pixels, not for errors shared by the whole image, "
    "such as a wrong source-to-detector distance."
)
NO_UNCERTAINTY = (
    "No standard deviations: the last stage's optimiser or similarity has no curvature."
)
SCALE_BARS_MM = (200.0, 100.0, 50.0, 20.0, 10.0, 5.0, 2.0, 1.0)


def registration_page(
    volume: Volume,
    camera: Camera,
    xray: Tensor,
    result: dict[str, Any],
    *,
    method: str = "joseph",
    source: str | None = None,
    notes: Sequence[str] = (),
    landscape: PoseLandscape | None = None,
    others: Sequence[tuple[Camera, Tensor, Tensor]] = (),
) -> str:
    """The page of one registration, HTML with everything in it.

    Args:
        volume: in mu.
        camera: the X-ray's.
        xray: [rows, cols], or with leading dimensions of size 1, bone bright.
        result: what `drrkit register` writes: world_to_camera and, where known,
            initial_world_to_camera, loss, confidence, accepted, covariance, stages, run, ...
        method: projector method.
        source: name of the result's file, for the command that repeats it.
        notes: what else the reader is to be warned of.
        landscape: of the loss about the pose, as `pose_landscape` measures it.
        others: camera, X-ray and rig_to_camera [4, 4] of the views besides the first.

    Raises:
        TypeError, ValueError: as `render`; a result without world_to_camera.
    """
    if "world_to_camera" not in result:
        raise ValueError(f"result: expected 'world_to_camera', got the keys {sorted(result)}")
    found = torch.tensor(result["world_to_camera"], dtype=torch.float64)
    if found.shape != (4, 4):
        raise ValueError(f"result: expected a pose [4, 4] of one body, got {tuple(found.shape)}")
    start = result.get("initial_world_to_camera")
    poses = [found] if start is None else [torch.tensor(start, dtype=torch.float64), found]
    parts = [
        _header(result),
        *(
            f'<p class="caution" role="note">{html.escape(words)}</p>'
            for words in (*facts.cautions(result), *notes)
        ),
        _cards(result),
        "<h2>Images</h2>",
        _images(volume, camera, xray, poses, method),
        *(
            f"<h2>Images of X-ray {number}</h2>"
            + _images(volume, one, image, [rig.double() @ pose for pose in poses], method)
            for number, (one, image, rig) in enumerate(others, 2)
        ),
        "<h2>Pose</h2>",
        _pose(volume, camera, found, result),
        "<h2>Geometry</h2>",
        _geometry(volume, camera, xray, poses),
        convergence(volume, result),
        _landscape(landscape),
        "<h2>What was registered with what</h2>",
        _provenance(result, source),
    ]
    return _document(f"Registration of {_names(result)}", parts)


def track_page(
    title: str, sheet: Tensor, motion: Tensor, confidence: Sequence[float | None]
) -> str:
    """The page of a sequence: six numbers over time, confidence, and overlays.

    Args:
        title: in words.
        sheet: picture [rows, cols, 3] uint8 of frames with their overlays.
        motion: [T, 6] degrees and mm since one of the frames; NaN where there is none.
        confidence: of every frame.
    """
    known = [float("nan") if one is None else one for one in confidence]
    curves = [(*axis, values) for axis, values in zip(facts.AXES, motion.mT.tolist(), strict=True)]
    charts = "<p>Charts need matplotlib: pip install 'drrkit[plots]'.</p>"
    if can_draw():
        charts = "".join(
            line_chart(
                range(len(values)), values, title=name, x_label="frame", y_label=unit, whole=True
            )
            for name, unit, values in (*curves, ("confidence", "", known))
            if any(map(math.isfinite, values))
        )
    parts = (
        f"<h1>{html.escape(title)}</h1><h2>Motion</h2>"
        '<p class="quiet">About the volume\'s centre, in camera axes. Lost frames are gaps.</p>'
        f'<div class="charts">{charts}</div><h2>Overlays</h2>'
        '<p class="quiet">Frames in their order, from left to right; edges of what is rendered in '
        f'green.</p><img alt="overlays" style="width: 100%" src="{data_uri(sheet)}">'
    )
    return _document(title, [parts])


def _document(title: str, parts: Sequence[str]) -> str:
    style, script = (
        (STATIC / name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{style}</style></head>"
        f"<body><main>{''.join(parts)}</main><script>{script}</script></body></html>"
    )


def save_page(page: str, path: str | os.PathLike[str]) -> None:
    """Writes a page; the file appears whole or not at all. Raises OSError when it cannot."""
    with whole_file(path) as staged:
        staged.write_text(page, encoding="utf-8")


# ---- what came out


def _header(result: dict[str, Any]) -> str:
    accepted = result.get("accepted")
    verdict = ""
    if accepted is not None:
        look, word = ("good", "accepted") if accepted else ("bad", "not accepted")
        verdict = f' <span class="{look}">{word}</span>'
    made = [_names(result)]
    if result.get("finished"):
        made.append(str(result["finished"]).replace("T", " "))
    if _versions(result).get("drrkit"):
        made.append(f"drrkit {_versions(result)['drrkit']}")
    return f'<h1>Registration{verdict}</h1><p class="quiet">{html.escape(" · ".join(made))}</p>'


def _names(result: dict[str, Any]) -> str:
    """The files that were registered, without their folders."""
    given = facts.given_options(result)
    names = [Path(given[key]).name for key in ("ct", "xray") if given.get(key)]
    return " and ".join(names) or "a CT and an X-ray"


def _versions(result: dict[str, Any]) -> dict[str, str]:
    """Of drrkit and the packages it used."""
    found = (result.get("run") or {}).get("versions") or result.get("versions") or {}
    return {name: str(value) for name, value in found.items() if value is not None}


def _cards(result: dict[str, Any]) -> str:
    """The most important numbers."""
    cards = []
    confidence, sure = result.get("confidence"), result.get("confidence_10mm")
    if confidence is not None:
        words = "probability of less than 2 mm of error in the image plane"
        words += "" if sure is None else f"; {facts.shown_confidence(sure)} of less than 10 mm"
        bar = f'<meter min="0" max="1" value="{confidence:.4f}" aria-hidden="true"></meter>'
        cards.append(("confidence", f"{confidence:.3f}", bar + words))
    motion = result.get("motion")
    if motion:
        moved = f"{motion['rotation_deg']:.2f}°, {motion['translation_mm']:.2f} mm"
        cards.append(("moved from the start", moved, "rotation, translation of the CT's centre"))
    rows = facts.uncertainty(result)
    if result.get("covariance") is not None and rows:
        words = f"1 σ of depth; in the image plane {rows[3][2]} and {rows[4][2]}"
        cards.append(("uncertainty", rows[5][2], words))
    if result.get("loss") is not None:
        stages = result.get("stages") or [{}]
        cards.append(("loss", f"{result['loss']:.4f}", str(stages[-1].get("similarity", ""))))
    if result.get("seconds") is not None:
        ended = str(result.get("stop_reason", ""))
        cards.append(("time", f"{result['seconds']:.1f} s", ended))
    shown = "".join(
        f'<div class="card">{name}<b>{html.escape(value)}</b><small>{words}</small></div>'
        for name, value, words in cards
    )
    return f'<div class="cards">{shown}</div>'


# ---- pictures


def _images(
    volume: Volume, camera: Camera, xray: Tensor, poses: Sequence[Tensor], method: str
) -> str:
    screen = Screen.of(camera, xray, most=800)
    target, names = screen.picture, ("start", "result")[-len(poses) :]
    frame = _Frame(volume, screen, poses[-1])
    drrs = [screen.rendered(volume, pose, method) for pose in poses]
    matched = [screen.matched(drr) for drr in drrs]
    pictures = {
        f"At the {name}: edges of the rendered CT, in green": overlay_edges(target, edge)
        for name, edge in zip(names, map(screen.edges, drrs), strict=True)
    }
    pictures["X-ray"] = target
    pictures["Rendered CT at the result, on the X-ray's grey scale"] = matched[-1]
    board = checkerboard(target, matched[-1])
    pictures["Checkerboard of X-ray and rendered CT at the result"] = board
    for name, drr in zip(names, matched, strict=True):
        words = f"At the {name}: X-ray minus rendered CT, grey where equal"
        pictures[words] = difference(target, drr)
    figures = [frame.figure(picture, words) for words, picture in pictures.items()]
    figures.append(frame.comparison(target, matched[-1]))
    rows, cols = camera.size
    pitch = [float(p) for p in camera.pixel_spacing]
    sizes = f"{rows} × {cols} pixels of {pitch[0]:.4g} × {pitch[1]:.4g} mm at the detector"
    return (
        f'<div class="grid">{"".join(figures)}</div><p class="quiet">{sizes}. The bars have their '
        "length at the depth of the CT's centre. Letters: the patient's right (R), left (L), head "
        "(H), feet (F), front (A), back (P).</p>"
    )


class _Frame:
    """Pictures of one X-ray's size as figures, with the patient's directions and a scale bar."""

    def __init__(self, volume: Volume, screen: Screen, pose: Tensor) -> None:
        rows, cols = screen.line.shape
        row_mm, col_mm = (float(p) for p in screen.camera.pixel_spacing)
        width = cols * col_mm
        self.shape = f"aspect-ratio: {width:.2f} / {rows * row_mm:.2f}"
        center = volume_center(volume).cpu()
        depth = float(pose[2, :3] @ center + pose[2, 3])
        if screen.camera.beam != "parallel":
            width *= depth / float(screen.camera.sdd)
        bar = next((mm for mm in SCALE_BARS_MM if mm <= 0.3 * width), 1.0)
        words = zip("ltrb", edge_letters(pose), strict=True)
        self.marks = "".join(f'<b class="{side}">{letter}</b>' for side, letter in words)
        self.marks += f'<i style="width: {100 * bar / width:.1f}%">{bar:g} mm</i>'

    def figure(self, picture: Tensor, words: str) -> str:
        said = html.escape(words)
        image = f'<img alt="{said}" src="{data_uri(picture)}">'
        return f"<figure>{self._framed(image)}<figcaption>{said}</figcaption></figure>"

    def comparison(self, back: Tensor, front: Tensor) -> str:
        images = (
            f'<img alt="X-ray" src="{data_uri(back)}">'
            f'<img class="front" alt="Rendered CT at the result" src="{data_uri(front)}">'
        )
        return (
            f'<figure class="screen">{self._framed(images)}<figcaption><label class="compare">X-ray'
            '<input type="range" min="0" max="1" step="0.01" value="0.5" '
            'aria-label="From the X-ray to the rendered CT"> rendered CT</label></figcaption>'
            "</figure>"
        )

    def _framed(self, images: str) -> str:
        return f'<div class="shot" style="{self.shape}">{images}{self.marks}</div>'


def _geometry(volume: Volume, camera: Camera, xray: Tensor, poses: Sequence[Tensor]) -> str:
    drawing = scene_svg(
        volume, camera, poses, points=bone_like_points(volume, DOTS), xray=to_display(xray)
    ).replace("<svg ", '<svg tabindex="0" ', 1)
    before = " The C-arm at the start is orange." if len(poses) > 1 else ""
    return (
        f"<figure>{drawing}<figcaption>Source, rays and detector with the X-ray (blue), the CT's "
        f'box and what attenuates most in it.{before}<span class="screen"> Drag to turn.</span>'
        "</figcaption></figure>"
    )


# ---- numbers


def _pose(volume: Volume, camera: Camera, found: Tensor, result: dict[str, Any]) -> str:
    parts = [table(facts.pose_words(volume, camera, found).items())]
    rows = facts.uncertainty(result)
    if rows:
        head = ("Camera axes, about the CT's centre", "moved from the start", "1 σ")
        parts.append("<h3>Motion and uncertainty</h3>" + table(rows, head))
        words = UNCERTAINTY if result.get("covariance") else NO_UNCERTAINTY
        parts.append(f"<p><small>{words}</small></p>")
    numbers = "\n".join("  ".join(f"{v:14.8f}" for v in row) for row in found.tolist())
    parts.append(
        "<h3>Matrix</h3><p><small>world_to_camera: patient LPS mm to camera mm (x right, y down, z "
        f"from the source to the detector)</small></p><pre>{numbers}</pre>"
    )
    covariance = result.get("covariance")
    if covariance is not None:
        lines = "\n".join("  ".join(f"{v:11.3e}" for v in row) for row in covariance)
        parts.append(
            f"<details><summary>Covariance, rad and mm</summary><pre>{lines}</pre></details>"
        )
    return "".join(parts)


def _landscape(landscape: PoseLandscape | None) -> str:
    if landscape is None:
        return ""
    low = [value * k for value, k in zip(landscape.lowest.tolist(), SCALES, strict=True)]
    words = (
        f"{landscape.name} on pixels of {landscape.pixel_mm:.2g} mm at the patient, one axis or "
        "two at a time moved from the pose that was found (0). Lowest along each axis at "
        + ", ".join(f"{value:.2g}{'°' if axis < 3 else ' mm'}" for axis, value in enumerate(low))
        + "."
    )
    charts = "".join(landscape_charts(landscape))
    return (
        f'<h2>The loss about the pose</h2><p class="quiet">{html.escape(words)}</p>'
        f'<div class="charts">{charts}</div>'
    )


def _provenance(result: dict[str, Any], source: str | None) -> str:
    parts = []
    files = (result.get("files") or {}).items()
    if files:
        rows = [
            (name, str(f.get("path", "–")), _megabytes(f.get("bytes")), str(f.get("sha256", "–")))
            for name, f in files
        ]
        shown = table(rows, ("", "file", "size", "SHA-256"))
        parts.append(f'<h3>Files</h3><div class="hashes">{shown}</div>')
    given = facts.given_options(result)
    if given:
        parts.append("<h3>Options</h3>" + table(given.items()))
    versions = ", ".join(map(" ".join, _versions(result).items()))
    if versions:
        parts.append(f"<h3>Versions</h3><p>{html.escape(versions)}</p>")
    command = facts.repeat_command(result, source)
    if command is not None:
        parts.append(f"<h3>To repeat it</h3><pre>{html.escape(command)}</pre>")
    encoded = base64.b64encode(json.dumps(result, indent=1, default=str).encode()).decode()
    name = html.escape(Path(source or "result.json").name, quote=True)
    parts.append(
        f'<p class="screen"><a download="{name}" '
        f'href="data:application/json;base64,{encoded}">The result as a file</a>, which '
        "drrkit render, convert and report take.</p>"
    )
    return "".join(parts)


def _megabytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 1e6:.2f} MB"
