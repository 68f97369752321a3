"""Learned registration of subjects never trained on: the table of CDreg's poster, DeepIM, DMW.

Random subjects (`drrkit.phantoms.random_anatomy`) are split in folds by their names, so that every
one is tested by networks that never saw it. In every fold ProST, SOPI (initialiser and similarity),
CDreg, DeepIM and DMW are trained with the same poses, images and number of steps, and then register
simulated X-rays of the fold's test subjects from the starts of the poster, N(0, 20 degrees),
N(0, 30 mm) in plane and N(0, 60 mm) in depth about the truth, times `--spread`: alone, and followed
by a CMA-ES on patch gradient NCC whose budget is the same for all, also for the one that begins at
the start. SOPI as published begins with its initialiser, at the frontal view, and needs no start;
"sopi-fine" is its similarity from the same starts as the others. Everything is kept in FOLDER and a
run that is begun again goes on where it was; `--steps`, `--cases` and the CMA-ES may change, what
else changes needs another FOLDER. Several processes share the work if each gets other folds
(`--only 0 2`).

Writes learned_registration.json and .md: the mean mTRE of the best 95, 75 and 50 % and the success
rate (mTRE below 10 mm), beside the published numbers, and which orderings are the same.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.studies.learned_registration_report import write_report
from bench.studies.prost_small import descent
from drrkit import CArm, register, view_ap, volume_center
from drrkit.evaluation import PROTOCOLS, Case, Protocol, Row, Subject, evaluate, read_rows
from drrkit.phantoms import random_anatomy
from drrkit.registration import CmaEs, RegistrationResult, Regressor, Stage
from drrkit.similarity import (
    NETWORKS,
    REGRESSOR_RECIPES,
    CDRegTask,
    PoseSampling,
    RegressorTask,
    SimilarityTask,
    TrainingPatient,
    TrainingRecipe,
    construct,
)
from drrkit.training import Split, Task, k_folds, load_checkpoint, train
from drrkit.xray import randomise

POSTER = PROTOCOLS["cdreg"]
SIMILARITIES = {"prost": "prost-2020-small", "sopi-fine": "sopi-small", "cdreg": "cdreg-small"}
REGRESSORS = {"initialiser": "sopi-initialiser-small", "deepim": "deepim-small", "dmw": "dmw-small"}
DETECTOR_MM = POSTER.size[0] * POSTER.pixel_mm


def options(add: Any) -> None:
    add("folder", type=Path)
    add("--kind", default="spine", choices=("spine", "pelvis", "skull"))
    add("--subjects", type=int, default=12)
    add("--folds", type=int, default=3)
    add("--only", type=int, nargs="*", help="folds to run (all)")
    add("--shape", type=int, default=48, help="voxels along each side")
    add("--pixels", type=int, default=64, help="pixels along each side")
    add("--steps", type=int, default=1000, help="of training, for each network")
    add("--batch", type=int, default=4)
    add("--spread", type=float, default=1.0, help="of the poster's starts")
    add("--population", type=int, default=30, help="of the CMA-ES")
    add("--generations", type=int, default=20)
    add("--cases", type=int, default=10, help="for each subject")
    add("--networks", nargs="*", default=[*SIMILARITIES, *REGRESSORS])
    add("--randomise", choices=("prost", "cdreg"), help="X-rays of the training")


def run(options: argparse.Namespace) -> None:
    names = [f"{options.kind}-{number:03d}" for number in range(options.subjects)]
    folds = k_folds(names, options.folds, seed=0)
    for number in options.only or range(len(folds)):
        run_fold(folds[number], options.folder / f"fold-{number}", options)
    done = [rows_folder(options.folder / f"fold-{f}", options) for f in range(len(folds))]
    rows = [row for folder in done if folder.exists() for row in read_rows(folder)]
    check_no_leak(rows, folds, options.folder)
    write_report(rows, options)


def run_fold(split: Split, folder: Path, options: argparse.Namespace) -> list[Row]:
    """Train what is not trained yet, run the cases that are not run yet; the fold's rows."""
    cts = {name: anatomy(name, options) for name in (*split.train, *split.test)}
    trained = {
        name: trained_network(name, split, cts, folder / name, options)
        for name in (*SIMILARITIES, *REGRESSORS)
        if name in options.networks
    }
    step_mm = DETECTOR_MM / options.pixels
    protocol = replace(
        POSTER,
        size=(options.pixels,) * 2,
        pixel_mm=step_mm,
        start=tuple(options.spread * width for width in POSTER.start),
    )
    subjects = [Subject.of(name, cts[name]) for name in split.test]
    compared = methods(trained, evolution(options))
    done = rows_folder(folder, options)
    return evaluate(compared, [protocol], subjects, options.cases, done, progress=say)


def rows_folder(folder: Path, options: argparse.Namespace) -> Path:
    """Where the cases of a fold are kept: other training or another CMA-ES, other cases."""
    return folder / f"cases-{options.steps}-{options.population}x{options.generations}"


