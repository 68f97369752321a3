"""Registrations from far away: every named protocol over two CTs and a phantom, and confidence.

Subjects are pelvis_2mm.nii.gz and chest_2mm.nii.gz in the folder DRRKIT_DATA, CTs in HU, and
drrkit.phantoms.torso with voxels of 2 mm. A part is a protocol, a method and the X-rays:

    narrow      starts nearby, stages="auto"
    prost       starts far away, stages="global"
    cdreg       the same from normally distributed starts
    *-starved   the same poses in X-rays of 2e4 photons per pixel counted before the patient
    *-siddon    the same poses in X-rays by another projector, of a CT on other voxels
    *-cmaes     a single CMA-ES from the start instead of drrkit's own pipeline

Two parts measure how well confidence separates right ends from wrong ones. Far too little is spent
on purpose, in good and in photon-starved X-rays, so that registrations fail:

    failures        "descent": no search, the local pipeline from the far start; "coarse": a search
                    of 35 degrees and half the pixels, four candidates; "few": the usual search, its
                    two best candidates only; "narrow": a range of 25 degrees and 80 mm of depth,
                    which the truth is mostly outside. Nothing is searched again.
    failures-again  the same "coarse" and "narrow" as pipelines do by themselves when they do not
                    trust their end: they search again more densely

    ends        the confidence of the ends of failures and of the CMA-ES, by two definitions:
                "whole", gradient correlation on pixels of 3.5 mm at the patient, blurred by 1.5 of
                them, what the confidence was before; "patches", `register`'s confidence
    report      tables of what --work holds, or of what --output holds

Interrupted runs resume; RANK=0 WORLD_SIZE=2 makes one of two processes that share the cases. Times
taken with one thread per process are no results: `--threads 2 --cases 10 --timed` measures them.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import drrkit
from bench.studies.study import data_file, markdown, read_json, recorded, write_json, write_text
from drrkit import losses
from drrkit.evaluation import (
    METHODS,
    PROTOCOLS,
    Case,
    Protocol,
    Row,
    Subject,
    auroc,
    evaluate,
    moved_about,
    read_rows,
    recall_at,
    summarise,
)
from drrkit.geometry import so3_exp, view_ap, volume_center
from drrkit.phantoms import torso
from drrkit.registration import AUTO, GLOBAL, Search
from drrkit.registration.certainty import agreement
from drrkit.registration.problem.rendering import SceneRenderer, renderer
from drrkit.registration.problem.views import View, blurred, downsampling, make_views
from drrkit.registration.stages import Stage
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
        """The case of this number, with another X-ray."""
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


SEED = 1000  # of cases that no other part has seen
STARVED = {
    "descent": AUTO,
    "coarse": Search(
        step=math.radians(35.0), depth_step=1.4, pixels=16, keep=4, voxel=8.0, repeats=0, mm=True
    ),
    "few": Search(keep=2, repeats=0),
    "narrow": Search(rotation=math.radians(25.0), depth=80.0, repeats=0, mm=True),
}
AGAIN = ("coarse", "narrow")
PARTS = (*EXPERIMENTS, "failures", "failures-again", "ends", "report")
AT_PATIENT = Stage(losses.gradient_ncc, pixel=3.5, blur=1.5, mm=True)


def options(add: Any) -> None:
    add("parts", nargs="+", choices=PARTS, metavar="PART")
    add("--subjects", nargs="+", choices=SUBJECTS, default=SUBJECTS)
    add("--cases", type=int, default=100, help="of every subject (100; 14 for failures)")
    add("--timed", action="store_true", help="rows whose seconds go into the table")
    add("--work", type=Path, default=Path("build/registration"), help="folder of the rows")
    add("--note", nargs="*", default=[], help="report: sentences on how it was measured")


def run(options: argparse.Namespace) -> None:
    patients = {one.name: one for one in subjects(options.subjects if _runs(options) else ())}
    if patients:
        warm_up(next(iter(patients.values())))
    for part in options.parts:
        if part == "report":
            report(options)
        elif part == "ends":
            write_ends(options, patients)
        elif part.startswith("failures"):
            protocol = replace(PROTOCOLS["prost"], seed=SEED)
            shown = [protocol.starved(), protocol]
            methods = failing(again=part.endswith("again"))
            folder = options.work / part
            evaluate(methods, shown, list(patients.values()), options.cases, folder, progress=tell)
        else:
            method, protocol = experiment(part)
            stages = {method: METHODS[method]}
            folder = options.work / ("timed" if options.timed else "rows")
            folder.mkdir(parents=True, exist_ok=True)
            patients_ = list(patients.values())
            evaluate(stages, [protocol], patients_, options.cases, folder, progress=tell)


def _runs(options: argparse.Namespace) -> bool:
    return options.parts != ["report"]


def failing(again: bool) -> dict[str, Any]:
    """Pipelines that spend too little."""
    methods = {
        name: (first, *GLOBAL[1:]) if isinstance(first, Search) else first
        for name, first in STARVED.items()
    }
    if not again:
        return methods
    return {f"{name}-again": (replace(STARVED[name], repeats=2), *GLOBAL[1:]) for name in AGAIN}


def subjects(names: Sequence[str]) -> list[Subject]:
    found = []
    for name in names:
        if name in FILES:
            ct = drrkit.read_volume(data_file(FILES[name]))
        else:
            ct = torso(PHANTOM_MM)
        found.append(Subject.of(name, ct.to(dtype=torch.float32)))
    return found


def warm_up(subject: Subject) -> None:
    """The first registration loads libraries; its time does not count."""
    case = replace(PROTOCOLS["narrow"], size=(32, 32), pixel_mm=8.704).case(subject, 0)
    drrkit.register(subject.attenuation, case.camera, case.xray, view_ap(subject.ct, 800.0))


def tell(row: Row) -> None:
    print(row.line(), flush=True)


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


def write_ends(options: argparse.Namespace, patients: dict[str, Subject]) -> None:
    """ends.csv: both confidences of the ends of failures and of the CMA-ES."""
    found = remeasured(read_rows(options.work / "failures"), patients, failures=True)
    baseline = [row for row in read_rows(options.work / "rows") if row.method == "cmaes"]
    found += remeasured(baseline, patients, failures=False)
    with open(options.work / "ends.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("method", "protocol", "subject", "number", "mtre", *SCORES))
        for row in found:
            writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in row])


def remeasured(
    rows: Sequence[Row], patients: dict[str, Subject], failures: bool
) -> list[tuple[Any, ...]]:
    """The columns of every row; the end itself follows from its errors and the case's truth."""
    cases: dict[tuple[str, str, int], Case] = {}
    found = []
    for row in rows:
        key = (row.protocol, row.subject, row.number)
        if key not in cases:
            protocol: Protocol = experiment(row.protocol)[1]
            protocol = replace(protocol, seed=SEED) if failures else protocol
            cases[key] = protocol.case(patients[row.subject], row.number)
        case = cases[key]
        view = make_views(case.camera, case.xray, None, None, torch.empty(0))[0]
        pose = end(row, case)
        scores = (
            whole(case, view, pose),
            agreement(SceneRenderer(case.subject.attenuation), [view], pose),
        )
        found.append((row.method, row.protocol, row.subject, row.number, row.mtre, *scores))
    return found


