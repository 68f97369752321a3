"""What all similarity losses promise: batches, broadcasting, masks, derivatives, bad input."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from drrkit import losses
from tests.support.smooth_images import images

ALL = {
    "mse": losses.mse,
    "l1": losses.l1,
    "ncc": losses.ncc,
    "gradient_ncc": losses.gradient_ncc,
    "local_ncc": partial(losses.local_ncc, patch=4),
    "patch_gradient_ncc": partial(losses.patch_gradient_ncc, radius=1),
    "patch_gradient_ncc_moving": partial(
        losses.patch_gradient_ncc, radius=1, weighting="moving_variance", masked_statistics=True
    ),
    "mutual_information": partial(losses.mutual_information, bins=8),
    "normalized_mutual_information": partial(losses.normalized_mutual_information, bins=8),
    "mattes_mutual_information": partial(losses.mattes_mutual_information, bins=8),
    "ssim": partial(losses.ssim, window=3),
    "soft_dice": losses.soft_dice,
    "ssim_dice_l1": partial(losses.ssim_dice_l1, window=3),
    "gradient_difference": losses.gradient_difference,
    "gradient_difference_unscaled": partial(losses.gradient_difference, scale=1.0),
    "focal_frequency": losses.focal_frequency,
}
INFORMATION = [name for name in ALL if name.endswith("information")]
CROPS = {  # what is left outside a masked rectangle has no say in these
    *("mse", "l1", "ncc", "gradient_ncc", "soft_dice", "gradient_difference"),
    *("gradient_difference_unscaled", *INFORMATION),
}
# The gradient takes something as constant that these arguments leave free or hold fixed.
FREE = {
    **{name: {"moving_range": (-0.01, 1.02), "fixed_range": (-0.1, 1.1)} for name in INFORMATION},
    "focal_frequency": {"constant_weights": False},
}


@pytest.fixture(params=sorted(ALL))
def name(request):
    return request.param


@pytest.fixture
def loss(name):
    return ALL[name]


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


@pytest.mark.parametrize("name", sorted(CROPS))
def test_masking_a_rectangle_equals_cropping_it(name):
    moving, fixed = images(2, 1, 12, 13), images(1, 1, 12, 13, seed=1)
    mask = torch.zeros(1, 1, 12, 13, dtype=torch.float64)
    mask[..., 2:10, 3:11] = 1.0
    spoiled = torch.where(mask > 0, moving, 100.0 * moving)
    cropped = ALL[name](moving[..., 2:10, 3:11], fixed[..., 2:10, 3:11])
    torch.testing.assert_close(ALL[name](spoiled, fixed, mask), cropped)


@pytest.mark.parametrize("name", ["local_ncc", "ssim", "patch_gradient_ncc_moving"])
def test_masked_pixels_have_little_say_in_patches(name):
    # Patches that cross the mask's edge count too, so masking does not equal cropping; and blurs
    # reach over the edge.
    moving, fixed = images(2, 1, 24, 23), images(1, 1, 24, 23, seed=1)
    mask = torch.zeros(1, 1, 24, 23, dtype=torch.float64)
    mask[..., 4:20, 5:19] = 1.0
    far = torch.nn.functional.max_pool2d(mask, 9, 1, 4)
    spoiled = torch.where(far > 0, moving, 100.0 * moving)
    found = ALL[name](spoiled, fixed, mask)
    torch.testing.assert_close(found, ALL[name](moving, fixed, mask), rtol=0, atol=1e-9)


SCALE_FREE = sorted(
    {"ncc", "local_ncc", "gradient_ncc", "patch_gradient_ncc", "patch_gradient_ncc_moving"}
    | {"gradient_difference", *INFORMATION}
)


@pytest.mark.parametrize("name", SCALE_FREE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("masked", [False, True])
def test_the_unit_of_either_image_does_not_matter(name, dtype, masked):
    """Powers of two round nothing: what differs is a floor that is not relative to the image."""
    moving, fixed = images(2, 1, 12, 13, dtype=dtype), images(1, 1, 12, 13, seed=1, dtype=dtype)
    mask = (images(1, 1, 12, 13, seed=2, dtype=dtype) > 0.45).to(dtype) if masked else None
    expected = ALL[name](moving, fixed, mask)
    for power in (-40, -20, -10, 10, 20):
        gain = 2.0**power
        for pair in ((gain * moving, fixed), (moving, gain * fixed), (gain * moving, gain * fixed)):
            torch.testing.assert_close(ALL[name](*pair, mask), expected, rtol=1e-6, atol=0)
    both = ALL["gradient_difference_unscaled"](1e-6 * moving, 1e-6 * fixed, mask)
    expected = ALL["gradient_difference_unscaled"](moving, fixed, mask)
    torch.testing.assert_close(both, expected, rtol=1e-5, atol=0)


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


def test_first_and_second_derivatives_pass_gradcheck_in_every_argument(name, loss):
    shapes = ((2, 1, 5, 6), (1, 1, 5, 6), (1, 1, 5, 6))
    moving, fixed, mask = (images(*s, seed=k).requires_grad_() for k, s in enumerate(shapes))
    checked = partial(loss, **FREE.get(name, {}))
    assert torch.autograd.gradcheck(checked, (moving, fixed, mask))
    weights = mask.detach()
    assert torch.autograd.gradgradcheck(checked, (moving, fixed, weights), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_constant_images_give_finite_losses_and_gradients(name, loss, dtype, value):
    constant = torch.full((2, 1, 9, 9), value, dtype=dtype, requires_grad=True)
    varying = images(1, 1, 9, 9, dtype=dtype).requires_grad_()
    for moving, fixed in ((constant, varying), (varying.expand(2, 1, 9, 9), constant[:1])):
        found = loss(moving, fixed)
        # Mattes' fixed bins are steps: nothing flows into the fixed image.
        unused = name == "mattes_mutual_information"
        gradients = torch.autograd.grad(found.sum(), (constant, varying), allow_unused=unused)
        assert found.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)
    if name in ("ncc", "gradient_ncc", "patch_gradient_ncc", "patch_gradient_ncc_moving"):
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


GOOD = images(1, 1, 9, 9)


@pytest.mark.parametrize(
    "call, option, message",
    [
        (losses.local_ncc, {"patch": 1}, r"patch: .*got 1"),
        (losses.local_ncc, {}, "at least 13 rows and columns, got 9 x 9"),
        (losses.ssim, {}, "at least 11 rows and columns, got 9 x 9"),
        (losses.ssim, {"window": 0}, "window: .*got 0"),
        (losses.ssim, {"sigma": -1.0}, "sigma: .*got -1.0"),
        (losses.ssim, {"data_range": 0.0}, "data_range: .*got 0.0"),
        (losses.ssim, {"k1": 0.0}, "k1: .*got 0.0"),
        (losses.ssim, {"k2": float("nan")}, "k2: .*got nan"),
        (losses.ssim_dice_l1, {"weights": (1.0, 1.0)}, "weights: expected three"),
        (losses.ssim_dice_l1, {"weights": (1.0, -1.0, 1.0)}, "weights: .*got -1.0"),
        (losses.soft_dice, {"smooth": 0.0}, "smooth: .*got 0.0"),
        (losses.gradient_difference, {"scale": 0.0}, "scale: .*got 0.0"),
        (losses.focal_frequency, {"alpha": -1.0}, "alpha: .*got -1.0"),
        (losses.focal_frequency, {"patch_factor": 2}, "patch_factor: .*9 rows.*got 2"),
        (losses.focal_frequency, {"patch_factor": 0}, "patch_factor: .*got 0"),
        (losses.patch_gradient_ncc, {"radius": 5}, "at least 11 rows and columns, got 9 x 9"),
        (losses.patch_gradient_ncc, {"radius": 0}, "radius: .*got 0"),
        (losses.patch_gradient_ncc, {"stride": 0}, "stride: .*got 0"),
        (losses.patch_gradient_ncc, {"blur": 4}, "blur: .*got 4"),
        (losses.patch_gradient_ncc, {"weighting": "x"}, "weighting: .*got 'x'"),
        (losses.patch_gradient_ncc, {"random_patches": 0}, "random_patches: .*got 0"),
        (
            losses.patch_gradient_ncc,
            {"random_patches": 2, "separation": -1.0},
            "separation: .*got -1.0",
        ),
        (
            losses.patch_gradient_ncc,
            {"random_patches": 50, "separation": 4.0},
            "random_patches: expected room for 50 patches at least 4 pixels apart, got",
        ),
        (losses.mattes_mutual_information, {"bins": 4}, "bins: .*got 4"),
        *(
            (call, option, f"{next(iter(option))}: .*got")
            for call in (losses.mutual_information, losses.normalized_mutual_information)
            for option in (
                {"bins": 1},
                {"sigma": 0.0},
                {"moving_range": (1, 1)},
                {"fixed_range": (2, 1)},
            )
        ),
    ],
)
def test_bad_options_raise_errors_that_name_them(call, option, message):
    with pytest.raises(ValueError, match=message):
        call(GOOD, GOOD, **option)


@pytest.mark.parametrize("call", [losses.gradient_ncc, losses.gradient_difference])
def test_images_too_small_for_a_sobel_kernel_are_refused(call):
    with pytest.raises(ValueError, match="at least 3 rows and columns, got 2 x 9"):
        call(GOOD[:, :, :2], GOOD[:, :, :2])


def test_no_views_give_no_losses(loss):
    moving = images(2, 1, 9, 9)[:0].requires_grad_()
    found = loss(moving, images(1, 1, 9, 9, seed=1))
    assert found.shape == (0,)
    found.sum().backward()
    assert moving.grad.shape == moving.shape
