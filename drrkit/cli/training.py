"""Options that all of `drrkit train` have, and how a training is run with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from drrkit.cli.answers import Answer
from drrkit.cli.arguments import NumberRange
from drrkit.cli.configuration import run_record
from drrkit.cli.options import device_option, seed_option
from drrkit.training import PRECISIONS, Processes, Task, TrainingResult, train

__all__ = ["TrainingOptions", "run_training"]

INTERRUPTED = 130
FREE = ("out", "steps", "validate_every", "save_every", "device", "quiet")
"""Options that a run may be resumed with other values of."""


@dataclass(frozen=True)
class TrainingOptions:
    """How long to train and where to write."""

    out: Path
    steps: int
    validate_every: int
    save_every: int
    clip_norm: float
    accumulate: int
    precision: str
    seed: int
    device: torch.device
    quiet: bool

    OPTIONS = (
        click.option(
            "--out",
            type=click.Path(file_okay=False, path_type=Path),
            required=True,
            help="Folder for checkpoints, logs and the network; a training there is resumed.",
        ),
        click.option(
            "--steps", type=click.IntRange(1), default=2000, show_default=True, help="In all."
        ),
        click.option("--validate-every", type=click.IntRange(1), default=100, show_default=True),
        click.option("--save-every", type=click.IntRange(1), default=100, show_default=True),
        click.option(
            "--clip-norm",
            type=NumberRange(0, min_open=True),
            default=10.0,
            show_default=True,
            help="Largest norm of a gradient.",
        ),
        click.option(
            "--accumulate",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            help="Batches averaged for a step; as many more processes would do.",
        ),
        click.option(
            "--precision",
            type=click.Choice(list(PRECISIONS)),
            default="float32",
            show_default=True,
            help="Of the network; the projector's is float32.",
        ),
        seed_option("Of everything."),
        device_option,
        click.option("--quiet", "-q", is_flag=True, help="No progress bar."),
    )

    @property
    def own_device(self) -> torch.device:
        """The device of this process."""
        return Processes.of_environment().device(self.device)


def run_training(
    ctx: click.Context,
    task: Task,
    options: TrainingOptions,
    notes: dict[str, Any],
    finish: Callable[[TrainingResult], Path],
    **settings: Any,
) -> Answer | None:
    """Trains, lets `finish` write what was trained, and tells the outcome.

    Args:
        ctx: of the command, whose options go into the checkpoints' config.
        task: what is trained.
        options: how.
        notes: more for the config: what a resumed run has to agree with.
        finish: called in the process that writes; returns the file written.
        settings: more arguments of `train`.

    Returns:
        the command's answer; None in processes that do not write.
    """
    processes = Processes.of_environment()
    run = run_record(ctx)
    kept = {name: value for name, value in run["options"].items() if name not in FREE}
    config = {"command": run["command"], "options": kept, **notes}
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
        config=config,
        about={"run": run},
        **settings,
    )
    written = finish(result) if processes.writes else None
    if not result.interrupted:
        processes.leave()
    code = INTERRUPTED if result.interrupted else 0
    if written is None:
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
