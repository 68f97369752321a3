"""Every loss against plain loops over pixels in float64, written from its definition."""

from __future__ import annotations

import math

import pytest
import torch

from drrkit import losses
from tests.support.smooth_images import images

Rows = list[list[float]]


def pearson(a: list[float], b: list[float], w: list[float]) -> float:
    total = math.fsum(w)
    mean_a = math.fsum(x * k for x, k in zip(a, w, strict=True)) / total
    mean_b = math.fsum(x * k for x, k in zip(b, w, strict=True)) / total
    cov = math.fsum((x - mean_a) * (y - mean_b) * k for x, y, k in zip(a, b, w, strict=True))
    var_a = math.fsum((x - mean_a) ** 2 * k for x, k in zip(a, w, strict=True))
    var_b = math.fsum((y - mean_b) ** 2 * k for y, k in zip(b, w, strict=True))
    return cov / math.sqrt(var_a * var_b)


def sobel(image: list[list[float]], row: int, col: int) -> tuple[float, float]:
    kernel = ((1, 0, -1), (2, 0, -2), (1, 0, -1))
    x = y = 0.0
    for i in range(3):
        for j in range(3):
            x += kernel[i][j] * image[row + i - 1][col + j - 1]
            y += kernel[j][i] * image[row + i - 1][col + j - 1]
    return x, y


def test_mse_and_ncc_agree_with_loops_over_pixels_with_and_without_weights():
    moving, fixed = images(2, 1, 5, 6), images(1, 1, 5, 6, seed=1)
    weights = images(1, 1, 5, 6, seed=2)
    for mask in (None, weights):
        w = [1.0] * 30 if mask is None else mask.flatten().tolist()
        for b in range(2):
            a, f = moving[b].flatten().tolist(), fixed.flatten().tolist()
            square = math.fsum(
                k * (x - y) ** 2 for x, y, k in zip(a, f, w, strict=True)
            ) / math.fsum(w)
            assert losses.mse(moving, fixed, mask)[b].item() == pytest.approx(square, rel=1e-12)
            expected = 1 - pearson(a, f, w)
            assert losses.ncc(moving, fixed, mask)[b].item() == pytest.approx(expected, rel=1e-10)


def test_gradient_ncc_agrees_with_a_loop_over_sobel_kernels():
    moving, fixed = images(1, 1, 6, 7), images(1, 1, 6, 7, seed=1)
    xs, ys, us, vs = [], [], [], []
    for row in range(1, 5):
        for col in range(1, 6):
            x, y = sobel(moving[0, 0].tolist(), row, col)
            u, v = sobel(fixed[0, 0].tolist(), row, col)
            xs.append(x), ys.append(y), us.append(u), vs.append(v)
    ones = [1.0] * len(xs)
    expected = 1 - 0.5 * pearson(xs, us, ones) - 0.5 * pearson(ys, vs, ones)
    assert losses.gradient_ncc(moving, fixed).item() == pytest.approx(expected, rel=1e-10)


def spread(values: list[float], w: list[float]) -> float:
    mean = math.fsum(x * k for x, k in zip(values, w, strict=True)) / math.fsum(w)
    return math.fsum(k * (x - mean) ** 2 for x, k in zip(values, w, strict=True)) / math.fsum(w)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("patch", [2, 3, 5])
def test_local_ncc_agrees_with_a_loop_over_patches(patch, masked):
    moving, fixed = images(1, 1, 6, 7), images(1, 1, 6, 7, seed=1)
    mask = images(1, 1, 6, 7, seed=2) if masked else torch.ones(1, 1, 6, 7, dtype=torch.float64)
    flat = mask.flatten().tolist()
    damping = [1e-6 * spread(i.flatten().tolist(), flat) + 1e-16 for i in (moving, fixed)]
    values, totals = [], []
    for row in range(7 - patch):
        for col in range(8 - patch):
            cut = (0, 0, slice(row, row + patch), slice(col, col + patch))
            a, b, w = (image[cut].flatten().tolist() for image in (moving, fixed, mask))
            exact = [spread(a, w), spread(b, w)]
            damped = [v + d for v, d in zip(exact, damping, strict=True)]
            r = pearson(a, b, w) * math.sqrt(math.prod(exact) / math.prod(damped))
            values.append(r)
            totals.append(math.fsum(w))
    products = math.fsum(v * t for v, t in zip(values, totals, strict=True))
    expected = 1 - products / math.fsum(totals)
    found = losses.local_ncc(moving, fixed, mask if masked else None, patch=patch).item()
    assert found == pytest.approx(expected, rel=1e-9)


def rows_of(image: torch.Tensor) -> Rows:
    return image.tolist()


