"""Patch gradient NCC against plain loops that follow xreg's definition step by step."""

from __future__ import annotations

import math

import pytest
import torch

from drrkit import losses
from tests.support.smooth_images import images

Image = list[list[float]]
BLURS = {
    0: [1.0],
    3: [0.25, 0.5, 0.25],
    5: [0.0625, 0.25, 0.375, 0.25, 0.0625],
    7: [0.03125, 0.109375, 0.21875, 0.28125, 0.21875, 0.109375, 0.03125],
}


def mirrored(index: int, length: int) -> int:
    """The pixel that stands for an index outside the image; the border pixel is not repeated."""
    index = abs(index)
    return index if index < length else 2 * (length - 1) - index


def filtered(image: Image, kernel: list[list[float]]) -> Image:
    height, width = len(image), len(image[0])
    up, left = len(kernel) // 2, len(kernel[0]) // 2
    return [
        [
            math.fsum(
                k * image[mirrored(r + i - up, height)][mirrored(c + j - left, width)]
                for i, row in enumerate(kernel)
                for j, k in enumerate(row)
            )
            for c in range(width)
        ]
        for r in range(height)
    ]


def derivatives(image: Image, blur: int) -> tuple[Image, Image]:
    taps = BLURS[blur]
    smooth = filtered(image, [[a * b for b in taps] for a in taps])
    x = [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]
    return filtered(smooth, x), filtered(smooth, [list(column) for column in zip(*x, strict=True)])


def cut(image: Image, row: int, col: int, side: int) -> list[float]:
    return [image[r][c] for r in range(row, row + side) for c in range(col, col + side)]


def mean_and_deviation(values: list[float], inside: list[float] | None) -> tuple[float, float, int]:
    """Over the unmasked pixels; the deviation of n - 1 degrees of freedom, at least 1e-6."""
    used = [v for v, k in zip(values, inside or [1.0] * len(values), strict=True) if k]
    mean = math.fsum(used) / max(len(used), 1)
    variance = 0.0
    if len(used) > 1:
        variance = math.fsum((v - mean) ** 2 for v in used) / (len(used) - 1)
    return mean, max(1e-6, math.sqrt(variance)), len(used)


def patch_cost(f: list[float], m: list[float], inside: list[float], statistics: bool) -> float:
    mean_f, deviation_f, count = mean_and_deviation(f, inside if statistics else None)
    mean_m, deviation_m, _ = mean_and_deviation(m, inside if statistics else None)
    products = (
        (x - mean_f) / (deviation_f * max(count, 1)) * (y - mean_m) / deviation_m
        for x, y, k in zip(f, m, inside, strict=True)
        if k
    )
    return 1.0 - math.fsum(products)


def weight_of(
    weighting: str, sources: dict[str, Image], mask: Image | None, row: int, col: int, side: int
) -> float:
    inside = [1.0] * side**2 if mask is None else cut(mask, row, col, side)
    if weighting == "uniform":
        return math.fsum(inside) / side**2
    if mask is not None and not mask[row + side // 2][col + side // 2]:
        return 0.0
    values = cut(sources[weighting], row, col, side)
    masked = inside if weighting.startswith("fixed") and mask is not None else None
    return mean_and_deviation(values, masked)[1] ** 2


def expected_loss(
    moving: Image,
    fixed: Image,
    mask: Image | None = None,
    radius: int = 2,
    stride: int = 1,
    blur: int = 5,
    weighting: str = "uniform",
    masked_statistics: bool = False,
    tolerance: float | None = None,
    least_share: float = 1e-6,
) -> float:
    side, total = 2 * radius + 1, 0.0
    for g_moving, g_fixed in zip(derivatives(moving, blur), derivatives(fixed, blur), strict=True):
        sources = {
            "fixed_variance": fixed,
            "moving_variance": moving,
            "fixed_gradient_variance": g_fixed,
            "moving_gradient_variance": g_moving,
        }
        costs, weights = [], []
        for row in range(0, len(fixed) - side + 1, stride):
            for col in range(0, len(fixed[0]) - side + 1, stride):
                inside = [1.0] * side**2 if mask is None else cut(mask, row, col, side)
                f, m = cut(g_fixed, row, col, side), cut(g_moving, row, col, side)
                cost = patch_cost(f, m, inside, masked_statistics)
                robust = tolerance and tolerance * (1.0 - math.exp(-cost / tolerance))
                costs.append(cost if robust is None else robust)
                weights.append(weight_of(weighting, sources, mask, row, col, side))
        whole = math.fsum(weights)
        kept = (
            c * w if w / whole > least_share else 0.0 for c, w in zip(costs, weights, strict=True)
        )
        total += 0.5 * math.fsum(kept) / whole
    return total


MOVING, FIXED = images(2, 1, 13, 12), images(1, 1, 13, 12, seed=1)
HOLES = (images(1, 1, 13, 12, seed=2) > 0.42).to(torch.float64)
HOLES[..., :6, :7] = 0.0
WEIGHTINGS = [
    "uniform",
    *("fixed_variance", "moving_variance"),
    *("fixed_gradient_variance", "moving_gradient_variance"),
]


def test_the_mask_of_these_tests_has_holes_and_empty_patches() -> None:
    assert 0.2 < HOLES.mean() < 0.8
    assert losses.patch_gradient_ncc(MOVING, FIXED, HOLES).isfinite().all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"radius": 1},
        {"radius": 3},
        {"radius": 2, "stride": 2},
        {"radius": 1, "stride": 3, "blur": 7},
        {"radius": 2, "blur": 0},
        {"radius": 2, "blur": 3},
        {"radius": 2, "masked_statistics": True},
        *({"radius": 2, "weighting": weighting} for weighting in WEIGHTINGS[1:]),
        {"radius": 1, "weighting": "moving_variance", "masked_statistics": True, "stride": 2},
        {"radius": 2, "tolerance": 0.3, "masked_statistics": True},
        {"radius": 1, "tolerance": 2.0, "weighting": "fixed_variance", "blur": 0},
    ],
)
def test_it_agrees_with_the_loops(options, masked):
    mask = HOLES if masked else None
    found = losses.patch_gradient_ncc(MOVING, FIXED, mask, **options)
    for b in range(2):
        rows = MOVING[b, 0].tolist(), FIXED[0, 0].tolist(), HOLES[0, 0].tolist() if masked else None
        assert found[b].item() == pytest.approx(expected_loss(*rows, **options), rel=1e-9)


