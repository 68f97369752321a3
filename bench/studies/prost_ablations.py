"""The ablations of the ProST paper at the scale of the study prost_small.

--work is the folder of the study prost_small: its networks (the baseline "direction", "mse" and
"direction-2020") are used as they are, and what is trained here differs from the baseline in one
thing each, with the same subjects, poses, steps and seed:

    no-3d        three copies of the volume instead of the 3D network's channels
    full-ct      the whole CT as moving volume instead of bone
    randomised   the paper's domain randomisation of the training X-rays (the baseline has none)
    deepim, dmw  regressors instead of a similarity; three times the steps, so that they train for
                 about as long, as theirs need no double backward pass
    spine        the baseline, trained on another anatomy

A row of the table is a network (or none) and a kind of target. All rows of a kind share starts,
targets and subjects, of which none was trained on; each network is followed down alone and then by
CMA-ES with the same budget. The networks see the bone that they were trained with, the label of
what moves as one piece; CMA-ES sees the CT. Rows of names with "+femurs" give the network all bones
by a threshold. Every part goes on from where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.studies import prost_small as small
from bench.studies.prost_ablations_report import report
from bench.studies.study import appended, read_rows, write_json
from drrkit import Stage, metrics, register
from drrkit.registration import Regressor
from drrkit.similarity import (
    NETWORKS,
    REGRESSOR_RECIPES,
    Configuration,
    PoseRegressor,
    RegressorTask,
    SimilarityTask,
    Synthesis,
    TrainingPatient,
    TrainingRecipe,
    construct,
    load_similarity,
    save_similarity,
    simulated,
)
from drrkit.training import generator
from drrkit.xray import TargetSynthesis, randomise

BASELINE = NETWORKS[small.NETWORK]


@dataclass(frozen=True)
class Run:
    """A network that is trained here: how it differs from the baseline.

    whole: the moving volume is the CT and not the bone.
    randomised: training X-rays are.
    """

    network: Configuration = BASELINE
    anatomy: str = "pelvis"
    whole: bool = False
    randomised: bool = False


RUNS = {
    "no-3d": Run(BASELINE.but(expansion=(3,))),
    "full-ct": Run(BASELINE.but(threshold_hu=None), whole=True),
    "randomised": Run(randomised=True),
    "deepim": Run(NETWORKS["deepim-small"]),
    "dmw": Run(NETWORKS["dmw-small"]),
    "spine": Run(anatomy="spine"),
}
REGRESSORS = ("deepim", "dmw")


@dataclass(frozen=True)
class Targets:
    """The X-rays that are registered.

    randomised: by the paper's domain randomisation, which they were not trained for; their polarity
        is then righted, as it is known of real X-rays.
    aside_mm: how far the volume's centre is from the beam's axis, in any direction across it.
    """

    synthesise: Synthesis = simulated
    anatomy: str = "pelvis"
    randomised: bool = False
    aside_mm: float = 0.0


TARGETS = {
    "plain": Targets(),
    "realistic": Targets(TargetSynthesis()),
    "corrupted": Targets(TargetSynthesis(), randomised=True),
    "tools": Targets(TargetSynthesis(tool_probability=1.0)),
    "partial": Targets(aside_mm=70.0),
    "spine": Targets(anatomy="spine"),
}
FEMURS = "+femurs"
NONE = "none"  # CMA-ES from the start
PIXEL_MM = 2.176 * 2
ROWS = {
    "plain": (
        NONE,
        "direction",
        *RUNS,
        "mse",
        "direction-2020",
        f"direction{FEMURS}",
        f"deepim{FEMURS}",
    ),
    "tools": (NONE, "direction", "deepim", "randomised"),
    "partial": (NONE, "direction", "deepim", "randomised"),
    "realistic": (NONE, "direction", "randomised"),
    "corrupted": (NONE, "direction", "randomised"),
    "spine": (NONE, "direction", "spine"),
}
TABLE = [
    f"{run}:{kind}"
    for kind, runs in ROWS.items()
    for run in runs
    if (run, kind) != ("spine", "plain")
]
REGRESSOR_STEPS = 3  # for each of a similarity
REGRESSOR_UPDATES = 4  # as many as DeepIM is trained for


# ---- subjects and views


def patients(
    seeds: Sequence[int], network: Any, work: Path, anatomy: str, whole: bool
) -> list[TrainingPatient]:
    bones = None if whole else small.BONE
    return [
        small.patient(f"{anatomy} {seed}", small.subject(seed, work, anatomy), network, bones)
        for seed in seeds
    ]


def views(
    kind: str, patient: TrainingPatient, count: int, number: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Starts theta, X-rays and true theta; of "plain" those of prost_small."""
    targets = TARGETS[kind]
    random = generator(99, int(patient.name.split()[-1]), number)
    theta, target = small.SAMPLING.draw(patient.chart, count, random)
    seed = int(torch.randint(2**31 - 1, (), generator=random))
    if targets.aside_mm:
        angle = 2 * math.pi * torch.rand(count, generator=random, dtype=torch.float64)
        shift = torch.stack((angle.cos(), angle.sin()), 1) * targets.aside_mm / patient.chart.unit
        for pose in (theta, target):
            pose[:, 3:5] += shift
    with torch.no_grad():
        pose = patient.chart.world_to_camera(target)
        xray = targets.synthesise(patient.ct, small.CAMERA, pose, seed).float()
        if targets.randomised:
            xray = righted(randomise(xray, "prost", seed=seed), xray)
    return theta, xray, target