def test_l1_and_soft_dice_agree_with_loops_over_pixels_with_and_without_weights():
    moving, fixed = images(2, 1, 5, 6), images(1, 1, 5, 6, seed=1)
    weights = images(1, 1, 5, 6, seed=2)
    for mask in (None, weights):
        w = [1.0] * 30 if mask is None else mask.flatten().tolist()
        for b in range(2):
            triples = list(
                zip(moving[b].flatten().tolist(), fixed.flatten().tolist(), w, strict=True)
            )
            magnitude = math.fsum(k * abs(x - y) for x, y, k in triples) / math.fsum(w)
            assert losses.l1(moving, fixed, mask)[b].item() == pytest.approx(magnitude, rel=1e-12)
            both = math.fsum(k / max(w) * x * y for x, y, k in triples)
            squares = math.fsum(k / max(w) * (x * x + y * y) for x, y, k in triples)
            expected = 1 - (2 * both + 1e-5) / (squares + 1e-5)
            found = losses.soft_dice(moving, fixed, mask)[b].item()
            assert found == pytest.approx(expected, rel=1e-10)


def gaussian_weights(side: int, sigma: float) -> Rows:
    middle = (side - 1) / 2
    g = [
        [math.exp(-((i - middle) ** 2 + (j - middle) ** 2) / (2 * sigma**2)) for j in range(side)]
        for i in range(side)
    ]
    total = math.fsum(map(math.fsum, g))
    return [[value / total for value in row] for row in g]


