"""Domain randomisation: each step by itself, how often it happens, seeds."""

from __future__ import annotations

import math

import pytest
import torch

from drrkit.xray import CdregRandomisation, DomainRandomisation, randomise

OFF = {"noise": (0.0, 0.0), "gamma": (1.0, 1.0), "boxes": (0, 0), "normalise": False}
CDREG_OFF = {
    "noise": (0.0, 0.0),
    "scale": (1.0, 1.0),
    "gamma": (1.0, 1.0),
    "erased_area": (0.0, 0.0),
}


def ramps(count: int, rows: int = 24, cols: int = 32) -> torch.Tensor:
    """Images of values 2 to 6."""
    ramp = torch.linspace(2.0, 6.0, rows * cols, dtype=torch.float64)
    return ramp.reshape(1, 1, rows, cols).repeat(count, 1, 1, 1)


def test_each_image_is_inverted_with_probability_one_half() -> None:
    images = ramps(2000)
    found = DomainRandomisation(**OFF)(images, seed=0)
    inverted = (found == 6.0 - images).all(dim=(-1, -2))
    kept = (found == images).all(dim=(-1, -2))
    assert (inverted ^ kept).all()
    assert float(inverted.double().mean()) == pytest.approx(0.5, abs=0.04)


def test_noise_has_the_published_range_of_deviations() -> None:
    images = ramps(1500)
    recipe = DomainRandomisation(**{**OFF, "noise": (0.005, 0.1)})
    found = recipe(images, seed=1)
    # Inversion comes first; take it out.
    start = torch.where(found[..., :1, :1] > found[..., -1:, -1:], 6.0 - images, images)
    deviation = (found - start).std(dim=(-1, -2)).flatten() / 4.0
    noisy = deviation > 1e-9
    assert float(noisy.double().mean()) == pytest.approx(0.5, abs=0.05)
    drawn = deviation[noisy]
    assert 0.004 < float(drawn.min()) < 0.01 and 0.095 < float(drawn.max()) < 0.11
    assert float(drawn.mean()) == pytest.approx(0.0525, rel=0.05)


def test_gamma_bends_between_the_extremes() -> None:
    images = ramps(1000)
    recipe = DomainRandomisation(**{**OFF, "gamma": (0.7, 1.3)})
    found = recipe(images, seed=2)
    start = torch.where(found[..., :1, :1] > found[..., -1:, -1:], 6.0 - images, images)
    low, high = (f(start.flatten(1), 1).values[:, None] for f in (torch.min, torch.max))
    middle = start.shape[-1] * 12 + 3  # one pixel says the exponent
    x = ((start.flatten(1) - low) / (high - low))[:, middle]
    y = ((found.flatten(1) - low) / (high - low))[:, middle]
    exponent = y.log() / x.log()
    changed = (exponent - 1.0).abs() > 1e-9
    assert float(changed.double().mean()) == pytest.approx(0.5, abs=0.06)
    assert 0.7 <= float(exponent.min()) < 0.73 and 1.27 < float(exponent.max()) <= 1.3
    back = low + (high - low) * ((start.flatten(1) - low) / (high - low)) ** exponent[:, None]
    torch.testing.assert_close(found.flatten(1), back, rtol=1e-9, atol=1e-9)


def test_boxes_are_as_many_and_as_large_as_asked() -> None:
    images = torch.zeros(400, 1, 40, 60, dtype=torch.float64)
    images[..., 0, 0] = 1.0  # a range
    one = DomainRandomisation(**{**OFF, "boxes": (1, 1), "box_side": (0.1, 0.3)})
    found = one(images, seed=3)
    middle = found.flatten(1).median(1).values.reshape(-1, 1, 1, 1)
    start = torch.where(middle > 0.5, 1 - images, images)
    changed = (found != start)[:, 0]
    hit = changed.any(-1).any(-1)
    assert float(hit.double().mean()) == pytest.approx(0.5, abs=0.08)
    for mask in changed[hit]:
        rows, cols = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        height, width = (int(x.max() - x.min()) + 1 for x in (rows, cols))
        assert int(mask.sum()) == height * width  # a box, all of it
        assert 4 <= height <= 12 and 6 <= width <= 18
    spread = (found - start)[:, 0][changed].std()
    assert float(spread) == pytest.approx(1.0, rel=0.05)
    many = DomainRandomisation(**{**OFF, "boxes": (5, 5), "box_side": (0.1, 0.3)})
    more = (many(images, seed=3) != start).double().mean()
    assert float(more) > 2.5 * float(changed.double().mean())


@pytest.mark.parametrize("recipe", ["prost", "cdreg"])
def test_images_end_between_zero_and_one_and_are_left_alone(recipe: str) -> None:
    images = ramps(64).float()
    before = images.clone()
    found = randomise(images, recipe, seed=4)
    assert torch.equal(images, before)
    assert found.shape == images.shape and found.dtype == torch.float32
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.amin(dim=(-1, -2)), torch.zeros(64, 1))
    torch.testing.assert_close(found.amax(dim=(-1, -2)), torch.ones(64, 1))


