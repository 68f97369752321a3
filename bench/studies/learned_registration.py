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
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.studies import study
from bench.studies.prost_small import descent
from bench.studies.registration import tell
from bench.studies.study import recorded, wilson, write_json, write_text
from drrkit import CArm, register, view_ap, volume_center
from drrkit.evaluation import PROTOCOLS, Case, Protocol, Row, Subject, evaluate, read_rows, top_mean
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
    return evaluate(compared, [protocol], subjects, options.cases, done, progress=tell)


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


# ---- the report

SHARES = (0.95, 0.75, 0.5)
SUCCESS_MM = 10.0

Cells = tuple[tuple[float, float], ...]
PUBLISHED: dict[str, tuple[Cells, float | None]] = {
    "initial": (((225.7, 89.7), (188.6, 64.5), (148.0, 47.3)), None),
    "initial + cmaes": (((98.6, 98.6), (55.7, 49.9), (24.2, 14.7)), 22.0),
    "prost": (((185.7, 90.2), (151.2, 65.8), (114.3, 46.3)), None),
    "prost + cmaes": (((38.3, 55.5), (12.8, 19.7), (2.6, 1.3)), 55.6),
    "sopi": (((163.6, 78.9), (133.1, 56.9), (101.3, 39.9)), None),
    "sopi + cmaes": (((34.7, 55.8), (9.1, 13.7), (2.2, 1.0)), 58.4),
    "cdreg": (((155.7, 69.6), (127.2, 43.8), (95.1, 30.1)), None),
    "cdreg + cmaes": (((32.0, 51.9), (7.9, 11.9), (2.2, 0.9)), 61.0),
}
"""Mean and standard deviation of the mTRE (mm) of the best 95, 75 and 50 %, success rate (%):
Chen et al., ISBI 2024, spines, private CTs, 500 simulated X-rays."""

SUCCESS_PUBLISHED = {"initial + cmaes": 28.5, "prost + cmaes": 65.6, "deepim + cmaes": 59.6}
"""Success rate (%) in simulation, pelves: Gao et al., IEEE TMI 2024. DMW is below ProST there."""


def write_report(rows: Sequence[Row], options: argparse.Namespace) -> None:
    """learned_registration.json and .md beside --output, and the table on the screen."""
    found = {name: numbers(errors) for name, errors in by_method(rows).items()}
    plain = {k: v for k, v in vars(options).items() if not isinstance(v, Path)}
    record = recorded(
        options,
        options=plain,
        subjects=sorted({row.subject for row in rows}),
        methods=found,
        published=PUBLISHED,
        findings=findings(found),
    )
    text = markdown(found, options.command)
    write_json(options.output.with_suffix(".json"), record)
    write_text(options.output.with_suffix(".md"), text)
    print(text)


def by_method(rows: Sequence[Row]) -> dict[str, Tensor]:
    """mTRE [cases] of every method, and of the starts as "initial"."""
    cases = {(row.subject, row.number): row.start_mtre for row in rows}
    found = {"initial": torch.tensor(list(cases.values()), dtype=torch.float64)}
    for name in dict.fromkeys(row.method for row in rows):
        errors = [row.mtre for row in rows if row.method == name]
        found[name] = torch.tensor(errors, dtype=torch.float64)
    return found


def numbers(errors: Tensor) -> dict[str, Any]:
    """What the poster reports of a method, with Wilson's interval of the success rate."""
    return {
        "cases": len(errors),
        "median": float(errors.median()),
        "top": [top_mean(errors, share) for share in SHARES],
        "success": wilson(errors.tolist(), SUCCESS_MM),
    }


def markdown(found: dict[str, dict[str, Any]], command: str) -> str:
    """Measured rows beside published numbers, then which orderings are the same."""
    rows = []
    for name, of in found.items():
        cells = [f"{top['mean']:.1f}±{top['std']:.1f}" for top in of["top"]]
        success = of["success"]
        interval = f"{100 * success['low']:.0f}-{100 * success['high']:.0f}"
        rows.append([name, *cells, f"{100 * success['rate']:.1f}", interval, published(name)])
    tops = [f"top {share:.0%} mTRE" for share in SHARES]
    head = ["method", *tops, "success", "95 % interval", "published"]
    said = [f"- {finding}" for finding in findings(found)]
    return "\n".join([f"`{command}`", "", *study.markdown(head, rows), "", *said, ""])


def published(name: str) -> str:
    if name in PUBLISHED:
        cells, success = PUBLISHED[name]
        shown = " / ".join(f"{mean:.1f}" for mean, _ in cells)
        return shown + ("" if success is None else f"; {success} %")
    if name in SUCCESS_PUBLISHED:
        return f"{SUCCESS_PUBLISHED[name]} % (pelvis)"
    return ""


def findings(found: dict[str, dict[str, Any]]) -> list[str]:
    """Which published orderings the measured success rates and errors have, and which not."""
    rate = {name: 100 * of["success"]["rate"] for name, of in found.items()}
    error = {name: of["top"][1]["mean"] for name, of in found.items()}
    chains = {
        "success with CMA-ES (%)": (
            rate,
            ("initial + cmaes", "prost + cmaes", "sopi + cmaes", "cdreg + cmaes"),
        ),
        "mTRE of the best 75 %, networks alone (mm)": (
            {name: -value for name, value in error.items()},
            ("initial", "prost", "sopi", "cdreg"),
        ),
        "success with CMA-ES (%), ProST's table": (
            rate,
            ("initial + cmaes", "deepim + cmaes", "prost + cmaes"),
        ),
        "success with CMA-ES (%), DMW below ProST": (rate, ("dmw + cmaes", "prost + cmaes")),
    }
    said = []
    for title, (value, chain) in chains.items():
        for worse, better in pairwise(name for name in chain if name in value):
            gap = value[better] - value[worse]
            verdict = "as published" if gap > 0 else "not as published"
            said.append(f"{title}: gain of {better} over {worse} {gap:+.1f}, {verdict}")
    return said
