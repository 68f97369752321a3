"""Simulated X-ray images: two materials, a spectrum, area pixels, photon noise and blur.

What a detector sees differs from a DRR in four ways that matter to registration, and
`simulate_xray` has all four: bone and soft tissue attenuate differently at other energies (beam
hardening included), pixels are areas over which intensities add, photons are counted, and light
spreads in the detector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from drrkit.geometry import Camera
from drrkit.projector import render
from drrkit.volume import Volume, water_attenuation
from drrkit.xray.simulate.detector import gaussian_blur

__all__ = [
    "BONE_MU_PER_MM",
    "SPECTRUM_90KV",
    "bone_attenuation",
    "simulate_xray",
    "split_materials",
]

BONE_MU_PER_MM: dict[float, float] = {
    40.0: 0.11935,
    50.0: 0.07674,
    60.0: 0.05739,
    70.0: 0.04715,
    80.0: 0.04108,
    100.0: 0.03441,
    120.0: 0.03082,
}
"""Total linear attenuation of cortical bone (ICRP, 1.85 g/cm3) [1/mm] by photon energy [keV]."""

SPECTRUM_90KV: dict[float, float] = {
    40.0: 0.314,
    50.0: 0.290,
    60.0: 0.224,
    70.0: 0.120,
    80.0: 0.052,
}
"""Relative photon numbers by energy [keV]: a 90 kV tube behind 4 mm of aluminium, in 10 keV steps.
The part below 35 keV is left out: a trunk absorbs nearly all of it."""

HU_ENERGY_KEV = 70.0
"""Effective energy of the CT: at this energy the two materials reproduce the volume's own mu."""

SOFT_TISSUE_LIMIT_HU = 100.0
"""Up to here a voxel is water of another density; above, bone takes a growing share of it."""


def split_materials(volume: Volume) -> Volume:
    """Water and cortical bone that together have the CT's attenuation.

    A voxel of m = 1 + HU / 1000 times the attenuation of water is water of relative density m up to
    SOFT_TISSUE_LIMIT_HU. Above, cortical bone fills a share f of it, with m = (1 - f) limit + f R,
    R = mu_bone / mu_water at HU_ENERGY_KEV; beyond f = 1 it is bone of relative density m / R.

    Args:
        volume: a Volume in HU with one channel.

    Returns:
        a Volume of two channels, relative densities of water and of cortical bone, marked "mu"
        because its line integrals are wanted: they are equivalent lengths in mm.

    Raises:
        ValueError: the volume is not in HU or has several channels.
    """
    if volume.unit != "HU":
        raise ValueError(f"volume: expected values in HU, got unit {volume.unit!r}")
    if volume.values.dim() == 4 and volume.values.shape[0] != 1:
        raise ValueError(f"volume: expected one channel, got shape {tuple(volume.values.shape)}")
    dtype = torch.promote_types(volume.values.dtype, torch.float32)
    relative = (1.0 + volume.values.reshape(volume.values.shape[-3:]).to(dtype) / 1000.0).clamp_min(
        0
    )
    limit = 1.0 + SOFT_TISSUE_LIMIT_HU / 1000.0
    ratio = bone_attenuation(HU_ENERGY_KEV) / water_attenuation(HU_ENERGY_KEV)
    share = ((relative - limit) / (ratio - limit)).clamp_min(0.0)
    bone = torch.where(share > 1.0, relative / ratio, share)
    water = torch.where(share > 0.0, limit * (1.0 - share).clamp_min(0.0), relative)
    return replace(volume, values=torch.stack([water, bone]), unit="mu", labels=None)


def bone_attenuation(energy_kev: float) -> float:
    """Linear attenuation of cortical bone in 1/mm, 40 to 120 keV, log-log between the table's rows.

    Raises:
        TypeError, ValueError: the energy is not a number or outside the table.
    """
    water_attenuation(energy_kev)  # the same energies, the same errors
    energies = sorted(BONE_MU_PER_MM)
    upper = next(e for e in energies if e >= energy_kev)
    lower = max((e for e in energies if e <= energy_kev), default=upper)
    if lower == upper:
        return BONE_MU_PER_MM[upper]
    weight = math.log(energy_kev / lower) / math.log(upper / lower)
    low_mu, high_mu = BONE_MU_PER_MM[lower], BONE_MU_PER_MM[upper]
    return low_mu * (high_mu / low_mu) ** weight


