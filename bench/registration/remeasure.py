"""The confidence of ends that rows remember, by two definitions: which tells failures better?

    python bench/registration/remeasure.py [--starved FOLDER] [--rows FOLDER ...] --out FILE.csv

A row holds the error of its end, so the end itself follows from the case's truth. There the X-ray
is compared again with the volume after a blur,

    whole     by gradient correlation, on pixels of 3.5 mm at the patient, blurred by 1.5 of them:
              what the confidence was before
    patches   by the gradient correlation of patches, on 64 pixels along the X-ray, blurred by 2.75
              of them: `register`'s confidence

--starved is a folder of `confidence.py`, --rows are some of `protocols.py`.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from confidence import SEED
from protocols import SUBJECTS, experiment, subjects
from torch import Tensor

from drrkit import losses
from drrkit.evaluation import Case, Protocol, Row, Subject, moved_about, read_rows
from drrkit.geometry import so3_exp, volume_center
from drrkit.registration.certainty import agreement
from drrkit.registration.problem.rendering import SceneRenderer, renderer
from drrkit.registration.problem.views import View, blurred, downsampling, make_views
from drrkit.registration.stages import Stage

COLUMNS = ("method", "protocol", "subject", "number", "mtre", "whole", "patches")
AT_PATIENT = Stage(losses.gradient_ncc, pixel=3.5, blur=1.5, mm=True)


def end(row: Row, case: Case) -> Tensor:
    """The pose [1, 4, 4] that a row ended at."""
    center = volume_center(case.subject.ct).cpu()
    turn = torch.tensor([row.rotation_x, row.rotation_y, row.rotation_z], dtype=torch.float64)
    shift = (row.translation_x, row.translation_y, row.translation_z)
    motion = torch.tensor((0.0, 0.0, 0.0, *shift), dtype=torch.float64)
    pose = moved_about(case.truth, motion, center)
    middle = pose[:3, :3] @ center + pose[:3, 3]
    pose[:3, :3] = so3_exp(torch.deg2rad(turn)) @ pose[:3, :3]
    pose[:3, 3] = middle - pose[:3, :3] @ center
    return pose[None]


def whole(case: Case, view: View, pose: Tensor) -> float:
    """Gradient correlation on pixels that are chosen at the pose's own distance."""
    volume = case.subject.attenuation
    center = volume_center(volume)
    depth = float(pose[0, 2, :3] @ center + pose[0, 2, 3])
    seen = view.downsampled(downsampling(AT_PATIENT, case.camera, depth)).blurred(AT_PATIENT.blur)
    with torch.no_grad():
        moving = renderer(volume, seen.camera, 1, "joseph")(pose)
        moving = blurred(moving, None, AT_PATIENT.blur)
        return max(0.0, 1.0 - float(losses.gradient_ncc(moving, seen.xray)))


def remeasured(
    rows: Sequence[Row], patients: dict[str, Subject], starved: bool
) -> list[dict[str, object]]:
    """The columns of every row."""
    cases: dict[tuple[str, str, int], Case] = {}
    found = []
    for row in rows:
        key = (row.protocol, row.subject, row.number)
        if key not in cases:
            protocol: Protocol = experiment(row.protocol)[1]
            protocol = replace(protocol, seed=SEED) if starved else protocol
            cases[key] = protocol.case(patients[row.subject], row.number)
        case = cases[key]
        view = make_views(case.camera, case.xray, None, None, torch.empty(0))[0]
        pose = end(row, case)
        scores = (
            whole(case, view, pose),
            agreement(SceneRenderer(case.subject.attenuation), [view], pose),
        )
        values = (*row.key[:1], row.protocol, row.subject, row.number, row.mtre, *scores)
        found.append(dict(zip(COLUMNS, values, strict=True)))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    patients = dict(zip(SUBJECTS, subjects(SUBJECTS), strict=True))
    found = []
    if options.starved:
        found += remeasured(read_rows(options.starved), patients, starved=True)
    for folder in options.rows:
        found += remeasured(read_rows(folder), patients, starved=False)
    with open(options.out, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in found:
            writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in row.values()])
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--starved", type=Path, help="of confidence.py")
    parser.add_argument("--rows", type=Path, nargs="*", default=(), help="of protocols.py")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