def test_patches_with_a_millionth_of_the_weight_count_as_perfect_matches():
    fixed = FIXED.clone()
    fixed[..., :4, :4] *= 400.0
    options = {"radius": 1, "weighting": "fixed_variance"}
    found = losses.patch_gradient_ncc(MOVING[:1], fixed, **options).item()
    rows = MOVING[0, 0].tolist(), fixed[0, 0].tolist()
    assert found == pytest.approx(expected_loss(*rows, **options), rel=1e-9)
    assert found != pytest.approx(expected_loss(*rows, **options, least_share=0.0), rel=1e-6)


def test_equal_images_differ_by_the_degree_of_freedom_and_patches_ignore_affine_changes():
    found = losses.patch_gradient_ncc(MOVING, MOVING, radius=2)
    torch.testing.assert_close(found, torch.full_like(found, 1 / 25), rtol=0, atol=1e-9)
    inverted = losses.patch_gradient_ncc(MOVING, 3.0 - MOVING, radius=2)
    torch.testing.assert_close(inverted, torch.full_like(found, 2 - 1 / 25), rtol=0, atol=1e-9)
    expected = losses.patch_gradient_ncc(MOVING, FIXED, radius=2)
    for scale, offset in ((3.0, -7.0), (0.01, 20.0)):
        changed = losses.patch_gradient_ncc(scale * MOVING + offset, FIXED, radius=2)
        torch.testing.assert_close(changed, expected, rtol=1e-6, atol=0)
        changed = losses.patch_gradient_ncc(MOVING, scale * FIXED + offset, radius=2)
        torch.testing.assert_close(changed, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "size, radius", [((180, 100), 5), ((359, 359), 10), ((128, 128), 4), ((64, 60), 2), ((9, 9), 1)]
)
def test_the_default_radius_is_xregs_at_any_resolution(size, radius):
    moving, fixed = images(1, 1, *size), images(1, 1, *size, seed=1)
    found = losses.patch_gradient_ncc(moving, fixed)
    torch.testing.assert_close(found, losses.patch_gradient_ncc(moving, fixed, radius=radius))


@pytest.mark.parametrize("masked", [False, True])
def test_patches_that_match_badly_lose_their_pull(masked):
    """One half of the images agrees, the other does not: the gradient in it is next to nothing."""
    moving, fixed = images(1, 1, 24, 40), images(1, 1, 24, 40)
    fixed[..., 20:] = images(1, 1, 24, 20, seed=5)
    moving = (moving + 0.1 * images(1, 1, 24, 40, seed=6)).requires_grad_()
    mask = torch.ones(1, 1, 24, 40, dtype=torch.float64) if masked else None

    def pull(**options) -> torch.Tensor:
        loss = losses.patch_gradient_ncc(moving, fixed, mask, radius=2, blur=0, **options)
        (slope,) = torch.autograd.grad(loss.sum(), moving)
        return slope[..., 26:-3].norm() / slope[..., 3:14].norm()

    assert pull() > 3.0  # it is what pulls otherwise
    assert pull(tolerance=0.1) < 0.1


def mean_cost_of_draws(count: int, seeds: int, **options) -> float:
    total = 0.0
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        total += losses.patch_gradient_ncc(
            MOVING[:1], FIXED, radius=1, random_patches=count, generator=generator, **options
        ).item()
    return total / seeds


