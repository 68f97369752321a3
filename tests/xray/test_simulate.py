"""Simulated X-rays: materials, spectrum, area pixels, noise, blur."""

from __future__ import annotations

import math

import pytest
import torch

from drrkit import CArm, Volume, render, simulate_xray, view_ap
from drrkit.volume import water_attenuation
from drrkit.xray import (
    BONE_MU_PER_MM,
    SPECTRUM_90KV,
    bone_attenuation,
    split_materials,
)

CLEAN = {"photons": None, "blur_sigma_px": 0.0}


def block(hu: float, *, size: int = 20, spacing: float = 5.0) -> Volume:
    """A cube of one HU value, wider than the field of view of `camera`."""
    values = torch.full((size, size, size), hu, dtype=torch.float64)
    return Volume(values, (spacing,) * 3, unit="HU")


def camera(pixels: int = 8) -> object:
    return CArm(1000.0, (pixels, pixels), 24.0 / pixels)


def mixed() -> Volume:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(12, 12, 12, generator=generator, dtype=torch.float64) * 3200 - 1100
    return Volume(values, (5.0, 5.0, 5.0), unit="HU")


def test_the_two_materials_together_have_the_ct_s_own_attenuation_at_its_energy():
    hu = torch.linspace(-1100, 3000, 8 * 9 * 10, dtype=torch.float64).reshape(8, 9, 10)
    parts = split_materials(Volume(hu, (1.0, 1.0, 1.0), unit="HU"))
    water, bone = parts.values
    assert (water >= 0).all() and (bone >= 0).all()
    total = water * water_attenuation(70.0) + bone * bone_attenuation(70.0)
    expected = (1 + hu / 1000).clamp_min(0) * water_attenuation(70.0)
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-15)
    assert (bone[hu <= 100] == 0).all() and (water[hu > 1500] == 0).all()


def test_one_ray_a_pixel_at_the_ct_s_energy_is_the_drr():
    volume = mixed()
    view = view_ap(volume, 800.0)
    found = simulate_xray(volume, camera(), view, energy_kev=70.0, supersample=1, **CLEAN)
    expected = render(volume.to_mu(70.0), camera(), view)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_bone_gains_more_contrast_than_water_at_lower_energy():
    for energy in (50.0, 100.0):
        for hu, mu in ((0.0, water_attenuation), (1444.27, bone_attenuation)):
            volume = block(hu)
            view = view_ap(volume, 800.0)
            low = simulate_xray(volume, camera(), view, energy_kev=energy, **CLEAN)
            reference = simulate_xray(volume, camera(), view, energy_kev=70.0, **CLEAN)
            ratio = mu(energy) / mu(70.0)
            torch.testing.assert_close(low, ratio * reference, rtol=1e-4, atol=0)


def test_a_spectrum_hardens_and_lies_between_its_energies():
    thick, thin = block(0.0, spacing=10.0), block(0.0, spacing=5.0)
    values = [
        simulate_xray(ct, camera(), view_ap(ct, 800.0), energy_kev=SPECTRUM_90KV, **CLEAN)
        for ct in (thick, thin)
    ]
    thicker = (values[0] / values[1]).mean().item()
    assert 1.8 < thicker < 1.995  # twice the water attenuates less than twice
    rays = simulate_xray(thin, camera(), view_ap(thin, 800.0), energy_kev=70.0, **CLEAN)
    effective = values[1] / rays * water_attenuation(70.0)
    assert (effective > water_attenuation(80.0)).all()
    assert (effective < water_attenuation(40.0)).all()


def test_one_seed_gives_one_image_on_every_device(device):
    volume = mixed()
    view = view_ap(volume, 800.0)
    here = simulate_xray(volume.to(device), camera(), view.to(device), seed=2).cpu()
    # A count may change by one where rounding moves its expectation.
    torch.testing.assert_close(
        here, simulate_xray(volume, camera(), view, seed=2), atol=1e-3, rtol=0
    )


def test_weights_of_a_spectrum_are_relative():
    volume = mixed()
    view = view_ap(volume, 800.0)
    one = simulate_xray(volume, camera(), view, energy_kev={50.0: 1.0, 80.0: 3.0}, **CLEAN)
    two = simulate_xray(volume, camera(), view, energy_kev={50.0: 10.0, 80.0: 30.0}, **CLEAN)
    torch.testing.assert_close(one, two)


def test_pixels_are_areas_over_which_intensities_and_not_line_integrals_are_averaged():
    volume = mixed()
    view = view_ap(volume, 800.0)
    area = simulate_xray(volume, camera(), view, energy_kev=70.0, supersample=4, **CLEAN)
    fine = simulate_xray(volume, camera(32), view, energy_kev=70.0, supersample=1, **CLEAN)
    pool = torch.nn.functional.avg_pool2d
    torch.testing.assert_close(area, -pool(torch.exp(-fine), 4).log())
    assert (area < pool(fine, 4)).all()  # Jensen


