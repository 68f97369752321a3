"""`drrkit train similarity` and `regressor`: networks that compare or align an image pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from drrkit.cli.command import Answer, command
from drrkit.cli.options import COUNT, POSITIVE, SDD, SOD, OutputFile, Size, option, part
from drrkit.cli.register import REGRESSOR_FILE, SIMILARITY_FILE
from drrkit.cli.train import Scan, SubjectOptions, TrainingOptions, run_training
from drrkit.geometry import Camera, CArm
from drrkit.report import save_image
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
    Synthesis,
    TrainingPatient,
    TrainingRecipe,
    build,
    save_similarity,
    simulated,
)
from drrkit.training import Processes, TrainingResult
from drrkit.volume import Volume
from drrkit.xray import (
    CdregRandomisation,
    DomainRandomisation,
    Randomisation,
    TargetSynthesis,
    simulate_xray,
)

__all__ = ["regressor_command", "similarity_command"]

PUBLISHED, SMALL = (128, 128), (64, 64)
FIELD_MM = 128 * 2.176
"""Width of the published detector."""
ENLARGED = 3  # times the pixels of training images in a picture of them

RANDOMISATIONS: dict[str, Randomisation | None] = {
    "prost": DomainRandomisation(),
    "cdreg": CdregRandomisation(),
    "none": None,
}


def with_scatter(ct: Volume, camera: Camera, world_to_camera: Tensor, seed: int) -> Tensor:
    """X-rays with scattered radiation on top."""
    return simulate_xray(ct, camera, world_to_camera, supersample=2, scatter=0.1, seed=seed)


SYNTHESES: dict[str, Synthesis] = {"simple": simulated, "full": with_scatter}
TOOLS = TargetSynthesis(
    spectra=("90kV",),
    photons=(2e4, 2e4),
    scatter=(0.0, 0.0),
    electronic_noise=(0.0, 0.0),
    blur_sigma_px=(0.5, 0.5),
    supersample=2,
    tool_probability=0.5,
)
"""The X-rays of "simple" with a wire, a screw and a rod, each in half of the images."""


@dataclass(frozen=True)
class TrainingImageOptions:
    """The camera of training images, and how X-rays are made."""

    size: tuple[int, int] | None = option(
        "Pixels of the images.  [default: 128x128, or 64x64 for small networks]", type=Size()
    )
    pixel_spacing: float | None = option(
        f"Pixel pitch on the detector, mm.  [default: a detector of {FIELD_MM:.0f} mm]",
        type=POSITIVE,
    )
    sdd: float = option("Source to detector, mm.", default=SDD)
    sod: float = option("Source to the patient, mm.", default=SOD)
    xrays: str = option(
        "simple: a spectrum through soft tissue and bone, noise, blur. full: scatter too.",
        type=click.Choice(list(SYNTHESES)),
        default="simple",
    )
    tools: bool = option("Add a wire, a screw and a rod, each to half of the X-rays.")
    randomise: str = option(
        "Domain randomisation of the X-rays that are trained on.",
        type=click.Choice(list(RANDOMISATIONS)),
        default="none",
    )
    show: Path | None = option(
        "Write a picture of a training batch first: X-rays, bones at true and moving poses.",
        type=OutputFile(".png"),
    )

    def camera(self, network: str) -> Camera:
        """The camera of a network's training images."""
        size = self.size or (SMALL if network.endswith("-small") else PUBLISHED)
        return CArm(self.sdd, size, self.pixel_spacing or FIELD_MM / max(size))

    def how_made(self) -> dict[str, Any]:
        """The tasks' arguments that make X-rays and change them at random."""
        synthesise = SYNTHESES[self.xrays]
        if self.tools:
            scatter = (0.1, 0.1) if self.xrays == "full" else TOOLS.scatter
            synthesise = replace(TOOLS, scatter=scatter)
        return {"synthesise": synthesise, "randomise": RANDOMISATIONS[self.randomise]}


def _network_option(family: type, default: str) -> Any:
    """--network, of a family of classes; the help lists those with a measured result."""
    names = [name for name, network in NETWORKS.items() if issubclass(KINDS[network.kind], family)]
    measured = [name for name in names if name in MEASURED]
    published = ", ".join(name for name in names if name not in measured)
    return option(
        f"One of {', '.join(measured)}. Published sizes, never trained here: {published}.",
        type=click.Choice(names),
        metavar="NAME",
        default=default,
    )


@dataclass(frozen=True)
class RecipeOptions(TrainingRecipe):
    """How a similarity is trained."""

    objective: str = option(
        "What is trained for.", type=click.Choice(OBJECTIVES), default="direction"
    )
    batch: int = option("Image pairs per process.", type=COUNT, default=8)
    optimiser: str = option("Optimiser.", type=click.Choice(["adam", "sgd"]), default="adam")
    rate: float = option("Learning rate.", type=POSITIVE, default=1e-3)
    schedule: str = option(
        "Schedule of the learning rate; a training with cosine cannot be prolonged.",
        type=click.Choice(["cosine", "cyclic", "constant"]),
        default="cosine",
    )


