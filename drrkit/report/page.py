"""A registration as one HTML page that works without a server or a network."""

from __future__ import annotations

import base64
import html
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drrkit.files import whole_file
from drrkit.geometry import Camera
from drrkit.report.pictures import (
    checkerboard,
    difference,
    overlay_edges,
    save_image,
)
from drrkit.report.scene import describe_geometry, scene_svg
from drrkit.report.screen import Screen
from drrkit.volume import Volume

__all__ = ["registration_page", "save_page"]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
  color: #1c2530; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
figure { display: inline-block; margin: 0 1rem 1rem 0; vertical-align: top }
figcaption { color: #556; font-size: .9rem } img, svg { max-width: 100%; border: 1px solid #ccd }
table { border-collapse: collapse } td, th { padding: .15rem .8rem .15rem 0; text-align: left;
  vertical-align: top; font-variant-numeric: tabular-nums }
.good { color: #14713d } .bad { color: #b3261e } pre { overflow-x: auto; background: #f4f6f8;
  padding: .6rem }
.stack { position: relative; display: inline-block } .stack img + img { position: absolute; left: 0;
  top: 0 }
"""
FADE = """
const slider = document.getElementById('fade'), top_ = document.getElementById('front');
slider.addEventListener('input', () => { top_.style.opacity = slider.value; });
"""


def registration_page(
    volume: Volume,
    camera: Camera,
    xray: Tensor,
    result: dict[str, Any],
    *,
    method: str = "joseph",
) -> str:
    """The page of one registration, HTML with everything in it.

    Args:
        volume: in mu.
        camera: the X-ray's.
        xray: [rows, cols], or with leading dimensions of size 1, bone bright.
        result: what `drrkit register` writes: world_to_camera and, where known,
            initial_world_to_camera, loss, confidence, accepted, covariance, stages, run, ...
        method: projector method.

    Raises:
        TypeError, ValueError: as `render`; a result without world_to_camera.
    """
    if "world_to_camera" not in result:
        raise ValueError(f"result: expected 'world_to_camera', got the keys {sorted(result)}")
    found = torch.tensor(result["world_to_camera"], dtype=torch.float64)
    start = result.get("initial_world_to_camera")
    poses = [found] if start is None else [torch.tensor(start, dtype=torch.float64), found]
    pictures = _pictures(volume, camera, xray, poses, method)
    run = result.get("run") or {}
    parts = [
        f"<h1>Registration {_verdict(result)}</h1>",
        f"<p>{html.escape(describe_geometry(volume, camera, found))}</p>",
        _table(_numbers(result)),
        "<h2>Images</h2>",
        *(_figure(picture, caption) for caption, picture in pictures.items()),
        _fader(pictures),
        "<h2>Geometry</h2>",
        f"<figure>{scene_svg(volume, camera, poses)}<figcaption>The volume's box, the C-arm at the "
        "start (orange) and at the result (blue)</figcaption></figure>",
        "<h2>Pose</h2>",
        f"<pre>{_matrix(found)}</pre><p>world_to_camera: patient LPS mm to camera mm.</p>",
        _stages(result.get("stages")),
        "<h2>How it was made</h2>",
        _table({**_flat(run.get("options")), **_flat(run.get("versions"))}),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>drrkit registration</title>'
        f"<style>{STYLE}</style></head><body>{''.join(parts)}<script>{FADE}</script></body></html>"
    )


def save_page(page: str, path: str | os.PathLike[str]) -> None:
    """Writes a page; the file appears whole or not at all. Raises OSError when it cannot."""
    with whole_file(path) as staged:
        staged.write_text(page, encoding="utf-8")


def _pictures(
    volume: Volume, camera: Camera, xray: Tensor, poses: Sequence[Tensor], method: str
) -> dict[str, Tensor]:
    screen = Screen.of(camera, xray, most=800)
    target = screen.picture
    pictures = {"X-ray": target}
    drrs = [screen.rendered(volume, pose, method) for pose in poses]
    matched = [screen.matched(drr) for drr in drrs]
    names = ["At the start", "At the result"][-len(poses) :]
    for name, drr in zip(names, drrs, strict=True):
        edge = screen.edges(drr)
        pictures[f"{name}: edges of the rendered CT"] = overlay_edges(target, edge)
    pictures["Rendered CT at the result"] = matched[-1]
    pictures["Checkerboard of X-ray and rendered CT"] = checkerboard(target, matched[-1])
    pictures["Difference, grey where equal"] = difference(target, matched[-1])
    return pictures


def _verdict(result: dict[str, Any]) -> str:
    accepted = result.get("accepted")
    if accepted is None:
        return ""
    return (
        '<span class="good">accepted</span>'
        if accepted
        else '<span class="bad">not accepted</span>'
    )


def _numbers(result: dict[str, Any]) -> dict[str, str]:
    rows: dict[str, str] = {}
    for name, key, form in (
        ("Loss", "loss", "{:.4f}"),
        ("Confidence", "confidence", "{:.3f}"),
        ("Seconds", "seconds", "{:.2f}"),
        ("Ended", "stop_reason", "{}"),
    ):
        if result.get(key) is not None:
            rows[name] = form.format(result[key])
    motion = result.get("motion")
    if motion:
        rows["Moved from the start"] = (
            f"{motion['rotation_deg']:.2f} degrees, {motion['translation_mm']:.2f} mm"
        )
    covariance = result.get("covariance")
    if covariance:
        sigma = torch.tensor(covariance, dtype=torch.float64).diagonal().clamp_min(0).sqrt()
        turns = ", ".join(f"{math.degrees(v):.3f}" for v in sigma[:3].tolist())
        shifts = ", ".join(f"{v:.3f}" for v in sigma[3:].tolist())
        rows["Standard deviation, rotation x, y, z"] = f"{turns} degrees"
        rows["Standard deviation, right, down, depth"] = f"{shifts} mm"
    return rows


def _stages(stages: Any) -> str:
    if not stages:
        return ""
    keys = ("similarity", "optimiser", "downsample", "steps", "seconds", "stop_reason")
    keys = tuple(key for key in keys if any(key in stage for stage in stages))
    head = "".join(f"<th>{key.replace('_', ' ')}</th>" for key in keys)
    rows = ""
    for stage in stages:
        cells = (stage.get(key, "") for key in keys)
        texts = (f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells)
        rows += "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in texts) + "</tr>"
    curves = "".join(
        f"<figure>{_curve(stage['best_loss'])}<figcaption>Stage {number}: "
        f"{html.escape(str(stage.get('similarity', '')))}</figcaption></figure>"
        for number, stage in enumerate(stages, 1)
        if sum(loss is not None for loss in stage.get("best_loss") or ()) > 1
    )
    return f"<h2>Stages</h2><table><tr>{head}</tr>{rows}</table>{curves}"


def _curve(losses: Sequence[float]) -> str:
    """The lowest loss so far over the steps, as an SVG drawing with its ends in numbers."""
    known = [(step, loss) for step, loss in enumerate(losses) if loss is not None]
    low, high = min(loss for _, loss in known), max(loss for _, loss in known)
    across, tall = 220 / max(1, len(losses) - 1), 90 / ((high - low) or 1.0)
    points = " ".join(f"{30 + s * across:.1f},{105 - (v - low) * tall:.1f}" for s, v in known)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 270 125" width="270" role="img" '
        f'aria-label="loss"><polyline points="{points}" fill="none" stroke="#2a7ae2" '
        f'stroke-width="1.5"/><text x="30" y="11" font-size="10">{high:.4g}</text>'
        f'<text x="30" y="120" font-size="10">{low:.4g} after {len(losses)} steps</text></svg>'
    )


def _table(rows: dict[str, str]) -> str:
    cells = (
        f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table>{''.join(cells)}</table>"


def _flat(content: Any) -> dict[str, str]:
    if not isinstance(content, dict):
        return {}
    return {name: str(value) for name, value in content.items() if value is not None}


def _figure(picture: Tensor, caption: str) -> str:
    return f"<figure>{_image(picture)}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _fader(pictures: dict[str, Tensor]) -> str:
    back, front = pictures["X-ray"], pictures["Rendered CT at the result"]
    return (
        f'<figure><div class="stack">{_image(back)}{_image(front, "front")}</div><figcaption>'
        '<label>X-ray <input id="fade" type="range" min="0" max="1" step="0.01" value="0.5"> '
        "rendered CT</label></figcaption></figure><style>#front { opacity: .5 }</style>"
    )


def _image(picture: Tensor, name: str = "") -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "picture.png"
        save_image(picture, file)
        data = base64.b64encode(file.read_bytes()).decode()
    identity = f' id="{name}"' if name else ""
    return f'<img{identity} alt="" src="data:image/png;base64,{data}">'


def _matrix(pose: Tensor) -> str:
    return "\n".join("  ".join(f"{value:13.8f}" for value in row) for row in pose.tolist())