def test_noise_has_the_variance_of_counted_photons_and_repeats_with_its_seed():
    volume = block(0.0)
    big = CArm(1000.0, (96, 96), 0.25)
    view = view_ap(volume, 800.0)
    options = {"energy_kev": 70.0, "supersample": 1, "blur_sigma_px": 0.0}
    clean = simulate_xray(volume, big, view, photons=None, **options)
    for where, mean in (("source", 5e3), ("detector", 5e3)):
        noisy = simulate_xray(volume, big, view, photons=mean, photons_at=where, **options)
        counts = mean if where == "detector" else mean * float(torch.exp(-clean).mean())
        spread = float((noisy - clean).var()) * counts
        assert spread == pytest.approx(1.0, abs=0.06)
        assert float((noisy - clean).mean()) == pytest.approx(
            0.5 / counts, abs=4 / 96 / counts**0.5
        )
    first = simulate_xray(volume, big, view, seed=3, **options)
    assert torch.equal(first, simulate_xray(volume, big, view, seed=3, **options))
    assert not torch.equal(first, simulate_xray(volume, big, view, seed=4, **options))


def test_a_pixel_without_photons_stays_finite():
    volume = block(3000.0, spacing=20.0)
    found = simulate_xray(volume, camera(), view_ap(volume, 800.0), photons_at="source")
    assert found.isfinite().all() and found.max() <= math.log(2 * 2e4) + 1e-6


def test_blur_keeps_the_mean_intensity_and_takes_contrast():
    volume = mixed()
    view = view_ap(volume, 800.0)
    wide = CArm(1000.0, (64, 64), 2.0)
    sharp = simulate_xray(volume, wide, view, energy_kev=70.0, **CLEAN)
    soft = simulate_xray(volume, wide, view, energy_kev=70.0, photons=None, blur_sigma_px=1.0)
    before, after = torch.exp(-sharp), torch.exp(-soft)
    assert after.mean().item() == pytest.approx(before.mean().item(), rel=1e-3)
    assert after.diff(dim=-1).var() < 0.8 * before.diff(dim=-1).var()
    assert after.diff(dim=-2).var() < 0.8 * before.diff(dim=-2).var()


def test_views_come_as_a_batch_in_the_dtype_of_the_volume():
    volume = mixed()
    views = view_ap(volume, 800.0).repeat(3, 1, 1)
    assert simulate_xray(volume, camera(), views).shape == (3, 1, 8, 8)
    assert simulate_xray(volume, camera(), views[0]).dtype == torch.float64
    assert simulate_xray(volume.to(dtype=torch.float32), camera(), views).dtype == torch.float32


def test_bone_attenuation_meets_its_table_and_interpolates_between():
    for energy, mu in BONE_MU_PER_MM.items():
        assert bone_attenuation(energy) == mu
    middle = bone_attenuation(math.sqrt(60.0 * 70.0))
    assert middle == pytest.approx(math.sqrt(BONE_MU_PER_MM[60.0] * BONE_MU_PER_MM[70.0]))


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"energy_kev": 20.0}, ValueError, r"energy_kev: .*got 20.0"),
        ({"energy_kev": "60"}, TypeError, r"energy_kev: .*got str"),
        ({"energy_kev": {60.0: -1.0}}, ValueError, r"energy_kev: expected weights >= 0"),
        ({"energy_kev": {}}, ValueError, r"energy_kev: expected weights >= 0"),
        ({"supersample": 0}, ValueError, r"supersample: expected a positive integer, got 0"),
        ({"photons": 0.0}, ValueError, r"photons: expected a positive number or None, got 0.0"),
        ({"photons_at": "tube"}, ValueError, r"photons_at: .*got 'tube'"),
        ({"blur_sigma_px": -1.0}, ValueError, r"blur_sigma_px: .*got -1.0"),
    ],
)
def test_bad_options_raise_errors_that_name_them(options, error, message):
    volume = mixed()
    with pytest.raises(error, match=message):
        simulate_xray(volume, camera(), view_ap(volume, 800.0), **options)


def test_a_volume_in_another_unit_or_of_several_channels_is_refused():
    volume = mixed()
    view = view_ap(volume, 800.0)
    with pytest.raises(ValueError, match="volume: expected values in HU, got unit 'mu'"):
        simulate_xray(volume.to_mu(), camera(), view)
    several = Volume(volume.values.expand(2, -1, -1, -1), volume.spacing, unit="HU")
    with pytest.raises(ValueError, match="volume: expected one channel"):
        simulate_xray(several, camera(), view)
