"""Attenuation, spectra and the detector of the gauntlet's X-rays.

Mass attenuation coefficients (cm^2/g, with coherent scattering) are those of Elam, Ravel and Sieber
(Radiat. Phys. Chem. 63, 2002, 121), as xraydb 4.5 gives them, for the compositions of ICRU Report
44; they agree with Hubbell and Seltzer's tables (NIST) to a few parts in a thousand. Lengths in
this file are cm and densities g/cm^3, as these tables have them; everything else is in mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter
from torch import Tensor

ENERGIES_KEV = np.array([30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0, 110.0])

MASS_ATTENUATION = {  # cm^2/g at ENERGIES_KEV
    "water": (0.3756, 0.2683, 0.2269, 0.2059, 0.1929, 0.1837, 0.1766, 0.1707, 0.1657),
    "adipose": (0.3064, 0.2396, 0.2123, 0.1974, 0.1875, 0.1800, 0.1740, 0.1688, 0.1643),
    "muscle": (0.3783, 0.2685, 0.2263, 0.2048, 0.1916, 0.1823, 0.1751, 0.1693, 0.1643),
    "bone mineral": (2.099, 0.9876, 0.5867, 0.4067, 0.3131, 0.2589, 0.2248, 0.2019, 0.1856),
    "cortical bone": (1.331, 0.6655, 0.4242, 0.3148, 0.2570, 0.2229, 0.2008, 0.1855, 0.1743),
    "plastic": (0.3032, 0.2350, 0.2074, 0.1924, 0.1825, 0.1751, 0.1692, 0.1641, 0.1596),
    "carbon": (0.2562, 0.2076, 0.1871, 0.1753, 0.1672, 0.1610, 0.1558, 0.1514, 0.1474),
    "aluminium": (1.128, 0.5684, 0.3682, 0.2778, 0.2301, 0.2018, 0.1833, 0.1704, 0.1608),
    "titanium": (4.972, 2.213, 1.213, 0.7660, 0.5361, 0.4053, 0.3247, 0.2721, 0.2360),
    "steel": (8.177, 3.629, 1.957, 1.205, 0.8164, 0.5952, 0.4597, 0.3717, 0.3118),
    "copper": (10.91, 4.861, 2.613, 1.593, 1.064, 0.7630, 0.5783, 0.4585, 0.3770),
    "iodine": (8.562, 22.10, 12.32, 7.577, 5.016, 3.510, 2.565, 1.942, 1.515),
    "caesium iodide": (9.047, 22.97, 12.87, 7.921, 5.248, 3.677, 2.688, 2.035, 1.587),
}
"""Bone mineral is hydroxyapatite, Ca10(PO4)6(OH)2; steel is taken for iron, plastic for PMMA."""

MINERAL_DENSITY = 3.1
CT_WATER = 0.1906  # cm^2/g at 72.5 keV, taken for the CT scanner's effective energy
CT_MUSCLE = 0.1891
CT_MINERAL = 0.2979
SOFT_LIMIT_HU = 120.0  # denser voxels are soft tissue with bone mineral in it


def tissue_and_mineral(hu: Tensor) -> tuple[Tensor, Tensor]:
    """Densities (g/cm^3) of soft tissue and of bone mineral that give a CT number.

    Both follow from mu = mu_water (1 + HU / 1000): up to SOFT_LIMIT_HU it is soft tissue of some
    density, above it the share v of the volume is mineral and 1 - v the densest soft tissue.
    """
    mu = (CT_WATER * (1.0 + hu / 1000.0)).clamp_min(0.0)
    limit = CT_WATER * (1.0 + SOFT_LIMIT_HU / 1000.0)
    share = ((mu - limit) / (MINERAL_DENSITY * CT_MINERAL - limit)).clamp(0.0, 1.0)
    return mu.clamp_max(limit) * (1.0 - share) / CT_MUSCLE, MINERAL_DENSITY * share


def spectrum(kilovolt: float, aluminium_mm: float = 3.0) -> np.ndarray:
    """Photons per energy of a tungsten tube, a sum of one: Kramers' law behind aluminium.

    Kramers (Philos. Mag. 46, 1923, 836): the number of photons at E goes as kVp / E - 1. The
    characteristic lines, near 59 and 67 keV, add a tenth of the photons from 75 kV on.
    """
    photons = np.clip(kilovolt / ENERGIES_KEV - 1.0, 0.0, None)
    if kilovolt > 75.0:
        photons[3] += 0.07 * photons.sum()
        photons[4] += 0.03 * photons.sum()
    filter_cm = 0.1 * aluminium_mm
    photons = photons * np.exp(-2.699 * filter_cm * np.array(MASS_ATTENUATION["aluminium"]))
    return photons / photons.sum()


def detected(kilovolt: float) -> np.ndarray:
    """Share of the signal by energy: 0.6 mm of CsI (3.4 g/cm^3) that adds up energy."""
    absorbed = 1.0 - np.exp(-3.4 * 0.06 * np.array(MASS_ATTENUATION["caesium iodide"]))
    signal = spectrum(kilovolt) * absorbed * ENERGIES_KEV
    return signal / signal.sum()


def transmitted(areas: dict[str, np.ndarray], kilovolt: float) -> np.ndarray:
    """Signal as a share of the open field's behind area densities (g/cm^2, by material)."""
    shares = detected(kilovolt)
    first = next(iter(areas.values()))
    signal = np.zeros_like(first)
    for k, share in enumerate(shares):
        if share > 0.0:
            depth = sum(MASS_ATTENUATION[name][k] * area for name, area in areas.items())
            signal += share * np.exp(-np.maximum(depth, 0.0))
    return signal


@dataclass(frozen=True)
class Detector:
    """What happens to the primary image on its way to a picture.

    Attributes:
        scatter: scatter over primary behind the body (median over the pixels it covers).
        photons: quanta per pixel behind the body (median).
        blur_px: standard deviation of the detector's blur, pixels.
    """

    scatter: float = 0.1
    photons: float = 2e4
    blur_px: float = 0.5

    def lines(
        self, primary: np.ndarray, oversampling: int, field: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """-log of the measured signal [rows, cols] from the primary signal on finer pixels.

        field: [rows, cols], the share of the beam that the collimator lets through.
        """
        sharp = gaussian_filter(primary, self.blur_px * oversampling, mode="nearest")
        rows, cols = (n // oversampling for n in sharp.shape)
        pixels = sharp.reshape(rows, oversampling, cols, oversampling).mean((1, 3))
        lit = pixels * field
        body = (pixels < 0.4) & (field > 0.5)
        if not body.any():
            body = field > 0.5
        if self.scatter > 0.0:
            lit = lit + self.scatter * scattered(lit, pixels, body)
        quanta = self.photons / float(np.median(lit[body]))
        counts = rng.poisson(np.minimum(lit * quanta, 1e15))
        return -np.log(np.maximum(counts, 0.5) / quanta)


def scattered(lit: np.ndarray, pixels: np.ndarray, body: np.ndarray) -> np.ndarray:
    """A smooth field of scatter whose median over the body is that of the primary.

    Scatter arises where photons leave the beam: lit * -log(signal), spread by a narrow and a wide
    Gaussian (0.08 and 0.3 of the image's width).
    """
    origin = lit * -np.log(np.clip(pixels, 1e-6, 1.0))
    width = lit.shape[1]
    spread = sum(gaussian_filter(origin, share * width, mode="nearest") for share in (0.08, 0.3))
    return spread * float(np.median(lit[body])) / max(float(np.median(spread[body])), 1e-12)
