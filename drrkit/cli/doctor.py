"""`drrkit doctor`: does this installation work, and what is missing for what."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch.torch_version import TorchVersion

from drrkit.cli.command import Answer, command
from drrkit.geometry import CArm, view_carm, view_frames
from drrkit.machine import available_cores, versions
from drrkit.projector import backproject, project
from drrkit.volume import Volume

EXTRAS = {
    "matplotlib": "charts of reports and plots of benchmarks: pip install 'drrkit[plots]'",
    "starlette": "drrkit view: pip install 'drrkit[view]'",
    "uvicorn": "drrkit view: pip install 'drrkit[view]'",
    "websockets": "drrkit view: pip install 'drrkit[view]'",
}
"""Packages of optional parts, and what they are for."""


class Finding(NamedTuple):
    """One check: how it went, in words."""

    name: str
    state: str  # "ok", "warning" or "problem"
    text: str


@command("doctor")
def doctor_command() -> Answer:
    """Check the installation: kernels against known answers, devices, packages.

    The exit code is 1 when something is broken; what is only missing is a warning.
    """
    findings = list(examine())
    healthy = all(finding.state != "problem" for finding in findings)
    return Answer(
        {"healthy": healthy, "findings": [finding._asdict() for finding in findings]},
        "\n".join(f"{finding.state:8} {finding.name}: {finding.text}" for finding in findings),
        0 if healthy else 1,
    )


def installation() -> dict[str, Any]:
    """Versions, what drrkit was compiled for, and the devices that are there."""
    from drrkit import _C

    try:
        from drrkit import _build
    except ImportError:
        built: dict[str, Any] = {}
    else:
        names = ("torch", "oldest_torch", "cuda", "nvcc", "architectures", "python")
        built = {name: getattr(_build, name.upper(), None) for name in names}
    devices = [
        {
            "device": "cpu",
            "name": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "instructions": _C.cpu_capability(),
        }
    ]
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "device": f"cuda:{index}",
                "name": card.name,
                "capability": f"{card.major}.{card.minor}",
                "memory_gib": round(card.total_memory / 2**30, 1),
                "usable": bool(_C.has_cuda),
            }
        )
    return {
        "versions": versions(),
        "built_for": built,
        "cuda_kernels": bool(_C.has_cuda),
        "torch_cuda": torch.version.cuda,
        "platform": platform.platform(),
        "devices": devices,
    }


def examine() -> Iterator[Finding]:
    """All findings, one after another; a check that fails is a finding, not an error."""
    about = installation()
    yield _build(about["built_for"])
    for device in _devices():
        yield _checked(f"kernels on {device}", lambda device=device: _known_answers(device))
    if torch.cuda.is_available() and not about["cuda_kernels"]:
        yield Finding(
            "CUDA",
            "warning",
            "there is a GPU, but drrkit was built without CUDA: install its build for CUDA "
            f"{about['torch_cuda'].split('.')[0]}, or build with that nvcc (DRRKIT_CUDA=1 insists)",
        )
    for package, purpose in EXTRAS.items():
        there = find_spec(package) is not None
        text = "installed" if there else f"not installed, needed for {purpose}"
        yield Finding(package, "ok" if there else "warning", text)
    yield _threads()


def _build(record: dict[str, Any]) -> Finding:
    """Whether drrkit's build fits this torch.

    One binary serves every torch from the oldest supported one on that has its CUDA major version.
    """
    here, cuda = torch.__version__, record.get("cuda")
    text = f"built with torch {record.get('torch') or 'unknown'}, running on {here}"
    oldest = record.get("oldest_torch")  # what setup.py read in pyproject.toml
    if oldest and TorchVersion(here) < oldest:
        return Finding("build", "problem", f"{text}; drrkit needs torch {oldest} or newer")
    if cuda and cuda.split(".")[0] != (torch.version.cuda or "").split(".")[0]:
        mix = f"{text}; its kernels are for CUDA {cuda}, torch has {torch.version.cuda}"
        return Finding("build", "problem", f"{mix}: install the build for that, or one for CPU")
    since = f": one build serves every torch from {oldest} on" if oldest else ""
    return Finding("build", "ok", text + since)


def _devices() -> list[torch.device]:
    from drrkit import _C

    cards = range(torch.cuda.device_count() if _C.has_cuda else 0)
    return [torch.device("cpu"), *(torch.device("cuda", index) for index in cards)]


def _checked(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, "ok", check())
    except Exception as error:
        return Finding(name, "problem", f"{type(error).__name__}: {error}")


def _known_answers(device: torch.device) -> str:
    """A slab seen along its axis has its thickness as integral; the adjoint is the adjoint."""
    slab = Volume(torch.full((20, 30, 40), 0.02), (1.0, 2.0, 1.5), (0.0, 0.0, 0.0), unit="mu")
    slab = slab.to(device)
    camera = CArm(1000.0, (24, 24), 1.0)
    pose = view_carm(slab, 500.0, 0.3, 0.2)
    frames = view_frames(slab, camera, pose, extend=True).to(device)
    began = time.perf_counter()
    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    for method in ("joseph", "siddon", "trilinear"):
        along = torch.tensor([[[20.0, -400.0, 10.0], [19.5, 400.0, 9.5], [0, 0, 0], [0, 0, 0]]])
        found = project(slab.values, along.to(device), (1, 1), spacing=slab.spacing, method=method)
        if not abs(float(found) - 0.02 * 60.0) <= 0.02:
            raise RuntimeError(f"{method}: expected an integral of 1.2, got {float(found):.4f}")
        image = torch.rand(1, 1, 24, 24, generator=generator, dtype=torch.float64).to(device)
        values = slab.values.double()
        ahead = project(values, frames, camera.size, spacing=slab.spacing, method=method)
        back = backproject(image, frames, values.shape, spacing=slab.spacing, method=method)
        left, right = float((ahead * image).sum()), float((values * back).sum())
        gap = abs(left - right) / abs(left)
        if not gap <= 1e-10:  # NaN, too, is wrong
            raise RuntimeError(f"{method}: <A x, y> and <x, A* y> differ by {gap:.1e}")
        worst = max(worst, gap)
    return f"right in {1000 * (time.perf_counter() - began):.0f} ms, adjoint to {worst:.0e}"


def _threads() -> Finding:
    threads, cores, load = torch.get_num_threads(), available_cores(), os.getloadavg()[0]
    if threads > cores:
        text = f"torch uses {threads} threads on {cores} cores: torch.set_num_threads({cores})"
    elif load > 1.5 * cores:
        text = (
            f"{threads} threads, but {load:.0f} busy processes on {cores} cores: small problems "
            "slow down most; fewer threads help"
        )
    else:
        return Finding("threads", "ok", f"{threads} on {cores} cores")
    return Finding("threads", "warning", text)
