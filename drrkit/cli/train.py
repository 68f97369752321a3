"""`drrkit train`: the group, options that all trainings share, and how a training is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from drrkit.cli.command import Answer, LazyGroup
from drrkit.cli.configuration import run_record
from drrkit.cli.options import (
    NumberRange,
    device_option,
    option,
    out_option,
    quiet_option,
    seed_option,
)
from drrkit.cli.register import INTERRUPTED
from drrkit.phantoms import FIELD_MM
from drrkit.training import PRECISIONS, Processes, Task, TrainingResult, load_checkpoint, train

FREE = ("out", "steps", "validate_every", "save_every", "device", "quiet", "show")
"""Options that may have other values when a run is resumed."""


@click.group("train", cls=LazyGroup)
def train_group() -> None:
    """Train networks for registration; a training that was killed resumes where it was.

    Under torchrun, processes and machines train one network together.
    """


for _name, _module, _summary in (
    ("similarity", "train_similarity", "Train a similarity by its pose gradient."),
    ("regressor", "train_similarity", "Train a network that predicts better poses."),
    ("nett", "train_fields", "Train NeTT, which tunes CTs until DRRs look like X-rays."),
    ("mnerf", "train_fields", "Train mNeRF, a field of one subject's attenuation."),
):
    train_group.add_lazy(_name, f"drrkit.cli.{_module}:{_name}_command", _summary)

voxel_mm_option = click.option(
    "--voxel-mm",
    type=NumberRange(0, min_open=True),
    help="Resample CTs to cubes of this size.  [default: their own]",
)
anatomy_option = click.option(
    "--anatomy", type=click.Choice(list(FIELD_MM)), default="pelvis", help="Of the phantoms."
)
voxels_option = click.option(
    "--voxels", type=click.IntRange(8, 512), default=48, help="Of a phantom, along each side."
)


@dataclass(frozen=True)
class TrainingOptions:
    """How long to train and where to write."""

    out: Path = option(
        like=out_option(
            "Folder for checkpoints, logs and the network; a training there is resumed."
        )
    )
    steps: int = option(type=click.IntRange(1), default=2000, help="In all.")
    validate_every: int = option(type=click.IntRange(1), default=100)
    save_every: int = option(type=click.IntRange(1), default=100)
    clip_norm: float = option(
        type=NumberRange(0, min_open=True), default=10.0, help="Largest norm of a gradient."
    )
    accumulate: int = option(
        type=click.IntRange(1),
        default=1,
        help="Batches averaged for a step; the same as that many times the processes.",
    )
    precision: str = option(
        type=click.Choice(list(PRECISIONS)),
        default="float32",
        help="Of the network; the projector's is float32.",
    )
    seed: int = option(like=seed_option("Of everything."))
    device: torch.device = option(like=device_option)
    quiet: bool = option(like=quiet_option)

    @property
    def own_device(self) -> torch.device:
        """The device of this process."""
        return Processes.of_environment().device(self.device)


def run_training(
    ctx: click.Context,
    task: Task,
    network: torch.nn.Module,
    options: TrainingOptions,
    notes: dict[str, Any],
    name: str,
    save: Callable[[Path, TrainingResult], None],
) -> Answer | None:
    """Trains a network and saves it with its best weights, or its last where none was validated.

    Args:
        ctx: of the command, whose options go into the checkpoints' config.
        task: what is trained.
        network: which the task trains.
        options: how.
        notes: more for the config: what a resumed run has to agree with.
        name: of the network's file in the folder.
        save: writes the network there; called in the process that writes.

    Returns:
        the command's answer; None in processes that do not write.
    """
    processes = Processes.of_environment()
    run = run_record(ctx)
    kept = {name: value for name, value in run["options"].items() if name not in FREE}
    result = train(
        task,
        options.out,
        steps=options.steps,
        validate_every=options.validate_every,
        save_every=options.save_every,
        clip_norm=options.clip_norm,
        seed=options.seed,
        progress=not options.quiet,
        accumulate=options.accumulate,
        precision=options.precision,
        config={"command": run["command"], "options": kept, **notes},
        about={"run": run},
    )
    written = result.last.with_name(name)
    if processes.writes:
        best = result.best if result.best_step else result.last
        network.load_state_dict(load_checkpoint(best).model)
        save(written, result)
    if not result.interrupted:
        processes.leave()
    code = INTERRUPTED if result.interrupted else 0
    if not processes.writes:
        ctx.exit(code)
    content = {**result.as_dict(), "written": str(written)}
    return Answer(content, _sentence(result, options.steps, written), code)


def _sentence(result: TrainingResult, steps: int, written: Path) -> str:
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
    lines = [f"step {result.step} of {steps} after {result.seconds:.0f} s; {metrics}"]
    if result.best_step:
        lines.append(f"best at step {result.best_step}: {result.best_value:.4g}")
    if result.skipped:
        lines.append(f"{result.skipped} steps were left out: their gradient was not finite")
    if result.interrupted:
        lines.append("interrupted; the same command resumes it")
    return "\n".join([*lines, f"wrote {written}"])
