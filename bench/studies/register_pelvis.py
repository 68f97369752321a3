"""Registrations of a CT to realistic X-rays of itself, from a fixed distance in random directions.

The target: sdd 1020 and sod 800 mm, 128 x 128 area pixels of 2.176 mm, a 90 kV spectrum with beam
hardening in bone and water, Poisson noise (2e4 photons per pixel at the detector), slight blur. The
registration models none of these and renders the CT at 70 keV with one ray per pixel. Every trial
has its own noise and starts 10 degrees (about a random axis) and 20 mm (in a random direction) off.
The error is mTRE over points on bone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
from typing import Any

import torch
from torch import Tensor

import drrkit
from bench.studies.study import ct_option, json_file, read_ct, recorded, wilson, write_json
from drrkit.metrics import bone_points, mtre, rotation_error
from drrkit.registration import AUTO

THREADS = 2
SDD, SOD = 1020.0, 800.0  # mm
SIZE, PIXEL = (128, 128), 2.176  # pixels, mm
THRESHOLD = 2.0  # mm: a smaller mTRE is a success
VIEWS = {
    "AP": drrkit.view_ap,
    "PA": drrkit.view_pa,
    "left": drrkit.view_left_lateral,
    "right": drrkit.view_right_lateral,
}


def options(add: Any) -> None:
    ct_option(add)
    add("--view", choices=VIEWS, default="AP", help="true view (AP)")
    add("--trials", type=int, default=10, help="registrations (10)")
    add("--degrees", type=float, default=10.0, help="rotation off (10)")
    add("--mm", type=float, default=20.0, help="translation off (20)")
    add(
        "--photons-at",
        choices=("detector", "source"),
        default="detector",
        help="where the 2e4 photons per pixel are counted (detector)",
    )


def run(options: argparse.Namespace) -> int:
    ct = read_ct(options)
    points = bone_points(ct)
    trials = []
    for seed in range(options.trials):
        trials.append(trial(ct, points, seed, options))
        print(line(trials[-1]), flush=True)
    content = {"protocol": protocol(ct, points, options), "summary": summary(trials)}
    write_json(json_file(options), recorded(options, **content, trials=trials))
    print(json.dumps(content["summary"], indent=1))
    return 0 if content["summary"]["success"]["count"] == options.trials else 1


def trial(ct: drrkit.Volume, points: Tensor, seed: int, options: argparse.Namespace) -> dict:
    """One registration: where it started, where it ended, how long it took."""
    camera = drrkit.CArm(SDD, SIZE, PIXEL)
    truth = VIEWS[options.view](ct, SOD)
    xray = drrkit.simulate_xray(ct, camera, truth, photons_at=options.photons_at, seed=seed)
    xi = offset(seed, options.degrees, options.mm)
    start = drrkit.perturb(truth, xi, drrkit.volume_center(ct))
    result = drrkit.register(ct.to_mu(), camera, xray, start)
    return {
        "seed": seed,
        "xi_rad_mm": xi.tolist(),
        "mtre_before_mm": float(mtre(start, truth, points)),
        "mtre_after_mm": float(mtre(result.world_to_camera, truth, points)),
        "rotation_after_deg": math.degrees(float(rotation_error(result.world_to_camera, truth))),
        "loss": result.loss,
        "confidence": result.confidence,
        "seconds": result.seconds,
        "stop_reason": result.stop_reason,
        "steps": [record.loss.shape[0] for record in result.history],
    }


def offset(seed: int, degrees: float, mm: float) -> Tensor:
    """xi [6] (rad, mm) of given lengths in random directions."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    direction = direction / direction.norm(dim=1, keepdim=True)
    return torch.cat([direction[0] * math.radians(degrees), direction[1] * mm])


def protocol(ct: drrkit.Volume, points: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    rounded = (points * 1e3).round().to(torch.int64).numpy().tobytes()
    return {
        "ct": options.ct.name,
        "ct_xyz": ct.shape_xyz,
        "ct_spacing_mm": ct.spacing,
        "view": options.view,
        "sdd_mm": SDD,
        "sod_mm": SOD,
        "size": SIZE,
        "pixel_mm": PIXEL,
        "spectrum": "90kV",
        "photons": 2e4,
        "photons_at": options.photons_at,
        "supersample": 3,
        "blur_sigma_px": 0.5,
        "offset_degrees": options.degrees,
        "offset_mm": options.mm,
        "threshold_mm": THRESHOLD,
        "points": len(points),
        "points_sha256": hashlib.sha256(rounded).hexdigest(),  # of world micrometres, int64
        "stages": [{**vars(stage), "similarity": stage.name} for stage in AUTO],
    }


def summary(trials: list[dict[str, Any]]) -> dict[str, Any]:
    errors = [trial["mtre_after_mm"] for trial in trials]
    seconds = [trial["seconds"] for trial in trials]
    return {
        "trials": len(trials),
        "success": wilson(errors, THRESHOLD),
        "mtre_after_median_mm": statistics.median(errors),
        "mtre_after_max_mm": max(errors),
        "seconds_median": statistics.median(seconds),
        "seconds_max": max(seconds),
    }


def line(trial: dict[str, Any]) -> str:
    return (
        f"seed {trial['seed']:3d}  mTRE {trial['mtre_before_mm']:6.2f} -> "
        f"{trial['mtre_after_mm']:6.3f} mm  confidence {trial['confidence']:.3f}  "
        f"{trial['seconds']:5.2f} s  {trial['stop_reason']}"
    )
