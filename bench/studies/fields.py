"""DiffProj's study on phantoms: scenes x image formations x losses, and their costs.

A case is one of the protocol `narrow` (starts within 10 degrees, 20 mm in plane and 50 mm of depth
of the truth; 128 x 128 area pixels, 90 kV spectrum, photon noise, blur), its X-ray with the
appearance shift of another machine: gamma, a smooth field of +-30 %, and in "inverted" images
inversion with probability 1/2. "machine" shifts all X-rays alike, "plain" none.

The study's subject is a random skull, as the paper's patients are heads; scenes: CT; NeTT, trained
on shifted X-rays of other skulls, never the tested one; mNeRF, trained on plain X-rays of the
tested skull at other poses, baked into the CT's grid; PE, the same without learned features, by
positional encoding alone. Every cell runs the same Levenberg-Marquardt stages from eight starts
about the given one. Rows are kept one per line: interrupted runs go on. mNeRF's settings were
chosen on the cases 1000 to 1149; results are of the cases from 0. The stored results have
--cases 200 for MI, ray casting, image shift (all scenes), and for MSE, machine shift. Seconds are
this process's, which other programs disturb less: OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import drrkit
from bench.studies.study import appended, read_json, read_rows, recorded, write_json, write_text
from drrkit import fields, losses
from drrkit.evaluation import PROTOCOLS, Case, Subject, shifted_appearance
from drrkit.metrics import mtre, rotation_error
from drrkit.registration import Levenberg
from drrkit.training import train
from drrkit.volume import Volume
from drrkit.xray import simulate_xray

CELLS = ("main", "shift", "losses", "resolution", "anatomy", "encoding")
PARTS = ("prepare", *CELLS, "timing", "tables")
SPACING = 4.0  # mm, of all CTs
TRAINING_CAMERA = drrkit.CArm(1020.0, (64, 64), 4.352)
MACHINE_SEED = 3  # of the appearance that "machine" X-rays share: gamma 0.751, near its limit
NETT_STEPS, MNERF_STEPS = 120, 2000
SUBJECT = "skull-7"

SHIFTS = ("image", "machine", "plain", "inverted")
SCENES = ("CT", "NeTT", "mNeRF", "PE")
LOSSES: dict[str, Callable[..., Tensor]] = {
    "mi": losses.mutual_information,
    "mse": fields.Normalised(losses.mse),
    "ssim_dice_l1": fields.Normalised(losses.ssim_dice_l1),
}
OTHER_LOSSES: dict[str, Callable[..., Tensor]] = {
    "nmi": losses.normalized_mutual_information,
    "mattes_mi": losses.mattes_mutual_information,
    "ncc": losses.ncc,
    "local_ncc": losses.local_ncc,
    "gradient_ncc": losses.gradient_ncc,
    "gradient_difference": losses.gradient_difference,
    "l1": fields.Normalised(losses.l1),
    "ssim": fields.Normalised(losses.ssim),
    "focal_frequency": fields.Normalised(losses.focal_frequency),
}


# ---- subjects, X-rays, trained fields


@cache
def subject(name: str) -> Subject:
    """A phantom by name: "torso", or "pelvis-7", "skull-2", "spine-1" (random anatomies)."""
    if name == "torso":
        return Subject.of(name, drrkit.phantoms.torso(spacing=SPACING))
    kind, _, seed = name.partition("-")
    ct = drrkit.phantoms.random_anatomy(kind, int(seed), shape=64)
    return Subject.of(name, ct)


def shifted(xray: Tensor, how: str, seed: int) -> Tensor:
    """An X-ray [1, 1, rows, cols] as a machine of this kind shows it."""
    if how == "plain":
        return xray
    if how == "machine":
        return shifted_appearance(xray, MACHINE_SEED, inversion=False)
    return shifted_appearance(xray, seed, inversion=None if how == "inverted" else False)


def training_pairs(name: str, count: int, how: str, seed: int) -> fields.Pairs:
    """X-rays of a subject at random poses, on the pixels that fields are trained with."""
    whose = subject(name)
    poses = fields.random_views(whose.ct, count, seed, turn=math.radians(25.0), shift=25.0)
    xrays = []
    for number, pose in enumerate(poses):
        xray = simulate_xray(whose.ct, TRAINING_CAMERA, pose, seed=1000 * seed + number)
        xrays.append(shifted(xray, how, 1000 * seed + number))
    return fields.Pairs(name, whose.attenuation, TRAINING_CAMERA, torch.cat(xrays), poses)


def trained_nett(work: Path, how: str, formation: str) -> fields.NeTT:
    """NeTT of shifted X-rays of three random skulls, validated on a fourth."""
    torch.manual_seed(0)
    nett = fields.NeTT()
    place = work / f"nett-{how}-{formation}"
    if not (place / "field.pt").exists():
        pairs = [training_pairs(f"skull-{k}", 24, how, 10 + k) for k in range(4)]
        objective = fields.ImageObjective(formation=formation)
        task = fields.NeTTTask(nett, pairs[:3], pairs[3:], objective=objective, steps=NETT_STEPS)
        trained(task, place, NETT_STEPS)
        fields.save_field(nett, place / "field.pt")
    return fields.load_field(place / "field.pt")


def trained_mnerf(work: Path, name: str, scene: str = "mNeRF") -> fields.MNeRF:
    """mNeRF of plain X-rays of the subject itself; two formations need one field only.

    "mNeRF" has three levels of learned features and 4 octaves, "PE" none and 6.
    """
    place = work / f"{scene.lower()}-{name}-{MNERF_STEPS}"
    if not (place / "field.pt").exists():
        torch.manual_seed(0)
        train_on, validate_on = training_pairs(name, 64, "plain", 50).held_out(4)
        octaves, levels, rate = (4, 3, 1e-2) if scene == "mNeRF" else (6, 0, 5e-3)
        body = subject(name).attenuation
        field = fields.MNeRF.inside(body, octaves=octaves, levels=levels, step=4.0)
        objective = fields.ImageObjective(normalised=False, rate=rate, final_rate=rate / 20)
        task = fields.MNeRFTask(
            field, train_on, validate_on, objective=objective, steps=MNERF_STEPS, rays=64
        )
        trained(task, place, MNERF_STEPS)
        fields.save_field(field, place / "field.pt")
    return fields.load_field(place / "field.pt")


def trained(task: Any, place: Path, steps: int) -> None:
    """Train, or go on training; an interruption ends the program, not the training alone."""
    often = max(1, steps // 4)
    if train(
        task, place, steps=steps, validate_every=often, save_every=often, progress=False
    ).interrupted:
        raise KeyboardInterrupt


@cache
def grid(work: Path, scene: str, name: str, how: str, formation: str) -> Volume:
    """The voxels that a scene is registered as."""
    volume = subject(name).attenuation
    if scene == "CT":
        return volume
    if scene in ("mNeRF", "PE"):
        return trained_mnerf(work, name, scene).bake()
    # Of the two shifts with random gammas NeTT can only learn what they have in common.
    known = "machine" if how == "machine" else "image"
    return fields.TunedCT(trained_nett(work, known, formation), volume).volume


# ---- registrations


class OfAbsorption:
    """A similarity of the absorbed share of the beam: volume rendering of a voxel grid."""

    def __init__(self, similarity: Callable[..., Tensor]) -> None:
        self.similarity = similarity

    def __call__(self, moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.similarity(fields.absorption(moving), fixed, mask)


def stages(name: str, formation: str, pixels: int = 128) -> tuple[drrkit.Stage, ...]:
    """Three stages with one loss: 32 x 32 pixels from eight starts, 64 x 64, then all pixels."""
    loss = (LOSSES | OTHER_LOSSES)[name]
    measure = loss if formation == "rc" else OfAbsorption(loss)
    stage = partial(drrkit.Stage, measure, mm=True)
    coarse, spread = pixels // 32, (0.17, 25.0)
    return (
        stage(
            downsample=coarse,
            iterations=15,
            optimiser=Levenberg(12.0, final_step=0.3),
            starts=8,
            spread=spread,
        ),
        stage(downsample=coarse // 2, iterations=10, optimiser=Levenberg(6.0, final_step=0.1)),
        stage(iterations=5, optimiser=Levenberg(3.0, final_step=0.05)),
    )


@cache
def case_of(name: str, number: int, how: str, pixels: int = 128) -> Case:
    protocol = replace(PROTOCOLS["narrow"], size=(pixels, pixels), pixel_mm=128 * 2.176 / pixels)
    case = protocol.case(subject(name), number)
    return replace(case, xray=shifted(case.xray, how, 7919 + number))


def run_case(work: Path, cell: dict[str, Any], number: int) -> dict[str, Any]:
    """Register one case: errors of start and end, seconds of this process."""
    pixels, name, how = cell.get("pixels", 128), cell["subject"], cell["shift"]
    case = case_of(name, number, how, pixels)
    volume = grid(work, cell["scene"], name, how, cell["formation"])
    wall, cpu = time.perf_counter(), time.process_time()
    result = drrkit.register(
        volume,
        case.camera,
        case.xray,
        case.start,
        stages=stages(cell["loss"], cell["formation"], pixels),
        seed=number,
    )
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    found, points = result.world_to_camera, case.subject.points
    return {
        **cell,
        "number": number,
        "start_angle": math.degrees(float(rotation_error(case.start, case.truth))),
        "angle": math.degrees(float(rotation_error(found, case.truth))),
        "mtre": float(mtre(found, case.truth, points)),
        "cpu_seconds": cpu,
        "wall_seconds": wall,
    }


def cells(part: str) -> Iterator[dict[str, Any]]:
    """The cells of a part."""
    plain = {"subject": SUBJECT, "scene": "CT", "formation": "rc", "loss": "mi", "shift": "image"}
    if part == "main":
        for formation in ("rc", "vr"):
            for loss in LOSSES:
                for scene in SCENES[:3]:
                    yield {**plain, "scene": scene, "formation": formation, "loss": loss}
    if part == "shift":
        for shift in ("machine", "plain", "inverted"):
            for loss in ("mse", "mi"):
                for scene in SCENES[:3]:
                    yield {**plain, "scene": scene, "loss": loss, "shift": shift}
    if part == "losses":
        for loss in OTHER_LOSSES:
            for scene in SCENES[:3] if loss == "mattes_mi" else ("CT",):
                yield {**plain, "scene": scene, "loss": loss}
    if part == "encoding":
        yield {**plain, "scene": "PE"}
    if part == "resolution":
        for pixels in (256, 512, 1024):
            yield {**plain, "pixels": pixels}
    if part == "anatomy":
        for name in ("torso", "pelvis-7", "spine-7"):
            for scene in ("CT", "NeTT"):
                for loss in ("mi", "mse"):
                    yield {**plain, "subject": name, "scene": scene, "loss": loss}


def run_cells(part: str, options: argparse.Namespace) -> None:
    """Append the rows that are missing."""
    path = options.output / "rows.jsonl"
    done = {key_of(row) for row in read_rows(path)}
    with appended(path) as add:
        for cell in cells(part):
            if cell["scene"] not in options.scenes or cell["formation"] not in options.formations:
                continue
            if options.losses and cell["loss"] not in options.losses:
                continue
            if options.shifts and cell["shift"] not in options.shifts:
                continue
            share = 2 if cell.get("pixels", 128) > 512 else 1  # half the cases where they are slow
            for number in range(max(1, options.cases // share)):
                if key_of({**cell, "number": number}) in done:
                    continue
                add(run_case(options.work, cell, number))
            print(part, *cell.values(), flush=True)


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    names = ("subject", "scene", "formation", "loss", "shift", "pixels", "number")
    return tuple(row.get(name) for name in names)


# ---- quality of the trained fields, and what an inference costs


def qualities(work: Path) -> dict[str, Any]:
    """PSNR and SSIM of what was trained, on X-rays it has not seen."""
    found = {}
    for how in ("image", "machine"):
        for formation in ("rc", "vr"):
            if how == "machine" and formation == "vr":
                continue
            test = training_pairs(SUBJECT, 12, how, 70)
            objective = fields.ImageObjective(formation=formation)
            tuned = fields.TunedCT(trained_nett(work, how, formation), test.volume)
            for label, scene in (("CT", fields.CT(test.volume)), ("NeTT", tuned)):
                found[f"{label} {how} {formation}"] = fields.scene_quality(scene, test, objective)
    test = training_pairs(SUBJECT, 4, "plain", 71)
    objective = fields.ImageObjective(normalised=False)
    for name in ("mNeRF", "PE"):
        field = trained_mnerf(work, SUBJECT, name)
        for label, scene in ((name, field), (f"{name} baked", fields.CT(field.bake()))):
            found[label] = fields.scene_quality(scene, test, objective)
    return found


def timings(work: Path) -> dict[str, Any]:
    """Process seconds of images with pose Jacobian, and of one small registration of each scene."""
    case = case_of(SUBJECT, 0, "image")
    found: dict[str, Any] = {"image and pose Jacobian, 128 x 128, one view": {}}
    volumes = {s: grid(work, s, SUBJECT, "image", "rc") for s in ("CT", "NeTT", "mNeRF")}
    for _ in range(5):  # in turns, so that what disturbs one disturbs all
        for scene, volume in volumes.items():
            call = partial(drrkit.project_with_jacobian, volume, case.camera, case.start)
            row = found["image and pose Jacobian, 128 x 128, one view"]
            row[scene] = min(row.get(scene, math.inf), seconds(call, 10))
    field = trained_mnerf(work, SUBJECT)
    with torch.no_grad():
        direct = seconds(lambda: field.render(case.camera, case.start), 1)
        voxels = seconds(lambda: drrkit.render(volumes["CT"], case.camera, case.start), 10)
    found["image, 128 x 128, one view"] = {"CT": voxels, "mNeRF direct": direct}
    stage = drrkit.Stage(
        losses.mutual_information, optimiser=Levenberg(10.0), downsample=4, iterations=10, mm=True
    )
    scenes = {"CT": volumes["CT"], "NeTT": volumes["NeTT"], "mNeRF baked": volumes["mNeRF"]}
    row = found["registration, 32 x 32, one start, 10 steps"] = {}
    for label, scene in {**scenes, "mNeRF direct": field}.items():
        call = partial(drrkit.register, scene, case.camera, case.xray, case.start, stages=stage)
        row[label] = seconds(call, 1 if label == "mNeRF direct" else 5)
    start = time.process_time()
    field.bake()
    found["baking mNeRF into the grid of the CT"] = {"seconds": time.process_time() - start}
    return found


def seconds(call: Callable[[], Any], rounds: int) -> float:
    """Least process seconds of a call."""
    best = math.inf
    for _ in range(rounds):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best


# ---- tables


def rank(row: dict[str, Any]) -> tuple[Any, ...]:
    """Where a row's cell stands in the table."""
    others = SHIFTS.index(row["shift"]), row["subject"], row.get("pixels", 128)
    known = [*LOSSES, *OTHER_LOSSES].index(row["loss"]), SCENES.index(row["scene"])
    return (
        row["subject"] != SUBJECT,
        row.get("pixels", 128) != 128,
        row["formation"],
        *others,
        *known,
    )


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean, median and 90 % quantile of the angle of every cell, with a bootstrap interval."""
    by_cell: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=rank):
        by_cell.setdefault(key_of(row)[:-1], []).append(row)
    found = []
    for members in by_cell.values():
        angle = torch.tensor([row["angle"] for row in members], dtype=torch.float64)
        cpu = torch.tensor([row["cpu_seconds"] for row in members], dtype=torch.float64)
        first = {k: members[0].get(k) for k in ("subject", "scene", "formation", "loss", "shift")}
        found.append(
            {
                **first,
                "pixels": members[0].get("pixels", 128),
                "cases": len(members),
                "mean": float(angle.mean()),
                "median": float(angle.quantile(0.5)),
                "q90": float(angle.quantile(0.9)),
                "q90_interval": interval(angle),
                "below_3_degrees": float((angle < 3.0).double().mean()),
                "median_mtre": float(torch.tensor([row["mtre"] for row in members]).median()),
                "cpu_seconds": float(cpu.median()),
            }
        )
    return found


def interval(angle: Tensor, draws: int = 2000) -> list[float]:
    """95 % bootstrap interval of the 90 % quantile."""
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(len(angle), (draws, len(angle)), generator=generator)
    return (
        angle[index].quantile(0.9, dim=1).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    )


def table(cells_: Sequence[dict[str, Any]]) -> str:
    head = (
        "subject    scene  form.  loss                 shift     pixels  cases   mean  median   q90"
        "  (95 % interval)   < 3 deg  mTRE mm  CPU s"
    )
    lines = [head]
    for c in cells_:
        low, high = c["q90_interval"]
        lines.append(
            f"{c['subject']:9s}  {c['scene']:5s}  {c['formation']:5s}  {c['loss']:19s}  "
            f"{c['shift']:8s}  {c['pixels']:6d}  {c['cases']:5d}  {c['mean']:5.2f}  "
            f"{c['median']:6.2f}  {c['q90']:5.2f}  ({low:5.2f} {high:5.2f})  "
            f"{100 * c['below_3_degrees']:6.0f} %  {c['median_mtre']:7.2f}  {c['cpu_seconds']:5.2f}"
        )
    return "\n".join(lines) + "\n"


def write_tables(options: argparse.Namespace) -> None:
    found = summary(read_rows(options.output / "rows.jsonl"))
    published = {
        "source": "arXiv 2308.00214",
        "mi_mean_degrees": 3.2,
        "mi_q90_degrees": 3.4,
        "mse_q90_degrees": 6.8,
        "nett_seconds": 2.0,
        "mnerf_seconds": 60.0,
    }
    path = options.output / "study.json"
    write_json(path, read_json(path) | recorded(options, published=published, cells=found))
    write_text(options.output / "table.txt", table(found))
    print(table(found))


def note(options: argparse.Namespace, name: str, value: Any) -> None:
    path = options.output / "study.json"
    write_json(path, read_json(path) | {name: value})
    print(json.dumps({name: value}, indent=1), flush=True)


def options(add: Any) -> None:
    add("--parts", nargs="+", choices=PARTS, default=PARTS)
    add("--scenes", nargs="+", choices=SCENES, default=SCENES)
    add("--formations", nargs="+", choices=("rc", "vr"), default=("rc", "vr"))
    add("--losses", nargs="+", choices=[*LOSSES, *OTHER_LOSSES])
    add("--shifts", nargs="+", choices=SHIFTS)
    add("--cases", type=int, default=50)
    add("--work", type=Path, default=Path(tempfile.gettempdir()) / "drrkit-fields")


def run(options: argparse.Namespace) -> None:
    options.work.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        if part == "prepare":
            note(options, "quality", qualities(options.work))
        elif part == "timing":
            note(options, "process_seconds", timings(options.work))
        elif part == "tables":
            write_tables(options)
        else:
            run_cells(part, options)