def righted(changed: Tensor, plain: Tensor) -> Tensor:
    """Images [B, 1, r, c] turned bright to dark where they are so against `plain`."""
    both = (image - image.mean((-1, -2), keepdim=True) for image in (changed, plain))
    against = math.prod(both).sum((-1, -2), keepdim=True) < 0
    return torch.where(against, changed.amax((-1, -2), keepdim=True) - changed, changed)


# ---- training


def trained(name: str, options: argparse.Namespace) -> None:
    """Train one of RUNS, or go on with it; leaves its best validation in FOLDER/ablations."""
    run, work = RUNS[name], options.work
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = construct(run.network.kind, run.network.settings)
    steps = options.steps * (REGRESSOR_STEPS if isinstance(network, PoseRegressor) else 1)
    task, watch, mode = task_of(run, network, steps, options)
    config = {"name": name, "steps": steps, "batch": task.recipe.batch}
    result = small.best_of(task, work / "ablations" / name, steps, config, watch, mode)
    save_similarity(network, work / "ablations" / f"{name}.pt", step=result.best_step)
    facts = {
        "steps": result.step,
        "step": result.best_step,
        "batch": task.recipe.batch,
        "seconds": result.seconds,
        "watched": watch,
        "validation": result.best_value,
        "weights": sum(p.numel() for p in network.parameters()),
        "load_average": os.getloadavg(),
    }
    write_json(work / "ablations" / f"{name}.json", facts)
    print(name, json.dumps(facts), flush=True)


