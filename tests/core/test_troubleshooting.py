"""What docs/troubleshooting.md says and no other test shows, in the page's order."""

from __future__ import annotations

import itertools
import math
import re
import runpy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import drrkit
from drrkit import CArm, perturb, project_points, register, simulate_xray, view_pa, volume_center
from drrkit.evaluation import PROTOCOLS, moved_about
from drrkit.geometry import Camera
from drrkit.report import save_image, to_display
from tests.support.registered_torso import AWAY, attenuation, box_mtre, error, phantom, truth

ROOT = Path(__file__).resolve().parents[2]
CAMERA = CArm(1020.0, (64, 64), 4.352)
COARSE = CArm(1020.0, (32, 32), 8.704)
STILL = torch.zeros(6, dtype=torch.float64)


@lru_cache
def xray(camera: Camera = CAMERA) -> Tensor:
    return simulate_xray(phantom(), camera, truth())


def start(motion: Tensor = STILL) -> Tensor:
    """The truth after a motion (rad, mm) about the volume's centre, [4, 4]."""
    return moved_about(truth()[0], motion, volume_center(phantom()))


# ---- the registration fails


def test_the_global_pipeline_tries_the_negative() -> None:
    found = register(attenuation(), COARSE, -xray(COARSE), stages="global")
    assert found.inferred == ("negative",) and found.accepted
    assert float(error(found.world_to_camera)) < 4.0  # pixels of 7 mm


@pytest.mark.io
def test_a_mirrored_picture_is_refused_until_it_is_flipped(tmp_path: Path) -> None:
    save_image(to_display(xray()).flip(-1), tmp_path / "film.png")
    film = drrkit.read_xray(tmp_path / "film.png")
    assert film.camera is None and film.pixel_spacing is None  # a picture has no spacing
    near = start(-0.5 * AWAY)
    assert not register(attenuation(), CAMERA, film.image, near).accepted
    found = register(attenuation(), CAMERA, film.image.flip(-1), near)
    assert found.accepted and float(error(found.world_to_camera)) < 2.0


def test_a_view_from_behind_needs_its_start() -> None:
    center = volume_center(phantom())
    behind = perturb(view_pa(phantom(), 800.0), AWAY, center)
    image = simulate_xray(phantom(), COARSE, behind)
    alone = register(attenuation(), COARSE, image, stages="global")
    assert not alone.accepted and float(box_mtre(alone.world_to_camera, behind, center)) > 100.0
    about = view_pa(phantom(), 900.0)
    found = register(attenuation(), COARSE, image, about, stages="global")
    assert found.accepted and float(box_mtre(found.world_to_camera, behind, center)) < 2.0


def test_auto_reaches_the_corners_of_the_narrow_starts() -> None:
    """Turned by 10 degrees about each axis, 20 mm aside, up or down, 50 mm nearer or farther."""
    limits = torch.tensor([math.radians(10.0)] * 3 + [20.0, 20.0, 50.0], dtype=torch.float64)
    degrees = torch.cat((torch.rad2deg(limits[:3]), limits[3:])).tolist()
    assert degrees == pytest.approx(PROTOCOLS["narrow"].start)
    for signs in itertools.product((-1.0, 1.0), repeat=3):
        far = start(limits * torch.tensor(signs + signs[::-1], dtype=torch.float64))
        found = register(attenuation(), CAMERA, xray(), far)
        assert float(error(far)) > 30.0
        assert found.accepted and float(error(found.world_to_camera)) < 2.0


# ---- it is accepted, and yet wrong


@pytest.mark.parametrize(
    "camera, farther",
    [
        (CArm(1020.0 * 1.05, (64, 64), 4.352), 1.05),
        (CArm(1020.0 * 0.95, (64, 64), 4.352), 0.95),
        (CArm(1020.0, (64, 64), 4.352 * 1.05), 1 / 1.05),
        (CArm(1020.0, (64, 64), 4.352 * 0.95), 1 / 0.95),
    ],
    ids=["sdd longer", "sdd shorter", "pixels larger", "pixels smaller"],
)
def test_a_wrong_distance_or_pixel_size_hides_in_the_depth(camera: Camera, farther: float) -> None:
    right = register(attenuation(), CAMERA, xray(), start())
    wrong = register(attenuation(), camera, xray(), start())
    assert wrong.accepted and wrong.confidence == pytest.approx(right.confidence, abs=1e-3)
    assert wrong.agreement == pytest.approx(right.agreement, abs=3e-3)
    center = torch.cat((volume_center(phantom()), torch.ones(1).double()))
    before, after = (found.world_to_camera @ center for found in (right, wrong))
    assert float(after[2] / before[2]) == pytest.approx(farther, abs=5e-3)
    assert float((after[:2] - before[:2]).norm()) < 2.0
    # Two per cent of a typed distance are in the covariance.
    assert camera.sigma.focal == 0.02
    assert wrong.geometric_covariance is not None
    assert float(wrong.geometric_covariance[5, 5].sqrt()) == pytest.approx(
        0.02 * float(after[2]), rel=0.01
    )


