"""Simulated X-rays: limits, signs and statistics that physics fixes."""

from __future__ import annotations

import math

import pytest
import torch

from drrkit import Camera, CArm, Volume, phantoms, render, simulate_xray, view_ap, volume_center
from drrkit.geometry import se3_log
from drrkit.xray import (
    MaterialVolume,
    PlacedTool,
    Signal,
    add_noise,
    add_scatter,
    beer_lambert,
    k_wire,
    mass_attenuation,
    motion_path,
    tissue_materials,
)

CLEAN = {"photons": None, "blur_sigma_px": 0.0, "supersample": 1}


def camera(pixels: int = 24) -> Camera:
    return CArm(1000.0, (pixels, pixels), 240.0 / pixels)


@pytest.fixture(scope="module")
def subject() -> Volume:
    return phantoms.random_anatomy("pelvis", 1, shape=32, dtype=torch.float64)


def slab(material: str, thickness_cm: float, density: float = 1.0) -> Signal:
    area = torch.full((1, 1, 2, 2), thickness_cm * density, dtype=torch.float64)
    return beer_lambert(area, (material,), "90kV")


def test_one_ray_per_pixel_at_the_ct_s_energy_is_the_drr(subject: Volume) -> None:
    view = view_ap(subject, 800.0)
    found = simulate_xray(subject, camera(), view, spectrum=70.0, **CLEAN)
    expected = render(subject.to_mu(70.0), camera(), view)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("material", ["water", "bone"])
