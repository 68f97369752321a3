"""Materials of a CT: tables, spectra, densities, metal and contrast agent."""

from __future__ import annotations

import pytest
import torch

from drrkit import Volume
from drrkit.volume import water_attenuation
from drrkit.xray import (
    DENSITIES,
    SPECTRA,
    MaterialVolume,
    checked_spectrum,
    mass_attenuation,
    tissue_materials,
)

NIST_KEV = (20.0, 30.0, 40.0, 50.0, 60.0, 80.0, 100.0)
# cm2/g, from the tables of NIST's X-ray mass attenuation database.
NIST = {
    "bone": (4.001, 1.331, 0.6655, 0.4242, 0.3148, 0.2229, 0.1855),
    "soft_tissue": (0.823, 0.379, 0.2688, 0.2264, 0.2048, 0.1823, 0.1693),
    "air": (0.7779, 0.3538, 0.2485, 0.208, 0.1875, 0.1662, 0.1541),
    "titanium": (15.85, 4.972, 2.214, 1.213, 0.7661, 0.4052, 0.2721),
    "iron": (25.68, 8.176, 3.629, 1.958, 1.205, 0.5952, 0.3717),
}


def ct(*hu: float) -> Volume:
    return Volume(torch.tensor(hu, dtype=torch.float64).reshape(1, 1, -1), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("material", NIST)
def test_attenuation_is_nist_s(material: str) -> None:
    expected = torch.tensor(NIST[material], dtype=torch.float64)
    torch.testing.assert_close(mass_attenuation(material, NIST_KEV), expected, rtol=0.01, atol=0)


def test_water_is_the_water_of_hounsfield_units() -> None:
    for energy in (40.0, 65.0, 70.0, 100.0):
        found = 0.1 * float(mass_attenuation("water", energy))
        assert found == pytest.approx(water_attenuation(energy), rel=0.01)


def test_iodine_and_barium_absorb_more_above_their_edges() -> None:
    for material, edge, factor in (("iodine", 33.17, 4.5), ("barium_sulfate", 37.44, 3.0)):
        below, above = mass_attenuation(material, [edge - 0.1, edge + 0.1])
        assert float(above / below) > factor
    assert mass_attenuation("iodine", 33.3).shape == ()


def test_between_the_rows_the_logarithm_is_linear_in_the_logarithm() -> None:
    low, middle, high = mass_attenuation("water", [20.0, (20.0 * 22.0) ** 0.5, 22.0])
    assert float(middle**2) == pytest.approx(float(low * high), rel=1e-12)


@pytest.mark.parametrize(("name", "mean"), [("60kV", 37.5), ("90kV", 49.2), ("120kV", 58.2)])
def test_spectra_have_the_published_mean_energy_and_end_at_the_voltage(
    name: str, mean: float
) -> None:
    energies, shares = checked_spectrum(name)
    assert float(shares.sum()) == pytest.approx(1.0, abs=1e-12)
    assert float((energies * shares).sum()) == pytest.approx(mean, rel=0.015)
    voltage = float(name.removesuffix("kV"))
    assert voltage - 2.0 < float(energies.max()) < voltage
    assert set(energies.tolist()) == set(SPECTRA[name])


def test_a_spectrum_may_be_an_energy_or_a_table() -> None:
    energies, shares = checked_spectrum(60.0)
    assert energies.tolist() == [60.0] and shares.tolist() == [1.0]
    energies, shares = checked_spectrum({40: 1, 80: 3})
    assert energies.tolist() == [40.0, 80.0] and shares.tolist() == [0.25, 0.75]


@pytest.mark.parametrize(
    ("spectrum", "error"),
    [
        ("80kV", ValueError),
        (5.0, ValueError),
        ({}, ValueError),
        ({60.0: -1.0}, ValueError),
        ({60.0: 0.0}, ValueError),
        ({200.0: 1.0}, ValueError),
        (None, TypeError),
    ],
)
def test_bad_spectra_are_refused(spectrum: object, error: type) -> None:
    with pytest.raises(error, match="spectrum"):
        checked_spectrum(spectrum)


def test_the_two_materials_together_have_the_ct_s_own_attenuation_at_its_energy() -> None:
    hu = torch.linspace(-1100, 3000, 8 * 9 * 10, dtype=torch.float64).reshape(8, 9, 10)
    volume = Volume(hu, (1.0, 1.0, 1.0))
    tissues = tissue_materials(volume)
    assert tissues.materials == ("water", "bone")
    water, bone = tissues.densities.values
    assert (water >= 0).all() and (bone >= 0).all()
    torch.testing.assert_close(
        tissues.attenuation(70.0).values, volume.to_mu(70.0).values, rtol=1e-12, atol=1e-15
    )
    assert (bone[hu <= 100] == 0).all() and (water[hu > 1600] == 0).all()


def test_attenuation_is_continuous_in_hu_at_every_energy() -> None:
    hu = torch.arange(-1000.0, 2500.0, dtype=torch.float64)
    for energy in (30.0, 60.0, 120.0):
        mu = tissue_materials(ct(*hu.tolist())).attenuation(energy).values.flatten()
        assert (mu.diff() > 0).all() and mu.diff().max() < 0.004 * mu.max()


def test_metal_displaces_what_was_there() -> None:
    body = tissue_materials(ct(40.0, 40.0, 1200.0))
    share = torch.tensor([1.0, 0.25, 0.0]).reshape(1, 1, 3)
    metal = body.with_metal(share, "titanium")
    assert metal.materials[-1] == "titanium"
    values = metal.densities.values[:, 0, 0]
    titanium = torch.tensor([4.506, 0.25 * 4.506, 0.0], dtype=torch.float64)
    torch.testing.assert_close(values[2], titanium)
    kept = torch.tensor([0.0, 0.75, 1.0], dtype=torch.float64)
    torch.testing.assert_close(values[:2], kept * body.densities.values[:, 0, 0])
    twice = metal.with_metal(share, "titanium")
    assert twice.materials == metal.materials
    assert float(twice.densities.values[2, 0, 0, 0]) == pytest.approx(4.506)


def test_contrast_adds_iodine_by_its_concentration() -> None:
    body = tissue_materials(ct(40.0, 40.0))
    filled = body.with_contrast(torch.tensor([1.0, 0.0]).reshape(1, 1, 2), 10.0)
    torch.testing.assert_close(filled.densities.values[:2], body.densities.values)
    assert filled.densities.values[2, 0, 0].tolist() == [0.01, 0.0]
    # 10 mg/ml of iodine raises a CT at 70 keV by some 250 to 300 HU.
    water = 0.1 * float(mass_attenuation("water", 70.0))
    gain = (filled.attenuation(70.0).values - body.attenuation(70.0).values)[0, 0, 0]
    assert 200.0 < 1000.0 * float(gain) / water < 320.0


def test_voxels_above_the_metal_threshold_may_be_metal() -> None:
    tissues = tissue_materials(ct(3000.0, 2000.0), metal="steel")
    assert tissues.materials == ("water", "bone", "steel")
    assert tissues.densities.values[:, 0, 0, 0].tolist() == [0.0, 0.0, DENSITIES["steel"]]
    assert float(tissues.densities.values[2, 0, 0, 1]) == 0.0


def test_bad_materials_are_named() -> None:
    body = tissue_materials(ct(40.0, 40.0))
    share = torch.ones(1, 1, 2)
    with pytest.raises(ValueError, match="material: expected one of air"):
        mass_attenuation("wood", 60.0)
    with pytest.raises(ValueError, match="energy_kev: expected 10 to 150"):
        mass_attenuation("bone", 160.0)
    with pytest.raises(ValueError, match="fraction: expected a tensor of the grid's shape"):
        body.with_metal(torch.ones(2, 2, 2))
    with pytest.raises(ValueError, match="fraction: expected shares up to 1"):
        body.with_metal(2 * share)
    with pytest.raises(ValueError, match="fraction: expected shares of at least 0"):
        body.with_contrast(-share, 1.0)
    with pytest.raises(ValueError, match="mg_per_ml"):
        body.with_contrast(share, -1.0)
    with pytest.raises(ValueError, match="density"):
        body.with_metal(share, density=0.0)
    with pytest.raises(ValueError, match="material: expected one of air"):
        body.with_metal(share, "wood")
    with pytest.raises(ValueError, match="volume: expected one channel"):
        tissue_materials(Volume(torch.zeros(2, 1, 1, 1), (1.0,) * 3))
    with pytest.raises(ValueError, match="expected values in HU"):
        tissue_materials(ct(0.0).to_mu())
    with pytest.raises(ValueError, match="materials: expected each once"):
        MaterialVolume(("air", "air"), Volume(torch.ones(2, 1, 1, 1), (1.0,) * 3, unit="mu"))
    with pytest.raises(ValueError, match="densities: expected"):
        MaterialVolume(("air",), Volume(torch.ones(2, 1, 1, 1), (1.0,) * 3, unit="mu"))
