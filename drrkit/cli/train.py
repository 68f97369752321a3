"""`drrkit train`: similarities and regressors, on your CTs or on phantoms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from drrkit.cli.answers import Answer
from drrkit.cli.arguments import NumberRange
from drrkit.cli.deferred import DeferringGroup
from drrkit.cli.options import grouped
from drrkit.cli.similarities import REGRESSOR_FILE, SIMILARITY_FILE
from drrkit.cli.subjects import Scan, SubjectOptions
from drrkit.cli.synthesis import ImageOptions
from drrkit.cli.training import TrainingOptions, run_training
from drrkit.similarity import (
    KINDS,
    MEASURED,
    NETWORKS,
    OBJECTIVES,
    REGRESSOR_RECIPES,
    SAMPLINGS,
    CDRegTask,
    LearnedSimilarity,
    PoseRegressor,
    RegressorTask,
    SimilarityTask,
    TrainingPatient,
    TrainingRecipe,
    build,
    save_similarity,
)
from drrkit.training import TrainingResult, load_checkpoint

__all__ = ["train_group"]


@click.group("train", cls=DeferringGroup)
def train_group() -> None:
    """Train networks for registration; a training that was killed resumes where it was.

    Under torchrun, processes and machines train one network together.
    """


train_group.defer(
    "nett",
    "drrkit.cli.train_fields:nett_command",
    "Train NeTT, which tunes CTs until DRRs look like X-rays.",
)
train_group.defer(
    "mnerf",
    "drrkit.cli.train_fields:mnerf_command",
    "Train mNeRF, a field of one subject's attenuation.",
)


def network_option(family: type, default: str) -> Any:
    """--network, of a family of classes; the help lists those with a measured result."""
    names = [name for name, network in NETWORKS.items() if issubclass(KINDS[network.kind], family)]
    measured = [name for name in names if name in MEASURED]
    published = ", ".join(name for name in names if name not in measured)
    return click.option(
        "--network",
        type=click.Choice(names),
        metavar="NAME",
        default=default,
        show_default=True,
        help=f"One of {', '.join(measured)}. Published sizes, never trained here: {published}.",
    )


@train_group.command("similarity")
@network_option(LearnedSimilarity, "prost-small")
@click.option("--objective", type=click.Choice(OBJECTIVES), default="direction", show_default=True)
@click.option(
    "--poses",
    type=click.Choice(list(SAMPLINGS)),
    default="prost",
    show_default=True,
    help="How training draws poses.",
)
@click.option("--optimiser", type=click.Choice(["adam", "sgd"]), default="adam", show_default=True)
@click.option("--rate", type=NumberRange(0, min_open=True), default=1e-3, show_default=True)
@click.option(
    "--schedule",
    type=click.Choice(["cosine", "cyclic", "constant"]),
    default="cosine",
    show_default=True,
    help="Of the rate; a training with cosine cannot be prolonged.",
)
@click.option(
    "--batch", type=click.IntRange(1), default=4, show_default=True, help="Pairs per process."
)
@grouped(ImageOptions, "images")
@grouped(SubjectOptions, "whose")
@grouped(TrainingOptions, "how")
@click.pass_context
def similarity_command(
    ctx: click.Context,
    network: str,
    objective: str,
    poses: str,
    optimiser: str,
    rate: float,
    schedule: str,
    batch: int,
    images: ImageOptions,
    whose: SubjectOptions,
    how: TrainingOptions,
) -> Answer | None:
    """Train a similarity whose pose gradient points at the true pose.

    Writes similarity.pt, which drrkit register and drrkit evaluate take as --similarity.
    """
    recipe = TrainingRecipe(
        objective=objective,
        batch=batch,
        optimiser=optimiser,
        rate=rate,
        schedule=schedule,
        steps=how.steps,
        seed=how.seed,
    )
    notes = {"steps": how.steps} if schedule == "cosine" else {}
    training = NetworkTraining(network, images, whose, how, notes)
    kind = CDRegTask if NETWORKS[network].kind == "cdreg" else SimilarityTask
    task = kind(
        training.model,
        *training.patients,
        training.camera,
        SAMPLINGS[poses],
        recipe,
        synthesise=images.synthesise,
        randomise=images.randomisation,
    )
    return training.run(ctx, task, SIMILARITY_FILE)


@train_group.command("regressor")
@network_option(PoseRegressor, "deepim-small")
@click.option(
    "--poses",
    type=click.Choice(list(SAMPLINGS)),
    help="How training draws poses.  [default: as published for the network]",
)
@click.option(
    "--rate", type=NumberRange(0, min_open=True), help="Of Adam.  [default: as published]"
)
@click.option("--batch", type=click.IntRange(1), help="Pairs per process.  [default: as published]")
@click.option(
    "--rounds",
    type=click.IntRange(1),
    help="Updates in a row that are trained.  [default: as published]",
)
@grouped(ImageOptions, "images")
@grouped(SubjectOptions, "whose")
@grouped(TrainingOptions, "how")
@click.pass_context
def regressor_command(
    ctx: click.Context,
    network: str,
    poses: str | None,
    rate: float | None,
    batch: int | None,
    rounds: int | None,
    images: ImageOptions,
    whose: SubjectOptions,
    how: TrainingOptions,
) -> Answer | None:
    """Train a network that predicts better poses from an image pair.

    Writes regressor.pt, which drrkit register and drrkit evaluate take as --similarity.
    """
    sampling = None if poses is None else SAMPLINGS[poses]
    given = {"sampling": sampling, "rate": rate, "batch": batch, "rounds": rounds}
    given = {name: value for name, value in given.items() if value is not None}
    recipe = replace(REGRESSOR_RECIPES[NETWORKS[network].kind], seed=how.seed, **given)
    training = NetworkTraining(network, images, whose, how, {})
    task = RegressorTask(
        training.model,
        *training.patients,
        training.camera,
        recipe,
        synthesise=images.synthesise,
        randomise=images.randomisation,
    )
    return training.run(ctx, task, REGRESSOR_FILE)


class NetworkTraining:
    """A network, the patients and the camera of a training; `run` trains and writes the network."""

    def __init__(
        self,
        network: str,
        images: ImageOptions,
        whose: SubjectOptions,
        how: TrainingOptions,
        notes: dict[str, Any],
    ) -> None:
        self.how, self.device = how, how.own_device
        self.model: Any = build(network, how.seed).to(self.device)
        self.camera = images.camera(network)
        cohort = whose.cohort(how.seed)
        self.notes = {**notes, "split": cohort.as_dict()}
        self.patients = (
            self._patients(cohort.train, images.sod, whose),
            self._patients(cohort.validation, images.sod, whose),
        )
        # The pixels (at the patient) and voxels that the network sees: those to use it with.
        self.scale = {
            "pixel_mm": images.pixel_mm(self.camera),
            "voxel_mm": min(min(p.moving.spacing) for p in self.patients[0]),
        }

    def run(self, ctx: click.Context, task: Any, name: str) -> Answer | None:
        """Trains, and writes the network as `name` into the training's folder."""
        finish = partial(self._written, name=name)
        return run_training(ctx, task, self.how, self.notes, finish)

    def _patients(
        self, scans: Sequence[Scan], sod: float, whose: SubjectOptions
    ) -> list[TrainingPatient]:
        return [
            TrainingPatient.of(
                scan.name, whose.load(scan).to(self.device), self.model, sod=sod, bones=whose.bones
            )
            for scan in scans
        ]

    def _written(self, result: TrainingResult, name: str) -> Path:
        """The best weights, or the last ones where nothing was validated, with what was noted."""
        best = result.best if result.best_step else result.last
        self.model.load_state_dict(load_checkpoint(best).model)
        path = result.last.with_name(name)
        metrics = {"metrics": result.metrics, "best_step": result.best_step}
        save_similarity(self.model, path, **metrics, **self.notes, **self.scale)
        return path
