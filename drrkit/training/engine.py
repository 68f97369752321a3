"""train(): a loop that can be killed at any moment and resumes to the same weights."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from drrkit.files import whole_file
from drrkit.geometry import check_counts, check_numbers
from drrkit.training.checkpoints import (
    BEST,
    LAST,
    Checkpoint,
    latest_checkpoint,
    reserved,
    save_checkpoint,
)
from drrkit.training.distributed import Processes
from drrkit.training.logs import Logs
from drrkit.training.stepping import PRECISIONS, VALIDATION, Stepper, Task, seeded

MODES = ("min", "max")


@dataclass(frozen=True)
class TrainingResult:
    """The state of a training at the end of a call of `train`.

    Attributes:
        step: steps done in all, earlier calls included.
        losses: of the last step, by name; empty if there was nothing to do.
        metrics: of the last validation.
        best_step, best_value: of the validation whose weights best.pt has; 0 and nan without any.
        skipped: steps left out because their gradient was not finite, in all.
        seconds: of training, in all.
        interrupted: Ctrl-C or SIGTERM ended it before the last step; calling again resumes.
        last, best: the checkpoints.
    """

    step: int
    losses: dict[str, float]
    metrics: dict[str, float]
    best_step: int
    best_value: float
    skipped: int
    seconds: float
    interrupted: bool
    last: Path
    best: Path

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in JSON."""
        return {**vars(self), "last": str(self.last), "best": str(self.best)}


def train(
    task: Task,
    folder: Path | str,
    *,
    steps: int,
    validate_every: int,
    save_every: int,
    clip_norm: float | None = None,
    seed: int = 0,
    progress: bool = True,
    accumulate: int = 1,
    precision: str = "float32",
    config: dict[str, Any] | None = None,
    about: dict[str, Any] | None = None,
    watch: str | None = None,
    mode: str = "min",
    max_skips: int = 20,
    log_every: int = 1,
) -> TrainingResult:
    """Train up to a number of steps, from where the folder's last checkpoint is.

    A run that was killed and is started again ends with the weights of one that was not: on a CPU
    bit for bit. Writes last.pt, previous.pt and best.pt (`load_checkpoint` reads them), log.csv,
    validation.csv and, where TensorBoard is installed, tensorboard/. Ctrl-C and SIGTERM end it
    after the current step, with a checkpoint; a second Ctrl-C at once. Under torchrun the
    processes train one model on world times as large batches (DistributedDataParallel).

    Args:
        task: what is trained; its model ends with the last weights.
        folder: made if missing. Processes on several machines need not share it: rank 0 writes and
            reads.
        steps: in all; a larger number continues a finished run.
        validate_every, save_every: steps between validations and checkpoints; the last step has
            both.
        clip_norm: the gradient's norm is limited to this.
        seed: of all randomness, see Task.
        progress: show a progress bar.
        accumulate: batches to average for a step. 2 processes that accumulate 3 train as 6
            processes do, and as one that accumulates 6.
        precision: "float32"; "bfloat16" or "float16" for autocast, which leaves drrkit's projector
            in float32. float16 scales the loss, but not what a task differentiates inside its own
            losses: use "bfloat16" for these.
        config: plain values that the checkpoints store and a resumed run has to agree with.
        about: more plain values for config.json, which a resumed run need not agree with.
        watch: the number of `validate` that decides which weights are best; default "loss", or the
            only one.
        mode: whether "min" or "max" of it is better.
        max_skips: how many steps in a row may have a gradient that is not finite; they are left
            out.
        log_every: steps between rows of log.csv.

    Returns:
        a TrainingResult.

    Raises:
        TypeError, ValueError: an argument is not what is described here; the folder's checkpoints
            are damaged or belong to a run with other settings.
        RuntimeError: the gradient was not finite more than max_skips times in a row, or a buffer
            of the model no longer is.
    """
    _check(task, precision, mode)
    check_counts(steps=steps, validate_every=validate_every, save_every=save_every)
    check_counts(accumulate=accumulate, log_every=log_every)
    if clip_norm is not None:
        check_numbers(clip_norm=clip_norm)
    processes = Processes.of_environment()
    device = next(task.model.parameters()).device
    settings = {
        "seed": seed,
        "clip_norm": clip_norm,
        "precision": precision,
        "shares": accumulate * processes.world,
    }
    processes.connect(device)
    stepper = Stepper(task, processes, accumulate, precision, clip_norm, max_skips)
    begin = Checkpoint(0, {}, settings=settings, config=_plain(config or {}))
    run = _Run(stepper, Path(folder), begin, watch, mode)
    with reserved(Path(folder)) if processes.writes else nullcontext():
        run.resume(steps, _plain(about or {}))
        return run.until(steps, validate_every, save_every, log_every, progress)


