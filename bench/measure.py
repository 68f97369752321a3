"""Wall time and peak memory of a call, and what machine it was."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

QUICK = 0.3  # s: calls below this are repeated within a round
QUICK_RUNS = 3


def timed_in_rounds(
    calls: Mapping[str, Callable[[], Any]], rounds: int, report: Callable[[str], None]
) -> dict[str, list[float]]:
    """Seconds of every call, `rounds` times or more, warm.

    The calls take turns, so that a change of the machine's pace meets all of them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    pace = {}
    for name, call in calls.items():  # the first call warms caches and thread pools, uncounted
        call()
        pace[name] = _seconds(call)
    for index in range(rounds):
        report(f"round {index + 1} of {rounds}")
        for name, call in calls.items():
            for _ in range(QUICK_RUNS if pace[name] < QUICK else 1):
                seconds[name].append(_seconds(call))
    return seconds


def summary(seconds: list[float]) -> dict[str, Any]:
    return {
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "runs": len(seconds),
    }


def peak_bytes(call: Callable[[], Any]) -> int | None:
    """Resident memory at the call's peak above what was resident before it (Linux, else None).

    Counts every page touched, whoever allocates it: torch, drrkit's kernels, thread stacks. Memory
    that was freed but not returned is given back first, or it would be used again unseen.
    """
    call()
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to VmRSS
        before = _status_bytes("VmRSS")
        result = call()
        peak = _status_bytes("VmHWM")
    except OSError:
        return None
    del result
    return max(0, peak - before)


def machine() -> dict[str, Any]:
    """CPU, memory and load of this machine."""
    return {
        "cpu": _first_value("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "torch_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
    }


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _status_bytes(field: str) -> int:
    found = _first_value("/proc/self/status", field)
    if found is None:
        raise OSError(f"/proc/self/status has no {field}")
    return 1024 * int(found.split()[0])


def _first_value(path: str, key: str) -> str | None:
    """The value of the first line "key : value" of a file of /proc."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), None)