def test_a_depth_that_is_hardly_known_is_no_reason_to_refuse() -> None:
    camera = replace(CAMERA, origin="assumed", sigma=None)
    found = register(attenuation(), camera, xray(), start())
    assert found.covariance is not None and float(found.covariance[5, 5].sqrt()) > 35.0
    assert found.accepted and found.reasons == ("depth_assumed",)


# ---- the image is wrong


@pytest.mark.parametrize("shift", [(0, 0, -1600.0), (900.0, 0, 0), (0, -900.0, 0)], ids=str)
def test_a_volume_behind_the_source_or_beside_the_cone_is_all_zeros(shift: tuple) -> None:
    pose = drrkit.view_ap(phantom(), 800.0)
    middle = volume_center(phantom())[None]
    assert project_points(CAMERA, pose, middle)[0, 0].tolist() == pytest.approx([31.5, 31.5])
    assert float(drrkit.render(attenuation(), CAMERA, pose).max()) > 1.0
    pose[:, :3, 3] += torch.tensor(shift, dtype=torch.float64)
    place = project_points(CAMERA, pose, middle)[0, 0]
    assert not bool(drrkit.render(attenuation(), CAMERA, pose).any())
    assert bool(place.isnan().all()) if shift[2] else bool(((place < 0) | (place > 63)).any())


# ---- it does not build


def test_a_build_with_isolation_would_fetch_a_torch_of_its_own() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    needed = re.search(r"\[build-system\]\nrequires = \[(.*?)\]", text, flags=re.DOTALL)
    assert needed and '"torch>=' in needed.group(1)


@pytest.mark.parametrize(
    "nvcc, missing",
    [("12.8", "has CUDA 13.0 but nvcc is 12.8"), (None, "nvcc was not found")],
)
def test_insisting_on_cuda_names_what_is_missing(
    nvcc: str | None, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pybind11")
    from torch.utils import cpp_extension

    program = tmp_path / "bin" / "nvcc"
    program.parent.mkdir()
    if nvcc is not None:
        program.write_text(f"#!/bin/sh\necho release {nvcc}, V{nvcc}.1\n")
        program.chmod(0o755)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DRRKIT_CUDA", "1")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(SystemExit, match=f"DRRKIT_CUDA=1, but .*{missing}"):
        runpy.run_path("setup.py")


# ---- memory


def bytes_of(run: Any, op: str) -> int:
    """What an op allocated and did not free again, on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        run()
    (event,) = [event for event in watched.events() if event.name == f"drrkit::{op}"]
    return event.cpu_memory_usage


@pytest.mark.parametrize("method", ["joseph", "siddon", "trilinear"])
def test_an_image_its_pose_gradient_and_a_volume_gradient_take_what_is_said(method: str) -> None:
    values = torch.rand(2, 20, 30, 40)
    volume = drrkit.Volume(values, (4.0, 4.0, 4.0), unit="mu")
    camera, pose = CArm(1020.0, (24, 32), 6.0), drrkit.view_ap(volume, 800.0)
    numbers = 2 * 24 * 32  # rays times channels
    kept: list[Tensor] = []

    def image(values: Tensor, pose: Tensor) -> None:
        kept[:] = [drrkit.render(replace(volume, values=values), camera, pose, method=method)]

    assert bytes_of(lambda: image(values, pose), "project") == 4 * numbers
    assert bytes_of(lambda: image(values, pose.requires_grad_()), "project") == (4 + 24) * numbers
    image(values.requires_grad_(), pose.detach())
    spent = bytes_of(lambda: kept[0].sum().backward(), "backproject")
    assert spent == 4 * values.numel() and values.grad is not None