def task_of(
    run: Run, network: Any, steps: int, options: argparse.Namespace
) -> tuple[Any, str, str]:
    """The task, what its validation watches, and whether that is to be small or large."""
    groups = [
        patients(seeds, network, options.work, run.anatomy, run.whole)
        for seeds in (small.TRAINED, small.HELD_OUT)
    ]
    changed = (
        (lambda images, seed: randomise(images, "prost", seed=seed)) if run.randomised else None
    )
    if isinstance(network, PoseRegressor):
        published = REGRESSOR_RECIPES[network.kind]
        falls = {"rate": 1e-3, "every": max(1, steps // 10), "factor": 0.7}
        recipe = replace(published, sampling=small.SAMPLING, **falls)
        return (
            RegressorTask(network, *groups, small.CAMERA, recipe, randomise=changed),
            "mtre",
            "min",
        )
    recipe = TrainingRecipe(batch=options.batch, rate=1e-3, steps=steps)
    task = SimilarityTask(network, *groups, small.CAMERA, small.SAMPLING, recipe, randomise=changed)
    return task, "cosine", "max"


def network_of(name: str, work: Path) -> nn.Module | None:
    if name == NONE:
        return None
    name = name.removesuffix(FEMURS)
    folder = work / "ablations" if name in RUNS else work
    return load_similarity(folder / f"{name}.pt")


# ---- rows of the table


def measured(row: str, options: argparse.Namespace) -> None:
    """The cosine and all registrations of a row, in FOLDER/ablations/RUN_KIND.json and .jsonl."""
    name, kind = row.split(":")
    network = network_of(name, options.work)
    folder = options.work / "ablations"
    path = folder / f"{name}_{kind}.jsonl"
    done = {found["case"] for found in read_rows(path)}
    facts = folder / f"{name}_{kind}.json"
    gradients = not (network is None or isinstance(network, PoseRegressor) or FEMURS in name)
    if gradients and not facts.exists():
        whole = name in RUNS and RUNS[name].whole
        tested = patients(small.TESTED, network, options.work, TARGETS[kind].anatomy, whole)
        drawn = partial(views, kind)
        write_json(facts, small.gradient_cosines(network, tested, lambda p, n: drawn(p, n, 0)))
    all_of = FEMURS in name or (name in RUNS and RUNS[name].whole)
    plain = network_of("direction", options.work)  # for the chart of poses only
    for case in range(options.cases):
        if case in done:
            continue
        seed = small.TESTED[case % len(small.TESTED)]
        (patient,) = patients([seed], plain, options.work, TARGETS[kind].anatomy, False)
        found = {
            "case": case,
            "subject": patient.name,
            **outcome(patient, case, kind, network, all_of),
        }
        with appended(path) as add:
            add(found)
    print(row, len(read_rows(path)), "cases", flush=True)


def outcome(
    patient: TrainingPatient, case: int, kind: str, network: Any, all_of: bool
) -> dict[str, float]:
    """One case: mm at the start, after the network alone, and after CMA-ES from there.

    all_of: the network is given the whole CT, and not only the bone that it is trained with.
    """
    theta, xray, target = views(kind, patient, 1, 1 + case)
    start, truth = (patient.chart.world_to_camera(pose) for pose in (theta, target))
    points = small.targets(patient.ct)
    reached = start
    if network is not None:
        stages = (first_stage(network),)
        bone = (patient.ct if all_of else patient.ct.select(small.BONE)).to_mu()
        found = register(bone, small.CAMERA, xray, start, stages=stages, seed=case)
        reached = found.world_to_camera
    scene = patient.ct.to_mu()
    end = register(scene, small.CAMERA, xray, reached, stages=(small.CMAES,), seed=case)
    return {
        "start_mm": float(metrics.mtre(start, truth, points)),
        "alone_mm": float(metrics.mtre(reached, truth, points)),
        "mtre_mm": float(metrics.mtre(end.world_to_camera, truth, points)),
        "rotation_deg": math.degrees(float(metrics.rotation_error(end.world_to_camera, truth))),
        "visible": visible_share(truth, points),
    }


def first_stage(network: Any) -> Stage:
    if isinstance(network, PoseRegressor):
        return Stage(optimiser=Regressor(network), iterations=REGRESSOR_UPDATES)
    return small.descent(network)


def visible_share(truth: Tensor, points: Tensor) -> float:
    """The share of the bone that the X-ray shows."""
    pose = truth.reshape(4, 4).double()
    x, y, z = (points @ pose[:3, :3].T + pose[:3, 3]).unbind(-1)
    rows, cols = small.CAMERA.size
    half = torch.tensor((cols, rows), dtype=torch.float64) * PIXEL_MM / 2
    across = 1020.0 * torch.stack((x, y), -1) / z[:, None]
    return float((across.abs() <= half).all(-1).double().mean())


# ---- the study


def options(add: Any) -> None:
    add("part", choices=("all", "train", "register", "report"))
    add("--run", nargs="+", choices=RUNS, default=list(RUNS))
    add("--row", nargs="+", choices=TABLE, default=TABLE, metavar="RUN:TARGETS")
    add("--cases", type=int, default=40, help="registrations of each row (40)")
    small.training_options(add)


def run(options: argparse.Namespace) -> None:
    (options.work / "ablations").mkdir(parents=True, exist_ok=True)
    if options.part == "all":
        small.everything(options, "--run", RUNS, "--row", TABLE)
    for name in options.run if options.part == "train" else ():
        trained(name, options)
    for row in options.row if options.part == "register" else ():
        measured(row, options)
    if options.part in ("all", "report"):
        report(options)