def test_water_and_bone_attenuate_by_their_tables(material: str) -> None:
    at_70, *energies = (float(mass_attenuation(material, e)) for e in (70.0, 50.0, 100.0))
    hu = 0.0 if material == "water" else 1000.0 * (0.192 * at_70 / 0.01929 - 1.0)
    block = Volume(torch.full((20, 20, 20), hu, dtype=torch.float64), (5.0, 5.0, 5.0))
    view, narrow = view_ap(block, 800.0), CArm(1000.0, (8, 8), 3.0)
    reference = simulate_xray(block, narrow, view, spectrum=70.0, **CLEAN)
    for energy, expected in zip((50.0, 100.0), energies, strict=True):
        found = simulate_xray(block, narrow, view, spectrum=energy, **CLEAN)
        torch.testing.assert_close(found, expected / at_70 * reference, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_energy_is_the_exponential_of_the_line_integral(
    subject: Volume, dtype: torch.dtype
) -> None:
    ct = subject.to(dtype)
    tissues = tissue_materials(ct).with_metal(ct.values > 900.0, "titanium")
    view = view_ap(ct, 800.0)
    options = {"spectrum": 60.0, **CLEAN}
    found = simulate_xray(tissues, camera(), view, **options, output="intensity")
    expected = torch.exp(-render(tissues.attenuation(60.0), camera(), view))
    assert found.dtype == dtype and found.shape == (1, 1, 24, 24)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    line = simulate_xray(tissues, camera(), view, **options)
    torch.testing.assert_close(line, -expected.log(), rtol=10 * tolerance, atol=tolerance)


def test_the_spectrum_s_integral_is_the_sum_over_its_energies() -> None:
    spectrum = {40.0: 1.0, 60.0: 2.0, 80.0: 1.0}
    area = torch.tensor([[0.5, 12.0, 3.0], [20.0, 0.1, 1.0]], dtype=torch.float64)
    signal = beer_lambert(area.T.reshape(1, 3, 2, 1)[:, :2], ("bone", "water"), spectrum)
    energies = torch.tensor([40.0, 60.0, 80.0], dtype=torch.float64)
    shares = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    tables = [mass_attenuation(m, energies) for m in ("bone", "water")]
    for k in range(2):
        bone, water = area.T.reshape(3, 2)[:2, k]
        passed = shares * torch.exp(-bone * tables[0] - water * tables[1])
        energy = (passed * energies).sum() / (shares * energies).sum()
        quanta = (passed * energies).sum() ** 2 / (passed * energies**2).sum()
        for found, expected in zip(signal, (energy, passed.sum(), quanta), strict=True):
            torch.testing.assert_close(found[0, 0, k, 0], expected, rtol=1e-12, atol=0)


def test_nothing_in_the_beam_passes_everything_that_noise_counts() -> None:
    signal = slab("water", 0.0)
    torch.testing.assert_close(signal.energy, torch.ones_like(signal.energy))
    torch.testing.assert_close(signal.counts, torch.ones_like(signal.counts))
    assert 0.8 < float(signal.quanta.max()) < 1.0  # Swank's factor of the open beam
    single = beer_lambert(torch.ones(1, 1, 1, 1), ("water",), 60.0)
    torch.testing.assert_close(single.quanta, single.counts)


def test_matter_hardens_the_beam() -> None:
    thicknesses = (1.0, 5.0, 10.0, 20.0, 30.0)
    signals = [slab("water", t) for t in thicknesses]
    slope = [
        -math.log(float(s.energy.mean())) / t for s, t in zip(signals, thicknesses, strict=True)
    ]
    assert slope == sorted(slope, reverse=True)  # each centimetre more attenuates less
    energy_of_a_photon = [float((s.energy / s.counts).mean()) for s in signals]
    assert energy_of_a_photon == sorted(energy_of_a_photon)
    table = mass_attenuation("water", [15.0, 89.0])
    assert float(table[1]) < slope[-1] < slope[0] < float(table[0])


def test_a_harder_tube_shows_less_bone() -> None:
    bone = [
        -math.log(float(beer_lambert(torch.full((1, 1, 1, 1), 4.0), ("bone",), kv).energy.mean()))
        for kv in ("60kV", "90kV", "120kV")
    ]
    assert bone == sorted(bone, reverse=True)


def test_the_counts_are_poisson() -> None:
    photons = torch.tensor(100.0, dtype=torch.float64)
    share = torch.full((1, 1, 300, 300), 0.4, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    noisy = add_noise(Signal(share, share, share), photons, generator)
    counts = noisy * photons
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-9)
    assert float(counts.mean()) == pytest.approx(40.0, rel=0.003)
    assert float(counts.var() / counts.mean()) == pytest.approx(1.0, abs=0.02)
    below = float((counts <= 40.5).double().mean())
    assert below == pytest.approx(0.5419, abs=0.01)  # P(Poisson(40) <= 40)


def test_an_energy_integrating_detector_fluctuates_as_its_photons_do() -> None:
    """Against counting every energy by itself."""
    spectrum = {30.0: 0.5, 90.0: 0.5}
    photons = 200.0
    area = torch.full((1, 1, 250, 250), 2.0, dtype=torch.float64)
    signal = beer_lambert(area, ("water",), spectrum)
    generator = torch.Generator().manual_seed(1)
    noisy = add_noise(signal, torch.tensor(photons, dtype=torch.float64), generator)
    passed = torch.exp(-2.0 * mass_attenuation("water", [30.0, 90.0])) * 0.5 * photons
    counted = torch.poisson(passed[:, None].expand(2, 250 * 250), generator=generator)
    reference = (counted * torch.tensor([[30.0], [90.0]])).sum(0) / (60.0 * photons)
    assert float(noisy.mean()) == pytest.approx(float(reference.mean()), rel=0.002)
    assert float(noisy.var()) == pytest.approx(float(reference.var()), rel=0.03)
    counting = signal.energy.mean() ** 2 / (signal.counts.mean() * photons)
    assert float(noisy.var() / counting) > 1.1  # counting the photons would say less noise


def test_electronic_noise_adds_its_variance() -> None:
    share = torch.full((1, 1, 200, 200), 0.25, dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    photons = torch.tensor(400.0, dtype=torch.float64)
    noisy = add_noise(Signal(share, share, share), photons, generator, electronic=20.0)
    assert float((noisy * photons).var()) == pytest.approx(100.0 + 400.0, rel=0.03)


def test_scatter_is_broad_positive_and_never_more_than_was_lost() -> None:
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(2, 1, 20, 30, generator=generator, dtype=torch.float64)
    signal = Signal(image, image, image)
    for strength in (0.1, 1.0):
        scattered = add_scatter(signal, strength)
        gain = scattered.energy - image
        assert (gain > 0).all()
        expected = strength * -torch.xlogy(image, image).sum(dim=(1, 2, 3))
        torch.testing.assert_close(gain.sum(dim=(1, 2, 3)), expected, rtol=1e-12, atol=0)
        assert (scattered.energy.mean(dim=(1, 2, 3)) < 1.0).all()
        assert float(gain.std(dim=(-1, -2)).max()) < 0.3 * float(image.std())
    assert torch.equal(add_scatter(signal, 0.0).energy, image)
    air = torch.ones(1, 1, 8, 8)
    torch.testing.assert_close(add_scatter(Signal(air, air, air), 0.3).energy, air)


def test_the_scatter_of_one_pixel_is_a_gaussian() -> None:
    image = torch.ones(1, 1, 61, 61, dtype=torch.float64)
    image[..., 30, 30] = math.exp(-1.0)
    signal = add_scatter(Signal(image, image, image), 0.3, width=4.0 / 61.0)
    gain = (signal.energy - image)[0, 0]
    offsets = torch.arange(-30.0, 31.0, dtype=torch.float64)
    profile = torch.exp(-0.5 * (offsets / 4.0) ** 2)
    profile = profile / profile.sum()
    expected = 0.3 * math.exp(-1.0) * profile[:, None] * profile
    torch.testing.assert_close(gain, expected, rtol=1e-6, atol=1e-9)


def test_the_mean_of_many_noisy_images_is_the_clean_one(subject: Volume) -> None:
    tissues, view = tissue_materials(subject), view_ap(subject, 800.0)
    clean = simulate_xray(tissues, camera(), view, output="intensity", **CLEAN)
    options = {**CLEAN, "photons": 1000.0, "electronic_noise": 2.0}
    views = view.expand(200, 4, 4)
    noisy = simulate_xray(tissues, camera(), views, **options, output="intensity")
    spread = noisy.std(0) / math.sqrt(200)
    assert ((noisy.mean(0) - clean[0]).abs() < 6.0 * spread).all()
    assert not torch.equal(noisy[0], noisy[1])


def test_exposure_control_fixes_the_photons_at_the_detector(subject: Volume) -> None:
    tissues, view = tissue_materials(subject), view_ap(subject, 800.0)

    def relative_noise(**settings: object) -> float:
        options = {**CLEAN, "spectrum": 70.0, **settings}
        many = simulate_xray(
            tissues, camera(12), view.expand(300, 4, 4), **options, output="intensity"
        )
        relative = many.var(0) / many.mean(0)
        return float((relative / many.mean(0).mean()).mean())

    # var / mean of the intensity is 1 / N; N times the mean intensity are the photons wanted.
    assert relative_noise(photons=500.0) == pytest.approx(1.0 / 500.0, rel=0.05)
    clean = simulate_xray(tissues, camera(12), view, spectrum=70.0, output="intensity", **CLEAN)
    expected = 1.0 / (1e4 * float(clean.mean()))
    assert relative_noise(photons=1e4, photons_at="source") == pytest.approx(expected, rel=0.05)


def test_a_seed_repeats_and_a_generator_goes_on(subject: Volume) -> None:
    view = view_ap(subject, 800.0)
    first, again = (simulate_xray(subject, camera(), view, seed=4) for _ in range(2))
    other = simulate_xray(subject, camera(), view, seed=5)
    assert torch.equal(first, again) and not torch.equal(first, other)
    generator = torch.Generator().manual_seed(4)
    torch.testing.assert_close(
        simulate_xray(subject, camera(), view, seed=generator), first, rtol=0, atol=0
    )
    assert not torch.equal(simulate_xray(subject, camera(), view, seed=generator), first)
    state = torch.get_rng_state()
    simulate_xray(subject, camera(), view)
    assert torch.equal(torch.get_rng_state(), state)


def test_one_seed_gives_one_image_on_every_device(subject: Volume, device: torch.device) -> None:
    view = view_ap(subject, 800.0)
    here = simulate_xray(subject.to(device), camera(), view.to(device), seed=2).cpu()
    # A count may change by one where rounding moves its expectation.
    torch.testing.assert_close(
        here, simulate_xray(subject, camera(), view, seed=2), atol=1e-3, rtol=0
    )


def test_a_view_with_a_seed_of_its_own_is_the_same_in_every_batch(subject: Volume) -> None:
    views = torch.cat([view_ap(subject, 800.0), view_ap(subject, 700.0)])
    options = {"electronic_noise": 3.0, "scatter": 0.1}
    both = simulate_xray(subject, camera(), views, **options, seed=[4, 9])
    for k, seed in enumerate((4, 9)):
        for alone in (seed, (seed,)):
            found = simulate_xray(subject, camera(), views[k], **options, seed=alone)
            torch.testing.assert_close(found, both[k : k + 1])
    turned = simulate_xray(subject, camera(), views.flip(0), **options, seed=[9, 4])
    torch.testing.assert_close(turned.flip(0), both)
    with pytest.raises(ValueError, match="seed: expected 2 integers"):
        simulate_xray(subject, camera(), views, seed=[1])


def test_views_of_a_batch_are_the_views_by_themselves(subject: Volume) -> None:
    views = torch.stack([view_ap(subject, 800.0), view_ap(subject, 700.0)])
    options = {"scatter": 0.2, "photons": None}
    both = simulate_xray(subject, camera(), views, **options)
    for k in range(2):
        alone = simulate_xray(subject, camera(), views[k], **options)
        torch.testing.assert_close(both[k : k + 1], alone, rtol=1e-12, atol=1e-12)


def test_pixels_are_areas_over_which_intensities_and_not_line_integrals_are_averaged(
    subject: Volume,
) -> None:
    view = view_ap(subject, 800.0)
    area = simulate_xray(subject, camera(8), view, **{**CLEAN, "supersample": 3})
    fine = simulate_xray(subject, camera(24), view, **CLEAN)
    pool = torch.nn.functional.avg_pool2d
    torch.testing.assert_close(area, -pool(torch.exp(-fine), 3).log())
    assert (area <= pool(fine, 3)).all()  # Jensen


def test_blur_keeps_the_mean_intensity_and_takes_contrast() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(12, 12, 12, generator=generator, dtype=torch.float64) * 3200 - 1100
    volume = Volume(values, (5.0, 5.0, 5.0))
    view, wide = view_ap(volume, 800.0), CArm(1000.0, (64, 64), 2.0)
    options = {"spectrum": 70.0, "photons": None, "output": "intensity"}
    before = simulate_xray(volume, wide, view, blur_sigma_px=0.0, **options)
    after = simulate_xray(volume, wide, view, blur_sigma_px=1.0, **options)
    assert after.mean().item() == pytest.approx(before.mean().item(), rel=1e-3)
    for dim in (-1, -2):
        assert after.diff(dim=dim).var() < 0.8 * before.diff(dim=dim).var()


def test_motion_averages_intensities_around_the_pose(subject: Volume) -> None:
    view = view_ap(subject, 800.0)
    generator = torch.Generator().manual_seed(6)
    path = motion_path(
        view, subject, generator, rotation_sigma=0.05, translation_sigma=5.0, steps=3
    )
    assert path.shape == (1, 3, 4, 4)
    torch.testing.assert_close(path[:, 1], view.to(path))
    ends = path[0, 2] @ torch.linalg.inv(path[0, 0])
    assert se3_log(ends).norm() > 0.01
    blurred = simulate_xray(subject, camera(), path, output="intensity", **CLEAN)
    each = simulate_xray(subject, camera(), path[0], output="intensity", **CLEAN)
    torch.testing.assert_close(blurred, each.mean(0, keepdim=True))
    still = motion_path(view, subject, generator, rotation_sigma=0.0, translation_sigma=0.0)
    sharp = simulate_xray(subject, camera(), still, output="intensity", **CLEAN)
    torch.testing.assert_close(
        sharp, simulate_xray(subject, camera(), view, output="intensity", **CLEAN)
    )


def test_a_tool_darkens_only_what_it_covers(subject: Volume) -> None:
    view = view_ap(subject, 800.0)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, 3] = volume_center(subject) - torch.tensor([0.0, 0.0, 75.0])
    placed = PlacedTool(k_wire(14.0), pose)
    plain = simulate_xray(subject, camera(), view, **CLEAN)
    overlaid = simulate_xray(subject, camera(), view, **CLEAN, tools=[placed])
    covered = placed.area_density(camera(), view) > 0
    assert 0 < covered.sum() < 100
    assert (overlaid[covered] > plain[covered]).all()
    assert torch.equal(overlaid[~covered], plain[~covered])
    # The same metal written into the materials: a channel that is there takes the tool's.
    steel = tissue_materials(subject).with_metal(torch.zeros_like(subject.values), "steel")
    torch.testing.assert_close(
        simulate_xray(steel, camera(), view, **CLEAN, tools=[placed]), overlaid
    )


def test_images_are_on_the_dtype_of_the_volume_and_without_gradient(subject: Volume) -> None:
    view = view_ap(subject, 800.0)
    assert simulate_xray(subject, camera(), view).dtype == torch.float64
    half = simulate_xray(subject.to(torch.float16), camera(), view)
    assert half.dtype == torch.float32 and not half.requires_grad and torch.isfinite(half).all()
    grey = Volume(subject.values.clone().requires_grad_(), subject.spacing, subject.origin)
    assert not simulate_xray(grey, camera(), view).requires_grad


def test_autocast_changes_nothing(subject: Volume) -> None:
    ct, view = subject.to(torch.float32), view_ap(subject, 800.0)
    options = {"scatter": 0.2}
    expected = simulate_xray(ct, camera(), view, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = simulate_xray(ct, camera(), view, **options)
    assert torch.equal(found, expected)


def test_a_pixel_without_photons_is_finite() -> None:
    lead = Volume(torch.full((1, 8, 8, 8), 30.0), (20.0,) * 3, unit="mu")
    block = MaterialVolume(("iron",), lead)
    options = {"photons": 10.0, "photons_at": "source"}
    line = simulate_xray(block, camera(), view_ap(lead, 800.0), **options)
    assert torch.isfinite(line).all()
    assert float(line.max()) == pytest.approx(math.log(20.0), rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"spectrum": "70kV"}, ValueError, "spectrum"),
        ({"spectrum": 5.0}, ValueError, r"spectrum: expected energies of 10 to 150 keV"),
        ({"supersample": 0}, ValueError, "supersample: expected a positive integer, got 0"),
        ({"supersample": 1.5}, ValueError, "supersample"),
        ({"scatter": 1.5}, ValueError, "scatter"),
        ({"scatter_width": 0.0}, ValueError, "scatter_width"),
        ({"photons": 0.0}, ValueError, "photons: expected a positive number, got 0.0"),
        ({"photons_at": "tube"}, ValueError, "photons_at: .*got 'tube'"),
        ({"electronic_noise": -1.0}, ValueError, "electronic_noise"),
        ({"blur_sigma_px": math.nan}, ValueError, "blur_sigma_px"),
        ({"output": "log"}, ValueError, "output"),
        ({"seed": 1.5}, TypeError, "seed"),
        ({"seed": [1, 2]}, ValueError, "seed: expected 1 integers"),
    ],
)
def test_bad_options_are_named(subject: Volume, settings: dict, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        simulate_xray(subject, camera(), view_ap(subject, 800.0), **settings)


def test_bad_arguments_are_named(subject: Volume) -> None:
    view = view_ap(subject, 800.0)
    with pytest.raises(ValueError, match="world_to_camera"):
        simulate_xray(subject, camera(), view[..., :3])
    with pytest.raises(ValueError, match="steps"):
        motion_path(view, subject, torch.Generator(), steps=1)
    with pytest.raises(ValueError, match="area_densities"):
        beer_lambert(torch.zeros(1, 2, 3, 3), ("bone",))