# ---- the report

FAILURE_MM = 10.0
FALSE_ALARMS = 0.05
# The definitions of confidence that "ends" measures, and below what it was, or is, not trusted.
SCORES = {"whole": 0.8, "patches": 0.7}
ORDER = ("pelvis", "chest", "torso", "all")
HEAD = ("starts, X-rays", "method", "patient", "cases", "start, median", "< 10 mm, %", "< 2 mm, %")
HEAD += ("median, mm", "95 %, mm", "process s", "wall s, 2 threads")
PUBLISHED = """\
Published on the authors' own data, successes below 10 mm: ProST protocol, single-start CMA-ES
28.5 %, ProST + CMA-ES 65.6 % (Gao et al. 2023, simulated pelvis); CDreg protocol, CMA-ES 22.0 %,
ProST 55.6 %, SOPI 58.4 %, CDreg 61.0 %, each + CMA-ES (Chen et al. 2024, spine).
"""


def report(options: argparse.Namespace) -> None:
    """Everything in --output, of the rows in --work; without those, of the rows in --output."""
    work, out = options.work, options.output
    before: dict[str, Any] = {}
    if (work / "rows").exists():
        rows, timed = read_rows(work / "rows"), read_rows(work / "timed")
        starved = [*read_rows(work / "failures"), *read_rows(work / "failures-again")]
        write_text(out / "cases.csv", as_csv(rows))
        write_text(out / "starved.csv", as_csv(starved))
        write_text(out / "ends.csv", (work / "ends.csv").read_text(encoding="utf-8"))
        spent = {name: times(group) for name, group in grouped(timed).items()}
    else:  # then the rows' machine and versions are those of the record that is there
        before = read_json(out / "summary.json")
        rows, starved = from_csv(out / "cases.csv"), from_csv(out / "starved.csv")
        spent = before["times"]
    ends = read_ends(out / "ends.csv")
    again = [row for row in starved if row.method.endswith("-again")]
    first = [row for row in starved if not row.method.endswith("-again")]
    record = {"notes": options.note, **recorded(options), **before}
    record |= {
        "protocols": {name: summarise(group) for name, group in grouped(rows).items()},
        "times": spent,
        "confidence": trust(ends, first, rows),
        "searched_again": rescued(first, again),
    }
    write_json(out / "summary.json", record)
    write_text(out / "table.md", table(record))
    print(table(record))


