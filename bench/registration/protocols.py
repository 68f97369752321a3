"""Registrations from far away: every named protocol over two CTs and a phantom, a row a case.

    python bench/registration/protocols.py EXPERIMENT ... [--cases 100] [--threads 1] --rows FOLDER
    RANK=0 WORLD_SIZE=2 python bench/registration/protocols.py ...    # one of two processes

Subjects are pelvis_2mm.nii.gz and chest_2mm.nii.gz in the folder DRRKIT_DATA, CTs in HU, and
drrkit.phantoms.torso with voxels of 2 mm. An experiment is a protocol, a method and the X-rays:

    narrow      starts nearby, stages="auto"
    prost       starts far away, stages="global"
    cdreg       the same from normally distributed starts
    *-starved   the same poses in X-rays of 2e4 photons a pixel counted before the patient
    *-siddon    the same poses in X-rays by another projector, of a CT on other voxels
    *-cmaes     a single CMA-ES from the start instead of drrkit's own pipeline

Interrupted runs resume; processes that share the cases write files of their own, FOLDER holds all.
`report.py` makes tables of them. Times taken with one thread a process, or while other programs
run, are no results: `--threads 2 --cases 10` into another folder measures them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import drrkit
from drrkit.evaluation import METHODS, PROTOCOLS, Case, Protocol, Row, Subject, evaluate
from drrkit.geometry import view_ap
from drrkit.phantoms import torso
from drrkit.xray import simulate_xray

FILES = {"pelvis": "pelvis_2mm.nii.gz", "chest": "chest_2mm.nii.gz"}
SUBJECTS = (*FILES, "torso")
PHANTOM_MM = 2.0
OTHER_VOXELS = (1.7, 1.9, 2.3)  # mm, along x, y, z


@dataclass(frozen=True)
class OtherProjector(Protocol):
    """A protocol whose X-rays share neither projector nor voxels with the moving image.

    The CT is resampled onto voxels of another size and shape, on a grid of its own, and projected
    by Siddon's exact lengths instead of Joseph's interpolation.
    """

    def case(self, subject: Subject, number: int) -> Case:
        """The case of this number, its X-ray made anew."""
        case = super().case(subject, number)
        xray = simulate_xray(
            subject.ct.resample(OTHER_VOXELS),
            case.camera,
            case.truth,
            seed=number,
            method="siddon",
        )
        return replace(case, xray=xray)


def experiment(name: str) -> tuple[str, Protocol]:
    """Method and protocol of an experiment's name."""
    word, _, variant = name.partition("-")
    protocol = PROTOCOLS[word]
    method = "auto" if word == "narrow" else "global"
    if variant == "cmaes":
        return "cmaes", protocol
    if variant == "starved":
        return method, protocol.starved()
    if variant == "siddon":
        return method, OtherProjector(**{**vars(protocol), "name": name})
    return method, protocol


EXPERIMENTS = tuple(
    name for word in PROTOCOLS for name in (word, *(f"{word}-{v}" for v in ("starved", "siddon")))
) + ("prost-cmaes", "cdreg-cmaes")


def subjects(names: Sequence[str]) -> list[Subject]:
    """The patients by name.

    Raises:
        KeyError: DRRKIT_DATA is not set.
    """
    found = []
    for name in names:
        if name in FILES:
            ct = drrkit.read_volume(Path(os.environ["DRRKIT_DATA"]) / FILES[name])
        else:
            ct = torso(PHANTOM_MM)
        found.append(Subject.of(name, ct.to(dtype=torch.float32)))
    return found


def warm_up(subject: Subject) -> None:
    """The first registration loads libraries; it is nobody's time."""
    case = replace(PROTOCOLS["narrow"], size=(32, 32), pixel_mm=8.704).case(subject, 0)
    drrkit.register(subject.attenuation, case.camera, case.xray, view_ap(subject.ct, 800.0))


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    patients = subjects(options.subjects)
    warm_up(patients[0])
    options.rows.mkdir(parents=True, exist_ok=True)
    for patient in patients:
        write_targets(options.rows / f"targets.{patient.name}.csv", patient)
    for name in options.experiments:
        method, protocol = experiment(name)
        stages = {method: METHODS[method]}
        evaluate(stages, [protocol], patients, options.cases, options.rows, progress=tell)
    return 0


def write_targets(path: Path, patient: Subject) -> None:
    """The points whose mean distance is the error: world x, y, z in mm."""
    if not path.exists():
        lines = [",".join(f"{value:.3f}" for value in point) for point in patient.points.tolist()]
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_text("\n".join(["x,y,z", *lines, ""]), encoding="utf-8")
        temporary.replace(path)


def tell(row: Row) -> None:
    print(
        f"{row.method} {row.protocol} {row.subject} {row.number:3d}  mTRE {row.start_mtre:6.1f} -> "
        f"{row.mtre:7.3f} mm  confidence {row.confidence:.3f}  {row.seconds:5.2f} s",
        flush=True,
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiments", nargs="+", choices=EXPERIMENTS, metavar="EXPERIMENT")
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=SUBJECTS)
    parser.add_argument("--cases", type=int, default=100, help="of every subject (default 100)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--rows", type=Path, required=True, help="folder for cases.*.csv")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
