"""`python training_crashes.py FOLDER HOW`: trains in children that die, until one arrives.

kill: SIGKILL at random places of the program. calls: at every call to the file system in turn.
Prints how often a child died, as the last line. No clock is involved: a child counts its own
function calls and kills itself at one of them.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from drrkit.training import train
from tests.support.training_tasks import GradientMatching

STEPS, FEW_STEPS = 40, 6
DIED = 9


def run(folder: Path, steps: int = STEPS) -> None:
    train(
        GradientMatching(),
        folder,
        steps=steps,
        validate_every=4,
        save_every=2,
        clip_norm=1.0,
        progress=False,
    )


def child(work: Callable[[], None]) -> bool:
    """Runs in a copy of this process; whether it lived to the end."""
    process = os.fork()
    if process == 0:
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 1:
        sys.exit("a run failed")
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0


def calls_of(work: Callable[[], None], last: int | None = None) -> int:
    """How many functions, of Python or C, work calls; SIGKILL at the `last` of them."""
    count = 0

    def note(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def killed_at_random(folder: Path, kills: int) -> int:
    whole = calls_of(lambda: run(folder / "counting"))
    draw = random.Random(7)
    moments = [int(draw.uniform(0.02, 0.5) * whole) for _ in range(kills)]
    work = functools.partial(run, folder / "run")
    died = sum(not child(functools.partial(calls_of, work, moment)) for moment in moments)
    assert child(work)
    return died


def killed_at_every_call(folder: Path) -> int:
    """The n-th run dies at its n-th call that writes, and is resumed; the last one does not die."""
    for number in itertools.count(1):
        work = functools.partial(run, folder / f"run-{number}", FEW_STEPS)
        if child(functools.partial(_dying, number, work)):
            return number - 1
        assert child(work)
    raise AssertionError


def _dying(number: int, work: Callable[[], None]) -> None:
    """Calls work and ends the process, without any tidying, at the n-th call that writes."""
    count = 0

    def dies(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                os._exit(DIED)
            return call(*arguments, **options)

        return counted

    os.replace, os.fsync = dies(os.replace), dies(os.fsync)
    work()


if __name__ == "__main__":
    torch.set_num_threads(1)
    target, how = Path(sys.argv[1]), sys.argv[2]
    run(target / "first", 1)  # what is imported on the way is there for all children
    print(killed_at_random(target, 6) if how == "kill" else killed_at_every_call(target))
