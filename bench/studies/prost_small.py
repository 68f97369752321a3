"""The small ProST experiment: train on phantoms, register phantoms that were never trained on.

Pelves of `drrkit.phantoms.random_anatomy`, 48^3 voxels; X-rays of 64 x 64 pixels; the published
geometry (sdd 1020, sod 800 mm). Networks are trained by the direction objective and, for the same
steps, by the mse objective. They see the bone that moves as one piece, the femurs left out, in
training as in registration. Then, on other subjects and from the same starts:

    cmaes            CMA-ES on patch-gradient NCC from the start
    cmaes-double     the same with twice the budget, which takes longer than the descent does
    learned          descent by the directions of the learned similarity's gradient
    learned+cmaes    that, then the same CMA-ES with the same budget and spread
    learned-2020+cmaes  the same with the network of 2020 instead of the transformer
    mse+cmaes        the same with the network of the mse objective
    global           drrkit.register's classical global search

Every part goes on from where it was stopped: networks by drrkit.training's checkpoints,
registrations case by case; "all" runs everything, two processes at a time, and "report" makes the
tables of what is there. Success is a mean target registration error below 10 mm.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench.studies import study
from bench.studies.study import (
    appended,
    in_pairs,
    origin,
    percent,
    read_json,
    read_rows,
    recorded,
    wilson,
    write_json,
    write_text,
)
from drrkit import CArm, Stage, Volume, metrics, register, volume_center
from drrkit.files import write_whole
from drrkit.phantoms import random_anatomy
from drrkit.registration import CmaEs, Directions
from drrkit.similarity import (
    LearnedSimilarity,
    PoseSampling,
    SimilarityTask,
    TrainingPatient,
    TrainingRecipe,
    build,
    cosines,
    geodesic_gradient,
    load_similarity,
    pose_gradient,
    save_similarity,
    simulated,
)
from drrkit.training import TrainingResult, generator, load_checkpoint, train

WORK = Path("build/prost_small")
NETWORK = "prost-small"
OTHER = "prost-2020-small"
BONE = (2,)  # random_anatomy's label of what moves as one piece
TRAINED, HELD_OUT, TESTED = range(40), range(1000, 1008), range(2000, 2020)
CASES = 60
CAMERA = CArm(1020.0, (64, 64), 2.176 * 2)
# The published targets; starts and training poses about them, degrees and mm. As in the 2020 code,
# shifts are as wide along the beam as across it: 12 % of magnification hide in 100 mm of depth, and
# a translation whose direction is mostly depth is mostly unseen.
SAMPLING = PoseSampling(
    target=(15.0, 15.0, 15.0, 25.0, 25.0, 25.0),
    moving=(30.0, 30.0, 30.0, 50.0, 50.0, 50.0),
    moving_normal=False,
    about_target=True,
)
SUCCESS_MM = 10.0
RUNS = {  # what is trained: network, objective, learning rate
    "direction": (NETWORK, "direction", 1e-3),
    "mse": (NETWORK, "mse", 1e-3),
    "direction-2020": (OTHER, "direction", 3e-3),
}
LEARNED = {  # one of RUNS, and what follows its descent
    "learned": "direction",
    "learned+cmaes": "direction+cmaes",
    "learned-2020+cmaes": "direction-2020+cmaes",
    "mse+cmaes": "mse+cmaes",
}
METHODS = ("cmaes", "cmaes-double", *LEARNED, "global")

CMAES = Stage(
    "patch_gradient_ncc",
    optimiser=CmaEs(
        sigma=tuple(math.radians(a) for a in (10.0, 10.0, 10.0)) + (15.0, 15.0, 30.0),
        population=30,
        final_step=0.1,
    ),
    iterations=30,
    mm=True,
)


class OfSegment:
    """A learned similarity that reads the labelled bone of a CT, which it was trained with.

    On its own it would take all bones above its threshold, here the femurs, too.
    """

    def __init__(self, network: LearnedSimilarity) -> None:
        self.network = network

    def prepare(self, scene: Volume) -> Volume:
        """The volume of channels to render; scene: with labels."""
        return self.network.prepare(scene.select(BONE))

    def __call__(self, moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.network(moving, fixed, mask)


def descent(similarity: LearnedSimilarity | OfSegment) -> Stage:
    """The gradient phase: 0.1 rad and about as many mm at first, halved every 15 steps."""
    return Stage(
        similarity, optimiser=Directions(10.0, patience=15, final_step=0.5), iterations=75, mm=True
    )


# ---- subjects


def subject(seed: int, work: Path, kind: str = "pelvis") -> Volume:
    """A random anatomy in HU with labels; drawn once."""
    path = work / "subjects" / f"{kind}_{seed}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        ct = random_anatomy(kind, seed, shape=48)
        write_whole(path, partial(torch.save, (ct.values, ct.labels, ct.spacing, ct.origin)))
    values, labels, spacing, origin = torch.load(path, weights_only=True)
    return Volume(values, spacing, origin, unit="HU", labels=labels)


def patient(
    name: str, ct: Volume, network: LearnedSimilarity, bones: Sequence[int] | None
) -> TrainingPatient:
    """Seen and turned about the CT's centre, as register() turns it."""
    center = volume_center(ct)
    return TrainingPatient.of(name, ct, network, bones=bones, center=center)


