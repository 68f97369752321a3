"""Mutual information: histograms by plain loops, ITK, entropies, invariances."""

from __future__ import annotations

import math

import pytest
import torch

from drrkit import losses
from tests.support.smooth_images import images


def parzen(image: torch.Tensor, bins: int, sigma: float) -> list[list[float]]:
    """Gaussian window weights of every pixel, normalised over the bins."""
    flat = image.flatten().tolist()
    low, high = min(flat), max(flat)
    rows = []
    for x in flat:
        p = (x - low) / (high - low) * (bins - 1)
        g = [math.exp(-((p - a) ** 2) / (2 * sigma**2)) for a in range(bins)]
        rows.append([k / sum(g) for k in g])
    return rows


def cubic(u: float) -> float:
    """The cubic B-spline."""
    u = abs(u)
    if u < 1:
        return (4 - 6 * u**2 + 3 * u**3) / 6
    return (2 - u) ** 3 / 6 if u < 2 else 0.0


def mattes_windows(image: torch.Tensor, bins: int, spline: bool) -> list[list[float]]:
    """Weights of every pixel as Mattes' estimator puts them, two bins free at each end."""
    flat = image.flatten().tolist()
    low, high = min(flat), max(flat)
    rows = []
    for x in flat:
        p = 2 + (x - low) / (high - low) * (bins - 4)
        own = min(max(math.floor(p), 2), bins - 3)
        rows.append([cubic(p - a) if spline else float(a == own) for a in range(bins)])
    return rows


def joint_histogram(
    wa: list[list[float]], wb: list[list[float]], w: list[float]
) -> list[list[float]]:
    return [
        [
            math.fsum(k * x[a] * y[b] for k, x, y in zip(w, wa, wb, strict=True)) / math.fsum(w)
            for b in range(len(wb[0]))
        ]
        for a in range(len(wa[0]))
    ]


def entropy(p: list[float]) -> float:
    return -math.fsum(x * math.log(x) for x in p if x > 0)


def entropies(joint: list[list[float]]) -> tuple[float, float, float]:
    """Of the rows, of the columns, of both."""
    columns = [math.fsum(row[b] for row in joint) for b in range(len(joint[0]))]
    both = [value for row in joint for value in row]
    return entropy([math.fsum(row) for row in joint]), entropy(columns), entropy(both)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bins, sigma", [(6, 0.7), (6, 3.0), (32, 0.5), (40, 0.1), (2, 0.5)])
def test_parzen_information_agrees_with_a_loop_over_the_joint_histogram(bins, sigma, masked):
    moving, fixed = images(1, 1, 7, 5), images(1, 1, 7, 5, seed=1)
    mask = images(1, 1, 7, 5, seed=2) if masked else None
    w = [1.0] * 35 if mask is None else mask.flatten().tolist()
    joint = joint_histogram(parzen(moving, bins, sigma), parzen(fixed, bins, sigma), w)
    first, second, both = entropies(joint)
    options = {"bins": bins, "sigma": sigma}
    found = losses.mutual_information(moving, fixed, mask, **options).item()
    assert found == pytest.approx(-(first + second - both), rel=1e-8, abs=1e-8)
    found = losses.normalized_mutual_information(moving, fixed, mask, **options).item()
    assert found == pytest.approx(-(first + second) / both, rel=1e-8)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bins", [5, 8, 50])
def test_mattes_information_agrees_with_a_loop_over_the_joint_histogram(bins, masked):
    moving, fixed = images(1, 1, 9, 8), images(1, 1, 9, 8, seed=1)
    mask = images(1, 1, 9, 8, seed=2) if masked else None
    w = [1.0] * 72 if mask is None else mask.flatten().tolist()
    windows = mattes_windows(moving, bins, True), mattes_windows(fixed, bins, False)
    first, second, both = entropies(joint_histogram(*windows, w))
    found = losses.mattes_mutual_information(moving, fixed, mask, bins=bins).item()
    assert found == pytest.approx(-(first + second - both), rel=1e-8, abs=1e-8)


@pytest.mark.io
@pytest.mark.parametrize("bins", [50, 20])
def test_mattes_information_is_the_one_that_itk_computes(bins):
    import SimpleITK as sitk

    moving, fixed = images(2, 1, 32, 30), images(1, 1, 32, 30, seed=1)
    fixed = 0.5 * fixed + 0.5 * moving[:1]
    found = losses.mattes_mutual_information(moving, fixed, bins=bins)
    for b in range(2):
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(bins)
        method.SetMetricSamplingStrategy(method.NONE)
        method.SetInterpolator(sitk.sitkNearestNeighbor)
        method.SetInitialTransform(sitk.TranslationTransform(2))
        pair = (sitk.GetImageFromArray(image.numpy()) for image in (fixed[0, 0], moving[b, 0]))
        assert found[b].item() == pytest.approx(method.MetricEvaluate(*pair), abs=1e-6)