def read_ends(file: Path) -> list[dict[str, Any]]:
    """ends.csv, numbers as numbers."""
    with open(file, newline="", encoding="utf-8") as stream:
        found: list[dict[str, Any]] = list(csv.DictReader(stream))
    for end in found:
        end["number"] = int(end["number"])
        for name in ("mtre", *SCORES):
            end[name] = float(end[name])
        end["key"] = (end["method"], end["protocol"], end["subject"], end["number"])
    return found


def grouped(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by protocol, method and patient, and of all patients together."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        for patient in (row.subject, "all"):
            groups.setdefault(f"{row.protocol} {row.method} {patient}", []).append(row)
    kinds = list(dict.fromkeys(name.rpartition(" ")[0] for name in groups))
    names = [f"{kind} {patient}" for kind in kinds for patient in ORDER]
    return {name: groups[name] for name in names if name in groups}


def times(rows: Sequence[Row]) -> dict[str, float]:
    """Wall and process seconds per case; the latter count all threads."""
    wall = torch.tensor([row.seconds for row in rows], dtype=torch.float64)
    process = torch.tensor([row.cpu_seconds for row in rows], dtype=torch.float64)
    return {
        "cases": len(rows),
        "wall_median": float(wall.quantile(0.5)),
        "wall_max": float(wall.max()),
        "process_median": float(process.quantile(0.5)),
        "process_max": float(process.max()),
    }


def trust(
    ends: Sequence[dict[str, Any]], starved: Sequence[Row], rows: Sequence[Row]
) -> dict[str, Any]:
    """How both confidences separate failures from successes, by where the failures come from."""
    few = {row.key for row in starved}
    baseline = {row.key for row in rows if row.method == "cmaes"}
    groups = {
        "starved budgets": [end for end in ends if end["key"] in few],
        "CMA-ES baseline": [end for end in ends if end["key"] in baseline],
    }
    groups["both"] = [end for group in groups.values() for end in group]
    groups["both, photon-starved"] = [e for e in groups["both"] if "starved" in e["protocol"]]
    return {
        f"{name}, {score}": separation(group, score)
        for name, group in groups.items()
        for score in SCORES
        if group
    }


def separation(ends: Sequence[dict[str, Any]], score: str) -> dict[str, Any]:
    """Area under the curve, recall at few false alarms, and at the built-in threshold."""
    confidence = torch.tensor([end[score] for end in ends], dtype=torch.float64)
    failed = torch.tensor([not end["mtre"] < FAILURE_MM for end in ends])
    found: dict[str, Any] = {"failures": int(failed.sum()), "successes": int((~failed).sum())}
    if not found["failures"] or not found["successes"]:
        return found
    right, wrong = confidence[~failed], confidence[failed]
    bar = SCORES[score]
    return found | {
        "auroc": auroc(right, wrong),
        "recall at 5 % false alarms": recall_at(FALSE_ALARMS, right, wrong),
        "threshold": bar,
        "recall at the threshold": float((wrong < bar).double().mean()),
        "false alarms at the threshold": float((right < bar).double().mean()),
        "lowest of a success": float(right.min()),
        "highest of a failure": float(wrong.max()),
    }


def rescued(starved: Sequence[Row], again: Sequence[Row]) -> dict[str, Any]:
    """How many failed searches succeed when they search again, on the cases that both ran."""
    first = {row.key: row for row in starved}
    found: dict[str, Any] = {}
    for row in again:
        method = row.method.removesuffix("-again")
        before = first.get((method, *row.key[1:]))
        if before is None:
            continue
        count = found.setdefault(method, dict.fromkeys(("cases", "failed", "fail again"), 0))
        count["cases"] += 1
        count["failed"] += not before.mtre < FAILURE_MM
        count["fail again"] += not row.mtre < FAILURE_MM
    return found


def table(record: dict[str, Any]) -> str:
    """The results as Markdown."""
    rows = [_cells(n, group, record["times"].get(n)) for n, group in record["protocols"].items()]
    lines = [*markdown(HEAD, rows), "", PUBLISHED]
    rows = []
    for name, group in record["confidence"].items():
        if "auroc" in group:
            recall = f"{100 * group['recall at 5 % false alarms']:.1f} %"
            at_bar = f"{100 * group['recall at the threshold']:.1f} % below {group['threshold']}"
            counts = [group["failures"], group["successes"], f"{group['auroc']:.5f}"]
            rows.append([name, *counts, recall, at_bar])
    head = ["failures by, confidence", "failures", "successes", "AUROC", "recall at 5 %", "found"]
    lines += markdown(head, rows)
    for name, count in record["searched_again"].items():
        lines += [
            "",
            f"Searches of the kind {name!r}: {count['failed']} of {count['cases']} end wrong, "
            f"{count['fail again']} where they may search again by themselves.",
        ]
    cpu = record["machine"]
    lines += ["", f"{cpu['cores']} cores of {cpu['cpu']}, torch {record['versions']['torch']}."]
    return "\n".join([*lines, *record["notes"], ""])


def _cells(name: str, group: dict[str, Any], timed: dict[str, float] | None) -> list[Any]:
    rates = [
        f"{100 * rate['rate']:.1f} ({100 * rate['low']:.1f}-{100 * rate['high']:.1f})"
        for rate in group["success"].values()
    ]
    seconds = "" if timed is None else f"{timed['wall_median']:.2f}"
    cells = [*name.split(), group["cases"], f"{group['start_mtre']['50 %']:.0f}", *rates]
    cells += [f"{group['mtre']['50 %']:.3f}", f"{group['mtre']['95 %']:.3f}"]
    return [*cells, f"{group['cpu_seconds']['50 %']:.2f}", seconds]


def as_csv(rows: Sequence[Row]) -> str:
    """A row per case, six significant digits."""
    stream = StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([field.name for field in fields(Row)])
    for row in sorted(rows, key=lambda row: row.key):
        values = asdict(row).values()
        writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in values])
    return stream.getvalue()


def from_csv(path: Path) -> list[Row]:
    """The rows that `as_csv` wrote."""
    kinds = {
        field.name: {"str": str, "int": int}.get(str(field.type), float) for field in fields(Row)
    }
    with open(path, newline="", encoding="utf-8") as stream:
        found = csv.DictReader(stream)
        return [Row(**{name: kinds[name](value) for name, value in row.items()}) for row in found]