def patients(seeds: Sequence[int], network: LearnedSimilarity, work: Path) -> list[TrainingPatient]:
    return [patient(f"pelvis {seed}", subject(seed, work), network, BONE) for seed in seeds]


# ---- training


def trained(name: str, options: argparse.Namespace) -> None:
    """Train one of RUNS, or go on with it; leaves its best validation in FOLDER/name.pt."""
    work = options.work
    kind, objective, rate = RUNS[name]
    network = build(kind, seed=0)
    recipe = TrainingRecipe(
        objective=objective, batch=options.batch, rate=rate, steps=options.steps
    )
    task = SimilarityTask(
        network,
        patients(TRAINED, network, work),
        patients(HELD_OUT, network, work),
        CAMERA,
        SAMPLING,
        recipe,
    )
    config = {**asdict(recipe), "network": kind}
    result = best_of(task, work / name, options.steps, config, "cosine", "max")
    notes = {
        "network": kind,
        "objective": objective,
        "step": result.best_step,
        "seconds": result.seconds,
    }
    save_similarity(network, work / f"{name}.pt", **notes)
    facts = {**notes, "steps": result.step, "validation": result.best_value, **asdict(recipe)}
    facts["load_average"] = os.getloadavg()
    facts["weights"] = sum(p.numel() for p in network.parameters())
    facts |= {"test": tested_gradients(network, work)}
    write_json(work / f"{name}.json", facts)
    print(json.dumps(facts, indent=2))


def best_of(
    task: Any, folder: Path, steps: int, config: dict[str, Any], watch: str, mode: str
) -> TrainingResult:
    """Trains a task's network, or goes on with it, and gives it its best validated weights."""
    result = train(
        task,
        folder,
        steps=steps,
        validate_every=100,
        save_every=25,
        clip_norm=10.0,
        config=config,
        watch=watch,
        mode=mode,
        progress=False,
    )
    if result.interrupted:
        raise SystemExit(f"{folder.name}: interrupted at step {result.step}")
    task.model.load_state_dict(load_checkpoint(result.best).model)
    return result


def tested_gradients(network: LearnedSimilarity, work: Path) -> dict[str, float]:
    """Cosines on the test subjects, which took no part in choosing the weights."""
    network.eval()
    return gradient_cosines(network, patients(TESTED, network, work), pairs)


def gradient_cosines(
    network: LearnedSimilarity,
    patients: Sequence[TrainingPatient],
    draw: Callable[[TrainingPatient, int], tuple[Tensor, Tensor, Tensor]],
) -> dict[str, float]:
    """Cosines of pose gradients with those of the geodesic distance, 16 pairs per patient."""
    found, wanted = [], []
    for patient in patients:
        task = SimilarityTask(network, [patient], [], CAMERA, SAMPLING, TrainingRecipe())
        theta, xray, target = draw(patient, 16)
        theta.requires_grad_()
        found.append(pose_gradient(task.similarity(patient, theta, xray), theta))
        wanted.append(geodesic_gradient(theta.detach(), target))
    rotation, translation = cosines(torch.cat(found), torch.cat(wanted))
    return {
        "cosine": float((rotation + translation).mean() / 2),
        "cosine_rotation": float(rotation.mean()),
        "cosine_translation": float(translation.mean()),
        "pairs": rotation.numel(),
    }


