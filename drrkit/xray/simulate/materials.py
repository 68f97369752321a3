"""From Hounsfield units to materials: densities, metal and contrast agent, attenuation.

HU become grams per cubic centimetre by two straight lines and materials by thresholds, as in
DeepDRR (Unberath et al., MICCAI 2018); attenuation is a table's (`tables`, from xraylib).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drrkit.geometry import Camera
from drrkit.projector import render
from drrkit.volume import Volume
from drrkit.xray.simulate.tables import MASS_ATTENUATION, SPECTRA

__all__ = [
    "DENSITIES",
    "SPECTRA",
    "MaterialVolume",
    "Spectrum",
    "checked_spectrum",
    "hu_to_density",
    "mass_attenuation",
    "tissue_materials",
]

Spectrum = str | float | Mapping[float, float]
"""A name of `SPECTRA`, one photon energy in keV, or {keV: relative number of photons}."""

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
"""Density of each material in bulk [g/cm3]: of metals and tools. Tissue's comes from its HU."""

AIR_HU, BONE_HU, METAL_HU = -800.0, 350.0, 2500.0
CM_PER_MM = 0.1


def mass_attenuation(material: str, energy_kev: float | Iterable[float] | Tensor) -> Tensor:
    """Mass attenuation coefficient in cm2/g, float64, of the energies' shape; 10 to 150 keV.

    Logarithm in logarithm between the table's rows, with its K edges.

    Raises:
        ValueError: an unknown material, or an energy outside the table.
    """
    if material not in MASS_ATTENUATION:
        known = ", ".join(MASS_ATTENUATION)
        raise ValueError(f"material: expected one of {known}, got {material!r}")
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
        ValueError: an unknown name, energies outside 10 to 150 keV, or weights that are negative,
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


def hu_to_density(hu: Tensor) -> Tensor:
    """Density in g/cm3: max(min(0.001029 HU + 1.03, 0.0005886 HU + 1.03), 0), as in DeepDRR."""
    return torch.minimum(0.001029 * hu + 1.03, 0.0005886 * hu + 1.03).clamp_min(0.0)


@dataclass(frozen=True, eq=False)
class MaterialVolume:
    """Densities of several materials on one grid, and what they attenuate.

    materials  their names, of `DENSITIES`, each once
    densities  a Volume [M, D, H, W] of grams of each per cubic centimetre of voxel; its unit is
               "mu" because line integrals of it are wanted

    Raises ValueError for names that are unknown, repeated, or not one a channel.
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
            _check_material("materials", name)
        if self.densities.unit != "mu":
            raise ValueError(f"densities: expected unit 'mu', got {self.densities.unit!r}")

    def with_metal(
        self, fraction: Tensor, material: str = "titanium", density: float | None = None
    ) -> MaterialVolume:
        """The same body with an implant: in each voxel metal replaces its share of what was there.

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
        _check_material("material", material)
        density = DENSITIES[material] if density is None else density
        if not 0.0 < density < math.inf:
            raise ValueError(f"density: expected a positive number of g/cm3, got {density!r}")
        displaced = replace(self.densities, values=self.densities.values * (1.0 - share))
        return replace(self, densities=displaced)._with_added(material, density * share)

    def with_contrast(
        self, fraction: Tensor, mg_per_ml: float, material: str = "iodine"
    ) -> MaterialVolume:
        """The same body with contrast agent dissolved in a region, on top of what is there.

        Args:
            fraction: [D, H, W], share of each voxel that is filled (vessels, bowel), 0 to 1.
            mg_per_ml: of iodine or barium sulfate; angiography injects 300 to 400 mg iodine/ml,
                5 to 15 are left in a vein's phase.
            material: "iodine" or "barium_sulfate" as a rule; any name of `DENSITIES`.

        Raises:
            ValueError: another shape, negative shares or concentration, an unknown material.
        """
        share = self._checked_share("fraction", fraction)
        _check_material("material", material)
        if not 0.0 <= mg_per_ml < math.inf:
            raise ValueError(f"mg_per_ml: expected a number >= 0, got {mg_per_ml!r}")
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
        """Grams of each material a square centimetre along the rays: [B, M, rows, cols]."""
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


def tissue_materials(
    volume: Volume,
    *,
    air_hu: float = AIR_HU,
    bone_hu: float = BONE_HU,
    transition_hu: float = 0.0,
    metal: str | None = None,
    metal_hu: float = METAL_HU,
) -> MaterialVolume:
    """Air, soft tissue and bone of a CT, each voxel one material by its HU.

    Args:
        volume: the CT, a Volume in HU with one channel; densities as `hu_to_density`.
        air_hu, bone_hu: air up to the first, bone above the second.
        transition_hu: width over which a voxel passes from one material to the next, centred at
            the threshold; 0: at once, as published. Wider, density moves smoothly from one table
            to the other where partial volume mixes tissues.
        metal: voxels above metal_hu are this metal at its own density, which no CT measures; None:
            they are dense bone.
        metal_hu: its threshold.

    Returns:
        a MaterialVolume of ("air", "soft_tissue", "bone") and the metal.

    Raises:
        ValueError: not in HU, several channels, thresholds that are not ordered, an unknown metal.
    """
    if volume.unit != "HU":
        raise ValueError(f"volume: expected values in HU, got unit {volume.unit!r}")
    if volume.values.dim() == 4 and volume.values.shape[0] != 1:
        raise ValueError(f"volume: expected one channel, got shape {tuple(volume.values.shape)}")
    if not air_hu < bone_hu < metal_hu or not 0.0 <= transition_hu <= bone_hu - air_hu:
        raise ValueError(
            "air_hu, bone_hu, metal_hu: expected rising thresholds and a transition_hu that fits "
            f"between, got {air_hu:g}, {bone_hu:g}, {metal_hu:g} and {transition_hu:g}"
        )
    dtype = torch.promote_types(volume.values.dtype, torch.float32)
    hu = volume.values.reshape(volume.values.shape[-3:]).to(dtype)
    density = hu_to_density(hu)
    above_air, bone = _above(hu, air_hu, transition_hu), _above(hu, bone_hu, transition_hu)
    shares = torch.stack([1.0 - above_air, above_air - bone, bone])
    densities = replace(volume, values=shares * density, unit="mu", labels=None)
    tissues = MaterialVolume(("air", "soft_tissue", "bone"), densities)
    return tissues if metal is None else tissues.with_metal(hu > metal_hu, metal)


def _above(hu: Tensor, threshold: float, width: float) -> Tensor:
    """How far a value lies above a threshold: 0 to 1."""
    if width == 0.0:
        return (hu > threshold).to(hu)
    t = ((hu - threshold) / width + 0.5).clamp(0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _check_material(name: str, material: str) -> None:
    if material not in DENSITIES:
        raise ValueError(f"{name}: expected names of {', '.join(DENSITIES)}, got {material!r}")
