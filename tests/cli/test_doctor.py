"""drrkit doctor: what it makes of builds that do not fit, and of wrong kernels."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

import drrkit
from drrkit.cli import doctor
from tests.support.commands import run, succeed

CPU = {"torch": "2.13.0+cpu", "oldest_torch": "2.10", "cuda": None}
CUDA13 = {**CPU, "torch": "2.15.0+cu132", "cuda": "13.2"}


@pytest.mark.parametrize(
    "built, version, cuda, state, words",
    [
        (CPU, "2.10.0+cu128", "12.8", "ok", "every torch from 2.10 on"),
        (CPU, "3.0.0", None, "ok", "every torch from 2.10 on"),
        (CPU, "2.9.1", None, "problem", "needs torch 2.10 or newer"),
        (CUDA13, "2.11.0+cu130", "13.0", "ok", "every torch from 2.10 on"),
        (CUDA13, "2.10.0+cu128", "12.8", "problem", "kernels are for CUDA 13.2, torch has 12.8"),
        (CUDA13, "2.13.0+cpu", None, "problem", "kernels are for CUDA 13.2, torch has None"),
    ],
)
def test_a_build_is_judged_by_torch_and_by_cudas_major_version(
    built: dict[str, Any],
    version: str,
    cuda: str | None,
    state: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    finding = doctor._build(built)
    assert finding.state == state and words in finding.text


def test_this_installation_is_healthy() -> None:
    told = json.loads(succeed("doctor", "--json").output)
    assert told["healthy"] is True
    states = {finding["name"]: finding["state"] for finding in told["findings"]}
    assert states["kernels on cpu"] == "ok" and "problem" not in states.values()
    assert {"build", "matplotlib", "threads"} <= set(states)
    assert "kernels on cpu" in succeed("doctor").output


@pytest.mark.parametrize("name, factor", [("project", 1.1), ("backproject", math.nan)])
def test_a_kernel_that_is_wrong_is_a_problem(
    name: str, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No comparison with NaN is true: a check must not be passed by that."""
    right = getattr(drrkit, name)
    monkeypatch.setattr(f"drrkit.cli.doctor.{name}", lambda *a, **k: right(*a, **k) * factor)
    result = run("doctor")
    assert result.exit_code == 1 and "problem  kernels on cpu" in result.output


@pytest.mark.parametrize("gpu, state", [(True, "warning"), (False, None)])
def test_a_cpu_build_is_a_matter_only_where_there_is_a_gpu(
    gpu: bool, state: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = doctor.installation() | {"cuda_kernels": False, "torch_cuda": "13.2"}
    monkeypatch.setattr(doctor, "installation", lambda: about)
    monkeypatch.setattr(doctor, "_devices", lambda: [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    found = {finding.name: finding for finding in doctor.examine()}
    assert (found["CUDA"].state if "CUDA" in found else None) == state
    assert not gpu or "build for CUDA 13" in found["CUDA"].text


def test_packages_that_are_missing_are_named_with_what_brings_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "_devices", lambda: [])
    found = {finding.name: finding.text for finding in doctor.examine()}
    assert "drrkit[view]" in found["uvicorn"] and "drrkit[plots]" in found["matplotlib"]