def pairs(patient: TrainingPatient, count: int, number: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Starts theta, X-rays, true theta of a test subject; the same ones every time."""
    random = generator(99, int(patient.name.split()[-1]), number)
    theta, target = SAMPLING.draw(patient.chart, count, random)
    seed = int(torch.randint(2**31 - 1, (), generator=random))
    xray = simulated(patient.ct, CAMERA, patient.chart.world_to_camera(target), seed)
    return theta, xray, target


# ---- registration


def stages_of(method: str, work: Path) -> Any:
    """What `register` runs; None where a network is not trained yet."""
    if method == "cmaes":
        return (CMAES,)
    if method == "cmaes-double":
        return (replace(CMAES, iterations=2 * CMAES.iterations),)
    if method == "global":
        return "global"
    run, _, following = LEARNED[method].partition("+")
    learned = descent(OfSegment(load_similarity(work / f"{run}.pt")))
    return (learned, CMAES) if following else (learned,)


def registered(method: str, options: argparse.Namespace) -> None:
    """A method on all cases; rows go to FOLDER/method.jsonl as they are found."""
    path = options.work / f"{method}.jsonl"
    done = {row["case"] for row in read_rows(path)}
    stages = stages_of(method, options.work)
    plain = build(NETWORK)  # for its moving volumes only
    for case in range(options.cases):
        if case in done:
            continue
        seed = TESTED[case % len(TESTED)]
        (patient,) = patients([seed], plain, options.work)
        row = {"case": case, "subject": patient.name, **outcome(patient, case, stages)}
        with appended(path) as add:
            add(row)
        print(method, row, flush=True)


def outcome(patient: TrainingPatient, case: int, stages: Any) -> dict[str, Any]:
    """One registration: errors at the start and at the end, mm and degrees."""
    theta, xray, target = pairs(patient, 1, 1 + case)
    start, truth = (patient.chart.world_to_camera(pose) for pose in (theta, target))
    points = targets(patient.ct)
    began, used = time.perf_counter(), time.process_time()
    result = register(patient.ct.to_mu(), CAMERA, xray, start, stages=stages, seed=case)
    seconds, process = time.perf_counter() - began, time.process_time() - used
    found = result.world_to_camera
    return {
        "start_mm": float(metrics.mtre(start, truth, points)),
        "mtre_mm": float(metrics.mtre(found, truth, points)),
        "rotation_deg": math.degrees(float(metrics.rotation_error(found, truth))),
        "seconds": round(seconds, 3),
        "process_s": round(process, 3),
    }


def targets(ct: Volume, count: int = 1000) -> Tensor:
    """Voxels of the bone that is registered, world mm."""
    index = torch.nonzero(ct.labels == BONE[0]).flip(-1).double()
    chosen = torch.randperm(len(index), generator=torch.Generator().manual_seed(0))[:count]
    return ct.index_to_world(index[chosen])


# ---- report


def report(options: argparse.Namespace) -> None:
    """Everything found so far as JSON and Markdown, in --output."""
    work = options.work
    networks = {name: read_json(work / f"{name}.json") for name in RUNS}
    rows = {m: found for m in METHODS if (found := read_rows(work / f"{m}.jsonl"))}
    record = recorded(
        options,
        subjects={"trained": len(TRAINED), "validated": len(HELD_OUT), "tested": len(TESTED)},
        sampling=asdict(SAMPLING),
        cmaes={"population": CMAES.optimiser.population, "generations": CMAES.iterations},
        networks={name: facts for name, facts in networks.items() if facts},
        methods={name: summary(found) for name, found in rows.items()},
    )
    record["promises"] = promises(record)
    write_json(options.output / "prost_small.json", record)
    text = markdown(record)
    write_text(options.output / "README.md", text)
    print(text)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Success and errors of a method."""
    columns = ("mtre_mm", "start_mm", "rotation_deg", "process_s")
    return {
        "cases": len(rows),
        "success": wilson([r["mtre_mm"] for r in rows], SUCCESS_MM),
        **{f"median_{name}": median(r[name] for r in rows) for name in columns},
    }


def promises(record: dict[str, Any]) -> list[dict[str, Any]]:
    """What the experiment is to show, what was measured, and whether it does."""
    found = []

    def promise(name: str, value: float, least: float) -> None:
        found.append({"name": name, "value": value, "least": least, "kept": value > least})

    networks, methods = record["networks"], record["methods"]
    if "direction" in networks:
        own = networks["direction"]["test"]["cosine"]
        promise("pose-gradient cosine on test subjects", own, 0.7)
        if "mse" in networks:
            gap = own - networks["mse"]["test"]["cosine"]
            promise("direction objective over mse objective, cosine", gap, 0.0)
    if {"cmaes", "learned+cmaes"} <= methods.keys():
        learned, cmaes = (methods[name]["success"] for name in ("learned+cmaes", "cmaes"))
        gap = 100 * (learned["rate"] - cmaes["rate"])
        promise("learned + CMA-ES over CMA-ES, points of success", gap, 20.0)
    return found


def markdown(record: dict[str, Any]) -> str:
    subjects = record["subjects"]
    networks = [
        [n["network"], n["objective"], n["steps"], f"{n['seconds'] / 60:.1f} min"]
        + [f"{n['test'][key]:.3f}" for key in ("cosine", "cosine_rotation", "cosine_translation")]
        for n in record["networks"].values()
    ]
    methods = [
        [name, percent(m["success"], 1), f"{m['median_mtre_mm']:.1f} mm"]
        + [f"{m['median_rotation_deg']:.1f} deg", f"{m['median_process_s']:.1f} s", m["cases"]]
        for name, m in record["methods"].items()
    ]
    promises = [
        [p["name"], f"{p['value']:.2f}", f"{p['least']:.2f}", "yes" if p["kept"] else "no"]
        for p in record["promises"]
    ]
    head = ["network", "objective", "steps", "training", "cosine", "rotation", "translation"]
    lines = [
        "# The small ProST experiment",
        "",
        origin(record),
        f"{subjects['trained']} random pelves trained on, {subjects['validated']} to choose the "
        f"weights, {subjects['tested']} tested; 48^3 voxels, 64 x 64 pixels.",
        "",
        *study.markdown(head, networks),
        "",
        "Cosines of the pose gradient with that of the geodesic distance, on test subjects.",
        "",
    ]
    head = ["method", f"success (< {SUCCESS_MM:.0f} mm, 95 % interval)", "median mTRE"]
    lines += study.markdown([*head, "median turn", "process time", "cases"], methods)
    starts = [m["median_start_mm"] for m in record["methods"].values()]
    if starts:
        lines += ["", f"Median mTRE of the starts: {starts[0]:.1f} mm."]
    lines += ["", *study.markdown(["promise", "measured", "at least", "kept"], promises)]
    return "\n".join(lines) + "\n"


# ---- the study


def options(add: Any) -> None:
    add("part", choices=("all", "train", "register", "report"))
    add("--run", choices=RUNS, default="direction")
    add("--method", choices=METHODS, default="learned+cmaes")
    add("--cases", type=int, default=CASES, help=f"registrations ({CASES})")
    training_options(add)


def training_options(add: Any) -> None:
    add("--steps", type=int, default=1000, help="training steps (1000)")
    add("--batch", type=int, default=8, help="image pairs per step (8)")
    add("--work", type=Path, default=WORK)


def run(options: argparse.Namespace) -> None:
    options.work.mkdir(parents=True, exist_ok=True)
    if options.part == "train":
        trained(options.run, options)
    elif options.part == "register":
        registered(options.method, options)
    elif options.part == "all":
        everything(options, "--run", RUNS, "--method", METHODS)
    if options.part in ("all", "report"):
        report(options)


def everything(
    options: argparse.Namespace, run: str, runs: Iterable[str], row: str, rows: Iterable[str]
) -> None:
    """All trainings, then all registrations of a study, two processes of one thread at a time."""
    shared = ["--work", str(options.work.absolute()), "--cases", str(options.cases)]
    shared += ["--steps", str(options.steps), "--batch", str(options.batch)]
    in_pairs(options.study, [["train", run, name, *shared] for name in runs])
    in_pairs(options.study, [["register", row, name, *shared] for name in rows])
