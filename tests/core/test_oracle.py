"""The oracle itself: hand cases, plain loops written a second time, identities, derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.support import oracle
from tests.support.scenes import SPACING, every_beam, every_method, options_of, rand

METHODS = oracle.METHODS


def oblique_frames(views: int = 1) -> Tensor:
    """Frames about a 7 x 6 x 5 (x, y, z) grid, both ends of every ray outside."""
    base = torch.tensor(
        [[-9.3, 1.7, -2.1], [14.2, 0.4, 3.3], [0.31, 1.13, -0.07], [-0.17, 0.11, 0.93]],
        dtype=torch.float64,
    )
    noise = rand(views, 4, 3, seed=5) - 0.5
    return base + noise * torch.tensor([1.0, 1.0, 0.2, 0.2], dtype=torch.float64)[:, None]


def ray(source: tuple[float, ...], target: tuple[float, ...]) -> Tensor:
    return torch.tensor([[[source, target]]], dtype=torch.float64)


def test_siddon_gives_the_exact_chord_of_a_cube_of_ones() -> None:
    cube = torch.ones(5, 5, 5, dtype=torch.float64)
    spacing = torch.tensor(SPACING, dtype=torch.float64)
    ends = rand(1, 40, 2, 3, seed=1) * 6 - 1
    ends[..., 0, 0], ends[..., 1, 0] = -4.0, 9.0  # enter and leave through any face, x leading
    image = oracle.project(cube, ends, spacing=SPACING, method="siddon")[0, 0]

    source, direction = ends[0, :, 0], ends[0, :, 1] - ends[0, :, 0]
    low, high = (-0.5 - source) / direction, (4.5 - source) / direction
    enter = torch.minimum(low, high).amax(-1).clamp(min=0)
    leave = torch.maximum(low, high).amin(-1).clamp(max=1)
    chord = (leave - enter).clamp(min=0) * (direction * spacing).norm(dim=-1)
    assert (chord > 0).sum() > 20
    torch.testing.assert_close(image, chord, rtol=1e-12, atol=1e-12)


def test_siddon_of_two_voxels_along_an_axis() -> None:
    values = torch.tensor([[[2.0, 5.0]]], dtype=torch.float64)
    inside = oracle.project(values, ray((-3, 0, 0), (1, 0, 0)), spacing=SPACING, method="siddon")
    assert inside.item() == pytest.approx(0.8 * (2.0 + 0.5 * 5.0))  # the ray ends within voxel 1
    beside = oracle.project(values, ray((-3, 0.6, 0), (4, 0.6, 0)), method="siddon")
    assert beside.item() == 0.0


def test_joseph_along_an_axis_counts_the_planes_between_the_ends() -> None:
    values = torch.tensor([[[2.0, 5.0, 11.0]]], dtype=torch.float64)
    full = oracle.project(values, ray((-3, 0, 0), (6, 0, 0)), spacing=SPACING)
    assert full.item() == pytest.approx(0.8 * 18.0)
    to_plane_one = oracle.project(values, ray((-3, 0, 0), (1, 0, 0)), spacing=SPACING)
    assert to_plane_one.item() == pytest.approx(0.8 * 7.0)
    sideways = oracle.project(values, ray((-3, 0.75, 0), (6, 0.75, 0)), spacing=SPACING)
    assert sideways.item() == pytest.approx(0.8 * 18.0 * 0.25)


def test_joseph_takes_the_lowest_axis_of_a_tie() -> None:
    values = rand(1, 4, 4)
    image = oracle.project(values, ray((-2, -2.3, 0), (6, 5.7, 0)), spacing=(1, 1, 1))
    rows = [(x, x - 0.3) for x in range(4)]
    expected = sum(
        (1 - (y - math.floor(y))) * (values[0, math.floor(y), x].item() if y >= 0 else 0.0)
        + (y - math.floor(y)) * values[0, math.floor(y) + 1, x].item()
        for x, y in rows
    )
    assert image.item() == pytest.approx(math.sqrt(2) * expected)


@pytest.mark.parametrize("anchor", ["source", "foot"])
def test_trilinear_equals_a_plain_loop(anchor: str) -> None:
    values, h = rand(5, 6, 7), 0.37
    ends = ray((-3.1, 0.3, 0.9), (9.4, 4.2, 3.7))
    image = oracle.project(values, ends, spacing=SPACING, method="trilinear", step=h, anchor=anchor)

    def voxel(x: int, y: int, z: int) -> float:
        inside = 0 <= x < 7 and 0 <= y < 6 and 0 <= z < 5
        return values[z, y, x].item() if inside else 0.0

    source, target = ends[0, 0].tolist()
    length = math.sqrt(
        sum((g * (b - a)) ** 2 for a, b, g in zip(source, target, SPACING, strict=True))
    )
    unit = [(b - a) / length for a, b in zip(source, target, strict=True)]
    middle = (3.0, 2.5, 2.0)
    foot = sum(
        e * g * g * (c - a) for e, g, c, a in zip(unit, SPACING, middle, source, strict=True)
    )
    first = 0.5 * h if anchor == "source" else foot - math.floor(foot / h) * h
    total, k = 0.0, 0
    while first + k * h < length:
        x, y, z = (a + (first + k * h) * e for a, e in zip(source, unit, strict=True))
        for dx in (0, 1):
            for dy in (0, 1):
                for dz in (0, 1):
                    cx, cy, cz = math.floor(x) + dx, math.floor(y) + dy, math.floor(z) + dz
                    weight = (1 - abs(x - cx)) * (1 - abs(y - cy)) * (1 - abs(z - cz))
                    total += weight * voxel(cx, cy, cz)
        k += 1
    assert image.item() == pytest.approx(h * total, rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
@every_beam
def test_pixels_and_endpoints_give_the_rays_of_the_full_image(method: str, beam: str) -> None:
    frames, values = oblique_frames(2), rand(5, 6, 7)
    options = {"spacing": SPACING, "method": method}
    image = oracle.project(values, frames, (4, 5), beam=beam, **options)
    pixels = torch.tensor([[3, 1], [0, 4], [2, 2]])
    picked = oracle.project(values, frames, pixels=pixels, beam=beam, **options)
    torch.testing.assert_close(picked, image[:, :, pixels[:, 0], pixels[:, 1]])
    per_view = torch.stack([pixels, pixels.flip(0)])
    picked = oracle.project(values, frames, pixels=per_view, beam=beam, **options)
    torch.testing.assert_close(picked[1, 0], image[1, 0, pixels[:, 0], pixels[:, 1]].flip(0))

    s, o, u, v = frames[:, None].unbind(-2)
    offset = pixels[:, 1:] * u + pixels[:, :1] * v
    sources = (s + offset) if beam == "parallel" else s.expand_as(offset)
    ends = torch.stack([sources, o + offset], dim=-2)
    by_ends = oracle.project(values, ends, **options)
    torch.testing.assert_close(by_ends, image[:, :, pixels[:, 0], pixels[:, 1]])


@pytest.mark.parametrize("method", METHODS)
def test_a_ray_of_no_length_is_zero_with_finite_derivatives(method: str) -> None:
    ends = ray((2.2, 2.1, 2.3), (2.2, 2.1, 2.3)).requires_grad_()
    image = oracle.project(rand(5, 6, 7), ends, method=method)
    (gradient,) = torch.autograd.grad(image.sum(), ends)
    assert image.item() == 0.0 and gradient.abs().max() == 0.0


@every_beam
@every_method
def test_first_and_second_derivatives_pass_gradcheck(method: str, beam: str) -> None:
    values = rand(1, 1, 5, 6, 7).requires_grad_()
    frames = oblique_frames().requires_grad_()
    pixels = torch.tensor([[1.31, 1.77], [2.1, 0.6], [9.0, 9.0]], dtype=torch.float64)
    pixels.requires_grad_()
    spacing = torch.tensor(SPACING, dtype=torch.float64, requires_grad=True)

    def function(values: Tensor, frames: Tensor, pixels: Tensor, spacing: Tensor) -> Tensor:
        options = options_of(method, beam, spacing=spacing)
        return oracle.project(values, frames, pixels=pixels, **options)

    inputs = (values, frames, pixels, spacing)
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_line_derivative_drops_exactly_the_sliding_of_the_samples() -> None:
    values, pixels = rand(5, 6, 7), torch.tensor([[1.31, 1.77]], dtype=torch.float64)
    s, o, u, v = oblique_frames()[0].unbind(0)
    target = o + pixels[0, 1] * u + pixels[0, 0] * v
    ends = torch.stack([s, target])[None, None].requires_grad_()
    results = {}
    for kind in ("exact", "line"):
        image = oracle.project(
            values, ends, spacing=SPACING, method="trilinear", step=0.7, derivative=kind
        )
        results[kind] = image.item(), torch.autograd.grad(image.sum(), ends)[0][0, 0]
    assert results["exact"][0] == results["line"][0]
    exact, line = results["exact"][1], results["line"][1]
    metric = torch.tensor(SPACING, dtype=torch.float64).square()
    direction = target - s
    e = direction / (metric * direction * direction).sum().sqrt()
    total = exact.sum(0)  # dI/ds at fixed d: F
    torch.testing.assert_close(line[1], exact[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        line.sum(0), total - metric * e * (e @ total), rtol=1e-12, atol=1e-12
    )


def test_all_methods_agree_on_a_smooth_volume_and_converge() -> None:
    def blob(count: int) -> tuple[Tensor, Tensor]:
        """A Gaussian of 6 mm on a 48 mm field, and the frames of a fixed physical view."""
        pitch = 48.0 / count
        axis = (torch.arange(count, dtype=torch.float64) + 0.5) * pitch - 24.0
        values = torch.exp(-((axis - 1.3) ** 2) / 72.0)
        values = values[:, None, None] * values[:, None] * values
        s, o = torch.tensor([[-80.0, 7.0, 3.0], [90.0, -12.0, -9.0]], dtype=torch.float64)
        u, v = torch.tensor([[0.3, 2.9, 0.2], [-0.1, 0.4, 2.8]], dtype=torch.float64)
        points = (torch.stack([s, o]) + 24.0) / pitch - 0.5
        return values, torch.cat([points, torch.stack([u, v]) / pitch])[None]

    errors: dict[str, list[float]] = {method: [] for method in METHODS}
    for count in (16, 32):
        values, frames = blob(count)
        pitch = 48.0 / count
        images = {
            method: oracle.project(values, frames, (8, 8), spacing=(pitch,) * 3, method=method)
            for method in METHODS
        }
        s, o = ((frames[0, :2] + 0.5) * pitch - 24.0).unbind(0)
        u, v = frames[0, 2] * pitch, frames[0, 3] * pitch
        index = torch.arange(8, dtype=torch.float64)
        d = o + index[:, None] * u + index[:, None, None] * v - s
        d = d / d.norm(dim=-1, keepdim=True)
        across = 1.3 - s - d * ((1.3 - s) * d).sum(-1, keepdim=True)
        exact = math.sqrt(72.0 * math.pi) * torch.exp(-across.square().sum(-1) / 72.0)
        for method in METHODS:
            errors[method].append(((images[method][0, 0] - exact).norm() / exact.norm()).item())
    for method in METHODS:
        assert errors[method][1] < (0.03 if method == "siddon" else 0.01), errors
        assert errors[method][1] < 0.5 * errors[method][0], errors