def evolution(options: argparse.Namespace) -> Stage:
    """The CMA-ES that every method ends with, and the only stage that one has."""
    return Stage(
        "patch_gradient_ncc",
        optimiser=CmaEs(
            sigma=(math.radians(15.0), 40.0), population=options.population, final_step=0.2
        ),
        iterations=options.generations,
        mm=True,
    )


def anatomy(name: str, options: argparse.Namespace) -> Any:
    kind, number = name.rsplit("-", 1)
    return random_anatomy(kind, int(number), shape=options.shape)


def trained_network(
    name: str, split: Split, cts: dict[str, Any], folder: Path, options: argparse.Namespace
) -> torch.nn.Module:
    """The network after `options.steps` steps on the split's training subjects."""
    network = fresh(name)
    patients = [
        TrainingPatient.of(
            subject, cts[subject], network, sod=POSTER.sod, center=volume_center(cts[subject])
        )
        for subject in split.train
    ]
    task = task_of(name, network, patients, options)
    config = {"subjects": list(split.train), "network": name}
    for setting in ("shape", "pixels", "batch", "spread", "randomise"):
        config[setting] = getattr(options, setting)
    train(
        task,
        folder,
        steps=options.steps,
        validate_every=options.steps,
        save_every=100,
        clip_norm=10.0,
        config=config,
    )
    return network.eval().requires_grad_(False)


def fresh(name: str) -> torch.nn.Module:
    """The untrained network, its ranges those of the poster's true poses."""
    network = NETWORKS[SIMILARITIES.get(name) or REGRESSORS[name]]
    if name == "initialiser":
        network = network.but(rotation_deg=POSTER.target[:3], shift_mm=POSTER.target[3:])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return construct(network.kind, network.settings)


def task_of(
    name: str, network: Any, patients: list[TrainingPatient], options: argparse.Namespace
) -> Task:
    """What is trained, on the poses that the poster tests."""
    camera = CArm(POSTER.sdd, (options.pixels,) * 2, DETECTOR_MM / options.pixels)
    changed = None
    if options.randomise:

        def changed(images: Tensor, seed: int) -> Tensor:
            return randomise(images, options.randomise, seed=seed)

    moving = tuple(options.spread * width for width in POSTER.start)
    sampling = PoseSampling(POSTER.target, moving, about_target=True)
    if name in SIMILARITIES:
        recipe = TrainingRecipe(batch=options.batch, rate=1e-3, schedule="constant")
        kind = CDRegTask if name == "cdreg" else SimilarityTask
        return kind(network, patients, [], camera, sampling, recipe, randomise=changed)
    if name == "initialiser":
        sampling = PoseSampling(POSTER.target, (0.0,) * 6)
    recipe = replace(
        REGRESSOR_RECIPES[network.kind],
        sampling=sampling,
        batch=4 * options.batch,  # without double backward, and as published
        rounds=2 if name == "deepim" else 1,
        rate=1e-3,
        cycle=None,
    )
    return RegressorTask(network, patients, [], camera, recipe, randomise=changed)


def methods(trained: dict[str, Any], cmaes: Stage) -> dict[str, Any]:
    """What is compared, by name; each with and without the CMA-ES."""
    found: dict[str, tuple[Stage, ...]] = {"initial": ()}
    for name, network in trained.items():
        if name in SIMILARITIES:
            found[name] = (descent(network),)
        elif name != "initialiser":
            found[name] = (Stage(optimiser=Regressor(network), iterations=4),)
    both: dict[str, Any] = {}
    for name, stages in found.items():
        if stages:
            both[name] = stages
        both[f"{name} + cmaes"] = (*stages, cmaes)
    if "initialiser" in trained:
        guess = Stage(optimiser=Regressor(trained["initialiser"]), iterations=1)
        both["initialiser"] = from_frontal((guess,))
        if "sopi-fine" in trained:
            fine = (guess, descent(trained["sopi-fine"]))
            both["sopi"], both["sopi + cmaes"] = from_frontal(fine), from_frontal((*fine, cmaes))
    return both


def from_frontal(stages: tuple[Stage, ...]) -> Callable[[Case], RegistrationResult]:
    """A method that begins at the frontal view, whatever the start."""

    def method(case: Case) -> RegistrationResult:
        protocol: Protocol = case.protocol
        view = view_ap(case.subject.ct, protocol.sod)
        attenuation = case.subject.attenuation
        return register(attenuation, case.camera, case.xray, view, stages=stages, seed=case.number)

    return method


def say(row: Row) -> None:
    print(
        f"{row.subject} {row.number} {row.method}: {row.start_mtre:.1f} -> {row.mtre:.1f} mm, "
        f"{row.seconds:.1f} s",
        flush=True,
    )


def check_no_leak(rows: Sequence[Row], folds: Sequence[Split], folder: Path) -> None:
    """Every tested subject was registered by networks that were not trained on it.

    Raises:
        ValueError: one was; the checkpoints say what they were trained on.
    """
    for number, split in enumerate(folds):
        for path in sorted((folder / f"fold-{number}").glob("*/last.pt")):
            seen = set(load_checkpoint(path).config["subjects"])
            both = seen & {row.subject for row in rows if row.subject in split.test}
            if both:
                raise ValueError(f"{path}: trained on test subjects {sorted(both)}")
