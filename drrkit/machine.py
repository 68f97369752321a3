"""The machine and the versions that a measurement or a result was made with."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "numpy", "SimpleITK", "cma", "click", "tqdm")
"""What drrkit uses."""


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """CPU, cores, memory, vector instructions; for a CUDA device also the card and its driver."""
    lines = (
        Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    )
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    found: dict[str, Any] = {
        "cpu": next(names, platform.processor() or platform.machine()),
        "cores": available_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "torch_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
    }
    if torch.device(device).type == "cuda":
        card = torch.cuda.get_device_properties(torch.device(device))
        clock = _nvidia_smi("clocks.max.sm")
        found["gpu"] = {
            "name": card.name,
            "capability": f"{card.major}.{card.minor}",
            "multiprocessors": card.multi_processor_count,
            "memory_bytes": card.total_memory,
            "driver": _nvidia_smi("driver_version"),
            "clock_mhz": float(clock) if clock and clock.isdigit() else None,
            "cuda": torch.version.cuda,
        }
    return found


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str | None]:
    """Versions of drrkit, Python and packages; None for what is not installed."""
    from drrkit import __version__

    found: dict[str, str | None] = {"drrkit": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    found["torch"] = torch.__version__  # with its build, e.g. +cpu
    return found


def revision(root: Path | None = None) -> str | None:
    """The commit of a checkout, by default this drrkit's own; None where there is no checkout."""
    root = root or Path(__file__).resolve().parents[1]
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    command = [git, "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _nvidia_smi(field: str) -> str | None:
    """What nvidia-smi reports for the first card; None without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else None
