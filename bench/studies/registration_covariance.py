"""How well a pose's covariance predicts its error: registrations of one view over many noises.

Poses are the first of the narrow protocol. Two kinds of X-ray: "matched", the registration's own
rendering with Gaussian noise and no other model error, by the last stage of "auto" and, with the
same pixels, by mse and ncc; "realistic", with a spectrum, area pixels, photon noise and blur, where
the model's errors are the same in every image of a pose. The squared Mahalanobis distance of the
error has mean 6 and 90 % quantile 10.6 where the covariance is right.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import drrkit
from bench.studies.study import ct_option, json_file, read_ct, recorded, write_json
from drrkit.evaluation import PROTOCOLS, Subject
from drrkit.registration import AUTO
from drrkit.registration.problem.motion import motion_of

THREADS = 2
PROTOCOL = PROTOCOLS["narrow"]
NOISE = 0.05  # standard deviation of the matched images' line integrals

# The end of a step must be small against the scatter, or starts at the truth would hide it.
LAST = replace(AUTO[-1], optimiser=replace(AUTO[-1].optimiser, final_step=1e-3))
PLAIN = replace(LAST, blur=0.0)
STAGES = {
    "matched": LAST,
    "matched, mse": replace(PLAIN, similarity="mse"),
    "matched, ncc": replace(PLAIN, similarity="ncc"),
    "realistic": LAST,
}


def options(add: Any) -> None:
    ct_option(add)
    add("--noises", type=int, default=40, help="images of each pose, at least 2 (40)")
    add("--poses", type=int, default=4, help="poses (4)")


def run(options: argparse.Namespace) -> None:
    subject = Subject.of("pelvis", read_ct(options))
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
    record = recorded(
        options,
        protocol={**vars(PROTOCOL), "ct": options.ct.name, "matched_noise": NOISE},
        stages={kind: {**vars(stage), "similarity": stage.name} for kind, stage in STAGES.items()},
        summary=summaries,
    )
    write_json(json_file(options), record)


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
