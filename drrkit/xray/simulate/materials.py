"""From Hounsfield units to materials: what fills a voxel, and how strongly it attenuates.

Attenuation and tube spectra are tables: tables.json, from xraylib and SpekPy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from drrkit.geometry import Camera, check_numbers
from drrkit.projector import render
from drrkit.volume import CT_ENERGY_KEV, Volume, water_attenuation

Spectrum = str | float | Mapping[float, float]
"""A name of `SPECTRA`, one photon energy in keV, or {keV: relative number of photons}."""

_TABLES = json.loads(Path(__file__).with_name("tables.json").read_text(encoding="utf-8"))
MASS_ATTENUATION: dict[str, list[tuple[float, float]]] = _TABLES["mass_attenuation"]
"""(photon energy [keV], mass attenuation coefficient [cm2/g]) by material."""

SPECTRA: dict[str, dict[float, float]] = {k: dict(v) for k, v in _TABLES["spectra"].items()}
"""{keV: share of the photons} of a tungsten tube behind aluminium:
60kV 3.5 mm, 90kV 4 mm, 120kV 4.3 mm."""

DENSITIES: dict[str, float] = {
    "air": 0.001205,
    "water": 1.0,
    "adipose": 0.95,
    "soft_tissue": 1.06,
    "bone": 1.92,
    "pmma": 1.19,
    "aluminium": 2.699,
    "titanium": 4.506,
    "iron": 7.874,
    "steel": 7.99,
    "cobalt_chrome": 8.3,
    "barium_sulfate": 4.5,
    "iodine": 4.93,
}
"""Density of each material in bulk [g/cm3]; bone is cortical bone."""

WATER_LIMIT_HU = 100.0
"""Up to here a voxel is water of another density; above, bone takes a growing share of it."""

METAL_HU = 2500.0
CM_PER_MM = 0.1


def mass_attenuation(material: str, energy_kev: float | Iterable[float] | Tensor) -> Tensor:
    """Mass attenuation coefficient in cm2/g, float64, of the energies' shape; 10 to 150 keV.

    Between the table's rows, which include K edges, log(mu/rho) is linear in log(energy).

    Raises:
        ValueError: an unknown material, or an energy outside the table.
    """
    check_material("material", material)
    if not isinstance(energy_kev, (Tensor, float, int)):
        energy_kev = list(energy_kev)
    wanted = torch.as_tensor(energy_kev, dtype=torch.float64)
    energies, values = torch.tensor(MASS_ATTENUATION[material], dtype=torch.float64).T.contiguous()
    if not bool(((wanted >= energies[0]) & (wanted <= energies[-1])).all()):
        raise ValueError(
            f"energy_kev: expected {energies[0]:g} to {energies[-1]:g} keV, got {energy_kev!r}"
        )
    upper = torch.searchsorted(energies, wanted.contiguous()).clamp(1, len(energies) - 1)
    low, high = energies[upper - 1].log(), energies[upper].log()
    weight = (wanted.log() - low) / (high - low)
    return torch.lerp(values[upper - 1].log(), values[upper].log(), weight).exp()


def checked_spectrum(spectrum: Spectrum) -> tuple[Tensor, Tensor]:
    """Energies [E] in keV and their shares of the photons [E], which sum to one; float64.

    Raises:
        TypeError: energies or shares that are not numbers.
        ValueError: an unknown name, energies outside 10 to 150 keV, or shares that are negative,
            not finite or all zero.
    """
    if isinstance(spectrum, str):
        if spectrum not in SPECTRA:
            raise ValueError(
                f"spectrum: expected one of {', '.join(SPECTRA)}, an energy in keV or "
                f"{{keV: share}}, got {spectrum!r}"
            )
        spectrum = SPECTRA[spectrum]
    if not isinstance(spectrum, Mapping):
        spectrum = {spectrum: 1.0}
    try:
        energies = torch.tensor([float(e) for e in spectrum], dtype=torch.float64)
        shares = torch.tensor([float(s) for s in spectrum.values()], dtype=torch.float64)
    except (TypeError, ValueError):
        raise TypeError(f"spectrum: expected numbers, got {spectrum!r}") from None
    total = float(shares.sum())
    if not len(shares) or bool((shares < 0).any()) or not 0 < total < math.inf:
        raise ValueError(f"spectrum: expected shares >= 0 of positive sum, got {spectrum!r}")
    if not bool(((energies >= 10.0) & (energies <= 150.0)).all()):
        raise ValueError(f"spectrum: expected energies of 10 to 150 keV, got {energies.tolist()}")
    return energies, shares / total


@dataclass(frozen=True, eq=False)
class MaterialVolume:
    """Densities of several materials on one grid, and what they attenuate.

    materials  their names, of `DENSITIES`, each once
    densities  a Volume [M, D, H, W] of grams of each per cubic centimetre of voxel; its unit is
               "mu" because line integrals of it are wanted

    Raises ValueError for names that are unknown or repeated, or whose number is not M.
    """

    materials: tuple[str, ...]
    densities: Volume

    def __post_init__(self) -> None:
        values = self.densities.values
        if values.ndim != 4 or values.shape[0] != len(self.materials):
            raise ValueError(
                f"densities: expected [{len(self.materials)}, D, H, W] for {self.materials}, "
                f"got {tuple(values.shape)}"
            )
        if len(set(self.materials)) != len(self.materials):
            raise ValueError(f"materials: expected each once, got {self.materials}")
        for name in self.materials:
            check_material("materials", name)
        if self.densities.unit != "mu":
            raise ValueError(f"densities: expected unit 'mu', got {self.densities.unit!r}")

    def with_metal(
        self, fraction: Tensor, material: str = "titanium", density: float | None = None
    ) -> MaterialVolume:
        """The same body with an implant: metal replaces its share of what was in each voxel.

        Args:
            fraction: [D, H, W], share of each voxel that is metal, 0 to 1; booleans are fine.
            material: a name of `DENSITIES`.
            density: g/cm3; default the material's own.

        Raises:
            ValueError: another shape, shares outside [0, 1], an unknown material, no density.
        """
        share = self._checked_share("fraction", fraction)
        if bool((share > 1.0).any()):
            raise ValueError(f"fraction: expected shares up to 1, got {float(share.max()):g}")
        check_material("material", material)
        density = DENSITIES[material] if density is None else density
        check_numbers(density=density)
        displaced = replace(self.densities, values=self.densities.values * (1.0 - share))
        return replace(self, densities=displaced)._with_added(material, density * share)

    def with_contrast(
        self, fraction: Tensor, mg_per_ml: float, material: str = "iodine"
    ) -> MaterialVolume:
        """The same body with contrast agent dissolved in a region, on top of what is there.

        Args:
            fraction: [D, H, W], share of each voxel that is filled (vessels, bowel), 0 to 1.
            mg_per_ml: of iodine or barium sulfate; angiography injects 300 to 400 mg iodine/ml,
                of which 5 to 15 remain in the venous phase.
            material: "iodine" or "barium_sulfate" as a rule; any name of `DENSITIES`.

        Raises:
            ValueError: another shape, negative shares or concentration, an unknown material.
        """
        share = self._checked_share("fraction", fraction)
        check_material("material", material)
        check_numbers(True, mg_per_ml=mg_per_ml)
        return self._with_added(material, 1e-3 * mg_per_ml * share)

    def attenuation(self, energy_kev: float) -> Volume:
        """Linear attenuation of everything together at one energy: a Volume in mu (1/mm)."""
        values = self.densities.values
        weights = [CM_PER_MM * float(mass_attenuation(m, energy_kev)) for m in self.materials]
        total = sum(w * channel for w, channel in zip(weights, values, strict=True))
        return replace(self.densities, values=total, unit="mu")

    def area_densities(
        self, camera: Camera, world_to_camera: Tensor, *, method: str = "joseph"
    ) -> Tensor:
        """Grams of each material per square centimetre along the rays: [B, M, rows, cols]."""
        return CM_PER_MM * render(self.densities, camera, world_to_camera, method=method)

    def _checked_share(self, name: str, share: Tensor) -> Tensor:
        values = self.densities.values
        if not isinstance(share, Tensor) or share.shape != values.shape[1:]:
            found = tuple(share.shape) if isinstance(share, Tensor) else type(share).__name__
            raise ValueError(
                f"{name}: expected a tensor of the grid's shape {tuple(values.shape[1:])}, "
                f"got {found}"
            )
        share = share.to(values)
        if not bool((share >= 0.0).all()):
            raise ValueError(f"{name}: expected shares of at least 0")
        return share

    def _with_added(self, material: str, density: Tensor) -> MaterialVolume:
        values, materials = self.densities.values, self.materials
        if material in materials:
            values = values.clone()
            values[materials.index(material)] += density
        else:
            values, materials = torch.cat([values, density[None]]), (*materials, material)
        return MaterialVolume(materials, replace(self.densities, values=values))


def tissue_materials(volume: Volume, *, metal: str | None = None) -> MaterialVolume:
    """Water and cortical bone that together have the CT's own attenuation at CT_ENERGY_KEV.

    A voxel's mu (`Volume.to_mu`) is that of water of another density up to WATER_LIMIT_HU. Above,
    bone fills a share f of it: mu = (1 - f) mu(limit) + f mu(bone); beyond f = 1 it is bone of
    another density. So mu is continuous in HU at every energy, which a threshold between soft
    tissue and bone is not (it makes a third more of 350 HU at 60 keV).

    Args:
        volume: the CT, a Volume in HU with one channel.
        metal: a name of `DENSITIES`: voxels above 2500 HU are this metal at its own density, which
            no CT measures. None: they are dense bone.

    Returns:
        a MaterialVolume of ("water", "bone") and the metal.

    Raises:
        ValueError: not in HU, several channels, an unknown metal.
    """
    if volume.unit != "HU":
        raise ValueError(f"volume: expected values in HU, got unit {volume.unit!r}")
    if volume.values.dim() == 4 and volume.values.shape[0] != 1:
        raise ValueError(f"volume: expected one channel, got shape {tuple(volume.values.shape)}")
    dtype = torch.promote_types(volume.values.dtype, torch.float32)
    hu = volume.values.reshape(volume.values.shape[-3:]).to(dtype)
    mu = replace(volume, values=hu, labels=None).to_mu()
    limit = (1.0 + WATER_LIMIT_HU / 1000.0) * water_attenuation()
    water, bone = (CM_PER_MM * float(mass_attenuation(m, CT_ENERGY_KEV)) for m in ("water", "bone"))
    full = bone * DENSITIES["bone"]
    share = ((mu.values - limit) / (full - limit)).clamp_min(0.0)
    of_water = torch.where(share > 0.0, limit * (1.0 - share).clamp_min(0.0), mu.values)
    of_bone = torch.where(share > 1.0, mu.values, full * share)
    densities = replace(mu, values=torch.stack([of_water / water, of_bone / bone]))
    tissues = MaterialVolume(("water", "bone"), densities)
    return tissues if metal is None else tissues.with_metal(hu > METAL_HU, metal)


def check_material(name: str, material: str) -> None:
    """Raise ValueError, naming the argument, unless the material is one of `DENSITIES`."""
    if material not in DENSITIES:
        raise ValueError(f"{name}: expected one of {', '.join(DENSITIES)}, got {material!r}")
