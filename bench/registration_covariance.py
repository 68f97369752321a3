"""Whether a pose's covariance says how far it is off: registrations of one view over many noises.

    python bench/registration_covariance.py [CT] [--noises 40] [--poses 4] [--output FILE]

CT is a volume in HU, by default pelvis_2mm.nii.gz in the folder DRRKIT_DATA. Poses are the first of
the narrow protocol. Two kinds of X-ray: "matched", the registration's own rendering with Gaussian
noise, where noise is all there is, by the last stage of "auto" and, with the same pixels, by mse
and ncc; "realistic", with a spectrum, area pixels, photon noise and blur, where the model's errors
are the same in every image of a pose. The squared Mahalanobis distance of the error has mean 6 and
90 % quantile 10.6 where the covariance is right. Prints and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import drrkit
from drrkit.evaluation import PROTOCOLS, Subject
from drrkit.machine import machine, versions
from drrkit.registration import AUTO
from drrkit.registration.problem.motion import motion_of

SCHEMA = 2
PROTOCOL = PROTOCOLS["narrow"]
NOISE = 0.05  # standard deviation of the matched images' line integrals

# The end of a step must be small against the scatter, or starts at the truth would hide it.
LAST = replace(AUTO[-1], final_step=1e-3)
PLAIN = replace(LAST, blur=0.0)
STAGES = {
    "matched": LAST,
    "matched, mse": replace(PLAIN, similarity="mse"),
    "matched, ncc": replace(PLAIN, similarity="ncc"),
    "realistic": LAST,
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    subject = Subject.of("pelvis", drrkit.read_volume(options.ct).to(dtype=torch.float32))
    load = os.getloadavg()
    summaries = {}
    for kind in STAGES:
        found = [
            registered(subject, kind, pose, noise)
            for pose in range(options.poses)
            for noise in range(options.noises)
        ]
        xi, sigma, distance = (torch.stack(part) for part in zip(*found, strict=True))
        summaries[kind] = summary(xi, sigma, distance, options.poses)
        print(kind, json.dumps(summaries[kind], indent=1), flush=True)
    record = {
        "schema": SCHEMA,
        "command": f"python bench/registration_covariance.py {options.ct.name} "
        f"--noises {options.noises} --poses {options.poses} --threads {options.threads}",
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "load_average": {"before": load, "after": os.getloadavg()},
        "versions": versions(("torch", "numpy")) | {"drrkit": drrkit.__version__},
        "protocol": {**vars(PROTOCOL), "ct": options.ct.name, "matched_noise": NOISE},
        "stages": {
            kind: {**vars(stage), "similarity": stage.name} for kind, stage in STAGES.items()
        },
        "summary": summaries,
    }
    write(record, options.output)
    return 0


def registered(subject: Subject, kind: str, pose: int, noise: int) -> tuple[Tensor, Tensor, Tensor]:
    """Error xi [6] (rad, mm), its standard deviations [6], its squared Mahalanobis distance []."""
    case = PROTOCOL.case(subject, pose)
    if kind.startswith("matched"):
        generator = torch.Generator().manual_seed(noise)
        clean = drrkit.render(subject.attenuation, case.camera, case.truth)
        xray = clean + NOISE * torch.randn(clean.shape, generator=generator)
    else:
        xray = drrkit.simulate_xray(subject.ct, case.camera, case.truth, seed=noise)
    result = drrkit.register(
        subject.attenuation, case.camera, xray, case.truth, stages=STAGES[kind]
    )
    center = drrkit.volume_center(subject.ct)
    xi = motion_of(case.truth, result.world_to_camera[None], center)[0]
    return xi, result.sigma, xi @ torch.linalg.solve(result.covariance, xi)


def summary(xi: Tensor, sigma: Tensor, distance: Tensor, poses: int) -> dict[str, Any]:
    xi = xi.unflatten(0, (poses, -1))
    spread = (xi - xi.mean(1, keepdim=True)).square().sum((0, 1)) / (xi.shape[1] - 1) / poses
    return {
        "registrations": len(distance),
        "distance_mean": float(distance.mean()),
        "distance_median": float(distance.median()),
        "share_below_10.6": float((distance < 10.6).double().mean()),
        "predicted_sigma_rad_mm": sigma.square().mean(0).sqrt().tolist(),
        "spread_over_noise_rad_mm": spread.sqrt().tolist(),
        "rms_error_rad_mm": xi.square().mean((0, 1)).sqrt().tolist(),
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    folder = os.environ.get("DRRKIT_DATA")
    parser.add_argument("ct", nargs="?", type=Path, help="CT in HU; default: the pelvis")
    parser.add_argument("--noises", type=int, default=40, help="images a pose (default 40)")
    parser.add_argument("--poses", type=int, default=4, help="poses (default 4)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    default = Path(__file__).parent / "results" / "registration_covariance.json"
    parser.add_argument("--output", type=Path, default=default, help="JSON file to write")
    options = parser.parse_args(arguments)
    if options.noises < 2 or options.poses < 1 or options.threads < 1:
        parser.error("--noises must be at least 2, --poses and --threads at least 1")
    if options.ct is None:
        if not folder:
            parser.error("no CT given and DRRKIT_DATA is not set")
        options.ct = Path(folder) / "pelvis_2mm.nii.gz"
    return options


def write(record: dict[str, Any], path: Path) -> None:
    """The record as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
