"""Similarity losses: values against naive loops, derivatives, invariances, masks, bad input."""

from __future__ import annotations

import math

import pytest
import torch

from drrkit import losses

ALL = {
    "mse": losses.mse,
    "ncc": losses.ncc,
    "gradient_ncc": losses.gradient_ncc,
    "local_ncc": lambda i, j, mask=None: losses.local_ncc(i, j, mask, patch=4),
    "mutual_information": lambda i, j, mask=None: losses.mutual_information(i, j, mask, bins=8),
}


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Smooth, strictly varying random images."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(*shape, generator=generator, dtype=torch.float64)
    return torch.nn.functional.avg_pool2d(
        torch.nn.functional.pad(noise, (1, 1, 1, 1), mode="replicate"), 3, 1
    ).to(dtype)


@pytest.fixture(params=sorted(ALL))
def loss(request):
    return ALL[request.param]


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


def test_local_ncc_agrees_with_a_loop_over_patches():
    moving, fixed = images(1, 1, 6, 7), images(1, 1, 6, 7, seed=1)
    values = []
    for row in range(4):
        for col in range(5):
            a = moving[0, 0, row : row + 3, col : col + 3].flatten().tolist()
            b = fixed[0, 0, row : row + 3, col : col + 3].flatten().tolist()
            values.append(1 - pearson(a, b, [1.0] * 9))
    expected = sum(values) / len(values)
    found = losses.local_ncc(moving, fixed, patch=3).item()
    assert found == pytest.approx(expected, abs=2e-3)  # flat patches are damped on purpose


def test_mutual_information_agrees_with_a_loop_over_the_joint_histogram():
    moving, fixed = images(1, 1, 4, 5), images(1, 1, 4, 5, seed=1)
    mask = images(1, 1, 4, 5, seed=2)
    bins, sigma = 6, 0.7

    def parzen(image: torch.Tensor) -> list[list[float]]:
        flat = image.flatten().tolist()
        low, high = min(flat), max(flat)
        rows = []
        for x in flat:
            p = (x - low) / (high - low) * (bins - 1)
            g = [math.exp(-((p - a) ** 2) / (2 * sigma**2)) for a in range(bins)]
            rows.append([k / sum(g) for k in g])
        return rows

    wa, wb, w = parzen(moving), parzen(fixed), mask.flatten().tolist()
    joint = [
        [
            sum(k * x[a] * y[b] for k, x, y in zip(w, wa, wb, strict=True)) / sum(w)
            for b in range(bins)
        ]
        for a in range(bins)
    ]
    pa = [sum(row) for row in joint]
    pb = [sum(joint[a][b] for a in range(bins)) for b in range(bins)]
    expected = -sum(
        joint[a][b] * math.log(joint[a][b] / (pa[a] * pb[b]))
        for a in range(bins)
        for b in range(bins)
    )
    found = losses.mutual_information(moving, fixed, mask, bins=bins, sigma=sigma).item()
    assert found == pytest.approx(expected, rel=1e-8)


def test_every_loss_returns_one_number_a_view_that_does_not_depend_on_the_other_views(loss):
    moving, fixed, mask = images(3, 2, 8, 9), images(3, 2, 8, 9, seed=1), images(3, 1, 8, 9, seed=2)
    together = loss(moving, fixed, mask)
    assert together.shape == (3,)
    for b in range(3):
        alone = loss(moving[b : b + 1], fixed[b : b + 1], mask[b : b + 1])
        torch.testing.assert_close(together[b : b + 1], alone)


def test_one_fixed_image_channel_and_mask_serve_all_views_and_channels(loss):
    moving, fixed, mask = images(3, 2, 8, 9), images(1, 1, 8, 9, seed=1), images(1, 1, 8, 9, seed=2)
    expanded = loss(moving, fixed.expand(3, 2, 8, 9), mask.expand(3, 1, 8, 9))
    torch.testing.assert_close(loss(moving, fixed, mask), expanded)
    channels = torch.stack([loss(moving[:, c : c + 1], fixed, mask) for c in range(2)])
    torch.testing.assert_close(expanded, channels.mean(dim=0))


def test_a_mask_of_ones_changes_nothing_and_its_scale_does_not_matter(loss):
    moving, fixed = images(2, 1, 8, 9), images(1, 1, 8, 9, seed=1)
    ones = torch.ones(1, 1, 8, 9, dtype=torch.float64)
    torch.testing.assert_close(loss(moving, fixed, ones), loss(moving, fixed))
    weights = images(1, 1, 8, 9, seed=2)
    torch.testing.assert_close(loss(moving, fixed, 5 * weights), loss(moving, fixed, weights))


def test_masking_a_rectangle_equals_cropping_it(loss):
    moving, fixed = images(2, 1, 12, 13), images(1, 1, 12, 13, seed=1)
    mask = torch.zeros(1, 1, 12, 13, dtype=torch.float64)
    mask[..., 2:10, 3:11] = 1.0
    if loss is ALL["local_ncc"]:
        # Patches that cross the mask's edge count partly, so only a mask that ends with the
        # outermost whole patch can equal a crop: check that outside values do not matter instead.
        spoiled = torch.where(mask > 0, moving, 100.0 * moving)
        assert (loss(spoiled, fixed, mask) - loss(moving, fixed, mask)).abs().max() < 0.05
        return
    spoiled = torch.where(mask > 0, moving, 100.0 * moving)
    cropped = loss(moving[..., 2:10, 3:11], fixed[..., 2:10, 3:11])
    torch.testing.assert_close(loss(spoiled, fixed, mask), cropped)


