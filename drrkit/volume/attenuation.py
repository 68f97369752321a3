"""Linear attenuation of water, the constant between Hounsfield units and mu."""

from __future__ import annotations

import math

CT_ENERGY_KEV = 70.0
"""Effective energy of a CT: what mu is computed for unless another energy is asked for."""

WATER_MU_PER_MM: dict[float, float] = {
    40.0: 0.02683,
    50.0: 0.02269,
    60.0: 0.02059,
    70.0: 0.01929,
    80.0: 0.01837,
    100.0: 0.01707,
    120.0: 0.01614,
}
"""Total linear attenuation of liquid water [1/mm] by photon energy [keV] (xraylib 4.3, NIST)."""


def water_attenuation(energy_kev: float = CT_ENERGY_KEV) -> float:
    """Linear attenuation coefficient of water.

    Between the energies of ``WATER_MU_PER_MM`` the logarithm of mu is interpolated linearly in
    the logarithm of the energy, the usual rule for attenuation tables.

    Args:
        energy_kev: (effective) photon energy in keV, 40 to 120.

    Returns:
        mu of water in 1/mm.

    Raises:
        TypeError: the energy is not a number.
        ValueError: the energy is outside the table.
    """
    if isinstance(energy_kev, bool) or not isinstance(energy_kev, (int, float)):
        raise TypeError(f"energy_kev: expected a number in keV, got {type(energy_kev).__name__}")
    energies = sorted(WATER_MU_PER_MM)
    if not energies[0] <= energy_kev <= energies[-1]:
        raise ValueError(
            f"energy_kev: expected {energies[0]:g} to {energies[-1]:g} keV, got {energy_kev!r}"
        )
    upper = next(e for e in energies if e >= energy_kev)
    if upper == energy_kev:
        return WATER_MU_PER_MM[upper]
    lower = energies[energies.index(upper) - 1]
    weight = math.log(energy_kev / lower) / math.log(upper / lower)
    low_mu, high_mu = WATER_MU_PER_MM[lower], WATER_MU_PER_MM[upper]
    return low_mu * (high_mu / low_mu) ** weight
