"""`drrkit train nett` and `drrkit train mnerf`: scenes that learn from X-rays with known poses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from drrkit.cli.answers import Answer
from drrkit.cli.arguments import Number, NumberRange
from drrkit.cli.options import grouped
from drrkit.cli.pairs import PairOptions
from drrkit.cli.training import TrainingOptions, run_training
from drrkit.cli.verbs import verb
from drrkit.fields import (
    FORMATIONS,
    IMAGE_LOSSES,
    LOCAL_FEATURES,
    ImageObjective,
    MNeRF,
    MNeRFTask,
    NeTT,
    NeTTTask,
    save_field,
)
from drrkit.training import TrainingResult, load_checkpoint

__all__ = ["mnerf_command", "nett_command"]


@dataclass(frozen=True)
class ObjectiveOptions:
    """How images are compared; `objective` says it in the library's words."""

    loss: str
    formation: str
    normalised: bool
    rate: float
    final_rate: float

    OPTIONS = (
        click.option(
            "--loss", type=click.Choice(list(IMAGE_LOSSES)), default="mse", show_default=True
        ),
        click.option(
            "--formation",
            type=click.Choice(list(FORMATIONS)),
            default="rc",
            show_default=True,
            help="rc: X-rays are like line integrals; vr: like 1 - exp(-I).",
        ),
        click.option(
            "--normalised/--absolute",
            default=True,
            show_default=True,
            help="Compare images mapped to [0, 1], or as they are.",
        ),
        click.option("--rate", type=NumberRange(0, min_open=True), default=5e-3, show_default=True),
        click.option(
            "--final-rate", type=NumberRange(0, min_open=True), default=5e-4, show_default=True
        ),
    )

    @property
    def objective(self) -> ImageObjective:
        """The options as an ImageObjective."""
        return ImageObjective(
            self.loss, self.formation, self.normalised, self.rate, self.final_rate
        )


@verb("nett")
@click.option(
    "--features",
    type=click.Choice(list(LOCAL_FEATURES)),
    multiple=True,
    help="What is seen besides the density; may be repeated.",
)
@click.option("--octaves", type=click.IntRange(0), default=5, show_default=True)
@click.option("--width", type=click.IntRange(1), default=64, show_default=True)
@click.option("--depth", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--batch", type=click.IntRange(1), default=4, show_default=True, help="X-rays a step."
)
@grouped(ObjectiveOptions, "how_alike")
@grouped(PairOptions, "whose")
@grouped(TrainingOptions, "how")
@click.pass_context
def nett_command(
    ctx: click.Context,
    features: tuple[str, ...],
    octaves: int,
    width: int,
    depth: int,
    batch: int,
    how_alike: ObjectiveOptions,
    whose: PairOptions,
    how: TrainingOptions,
) -> Answer | None:
    """Train NeTT, which tunes CTs until their DRRs look like X-rays; it serves other patients, too.

    Writes nett.pt. Published as a part of DiffProj (arXiv 2308.00214).
    """
    train, validation = whose.load(how.seed, how.own_device)
    torch.manual_seed(how.seed)
    nett = NeTT(octaves=octaves, width=width, depth=depth, features=features).to(how.own_device)
    task = NeTTTask(
        nett,
        train,
        validation,
        objective=how_alike.objective,
        steps=how.steps,
        batch=batch,
        seed=how.seed,
    )
    notes = {
        "steps": how.steps,
        "split": {"train": _names(train), "validation": _names(validation)},
    }
    return run_training(ctx, task, how, notes, _writer(nett, "nett.pt"))


@verb("mnerf")
@click.option("--octaves", type=click.IntRange(0), default=6, show_default=True)
@click.option("--width", type=click.IntRange(1), default=64, show_default=True)
@click.option("--depth", type=click.IntRange(1), default=4, show_default=True)
@click.option("--skip", type=click.IntRange(1), help="Hidden layer that sees the place again.")
@click.option(
    "--levels",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of learned features on nested grids: fine structure in far fewer steps.",
)
@click.option("--cell", type=NumberRange(0, min_open=True), help="Of the finest level, mm.")
@click.option(
    "--threshold", type=Number(), help="Of the body, 1/mm.  [default: 0.01, half of water's]"
)
@click.option("--margin", type=NumberRange(0), default=5.0, show_default=True, help="mm.")
@click.option("--step", type=NumberRange(0, min_open=True), help="Between samples, mm.")
@click.option("--images", type=click.IntRange(1), default=8, show_default=True, help="A step.")
@click.option("--rays", type=click.IntRange(1), default=128, show_default=True, help="An image.")
@click.option(
    "--held-out",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="X-rays to validate on.",
)
@grouped(ObjectiveOptions, "how_alike")
@grouped(PairOptions, "whose")
@grouped(TrainingOptions, "how")
@click.pass_context
def mnerf_command(
    ctx: click.Context,
    octaves: int,
    width: int,
    depth: int,
    skip: int | None,
    levels: int,
    cell: float | None,
    threshold: float | None,
    margin: float,
    step: float | None,
    images: int,
    rays: int,
    held_out: int,
    how_alike: ObjectiveOptions,
    whose: PairOptions,
    how: TrainingOptions,
) -> Answer | None:
    """Train mNeRF, a neural field of one subject's attenuation, zero outside the body's mask.

    Writes mnerf.pt. With --absolute X-rays are line integrals and the field is in 1/mm. Without
    --pairs the first phantom is the subject.
    """
    if len(whose.pairs) > 1 or whose.validate_on:
        raise click.UsageError("A field is of one subject: give --pairs once, no --validate-on.")
    (pairs, *_), _ = whose.load(how.seed, how.own_device)
    train, validation = pairs.held_out(held_out, how.seed)
    torch.manual_seed(how.seed)
    field = MNeRF.inside(
        train.volume,
        threshold,
        margin,
        octaves=octaves,
        width=width,
        depth=depth,
        skip=skip,
        levels=levels,
        cell=cell,
        step=step,
    )
    task = MNeRFTask(
        field,
        train,
        validation,
        objective=how_alike.objective,
        steps=how.steps,
        images=images,
        rays=rays,
        seed=how.seed,
    )
    notes = {"steps": how.steps, "subject": pairs.subject}
    return run_training(ctx, task, how, notes, _writer(field, "mnerf.pt"))


def _names(pairs: Any) -> list[str]:
    return [one.subject for one in pairs]


def _writer(field: NeTT | MNeRF, name: str) -> Callable[[TrainingResult], Path]:
    """Writes the best weights, or the last ones where nothing was validated."""

    def write(result: TrainingResult) -> Path:
        best = result.best if result.best_step else result.last
        field.load_state_dict(load_checkpoint(best).model)
        path = result.last.with_name(name)
        save_field(field, path)
        return path

    return write