@pytest.mark.parametrize("name", ["ncc", "gradient_ncc", "local_ncc"])
@pytest.mark.parametrize("scale, offset", [(3.0, -7.0), (1e-3, 0.0), (0.5, 20.0)])
def test_correlations_ignore_positive_affine_changes_of_either_image(name, scale, offset):
    moving, fixed = images(2, 1, 8, 9), images(1, 1, 8, 9, seed=1)
    expected = ALL[name](moving, fixed)
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(ALL[name](scale * moving + offset, fixed), expected, **close)
    torch.testing.assert_close(ALL[name](moving, scale * fixed + offset), expected, **close)


@pytest.mark.parametrize("name", ["ncc", "gradient_ncc", "local_ncc"])
def test_correlations_are_zero_on_equal_and_two_on_inverted_images(name):
    moving = images(2, 1, 9, 9)
    tolerance = 1e-2 if name == "local_ncc" else 1e-9
    assert ALL[name](moving, moving).abs().max() < tolerance
    assert (ALL[name](moving, 3.0 - moving) - 2.0).abs().max() < tolerance


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


def test_first_and_second_derivatives_pass_gradcheck_in_every_argument(loss):
    moving = images(2, 1, 5, 6).requires_grad_()
    fixed = images(1, 1, 5, 6, seed=1).requires_grad_()
    mask = images(1, 1, 5, 6, seed=2)

    def checked(i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        if loss is ALL["mutual_information"]:  # the range is a constant of the derivative
            ranges = {"moving_range": (0.0, 1.0), "fixed_range": (-0.1, 1.1)}
            return losses.mutual_information(i, j, mask, bins=8, sigma=0.8, **ranges)
        return loss(i, j, mask)

    assert torch.autograd.gradcheck(checked, (moving, fixed))
    assert torch.autograd.gradgradcheck(checked, (moving, fixed), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_constant_images_give_finite_losses_and_gradients(loss, dtype, value):
    constant = torch.full((2, 1, 9, 9), value, dtype=dtype, requires_grad=True)
    varying = images(1, 1, 9, 9, dtype=dtype).requires_grad_()
    for moving, fixed in ((constant, varying), (varying.expand(2, 1, 9, 9), constant[:1])):
        found = loss(moving, fixed)
        gradients = torch.autograd.grad(found.sum(), (constant, varying))
        assert found.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in gradients)
    if loss is ALL["ncc"] or loss is ALL["gradient_ncc"]:
        assert (loss(constant, varying) - 1.0).abs().max() < 1e-2


def test_an_empty_mask_gives_finite_losses_and_gradients(loss):
    moving = images(2, 1, 9, 9).requires_grad_()
    found = loss(moving, images(1, 1, 9, 9, seed=1), torch.zeros(1, 1, 9, 9, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(found.sum(), moving)
    assert found.isfinite().all() and gradient.isfinite().all()


def test_float32_on_every_device_agrees_with_float64(loss, device):
    moving, fixed = images(2, 1, 24, 25), images(1, 1, 24, 25, seed=1)
    single = loss(moving.float().to(device) + 5.0, fixed.float().to(device) + 5.0)
    assert single.dtype == torch.float32 and single.device.type == device.type
    torch.testing.assert_close(
        single.double().cpu(), loss(moving + 5.0, fixed + 5.0), rtol=1e-4, atol=1e-5
    )


def test_bad_images_raise_errors_that_name_argument_expectation_and_finding(loss):
    good = images(2, 1, 9, 9)
    cases = [
        ((good.numpy(), good), TypeError, r"moving: expected a tensor .*got ndarray"),
        ((good, None), TypeError, r"fixed: expected a tensor .*got NoneType"),
        ((good[0], good), ValueError, r"moving: expected shape .*got \(1, 9, 9\)"),
        ((good.long(), good), TypeError, r"moving: expected float32 or float64, got torch.int64"),
        ((good, good.float()), ValueError, r"fixed: expected dtype torch.float64.*torch.float32"),
        ((good, good[..., :8]), ValueError, r"fixed: expected shape .*got \(2, 1, 9, 8\)"),
        ((good[:, :, :0], good), ValueError, r"moving: expected shape .*got \(2, 1, 0, 9\)"),
        ((good, good.expand(2, 3, 9, 9)), ValueError, r"fixed: .*got \(2, 3, 9, 9\)"),
        ((good, images(3, 1, 9, 9)), ValueError, r"fixed: .*got \(3, 1, 9, 9\)"),
        ((good, good, good > 0.5), TypeError, r"mask: expected float32 or float64, got torch.bool"),
        (
            (good, good, images(2, 2, 9, 9)),
            ValueError,
            r"mask: expected shape .*got \(2, 2, 9, 9\)",
        ),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            loss(*arguments)


def test_bad_options_raise_errors_that_name_them():
    good = images(1, 1, 9, 9)
    with pytest.raises(ValueError, match="at least 3 rows and columns, got 2 x 9"):
        losses.gradient_ncc(good[:, :, :2], good[:, :, :2])
    with pytest.raises(ValueError, match=r"patch: .*got 1"):
        losses.local_ncc(good, good, patch=1)
    with pytest.raises(ValueError, match="at least 13 rows and columns, got 9 x 9"):
        losses.local_ncc(good, good)
    for name, value in [
        ("bins", 1),
        ("sigma", 0.0),
        ("moving_range", (1, 1)),
        ("fixed_range", (2, 1)),
    ]:
        with pytest.raises(ValueError, match=f"{name}: .*got"):
            losses.mutual_information(good, good, **{name: value})
