"""Against the truth of phantoms: images and derivatives converge at their orders, methods agree."""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import drrkit
from drrkit.phantoms import Ellipsoids
from tests.support.scenes import rand, randn, relative, rms, rotation

FIELD = 124.0  # mm, the side of the voxelised cube about the world's origin
SOFT = {
    "joseph": {"method": "joseph"},
    "trilinear": {"method": "trilinear"},
    "foot": {"method": "trilinear", "anchor": "foot"},
    "line": {"method": "trilinear", "derivative": "line"},
}
EVERY = {**SOFT, "siddon": {"method": "siddon"}}


def phantom(seed: int, exponent: int) -> Ellipsoids:
    """Three overlapping ellipsoids of 25 to 45 mm, one of them a hole."""
    return Ellipsoids(
        centers=(rand(3, 3, seed=seed) - 0.5) * 30,
        semi_axes=25 + 20 * rand(3, 3, seed=seed + 50),
        rotations=torch.stack([rotation(seed + i) for i in range(3)]),
        values=torch.tensor([0.02, 0.03, -0.01]),
        exponent=exponent,
    )


@functools.cache
def voxels(seed: int, exponent: int, pitch: float) -> Tensor:
    """The phantom on the field's grid, made once for all methods."""
    return phantom(seed, exponent).voxelize((round(FIELD / pitch),) * 3, pitch).values


def rays_through_the_middle(count: int, seed: int) -> Tensor:
    """End points [P, 2, 3] in world mm, directions without preference, ends outside the field."""
    point = (rand(count, 3, seed=seed) - 0.5) * 60
    direction = torch.nn.functional.normalize(randn(count, 3, seed=seed + 1), dim=-1)
    return torch.stack([point - 150 * direction, point + 150 * direction], 1)


def image_and_derivative(
    integrals: Callable[[Tensor], Tensor], ends: Tensor
) -> tuple[Tensor, Tensor]:
    ends = ends.detach().requires_grad_()
    image = integrals(ends)
    (derivative,) = torch.autograd.grad(image.sum(), ends)
    return image.detach(), derivative


def errors(
    seed: int, exponent: int, options: dict[str, Any], pitch: float, device: torch.device
) -> tuple[float, float]:
    """Relative error of the image (rms) and of the rays' derivatives (median)."""
    truth, ends = phantom(seed, exponent), rays_through_the_middle(2000, seed)
    count = round(FIELD / pitch)
    values = voxels(seed, exponent, pitch).to(device)

    def projected(ends: Tensor) -> Tensor:
        index = (ends / pitch + (count - 1) / 2).to(device)
        frames = torch.cat([index, torch.zeros_like(index)], 1)
        image = drrkit.project(values, frames, (1, 1), spacing=(pitch,) * 3, **options)
        return image.flatten().cpu()

    found, slope = image_and_derivative(projected, ends)
    exact, right = image_and_derivative(lambda e: truth.line_integrals(e[:, 0], e[:, 1]), ends)
    off = (slope - right).flatten(1).norm(dim=-1).median() / right.flatten(1).norm(dim=-1).median()
    return rms(found - exact) / rms(exact), float(off)


@pytest.mark.parametrize("method", SOFT)
def test_images_and_derivatives_of_soft_phantoms_converge_to_second_order(method, device) -> None:
    orders = []
    for seed in range(4):
        coarse = errors(seed, 2, SOFT[method], 2.0, device)
        fine = errors(seed, 2, SOFT[method], 1.0, device)
        assert fine[0] < 1.5e-3 and fine[1] < 5e-3
        orders.append([math.log2(a / b) for a, b in zip(coarse, fine, strict=True)])
    of_image, of_derivative = (statistics.median(order) for order in zip(*orders, strict=True))
    assert of_image >= 1.9
    assert of_derivative >= 1.8


def test_siddons_images_of_soft_phantoms_converge(device) -> None:
    coarse, fine = (errors(0, 2, EVERY["siddon"], pitch, device)[0] for pitch in (2.0, 1.0))
    assert fine < 4e-3 and math.log2(coarse / fine) > 1.4


@pytest.mark.parametrize("method", EVERY)
def test_images_of_hard_phantoms_converge_to_first_order(method, device) -> None:
    truth, camera = phantom(1, 0), drrkit.CArm(600.0, (40, 40), 4.0)
    found = []
    for pitch in (4.0, 2.0, 1.0):
        volume = truth.voxelize((round(FIELD / pitch),) * 3, pitch).to(device)
        pose = drrkit.view_carm(volume, 400.0, 0.4, 0.3)
        image = drrkit.render(volume, camera, pose, **EVERY[method]).cpu()
        exact = truth.render(camera, pose.cpu())
        found.append(float((image - exact).norm() / exact.norm()))
    assert found[2] < 0.02
    assert math.log2(found[0] / found[2]) / 2 > 0.8  # over two halvings


def test_siddon_gives_the_chords_of_boxes_of_voxels(device) -> None:
    # A volume of overlapping boxes: its image is the sum of their chords, whatever the ray.
    shape, spacing = (21, 24, 27), (0.7, 1.3, 1.0)
    extent = torch.tensor(shape[::-1], dtype=torch.float64)
    ends = (rand(1000, 2, 3, seed=1) * 2 - 0.5) * extent
    values, expected = torch.zeros(shape, dtype=torch.float64), torch.zeros(1000).double()
    source, direction = ends[:, 0], ends[:, 1] - ends[:, 0]
    length = (direction * torch.tensor(spacing, dtype=torch.float64)).norm(dim=-1)
    for seed in range(6):
        corners = (rand(2, 3, seed=seed) * extent).long().sort(0).values
        density = float(randn(1, seed=seed))
        (x0, y0, z0), (x1, y1, z1) = corners.tolist()
        values[z0 : z1 + 1, y0 : y1 + 1, x0 : x1 + 1] += density
        low, high = corners[0] - 0.5, corners[1] + 0.5
        bounds = torch.stack([(low - source) / direction, (high - source) / direction])
        enter, leave = bounds.amin(0).amax(-1).clamp(min=0), bounds.amax(0).amin(-1).clamp(max=1)
        expected += density * (leave - enter).clamp(min=0) * length
    frames = torch.cat([ends, torch.zeros_like(ends)], 1).to(device)
    options = {"spacing": spacing, "method": "siddon"}
    found = drrkit.project(values.to(device), frames, (1, 1), **options).flatten().cpu()
    assert int((expected != 0).sum()) > 200
    assert relative(found, expected) <= 1e-12


@pytest.mark.io
@pytest.mark.data
@pytest.mark.parametrize("view", ["AP", "lateral", "oblique"])
def test_the_methods_agree_on_the_pelvis_ct(view, device, data_folder: Path) -> None:
    volume = drrkit.read_volume(data_folder / "pelvis_2mm.nii.gz").to_mu().to(device)
    camera = drrkit.CArm(1020.0, (128, 128), 2.176)
    pose = {
        "AP": lambda: drrkit.view_ap(volume, 800.0),
        "lateral": lambda: drrkit.view_left_lateral(volume, 800.0),
        "oblique": lambda: drrkit.view_carm(volume, 800.0, 0.5, 0.3),
    }[view]()
    images = [
        drrkit.render(volume, camera, pose, method=m) for m in ("joseph", "siddon", "trilinear")
    ]
    assert float(images[0].max()) > 5
    for a, b in itertools.combinations(images, 2):
        assert float((a - b).norm() / a.norm()) <= 5e-3
