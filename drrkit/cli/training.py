"""Options that all of `drrkit train` have, and how a training is run with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from drrkit.cli.arguments import Integers, Numbers, Size
from drrkit.cli.options import device_option
from drrkit.training import Processes, Task, TrainingResult, train
from drrkit.training.stepping import PRECISIONS

__all__ = ["TrainingOptions", "run_training"]

INTERRUPTED = 130
FREE = ("out", "steps", "validate_every", "save_every", "device", "quiet", "as_json", "config")
"""Options that a run may be resumed with other values of."""


def _defaults_from(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    """Makes the options of another run the defaults of this one."""
    if path is None:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["config"]["command"] != ctx.info_name:
            raise click.BadParameter(f"{path} is of drrkit train {content['config']['command']}.")
        options = dict(content["config"]["options"])
        ctx.default_map = {**options, "steps": content["steps"]}
    except (KeyError, TypeError, ValueError):
        raise click.BadParameter(f"{path}: expected the config.json of a training.") from None
    return path


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
    as_json: bool
    config: Path | None

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
            type=click.FloatRange(0, min_open=True),
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
        click.option(
            "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of everything."
        ),
        device_option,
        click.option("--quiet", "-q", is_flag=True, help="No progress bar."),
        click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON."),
        click.option(
            "--config",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            is_eager=True,
            callback=_defaults_from,
            help="config.json of another training: its options are the defaults.",
        ),
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
) -> None:
    """Trains, lets `finish` write what was trained, tells the outcome and ends the command.

    Args:
        ctx: of the command, whose options go into the checkpoints' config.
        task: what is trained.
        options: how.
        notes: more for the config: what a resumed run has to agree with.
        finish: called in the process that writes; returns the file written.
        settings: more arguments of `train`.
    """
    processes = Processes.of_environment()
    config = {"command": ctx.info_name, "options": plain_options(ctx), **notes}
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
        **settings,
    )
    if processes.writes:
        written = finish(result)
        if options.as_json:
            click.echo(json.dumps({**result.as_dict(), "written": str(written)}))
        else:
            click.echo(_sentence(result, options.steps, written))
    if result.interrupted:
        ctx.exit(INTERRUPTED)
    processes.leave()


def plain_options(ctx: click.Context) -> dict[str, Any]:
    """The options of a command as JSON has them, so that --config can give them again."""
    found = {}
    for parameter in ctx.command.params:
        name = str(parameter.name)
        value = ctx.params.get(name)
        if name in FREE or value is None:
            continue
        if isinstance(value, Path):
            value = str(value)
        elif isinstance(parameter.type, Size):
            value = "x".join(str(part) for part in value)
        elif isinstance(parameter.type, (Integers, Numbers)):
            value = ",".join(str(part) for part in value)
        found[name] = value
    return found


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