def window_similarity(a: list[float], b: list[float], w: list[float], reach: float) -> float:
    """SSIM of one window whose weights sum to one, with data range `reach`."""
    c1, c2 = (0.01 * reach) ** 2, (0.03 * reach) ** 2
    mean_a = math.fsum(k * x for k, x in zip(w, a, strict=True))
    mean_b = math.fsum(k * y for k, y in zip(w, b, strict=True))
    var_a = math.fsum(k * (x - mean_a) ** 2 for k, x in zip(w, a, strict=True))
    var_b = math.fsum(k * (y - mean_b) ** 2 for k, y in zip(w, b, strict=True))
    cov = math.fsum(k * (x - mean_a) * (y - mean_b) for k, x, y in zip(w, a, b, strict=True))
    return ((2 * mean_a * mean_b + c1) * (2 * cov + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("data_range", [1.0, 4.0, None])
def test_ssim_agrees_with_a_loop_over_windows(masked, data_range):
    moving, fixed = images(1, 1, 14, 13), images(1, 1, 14, 13, seed=1)
    mask = images(1, 1, 14, 13, seed=2) if masked else None
    reach = data_range or float(fixed.max() - fixed.min())
    kernel = gaussian_weights(11, 1.5)
    a, b = rows_of(moving[0, 0]), rows_of(fixed[0, 0])
    m = rows_of(mask[0, 0]) if mask is not None else [[1.0] * 13] * 14
    values, totals = [], []
    for row in range(4):
        for col in range(3):
            cells = [(i, j) for i in range(11) for j in range(11)]
            w = [kernel[i][j] * m[row + i][col + j] for i, j in cells]
            total = math.fsum(w)
            values.append(
                window_similarity(
                    [a[row + i][col + j] for i, j in cells],
                    [b[row + i][col + j] for i, j in cells],
                    [k / total for k in w],
                    reach,
                )
            )
            totals.append(total)
    expected = 1 - math.fsum(v * t for v, t in zip(values, totals, strict=True)) / math.fsum(totals)
    found = losses.ssim(moving, fixed, mask, data_range=data_range).item()
    assert found == pytest.approx(expected, rel=1e-9)


def test_ssim_dice_l1_is_the_weighted_sum_of_its_parts():
    moving, fixed = images(2, 1, 12, 13), images(1, 1, 12, 13, seed=1)
    mask = images(1, 1, 12, 13, seed=2)
    parts = [f(moving, fixed, mask) for f in (losses.ssim, losses.soft_dice, losses.l1)]
    torch.testing.assert_close(losses.ssim_dice_l1(moving, fixed, mask), sum(parts))
    found = losses.ssim_dice_l1(moving, fixed, mask, weights=(2.0, 0.0, 0.5))
    torch.testing.assert_close(found, 2.0 * parts[0] + 0.5 * parts[2])


def derivative_pairs(
    moving: torch.Tensor, fixed: torch.Tensor, mask: torch.Tensor | None
) -> list[tuple[list[float], list[float], list[float]]]:
    """For x and y: the Sobel derivatives of both images and the weights, normalised."""
    i, j = rows_of(moving), rows_of(fixed)
    height, width = len(i), len(i[0])
    inner = [(r, c) for r in range(1, height - 1) for c in range(1, width - 1)]
    m = rows_of(mask) if mask is not None else [[1.0] * width] * height
    least = [min(m[r + u][c + v] for u in (-1, 0, 1) for v in (-1, 0, 1)) for r, c in inner]
    w = [k / math.fsum(least) for k in least]
    return [
        ([sobel(i, r, c)[d] for r, c in inner], [sobel(j, r, c)[d] for r, c in inner], w)
        for d in range(2)
    ]


def explained(a: list[float], f: list[float], w: list[float], scale: float) -> float:
    """Penney's mean of A / (A + (f - scale a)^2)."""
    mean = math.fsum(k * y for y, k in zip(f, w, strict=True))
    spread = math.fsum(k * (y - mean) ** 2 for y, k in zip(f, w, strict=True))
    return math.fsum(
        k * spread / (spread + (y - scale * x) ** 2) for x, y, k in zip(a, f, w, strict=True)
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_gradient_difference_agrees_with_a_loop_over_sobel_kernels(masked, scale):
    moving, fixed = images(1, 1, 6, 7), images(1, 1, 6, 7, seed=1)
    mask = images(1, 1, 6, 7, seed=2) if masked else None
    pairs = derivative_pairs(moving[0, 0], fixed[0, 0], None if mask is None else mask[0, 0])
    expected = 1 - 0.5 * sum(explained(a, f, w, scale) for a, f, w in pairs)
    found = losses.gradient_difference(moving, fixed, mask, scale=scale).item()
    assert found == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("masked", [False, True])
def test_gradient_difference_finds_the_best_scale_of_each_direction(masked):
    mask = images(1, 1, 9, 8, seed=2) if masked else None
    for seed in range(5):
        moving = 2.0 * images(1, 1, 9, 8, seed=10 + seed)
        fixed = 0.4 * moving + images(1, 1, 9, 8, seed=20 + seed)
        pairs = derivative_pairs(moving[0, 0], fixed[0, 0], None if mask is None else mask[0, 0])
        best = 0.0
        for a, f, w in pairs:
            tried = [(explained(a, f, w, 0.01 * k), 0.01 * k) for k in range(301)]
            value, scale = max(tried)
            for step in (1e-3, 1e-4, 1e-5):
                near = (scale + step * k for k in range(-10, 11) if scale + step * k >= 0)
                value, scale = max((explained(a, f, w, s), s) for s in near)
            best += 0.5 * value
        found = losses.gradient_difference(moving, fixed, mask).item()
        assert found == pytest.approx(1 - best, rel=1e-8)


def test_gradient_difference_does_not_depend_on_the_moving_images_scale_unless_told():
    moving, fixed = images(2, 1, 12, 13), images(1, 1, 12, 13, seed=1)
    free = losses.gradient_difference(moving, fixed)
    torch.testing.assert_close(losses.gradient_difference(7.5 * moving + 3.0, fixed), free)
    assert (losses.gradient_difference(moving, fixed, scale=1.0) > free - 1e-12).all()
    assert losses.gradient_difference(moving, 5.0 * moving).abs().max() < 1e-12
    assert losses.gradient_difference(moving, 5.0 * moving, scale=1.0).min() > 0.1


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (6, 4)])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("masked", [False, True])
def test_focal_frequency_agrees_with_a_loop_over_frequencies(size, alpha, masked):
    moving, fixed = images(1, 1, *size), images(1, 1, *size, seed=1)
    mask = images(1, 1, *size, seed=2) if masked else None
    height, width = size
    m = rows_of(mask[0, 0]) if mask is not None else [[1.0] * width] * height
    mean_weight = math.fsum(map(math.fsum, m)) / (height * width)
    difference = rows_of((moving - fixed)[0, 0])
    powers = []
    for u in range(height):
        for v in range(width):
            total = 0j
            for r in range(height):
                for c in range(width):
                    phase = -2 * math.pi * (u * r / height + v * c / width)
                    value = difference[r][c] * math.sqrt(m[r][c] / mean_weight)
                    total += value * complex(math.cos(phase), math.sin(phase))
            powers.append(abs(total) ** 2 / (height * width))
    largest = max(powers) ** (alpha / 2)
    expected = math.fsum(p * p ** (alpha / 2) / largest for p in powers) / len(powers)
    found = losses.focal_frequency(moving, fixed, mask, alpha=alpha).item()
    assert found == pytest.approx(expected, rel=1e-10)
    if alpha == 0.0:
        assert found == pytest.approx(losses.mse(moving, fixed, mask).item(), rel=1e-10)


def test_focal_frequency_of_patches_is_the_mean_over_the_patches():
    moving, fixed = images(2, 1, 6, 8), images(1, 1, 6, 8, seed=1)
    corners = [(slice(r, r + 3), slice(c, c + 4)) for r in (0, 3) for c in (0, 4)]
    expected = sum(losses.focal_frequency(moving[..., r, c], fixed[..., r, c]) for r, c in corners)
    torch.testing.assert_close(losses.focal_frequency(moving, fixed, patch_factor=2), expected / 4)


def test_the_gradient_of_focal_frequency_takes_its_weights_as_constants():
    moving, fixed = images(1, 1, 5, 6), images(1, 1, 5, 6, seed=1)
    power = torch.fft.fft2(moving - fixed, norm="ortho").abs().square()
    weight = power.sqrt() / power.sqrt().max()

    def frozen(i: torch.Tensor) -> torch.Tensor:
        return (weight * torch.fft.fft2(i - fixed, norm="ortho").abs().square()).mean()

    moving.requires_grad_()
    (expected,) = torch.autograd.grad(frozen(moving), moving)
    (found,) = torch.autograd.grad(losses.focal_frequency(moving, fixed).sum(), moving)
    torch.testing.assert_close(found, expected)
    free = losses.focal_frequency(moving, fixed, constant_weights=False)
    (other,) = torch.autograd.grad(free.sum(), moving)
    assert (other - expected).abs().max() > 1e-3 * expected.abs().max()