@pytest.mark.parametrize("recipe", ["prost", "cdreg"])
def test_a_seed_repeats_a_generator_goes_on_and_the_global_one_stays(recipe: str) -> None:
    images = ramps(8)
    state = torch.get_rng_state()
    first, again, other = (randomise(images, recipe, seed=s) for s in (7, 7, 8))
    assert torch.equal(first, again) and not torch.equal(first, other)
    generator = torch.Generator().manual_seed(7)
    assert torch.equal(randomise(images, recipe, seed=generator), first)
    assert not torch.equal(randomise(images, recipe, seed=generator), first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("recipe", ["prost", "cdreg"])
def test_images_of_a_batch_draw_for_themselves(recipe: str) -> None:
    found = randomise(ramps(40), recipe, seed=9)
    same = (found[:, None] == found[None]).all(dim=-1).all(dim=-1)[..., 0]
    unlike = 1.0 - same.double().mean()
    assert float(unlike) > 0.8


@pytest.mark.parametrize("settings", [DomainRandomisation, CdregRandomisation])
def test_with_probability_zero_nothing_happens(settings: type) -> None:
    images = (ramps(3) - 2.0) / 4.0
    torch.testing.assert_close(settings(probability=0.0)(images, seed=1), images)


def test_a_constant_image_stays_finite() -> None:
    for recipe in ("prost", "cdreg"):
        found = randomise(torch.full((16, 1, 9, 9), 3.0), recipe, seed=2)
        assert torch.isfinite(found).all() and found.min() >= 0.0 and found.max() <= 1.0


def test_cdreg_erases_a_box_of_the_published_area() -> None:
    images = torch.ones(600, 1, 50, 80, dtype=torch.float64)
    images[..., 0, 0] = 0.9
    settings = {**CDREG_OFF, "erased_area": (0.02, 0.4), "sine_gain": (1.0, 1.0)}
    recipe = CdregRandomisation(**settings, sine_offset=(math.pi / 2 - 1,) * 2, smoothing=(1e-3,))
    found = recipe(images, seed=5)[:, 0]
    erased = found == 0.0
    erased[:, 0, 0] = False
    share = erased.double().mean(dim=(-1, -2))
    hit = share > 0
    assert float(hit.double().mean()) == pytest.approx(0.5, abs=0.07)
    assert 0.015 < float(share[hit].min()) < 0.06 and 0.34 < float(share.max()) < 0.42
    heights = erased[hit].any(2).sum(1).double()
    widths = erased[hit].any(1).sum(1).double()
    ratio = heights / widths
    assert float(ratio.min()) > 0.25 and float(ratio.max()) < 4.0
    assert float(ratio.log().mean().abs()) < 0.15


def test_cdreg_smooths_with_one_of_its_widths() -> None:
    image = torch.zeros(900, 1, 33, 33, dtype=torch.float64)
    image[..., 16, 16] = 1.0
    recipe = CdregRandomisation(
        **CDREG_OFF, sine_gain=(1e-6, 1e-6), sine_offset=(0.0, 0.0), smoothing=(1.0, 3.0, 5.0)
    )
    found = recipe(image, seed=6)
    # Normalised, a Gaussian of width s has exp(-1 / (2 s^2)) beside its peak.
    beside = found[:, 0, 16, 17]
    expected = {1.0: math.exp(-0.5), 3.0: math.exp(-1 / 18), 5.0: math.exp(-1 / 50)}
    shares = [
        float((beside - value).abs().lt(0.004).double().mean()) for value in expected.values()
    ]
    assert sum(shares) == pytest.approx(0.5, abs=0.06)
    assert min(shares) > 0.1
    assert float((beside == 0.0).double().mean()) == pytest.approx(1.0 - sum(shares))


@pytest.mark.parametrize(
    ("settings", "arguments", "match"),
    [
        (DomainRandomisation, {"probability": 1.5}, "probability"),
        (DomainRandomisation, {"noise": (0.2, 0.1)}, "noise"),
        (DomainRandomisation, {"gamma": (0.0, 1.0)}, "gamma"),
        (DomainRandomisation, {"boxes": (-1, 2)}, "boxes"),
        (DomainRandomisation, {"box_noise": math.nan}, "box_noise"),
        (CdregRandomisation, {"smoothing": ()}, "smoothing"),
        (CdregRandomisation, {"erased_aspect": 0.0}, "erased_aspect"),
        (CdregRandomisation, {"scale": (0.9, math.inf)}, "scale"),
        (CdregRandomisation, {"noise_scale": -1.0}, "noise_scale"),
    ],
)
def test_bad_settings_are_named(settings: type, arguments: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        settings(**arguments)


def test_bad_images_and_recipes_are_named() -> None:
    with pytest.raises(ValueError, match=r"images: expected \[B, 1, rows, cols\]"):
        randomise(torch.zeros(2, 3, 8, 8))
    with pytest.raises(TypeError, match="images: expected a float32"):
        randomise(torch.zeros(2, 1, 8, 8, dtype=torch.int32))
    with pytest.raises(ValueError, match="recipe: expected one of prost, cdreg"):
        randomise(ramps(1), "sopi")
    with pytest.raises(TypeError, match="recipe"):
        randomise(ramps(1), 3)
    with pytest.raises(TypeError, match="seed"):
        randomise(ramps(1), seed=0.5)
