"""`drrkit train`: similarities and regressors, on your CTs or on phantoms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch

from drrkit.cli.arguments import Size
from drrkit.cli.options import SDD, SOD, grouped
from drrkit.cli.poses import pixel_pitch
from drrkit.cli.subjects import SubjectOptions
from drrkit.cli.training import TrainingOptions, run_training
from drrkit.geometry import Camera, CArm
from drrkit.similarity import KINDS, NETWORKS, LearnedSimilarity, build, save_similarity
from drrkit.similarity.objectives import OBJECTIVES
from drrkit.similarity.poses import SAMPLINGS
from drrkit.similarity.task import SimilarityTask, TrainingPatient, TrainingRecipe
from drrkit.training import TrainingResult, load_checkpoint

__all__ = ["train_group"]

PUBLISHED, SMALL = (128, 128), (64, 64)
FIELD_MM = 128 * 2.176
"""Width of the published detector."""


@click.group("train")
def train_group() -> None:
    """Train networks for registration; a training that was killed resumes where it was.

    Under torchrun, processes and machines train one network together.
    """


def _names(family: type) -> list[str]:
    """The networks whose class is one of a family."""
    return [name for name, network in NETWORKS.items() if issubclass(KINDS[network.kind], family)]


def camera_options(command: Any) -> Any:
    """Options of the training images' camera."""
    for option in (
        click.option(
            "--size",
            type=Size(),
            help="Pixels of the images.  [default: 128x128, or 64x64 for small networks]",
        ),
        click.option(
            "--pixel-spacing",
            type=click.FloatRange(0, min_open=True),
            help=f"Pixel pitch on the detector, mm.  [default: a detector of {FIELD_MM:.0f} mm]",
        ),
        click.option(
            "--sdd", type=float, default=SDD, show_default=True, help="Source to detector, mm."
        ),
        click.option(
            "--sod", type=float, default=SOD, show_default=True, help="Source to the patient, mm."
        ),
    ):
        command = option(command)
    return command


def training_camera(
    network: str, size: tuple[int, int] | None, pixel_spacing: float | None, sdd: float
) -> Camera:
    """The camera of the training images of a network."""
    size = size or (SMALL if network.endswith("-small") else PUBLISHED)
    return CArm(sdd, size, pixel_spacing or FIELD_MM / max(size))


@train_group.command("similarity")
@click.option(
    "--network",
    type=click.Choice(_names(LearnedSimilarity)),
    default="prost-small",
    show_default=True,
)
@click.option("--objective", type=click.Choice(OBJECTIVES), default="direction", show_default=True)
@click.option(
    "--poses",
    type=click.Choice(list(SAMPLINGS)),
    default="prost",
    show_default=True,
    help="How training draws poses.",
)
@click.option("--optimiser", type=click.Choice(["adam", "sgd"]), default="adam", show_default=True)
@click.option("--rate", type=click.FloatRange(0, min_open=True), default=1e-3, show_default=True)
@click.option(
    "--schedule",
    type=click.Choice(["cosine", "cyclic", "constant"]),
    default="cosine",
    show_default=True,
    help="Of the rate; a training with cosine cannot be prolonged.",
)
@click.option(
    "--batch", type=click.IntRange(1), default=4, show_default=True, help="Pairs a process."
)
@camera_options
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
    size: tuple[int, int] | None,
    pixel_spacing: float | None,
    sdd: float,
    sod: float,
    whose: SubjectOptions,
    how: TrainingOptions,
) -> None:
    """Train a similarity whose pose gradient points at the true pose.

    Writes similarity.pt, which drrkit register and drrkit evaluate take as --similarity.
    """
    cohort = whose.cohort(how.seed)
    device = how.own_device
    model = build(network, how.seed).to(device)
    patients, held_out = (
        [patient(model, whose, scan, sod, device) for scan in part]
        for part in (cohort.train, cohort.validation)
    )
    recipe = TrainingRecipe(
        objective=objective,
        batch=batch,
        optimiser=optimiser,
        rate=rate,
        schedule=schedule,
        steps=how.steps,
        seed=how.seed,
    )
    camera = training_camera(network, size, pixel_spacing, sdd)
    task = SimilarityTask(model, patients, held_out, camera, SAMPLINGS[poses], recipe)
    notes: dict[str, Any] = {"split": cohort.as_dict()}
    if schedule == "cosine":
        notes["steps"] = how.steps
    scale = {
        "pixel_mm": pixel_pitch(camera)[0] * sod / sdd,
        "voxel_mm": min(min(p.moving.spacing) for p in patients),
    }
    run_training(ctx, task, how, notes, lambda result: _written(model, result, **notes, **scale))


def patient(
    model: LearnedSimilarity, whose: SubjectOptions, scan: Any, sod: float, device: torch.device
) -> TrainingPatient:
    """A scan as training uses it, on the device."""
    ct = whose.load(scan).to(device)
    return TrainingPatient.of(scan.name, ct, model, sod=sod, bones=whose.bones)


def _written(model: torch.nn.Module, result: TrainingResult, **notes: Any) -> Path:
    """The best weights, or the last ones where nothing was validated, as similarity.pt.

    What is noted beside them: the patients, and the pixels (at the patient) and voxels in mm that
    the network has seen.
    """
    best = result.best if result.best_step else result.last
    model.load_state_dict(load_checkpoint(best).model)
    path = result.last.with_name("similarity.pt")
    save_similarity(model, path, metrics=result.metrics, best_step=result.best_step, **notes)
    return path