def test_random_patches_estimate_the_loss_over_all_patches():
    expected = losses.patch_gradient_ncc(MOVING[:1], FIXED, radius=1).item()
    assert mean_cost_of_draws(20, 100, separation=0.0) == pytest.approx(expected, abs=0.03)


def test_random_patches_are_the_same_in_every_call_unless_a_generator_is_passed():
    def draw(generator=None):
        return losses.patch_gradient_ncc(
            MOVING, FIXED, radius=1, random_patches=6, generator=generator
        )

    assert torch.equal(draw(), draw())
    generator = torch.Generator().manual_seed(0)
    first, second = draw(generator), draw(generator)
    assert torch.equal(first, draw())
    assert not torch.equal(second, first)


def test_one_random_patch_is_the_loss_of_a_patch_under_the_mask():
    mask = torch.zeros(1, 1, 13, 12, dtype=torch.float64)
    mask[..., 5:8, 4:7] = 1.0
    costs = {round(single_patch(row, col, mask), 9) for row in range(3, 8) for col in range(2, 7)}
    assert len(costs) == 25
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        found = losses.patch_gradient_ncc(
            MOVING[:1], FIXED, mask, radius=1, random_patches=1, generator=generator
        )
        assert round(found.item(), 9) in costs


def single_patch(row: int, col: int, mask: torch.Tensor) -> float:
    inside = cut(mask[0, 0].tolist(), row, col, 3)
    moving, fixed = (derivatives(image[0, 0].tolist(), 5) for image in (MOVING, FIXED))
    return sum(
        0.5 * patch_cost(cut(f, row, col, 3), cut(m, row, col, 3), inside, False)
        for m, f in zip(moving, fixed, strict=True)
    )


def test_random_patches_keep_their_distance():
    from drrkit.losses.patches import _draw

    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        chances = images(1, 1, 20, 25, seed=seed)[0, 0].square()
        times = _draw(chances, 2, 12, 6.0, generator)
        assert times.sum() == 12 and times.max() == 1
        centres = 2 * times.nonzero().to(torch.float64)
        apart = torch.cdist(centres, centres) + 1e9 * torch.eye(12, dtype=torch.float64)
        assert apart.min() >= 6.0


def test_random_patches_are_drawn_in_proportion_to_the_masks_weights():
    from drrkit.losses.patches import _draw

    chances = torch.tensor([[1.0, 0.0, 3.0]], dtype=torch.float64)
    times = _draw(chances, 1, 4000, 0.0, torch.Generator().manual_seed(0))
    assert times[0, 1] == 0
    assert times[0, 2].item() == pytest.approx(3000, abs=120)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("masked_statistics, tolerance", [(False, None), (True, None), (True, 0.5)])
def test_derivatives_pass_gradcheck_for_every_weighting(weighting, masked_statistics, tolerance):
    moving = images(2, 1, 7, 6).requires_grad_()
    fixed = images(1, 1, 7, 6, seed=1).requires_grad_()
    mask = images(1, 1, 7, 6, seed=2)

    def checked(i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        options = {"weighting": weighting, "masked_statistics": masked_statistics}
        return losses.patch_gradient_ncc(
            i, j, mask, radius=2, stride=2, tolerance=tolerance, **options
        )

    assert torch.autograd.gradcheck(checked, (moving, fixed), fast_mode=True)
    assert torch.autograd.gradgradcheck(checked, (moving, fixed), fast_mode=True)


def test_flat_patches_of_large_images_stay_harmless_in_float32():
    ramp = torch.linspace(0, 5, 64).expand(1, 1, 64, 64).contiguous()
    bump = ramp.clone()
    bump[..., 20:40, 30:40] += torch.rand(20, 10, generator=torch.Generator().manual_seed(0))
    found = losses.patch_gradient_ncc(ramp, bump)
    assert (found - 1.0).abs() < 0.05  # a ramp correlates with nothing, its rounding neither


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("statistics", [False, True])
def test_patches_of_few_nearly_flat_pixels_stay_within_the_documented_range(statistics, dtype):
    """Soft rims leave patches less than one pixel's weight, shutters leave them flat."""
    generator = torch.Generator().manual_seed(0)
    row, col = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    away = ((row - 30) ** 2 + (col - 33) ** 2).sqrt()
    for radius in (0.2, 1.5, 4.0, 12.0):
        for rim in (0.5, 8.0):
            mask = torch.sigmoid((radius - away) / rim).where(away < radius + 3 * rim, 0.0)
            for scale in (0.0, 1e-6, 1.0, 1e6):
                moving = 3.0 + scale * torch.rand(2, 1, 64, 64, generator=generator)
                fixed = 1.0 + 1e-7 * torch.rand(1, 1, 64, 64, generator=generator)
                loss = losses.patch_gradient_ncc(
                    moving.to(dtype),
                    fixed.to(dtype),
                    mask[None, None].to(dtype),
                    radius=2,
                    masked_statistics=statistics,
                )
                assert bool(((loss >= 0.0) & (loss <= 2.0)).all()), (radius, rim, scale, loss)
