"""`python training_crashes.py FOLDER HOW`: trains in children that die, until one arrives.

kill: SIGKILL at random moments. calls: at every call to the file system in turn. Prints how often
a child died, as the last line.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
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


def child(work: Callable[[], None], patience: float | None = None) -> bool:
    """Runs in a copy of this process, killed after a while; whether it lived to the end."""
    process = os.fork()
    if process == 0:
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if patience is not None:
        time.sleep(patience)
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 1:
        sys.exit("a run failed")
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0


def killed_at_random(folder: Path, kills: int) -> int:
    began = time.perf_counter()
    child(lambda: run(folder / "timing"))
    whole = time.perf_counter() - began
    draw = random.Random(7)
    died = sum(
        not child(lambda: run(folder / "run"), draw.uniform(0.02, 0.5) * whole)
        for _ in range(kills)
    )
    assert child(lambda: run(folder / "run"))
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

    os.replace, os.link, os.fsync = dies(os.replace), dies(os.link), dies(os.fsync)
    work()


if __name__ == "__main__":
    torch.set_num_threads(1)
    target, how = Path(sys.argv[1]), sys.argv[2]
    run(target / "first", 1)  # what is imported on the way is there for all children
    print(killed_at_random(target, 6) if how == "kill" else killed_at_every_call(target))