def test_mattes_derivative_is_that_of_itks_histogram_with_its_range_held():
    moving, fixed = images(1, 1, 9, 8), images(1, 1, 9, 8, seed=1)
    held = {"moving_range": (float(moving.min()), float(moving.max()))}
    moving.requires_grad_()
    (free,) = torch.autograd.grad(losses.mattes_mutual_information(moving, fixed).sum(), moving)
    loss = losses.mattes_mutual_information(moving, fixed, **held)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), moving)[0], free)


@pytest.mark.parametrize(
    "call, bins",
    [
        (losses.mutual_information, 8),
        (losses.normalized_mutual_information, 8),
        (losses.mattes_mutual_information, 8),
    ],
)
def test_intensities_outside_the_range_count_as_its_ends_or_near_them(call, bins):
    moving, fixed = images(1, 1, 8, 9), images(1, 1, 8, 9, seed=1)
    options = {"bins": bins, "moving_range": (0.4, 0.6), "fixed_range": (0.4, 0.6)}
    found = call(moving, fixed, **options)
    far = torch.where(moving > 0.7, moving + 50.0, moving)
    clipped = torch.where(moving > 0.7, 0.7, moving)
    torch.testing.assert_close(call(far, fixed, **options), call(clipped, fixed, **options))
    assert found.isfinite().all()


@pytest.mark.parametrize("call", [losses.mutual_information, losses.mattes_mutual_information])
def test_information_ignores_affine_changes_of_either_image(call):
    moving, fixed = images(2, 1, 12, 13), images(1, 1, 12, 13, seed=1)
    expected = call(moving, fixed)
    torch.testing.assert_close(call(3.0 * moving - 7.0, fixed), expected)
    torch.testing.assert_close(call(moving, 0.25 * fixed + 2.0), expected)


def test_normalized_mutual_information_lies_between_independence_and_identity():
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 8, (1, 1, 64, 64), generator=generator).to(torch.float64)
    other = torch.randint(0, 8, (1, 1, 64, 64), generator=generator).to(torch.float64)
    sharp = {"bins": 8, "sigma": 0.1}
    same = losses.normalized_mutual_information(levels, levels, **sharp).item()
    assert same == pytest.approx(-2.0, abs=1e-9)
    unrelated = losses.normalized_mutual_information(other, levels, **sharp).item()
    assert -1.02 < unrelated <= -1.0


def test_mutual_information_of_an_image_with_itself_is_its_entropy():
    levels = torch.arange(4, dtype=torch.float64)
    image = levels[torch.tensor([0, 0, 0, 0, 1, 1, 2, 3] * 2)].reshape(1, 1, 4, 4)
    p = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    entropy = -(p * p.log()).sum().item()
    found = losses.mutual_information(image, image, bins=4, sigma=0.1).item()
    assert found == pytest.approx(-entropy, rel=1e-8)


def test_mutual_information_ignores_a_monotone_remap_of_discrete_levels_and_an_inversion():
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 4, (1, 1, 16, 16), generator=generator)
    other = (levels + torch.randint(0, 2, levels.shape, generator=generator)).clamp(max=3)
    # 13 bins of width 1 over [0, 12]: every level sits on a bin's centre before and after.
    table = torch.tensor([0.0, 1.0, 5.0, 12.0], dtype=torch.float64)
    options = {"bins": 13, "sigma": 0.1, "fixed_range": (0.0, 12.0)}
    moving = other.to(torch.float64)
    plain = losses.mutual_information(moving, 4.0 * levels.to(torch.float64), **options)
    remapped = losses.mutual_information(moving, table[levels], **options)
    inverted = losses.mutual_information(moving, 12.0 - table[levels], **options)
    assert plain.item() < -0.5
    torch.testing.assert_close(remapped, plain)
    torch.testing.assert_close(inverted, plain)


def test_mutual_information_of_unrelated_images_is_near_zero_and_never_below():
    generator = torch.Generator().manual_seed(0)
    moving, fixed = torch.rand(2, 1, 1, 256, 256, generator=generator)
    unrelated = losses.mutual_information(moving, fixed).item()
    assert -0.02 < unrelated <= 1e-6
    assert losses.mutual_information(moving, moving).item() < -1.5
