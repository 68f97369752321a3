"""Every loss under every optimiser, in X-rays of another appearance, from the same starts.

Cases are those of the narrow protocol: a realistic X-ray (90 kV spectrum, beam hardening, area
pixels, photon noise, blur) of 64 x 64 pixels, a start within 10 degrees, 20 mm in plane and 50 mm
of depth of the truth about each axis. A cell of the grid is a loss, an optimiser and a shift:

    none        the X-ray as simulated, in line integrals
    gamma       mapped to [0, 1] and raised to a power U(0.7, 1.3)
    field       mapped to [0, 1], times a smooth field between 0.7 and 1.3
    inverted    mapped to [0, 1] and inverted
    shift       gamma and field
    shift-inverted  gamma, inversion and field
    shift-or-inverted  one of these two, each with probability 1/2: the appearance shift of the
                evaluations. Cases that have been run under both need not be run again for it.

Losses of intensities (unit_*) map both images to [0, 1]; the others are invariant to that or need
none. An optimiser has the same two stages, 32 x 32 and 64 x 64 pixels, for every loss.

Rows are kept in the folder --rows, one per registration, so that runs resume and add up (torchrun
shares them among processes); tables and plots are of all rows there: --report alone makes them
again.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import drrkit
from bench.studies.loss_grid_report import write_report
from drrkit.evaluation import (
    PROTOCOLS,
    Case,
    Protocol,
    Subject,
    evaluate,
    shard,
    shifted_appearance,
)
from drrkit.phantoms import torso
from drrkit.registration import CmaEs, Descent, Levenberg, Optimiser, Stage, TrustRegion

VOXEL_MM = 4.0
SIZE, PIXEL_MM = (64, 64), 4.352

LOSSES = (
    "mi",
    "unit_mse",
    "nmi",
    "mattes_mi",
    "ncc",
    "local_ncc",
    "gradient_ncc",
    "patch_gradient_ncc",
    "gradient_difference",
    "unit_l1",
    "unit_soft_dice",
    "unit_ssim",
    "unit_ssim_dice_l1",
    "unit_focal_frequency",
)
"""Every loss of drrkit.losses."""

# Keywords of shifted_appearance; None for the X-ray as it is.
SHIFTS: dict[str, dict[str, bool] | None] = {
    "none": None,
    "gamma": {"inversion": False, "field": False},
    "field": {"inversion": False, "gamma": False},
    "inverted": {"inversion": True, "gamma": False, "field": False},
    "shift": {"inversion": False},
    "shift-inverted": {"inversion": True},
    "shift-or-inverted": {},
}

_REACH = (math.radians(20.0),) * 3 + (40.0, 40.0, 100.0)  # twice that of the starts
_NEAR = (math.radians(5.0),) * 3 + (8.0, 8.0, 25.0)

OPTIONS: dict[str, tuple[tuple[Optimiser, int], tuple[Optimiser, int]]] = {
    "gradient": ((Descent(4.0, final_step=0.4), 80), (Descent(1.0, final_step=0.05), 60)),
    "levenberg": ((Levenberg(20.0, final_step=0.2), 40), (Levenberg(5.0, final_step=0.02), 30)),
    "trust_region": (
        (TrustRegion(12.0, _REACH, final_step=0.4), 30),
        (TrustRegion(2.0, _NEAR, final_step=0.05), 25),
    ),
    "cmaes": ((CmaEs(_REACH, final_step=0.5), 30), (CmaEs(_NEAR, final_step=0.05), 12)),
}
"""Settings and iterations of the two stages of an optimiser."""


_CASES: dict[tuple[str, int], Case] = {}


@dataclass(frozen=True)
class ShiftedProtocol(Protocol):
    """A protocol whose X-rays have one of the SHIFTS, drawn by the case's number."""

    shift: str = "none"

    def case(self, subject: Subject, number: int) -> Case:
        """The case of this number: poses, noise and random shift are the same for every shift."""
        key = subject.name, number
        if key not in _CASES:  # simulating an X-ray takes longer than most registrations here
            _CASES[key] = super().case(subject, number)
        xray, options = _CASES[key].xray, SHIFTS[self.shift]
        if options is not None:
            xray = shifted_appearance(xray, number, **options)
        return replace(_CASES[key], protocol=self, xray=xray)


def protocol(shift: str) -> ShiftedProtocol:
    """The narrow protocol on small X-rays of shifted appearance."""
    narrow = PROTOCOLS["narrow"]
    return ShiftedProtocol(shift, narrow.start, size=SIZE, pixel_mm=PIXEL_MM, shift=shift)


def stages(loss: str, optimiser: str) -> tuple[Stage, Stage]:
    """The two stages of a cell."""
    (coarse, many), (fine, few) = OPTIONS[optimiser]
    first = Stage(loss, optimiser=coarse, downsample=2, supersample=2, iterations=many, mm=True)
    return first, Stage(loss, optimiser=fine, iterations=few, mm=True)


def subject(path: Path | None) -> Subject:
    """A CT, or the torso phantom, that is registered on voxels of 4 mm."""
    if path is None:
        found = Subject.of("torso", torso(2.0))
    else:
        ct = drrkit.read_volume(path).to(dtype=torch.float32)
        found = Subject.of(path.name.split(".")[0], ct)
    return found._replace(attenuation=found.attenuation.resample((VOXEL_MM,) * 3))


def options(add: Any) -> None:
    add("cts", nargs="*", type=Path, help="CTs in HU; default: the torso phantom")
    add("--losses", nargs="+", choices=LOSSES, default=LOSSES)
    add("--optimisers", nargs="+", choices=tuple(OPTIONS), default=tuple(OPTIONS))
    add("--shifts", nargs="+", choices=tuple(SHIFTS), default=tuple(SHIFTS))
    add("--cases", type=int, default=50, help="starts of each cell (50)")
    add("--report", action="store_true", help="run nothing")
    add("--rows", type=Path, default=Path("build/loss_grid_rows"))


def run(options: argparse.Namespace) -> None:
    for path in () if options.report else options.cts or (None,):
        patient = subject(path)
        for optimiser in options.optimisers:
            methods = {f"{loss}/{optimiser}": stages(loss, optimiser) for loss in options.losses}
            for shift in options.shifts:
                before = time.perf_counter()
                # Files that are written anew for each row stay short.
                folder = options.rows / f"{patient.name}.{shift}.{optimiser}"
                evaluate(methods, [protocol(shift)], [patient], options.cases, folder)
                spent = time.perf_counter() - before
                print(f"{patient.name} {optimiser} {shift}: {spent:.0f} s", flush=True)
    if shard()[0] == 0:
        print(write_report(options, described()))


def described() -> dict[str, object]:
    """What every cell has in common, for the record."""
    return {
        "protocol": {**vars(protocol("none")), "shift": list(SHIFTS)},
        "voxel_mm": VOXEL_MM,
        "optimisers": {
            name: [
                {"optimiser": repr(optimiser), "iterations": count, "downsample": 2 - k}
                for k, (optimiser, count) in enumerate(both)
            ]
            for name, both in OPTIONS.items()
        },
    }