class _Run:
    """One training run: its state, as its checkpoints have it, and its folder."""

    def __init__(
        self, stepper: Stepper, folder: Path, state: Checkpoint, watch: str | None, mode: str
    ) -> None:
        self.stepper, self.folder, self.state = stepper, folder, state
        self.watch, self.mode = watch, mode
        self.processes = stepper.processes
        self.seed = int(state.settings["seed"])
        self.losses: dict[str, float] = {}

    def resume(self, steps: int, about: dict[str, Any]) -> None:
        """Restores the folder's last checkpoint, if there is one, and writes config.json."""
        found = latest_checkpoint(self.folder) if self.processes.writes else None
        found = self.processes.from_writer(found)
        own = {"settings": self.state.settings, "config": self.state.config}
        if found is not None:
            for name, given in own.items():
                _check_same(self.folder, name, getattr(found, name), given)
            self.stepper.restore(found)
            self.state = replace(found, model={}, optimiser=None, schedule=None, scaler=None)
        if self.processes.writes:
            with whole_file(self.folder / "config.json") as place:
                content = {**about, "steps": steps, **own}
                place.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def until(
        self, steps: int, validate_every: int, save_every: int, log_every: int, progress: bool
    ) -> TrainingResult:
        """Trains until so many steps are done, or until interrupted."""
        from tqdm.auto import tqdm

        state = self.state
        writes = self.processes.writes and state.step < steps
        logs = Logs(self.folder if writes else None, state.step)
        shown = progress and writes
        bar = tqdm(initial=state.step, total=steps, unit="step", desc="training", disable=not shown)
        stop = False
        try:
            with _interruptions() as interruptions:
                while state.step < steps and not stop:
                    stop = self._advance(bool(interruptions))
                    stop |= bool(interruptions) and self.processes.world == 1
                    last = state.step == steps
                    if state.step % log_every == 0 or last:
                        logs.write("training", state.step, self._logged())
                    bar.update()
                    bar.set_postfix(loss=f"{self.losses['loss']:.4g}", refresh=False)
                    if state.step % validate_every == 0 or last:
                        self._validate()
                        logs.write("validation", state.step, state.metrics)
                    if state.step % save_every == 0 or last or stop:
                        logs.sync()
                        self._save(LAST)
        finally:
            bar.close()
            logs.close()
        return TrainingResult(
            step=state.step,
            losses=self.losses,
            metrics=state.metrics,
            best_step=int(state.best.get("step", 0)),
            best_value=state.best.get("value", math.nan),
            skipped=self.stepper.skipped,
            seconds=state.seconds,
            interrupted=state.step < steps,
            last=self.folder / LAST,
            best=self.folder / BEST,
        )

    def _advance(self, requested: bool) -> bool:
        """One step; whether any process was asked to stop."""
        began = time.perf_counter()
        self.losses, stop = self.stepper.advance(self.state.step, self.seed, requested)
        self.state.step += 1
        self.state.seconds += time.perf_counter() - began
        return stop

    def _logged(self) -> dict[str, float]:
        rate = self.stepper.optimiser.param_groups[0]["lr"]
        return {**self.losses, "rate": float(rate), "seconds": round(self.state.seconds, 4)}

    def _validate(self) -> None:
        """The metrics of the model as it is; keeps it where it is the best so far."""
        model, state = self.stepper.task.model, self.state
        training = [module for module in model.modules() if module.training]
        model.eval()
        try:
            with seeded(self.seed, VALIDATION, self.processes.rank):
                found = {k: float(v) for k, v in self.stepper.task.validate().items()}
        finally:
            for module in training:
                module.training = True
        values = self.processes.mean(list(found.values()), self.stepper.device)
        state.metrics = dict(zip(found, values, strict=True))
        if not found:
            return
        value = state.metrics[self._watched()]
        sign = 1 if self.mode == "min" else -1
        if math.isfinite(value) and (not state.best or sign * value < sign * state.best["value"]):
            state.best = {"step": state.step, "value": value}
            self._save(BEST)

    def _watched(self) -> str:
        names = list(self.state.metrics)
        name = self.watch or ("loss" if "loss" in names or len(names) != 1 else names[0])
        if name not in names:
            raise ValueError(
                f"watch: expected one of {names}, the names of validate(), got {name!r}"
            )
        return name

    def _save(self, name: str) -> None:
        if self.processes.writes:
            save_checkpoint(replace(self.state, **self.stepper.state()), self.folder / name)


@contextmanager
def _interruptions() -> Iterator[list[int]]:
    """A list that gets the numbers of SIGINT and SIGTERM; a second SIGINT is a KeyboardInterrupt.

    Always empty outside the main thread, where Python allows no signal handlers.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check(task: Any, precision: str, mode: str) -> None:
    if not isinstance(task, Task):
        raise TypeError(f"task: expected a drrkit.training.Task, got {type(task).__name__}")
    if not any(p.requires_grad for p in task.model.parameters()):
        raise ValueError("task: expected a model with parameters to train, got none")
    if len({p.device for p in task.model.parameters()}) > 1:
        raise ValueError("task: expected all parameters on one device")
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {list(PRECISIONS)}, got {precision!r}")
    if mode not in MODES:
        raise ValueError(f"mode: expected 'min' or 'max', got {mode!r}")


def _plain(config: Any) -> dict[str, Any]:
    """A config after a round trip through JSON, equal to what a checkpoint returns."""
    try:
        return json.loads(json.dumps(config))
    except (TypeError, ValueError) as error:
        raise TypeError(f"config: expected plain values as in JSON ({error})") from None


def _check_same(folder: Path, what: str, stored: dict[str, Any], given: dict[str, Any]) -> None:
    """Raises ValueError if a run would be resumed with other settings than it began with."""
    names = sorted(set(stored) | set(given))
    other = [n for n in names if stored.get(n) != given.get(n)]
    if other:
        differences = ", ".join(f"{n} was {stored.get(n)!r}, now {given.get(n)!r}" for n in other)
        raise ValueError(
            f"{folder}: holds a run with other {what} ({differences}); resume it with those, or "
            "train in another folder"
        )
