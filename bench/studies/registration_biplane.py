"""Biplane registrations of a CT to two realistic X-rays of itself, next to single-view ones.

Poses, starts and X-rays are those of a protocol (drrkit.evaluation), narrow ones registered by
"auto", wide ones by "global"; the second camera is turned about the patient's long axis, around the
isocentre 800 mm from the source; its X-ray has noise of its own. With --window the first X-ray
shows only its middle of so many rows x columns. Reported: mTRE over points on bone, and by how much
the centre of these points is off along the axis of each view (depth) and along the two axes across
(in plane, their root mean square).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import Any

import torch
from torch import Tensor

import drrkit
from bench.studies.study import ct_option, json_file, read_ct, recorded, wilson, write_json
from drrkit.evaluation import PROTOCOLS, Case, Subject
from drrkit.metrics import mtre
from drrkit.registration import PIPELINES, rig_of

THREADS = 2
ISOCENTRE_MM = PROTOCOLS["narrow"].sod


def options(add: Any) -> None:
    ct_option(add)
    add("--cases", type=int, default=50, help="registrations of each set-up (50)")
    add(
        "--angles",
        type=lambda text: [float(word) for word in text.split(",")],
        default=[90.0, 30.0, 0.0],
        help="degrees between the views, 0 for one view alone (90,30,0)",
    )
    add("--protocol", choices=PROTOCOLS, default="narrow")
    add(
        "--window",
        type=lambda text: tuple(int(word) for word in text.split("x")),
        help="ROWSxCOLS of the first X-ray that are seen (all)",
    )


def run(options: argparse.Namespace) -> None:
    subject = Subject.of("pelvis", read_ct(options))
    protocol, pipeline = PROTOCOLS[options.protocol], stages_of(options.protocol)
    settings = {"ct": options.ct.name, "stages": pipeline, "window": options.window}
    stages = [{**vars(stage), "similarity": stage.name} for stage in PIPELINES[pipeline]]
    summaries = {}
    for angle in options.angles:
        rows = []
        for number in range(options.cases):
            rows.append(case(subject, protocol.case(subject, number), angle, options))
            print(name(angle), line(rows[-1]), flush=True)
        summaries[name(angle)] = summary(rows)
        content = {"protocol": vars(protocol) | settings, "stages": stages, "summary": summaries}
        write_json(json_file(options), recorded(options, **content))  # after every set-up
    print(json.dumps(summaries, indent=1))


def name(angle: float) -> str:
    return "single" if angle == 0 else f"biplane_{angle:g}"


def stages_of(protocol: str) -> str:
    return "auto" if protocol == "narrow" else "global"


def window_of(one: Case, window: tuple[int, int] | None) -> Tensor | None:
    """The mask of the first X-ray."""
    if window is None:
        return None
    mask = torch.zeros_like(one.xray)
    top, left = ((n - w) // 2 for n, w in zip(one.camera.size, window, strict=True))
    mask[..., top : top + window[0], left : left + window[1]] = 1.0
    return mask


def case(subject: Subject, one: Case, angle: float, options: argparse.Namespace) -> dict[str, Any]:
    """One registration: two views `angle` degrees apart, or one view for 0."""
    mask = window_of(one, options.window)
    stages = stages_of(options.protocol)
    used = time.process_time()
    if angle == 0:
        result = drrkit.register(
            subject.attenuation, one.camera, one.xray, one.start, stages=stages, mask=mask
        )
        rig = torch.eye(4, dtype=torch.float64)[None]
    else:
        rig = rig_of(torch.stack([torch.eye(4, dtype=torch.float64), orbit(angle)]))
        second = drrkit.simulate_xray(
            subject.ct,
            one.camera,
            rig[1] @ one.truth,
            photons=PROTOCOLS[options.protocol].photons,
            photons_at=PROTOCOLS[options.protocol].photons_at,
            seed=10_000 + one.number,
        )
        used = time.process_time()
        result = drrkit.register(
            subject.attenuation,
            [one.camera] * 2,
            [one.xray, second],
            one.start,
            stages=stages,
            mask=None if mask is None else [mask, None],
            rig_to_camera=rig,
        )
    used = time.process_time() - used
    found = result.world_to_camera
    sigma = None if result.covariance is None else result.covariance.diagonal().sqrt().tolist()
    return {
        "number": one.number,
        "mtre_before_mm": float(mtre(one.start, one.truth, subject.points)),
        "mtre_mm": float(mtre(found, one.truth, subject.points)),
        "views": [errors_in(turn, found, one.truth, subject.points) for turn in rig],
        "sigma_rad_mm": sigma,
        "confidence": result.confidence,
        "seconds": result.seconds,
        "process_seconds": used,
        "stop_reason": result.stop_reason,
    }


def orbit(angle: float) -> Tensor:
    """From the first camera's coordinates to those of one turned about the patient's long axis.

    In the frontal view that axis is the camera's y; the isocentre lies 800 mm along z.
    """
    turn = torch.eye(4, dtype=torch.float64)
    axis = torch.tensor([0.0, math.radians(angle), 0.0], dtype=torch.float64)
    isocentre = torch.tensor([0.0, 0.0, ISOCENTRE_MM], dtype=torch.float64)
    turn[:3, :3] = drrkit.so3_exp(axis)
    turn[:3, 3] = isocentre - turn[:3, :3] @ isocentre
    return turn


def errors_in(turn: Tensor, found: Tensor, truth: Tensor, points: Tensor) -> dict[str, float]:
    """How far the points' centre is off in a view: along its axis, and along one across (rms)."""
    center = torch.cat([points.double().mean(0), torch.ones(1, dtype=torch.float64)])
    shift = (turn @ (found - truth) @ center)[:3]
    return {
        "depth_mm": abs(float(shift[2])),
        "in_plane_mm": float(shift[:2].square().mean().sqrt()),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    errors = torch.tensor([row["mtre_mm"] for row in rows])
    seconds = torch.tensor([row["seconds"] for row in rows])
    process = torch.tensor([row["process_seconds"] for row in rows])
    depth, plane = (  # [cases, views]
        torch.tensor([[view[key] for view in row["views"]] for row in rows])
        for key in ("depth_mm", "in_plane_mm")
    )
    return {
        "cases": len(rows),
        "mtre_median_mm": float(errors.median()),
        "mtre_95_mm": float(errors.quantile(0.95)),
        "mtre_max_mm": float(errors.max()),
        "below_2_mm": wilson(errors.tolist(), 2.0),
        "depth_median_mm": depth.median(0).values.tolist(),
        "in_plane_median_mm": plane.median(0).values.tolist(),
        "depth_rms_mm": depth.square().mean(0).sqrt().tolist(),
        "in_plane_rms_mm": plane.square().mean(0).sqrt().tolist(),
        "depth_rms_all_views_mm": float(depth.square().mean().sqrt()),
        "in_plane_rms_all_views_mm": float(plane.square().mean().sqrt()),
        "seconds_median": float(seconds.median()),
        "process_seconds_median": float(process.median()),
    }


def line(row: dict[str, Any]) -> str:
    views = "  ".join(
        f"depth {view['depth_mm']:6.3f} in plane {view['in_plane_mm']:6.3f}"
        for view in row["views"]
    )
    return (
        f"{row['number']:3d}  mTRE {row['mtre_before_mm']:6.2f} -> {row['mtre_mm']:6.3f} mm  "
        f"{views}  confidence {row['confidence']:.3f}  {row['seconds']:5.2f} s"
    )
