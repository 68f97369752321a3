"""Registrations of a CT to realistic X-rays of itself, from a fixed distance in random directions.

    python bench/register_pelvis.py [CT] [--view AP] [--trials 10] [--threads 2] [--output FILE]

CT is a volume in HU, by default pelvis_2mm.nii.gz in the folder DRRKIT_DATA. The target: sdd 1020
and sod 800 mm, 128 x 128 area pixels of 2.176 mm, a 90 kV spectrum with beam hardening in bone and
water, Poisson noise (2e4 photons a pixel at the detector), slight blur; the registration knows none
of these and renders the CT at 70 keV with one ray a pixel. Every trial has its own noise and starts
10 degrees (about a random axis) and 20 mm (in a random direction) off. The error is mTRE over
points on bone. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import statistics
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import drrkit
from drrkit.machine import machine, versions
from drrkit.metrics import bone_points, mtre, rotation_error, success_rate
from drrkit.registration import AUTO

SCHEMA = 1
SDD, SOD = 1020.0, 800.0  # mm
SIZE, PIXEL = (128, 128), 2.176  # pixels, mm
THRESHOLD = 2.0  # mm: a smaller mTRE is a success
VIEWS = {
    "AP": drrkit.view_ap,
    "PA": drrkit.view_pa,
    "left": drrkit.view_left_lateral,
    "right": drrkit.view_right_lateral,
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    ct = drrkit.read_volume(options.ct).to(dtype=torch.float32)
    points = bone_points(ct)
    load = os.getloadavg()
    trials = []
    for seed in range(options.trials):
        trials.append(trial(ct, points, seed, options))
        print(line(trials[-1]), flush=True)
    record = {
        "schema": SCHEMA,
        "command": " ".join(["python bench/register_pelvis.py", *described(options)]),
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "load_average": {"before": load, "after": os.getloadavg()},
        "versions": versions(("torch", "numpy", "SimpleITK")) | {"drrkit": drrkit.__version__},
        "protocol": protocol(ct, points, options),
        "summary": summary(trials),
        "trials": trials,
    }
    write(record, options.output)
    print(json.dumps(record["summary"], indent=1))
    return 0 if record["summary"]["successes"] == options.trials else 1


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
    errors = torch.tensor([trial["mtre_after_mm"] for trial in trials])
    seconds = [trial["seconds"] for trial in trials]
    rate = success_rate(errors, THRESHOLD)
    return {
        "successes": rate.successes,
        "trials": rate.total,
        "wilson_95": [rate.low, rate.high],
        "mtre_after_median_mm": float(errors.median()),
        "mtre_after_max_mm": float(errors.max()),
        "seconds_median": statistics.median(seconds),
        "seconds_max": max(seconds),
    }


def line(trial: dict[str, Any]) -> str:
    return (
        f"seed {trial['seed']:3d}  mTRE {trial['mtre_before_mm']:6.2f} -> "
        f"{trial['mtre_after_mm']:6.3f} mm  confidence {trial['confidence']:.3f}  "
        f"{trial['seconds']:5.2f} s  {trial['stop_reason']}"
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    folder = os.environ.get("DRRKIT_DATA")
    parser.add_argument("ct", nargs="?", type=Path, help="CT in HU; default: the pelvis")
    parser.add_argument("--view", choices=VIEWS, default="AP", help="true view (default AP)")
    parser.add_argument("--trials", type=int, default=10, help="registrations (default 10)")
    parser.add_argument("--degrees", type=float, default=10.0, help="rotation off (default 10)")
    parser.add_argument("--mm", type=float, default=20.0, help="translation off (default 20)")
    parser.add_argument(
        "--photons-at",
        choices=("detector", "source"),
        default="detector",
        help="where the 2e4 photons a pixel are counted (default detector)",
    )
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    default = Path(__file__).parent / "results" / "register_pelvis.json"
    parser.add_argument("--output", type=Path, default=default, help="JSON file to write")
    options = parser.parse_args(arguments)
    if options.trials < 1 or options.threads < 1:
        parser.error("--trials and --threads must be at least 1")
    if options.ct is None:
        if not folder:
            parser.error("no CT given and DRRKIT_DATA is not set")
        options.ct = Path(folder) / "pelvis_2mm.nii.gz"
    return options


def described(options: argparse.Namespace) -> list[str]:
    """The command line, without the folders of this machine."""
    words = [options.ct.name, f"--view {options.view}", f"--trials {options.trials}"]
    words += [f"--degrees {options.degrees:g}", f"--mm {options.mm:g}"]
    return [*words, f"--photons-at {options.photons_at}", f"--threads {options.threads}"]


def write(record: dict[str, Any], path: Path) -> None:
    """The record as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