def simulate_xray(
    volume: Volume,
    camera: Camera,
    world_to_camera: Tensor,
    *,
    energy_kev: float | Mapping[float, float] = 60.0,
    supersample: int = 3,
    photons: float | None = 2e4,
    photons_at: str = "detector",
    blur_sigma_px: float = 0.5,
    seed: int = 0,
    method: str = "joseph",
) -> Tensor:
    """An X-ray image of a CT as a detector would record it, as minus its logarithm.

    Counts n = Poisson(N T), where T = mean over the pixel's rays of sum_E s_E exp(-mu_w(E) L_w -
    mu_b(E) L_b), are blurred by a Gaussian and returned as -log(n / N): the scale of line
    integrals, but no multiple of any of them. A pixel without a photon counts as half of one.

    Args:
        volume: the CT, a Volume in HU with one channel.
        camera, world_to_camera: the view or views, [4, 4] or [B, 4, 4].
        energy_kev: one photon energy, or a spectrum {keV: relative number} such as SPECTRUM_90KV;
            40 to 120 keV.
        supersample: rays a pixel along each side.
        photons: photons a pixel, or None for an image without noise.
        photons_at: where they are counted. "detector": on average over each image's pixels, as
            automatic exposure control sets them. "source": before the patient, N itself; a trunk
            lets fewer than one in a thousand pass.
        blur_sigma_px: standard deviation of the detector's blur in pixels; 0 for none.
        seed: of the noise.
        method: projector method, as in `render`.

    Returns:
        [B, 1, rows, cols] float32 (float64 for a float64 volume), no unit, without gradient.

    Raises:
        TypeError, ValueError: the volume is not in HU, an energy is outside 40 to 120 keV, or a
            weight, supersample, photons, photons_at or blur_sigma_px is none of those described.
    """
    spectrum = _checked_spectrum(energy_kev)
    if isinstance(supersample, bool) or not isinstance(supersample, int) or supersample < 1:
        raise ValueError(f"supersample: expected a positive integer, got {supersample!r}")
    if photons is not None and not 0 < photons < math.inf:
        raise ValueError(f"photons: expected a positive number or None, got {photons!r}")
    if photons_at not in ("detector", "source"):
        raise ValueError(f"photons_at: expected 'detector' or 'source', got {photons_at!r}")
    if not 0 <= blur_sigma_px < math.inf:
        raise ValueError(f"blur_sigma_px: expected a number of pixels >= 0, got {blur_sigma_px!r}")
    materials = split_materials(volume)
    fine = camera.rescale(1.0 / supersample)
    with torch.no_grad():
        lengths = render(materials, fine, world_to_camera, method=method)
        intensity = functional.avg_pool2d(_transmission(lengths, spectrum), supersample)
        darkest = torch.full_like(intensity[:, :, :1, :1], torch.finfo(intensity.dtype).tiny)
        if photons is not None:
            emitted = torch.full_like(darkest, photons)
            if photons_at == "detector":
                emitted = photons / intensity.mean(dim=(-1, -2), keepdim=True)
            intensity = _count_photons(intensity, emitted, seed)
            darkest = 0.5 / emitted
        if blur_sigma_px > 0:
            intensity = gaussian_blur(intensity, blur_sigma_px)
        return -torch.maximum(intensity, darkest).log()


def _checked_spectrum(energy_kev: float | Mapping[float, float]) -> dict[float, float]:
    """Energies with their shares of the photons, which sum to one."""
    if not isinstance(energy_kev, Mapping):
        water_attenuation(energy_kev)  # raises unless it is an energy of the table
        return {float(energy_kev): 1.0}
    weights = {float(energy): float(weight) for energy, weight in energy_kev.items()}
    total = sum(weights.values())
    if not weights or min(weights.values()) < 0 or not 0 < total < math.inf:
        raise ValueError(f"energy_kev: expected weights >= 0 of positive sum, got {weights!r}")
    for energy in weights:
        water_attenuation(energy)
    return {energy: weight / total for energy, weight in weights.items()}


def _transmission(lengths: Tensor, spectrum: dict[float, float]) -> Tensor:
    """Share of photons [B, 1, ...] behind equivalent lengths [B, 2, ...] of water and bone."""
    water, bone = lengths[:, :1], lengths[:, 1:]
    passed = torch.zeros_like(water)
    for energy, share in spectrum.items():
        mu_water, mu_bone = water_attenuation(energy), bone_attenuation(energy)
        passed = passed + share * torch.exp(-mu_water * water - mu_bone * bone)
    return passed


def _count_photons(intensity: Tensor, photons: Tensor, seed: int) -> Tensor:
    """Poisson counts of an expected share of photons, as a share again."""
    # Drawn on the CPU so that one seed gives one image on every device.
    generator = torch.Generator().manual_seed(seed)
    counts = torch.poisson((intensity.double() * photons).cpu(), generator=generator)
    return counts.to(intensity) / photons