@dataclass(frozen=True)
class PatientOptions:
    """Images, patients and the training itself; `train` does it."""

    images: TrainingImageOptions = part()
    subjects: SubjectOptions = part()
    how: TrainingOptions = part()

    def train(
        self,
        network: str,
        task_of: Callable[..., SimilarityTask | RegressorTask],
        name: str,
        **notes: Any,
    ) -> Answer | None:
        """Trains a network and saves it with the scale to use it at.

        Args:
            network: a name of NETWORKS.
            task_of: makes the task of network, patients, held out, camera; keywords make X-rays.
            name: of the file.
            notes: see `run_training`; the split of the patients is added.
        """
        images, subjects, how = self.images, self.subjects, self.how
        model: Any = build(network, how.seed).to(how.own_device)
        camera, cohort = images.camera(network), subjects.cohort(how.seed)

        def patients(scans: Sequence[Scan]) -> list[TrainingPatient]:
            made = partial(TrainingPatient.of, sod=images.sod, bones=subjects.bones)
            return [made(s.name, subjects.load(s).to(how.own_device), model) for s in scans]

        train, validation = patients(cohort.train), patients(cohort.validation)
        notes = {**notes, "split": cohort.as_dict()}
        # Widths of the pixels (at the patient) and voxels that the network is trained with.
        scale = {
            "pixel_mm": float(camera.pixel_spacing[0]) * images.sod / images.sdd,
            "voxel_mm": min(min(p.moving.spacing) for p in train),
        }
        task = task_of(model, train, validation, camera, **images.how_made())
        if images.show is not None and Processes.of_environment().writes:
            save_image(batch_picture(task.example()), images.show)

        def save(path: Path, result: TrainingResult) -> None:
            best = {"metrics": result.metrics, "best_step": result.best_step}
            save_similarity(model, path, **best, **notes, **scale)

        return run_training(task, model, how, notes, name, save)


@command("similarity")
def similarity_command(
    *,
    network: str = _network_option(LearnedSimilarity, "prost-small"),
    poses: str = option(
        "How training draws poses.", type=click.Choice(list(SAMPLINGS)), default="uniform"
    ),
    recipe: RecipeOptions,
    given: PatientOptions,
) -> Answer | None:
    """Train a similarity whose pose gradient points at the true pose.

    Writes similarity.pt, which drrkit register and drrkit evaluate take as --similarity.
    """
    kind = CDRegTask if NETWORKS[network].kind == "cdreg" else SimilarityTask
    how = replace(recipe, steps=given.how.steps, seed=given.how.seed)
    task_of = partial(kind, sampling=SAMPLINGS[poses], recipe=how)
    notes = {"steps": how.steps} if how.schedule == "cosine" else {}
    return given.train(network, task_of, SIMILARITY_FILE, **notes)


@command("regressor")
def regressor_command(
    *,
    network: str = _network_option(PoseRegressor, "deepim-small"),
    poses: str | None = option(
        "How training draws poses.  [default: as published for the network]",
        type=click.Choice(list(SAMPLINGS)),
    ),
    rate: float | None = option("Learning rate of Adam.  [default: as published]", type=POSITIVE),
    batch: int | None = option("Image pairs per process.  [default: as published]", type=COUNT),
    rounds: int | None = option(
        "Consecutive updates that are trained.  [default: as published]", type=COUNT
    ),
    given: PatientOptions,
) -> Answer | None:
    """Train a network that predicts better poses from an image pair.

    Writes regressor.pt, which drrkit register and drrkit evaluate take as --similarity.
    """
    sampling = None if poses is None else SAMPLINGS[poses]
    chosen = {"sampling": sampling, "rate": rate, "batch": batch, "rounds": rounds}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    recipe = replace(REGRESSOR_RECIPES[NETWORKS[network].kind], seed=given.how.seed, **chosen)
    return given.train(network, partial(RegressorTask, recipe=recipe), REGRESSOR_FILE)


def batch_picture(images: Tensor) -> Tensor:
    """A training batch [B, K, rows, cols] as one picture uint8, one row per image pair.

    Each image has its own scale.
    """
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    grey = 255 * (images - low) / (high - low).clamp_min(1e-6)
    enlarged = grey.repeat_interleave(ENLARGED, 2).repeat_interleave(ENLARGED, 3)
    rows = torch.cat(torch.cat(enlarged.unbind(1), -1).unbind(0), 0)
    return rows.round().to(torch.uint8).cpu()
