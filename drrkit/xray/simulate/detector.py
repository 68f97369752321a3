"""What happens to X-rays behind the patient: spectrum to signal, scatter, noise, blur."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from drrkit.xray.simulate.materials import Spectrum, checked_spectrum, mass_attenuation

__all__ = ["Signal", "add_noise", "add_scatter", "beer_lambert", "gaussian_blur"]

CHUNK = 2**22  # pixels times energies held at a time


class Signal(NamedTuple):
    """What reaches a detector, as shares of what does without a patient: [B, 1, rows, cols].

    energy  sum_E s E T / sum_E s E, what an energy-integrating detector shows
    counts  sum_E s T, the share of the photons
    quanta  (sum_E s E T)^2 / sum_E s E^2 T: the share of the photons that, were they all of one
            energy, would show the noise of the energy-integrated signal; at most counts
    """

    energy: Tensor
    counts: Tensor
    quanta: Tensor


def beer_lambert(
    area_densities: Tensor, materials: tuple[str, ...], spectrum: Spectrum = "90kV"
) -> Signal:
    """Polyenergetic attenuation: T(E) = exp(-sum_m (mu/rho)_m(E) A_m) over a spectrum.

    Args:
        area_densities: A, [B, M, rows, cols] in g/cm2.
        materials: M names of `DENSITIES`.
        spectrum: a name of `SPECTRA`, an energy in keV, or {keV: relative number}.

    Returns:
        the Signal, in the dtype of A; differentiable in A.

    Raises:
        ValueError: a wrong number of materials, an unknown one, or a spectrum `checked_spectrum`
            rejects.
    """
    if area_densities.dim() != 4 or area_densities.shape[1] != len(materials):
        raise ValueError(
            f"area_densities: expected [B, {len(materials)}, rows, cols] for {materials}, "
            f"got {tuple(area_densities.shape)}"
        )
    energies, shares = checked_spectrum(spectrum)
    table = torch.stack([mass_attenuation(m, energies) for m in materials]).to(area_densities)
    mean, square = (shares * energies).sum(), (shares * energies**2).sum()
    # Columns: photons, energy and its square, each normalised to one without a patient.
    weights = torch.stack(
        [shares, shares * energies / mean, shares * energies**2 / square], dim=-1
    ).to(area_densities)
    pixels = area_densities.movedim(1, -1).reshape(-1, len(materials))
    rows = max(1, CHUNK // len(energies))
    with torch.autocast(pixels.device.type, enabled=False):  # products of 8 bits are no exponents
        sums = torch.cat([torch.exp(-(part @ table)) @ weights for part in pixels.split(rows)])
    shape = (area_densities.shape[0], 1, *area_densities.shape[2:])
    counts, energy, squares = (column.reshape(shape) for column in sums.unbind(-1))
    swank = float(mean**2 / square)
    quanta = swank * energy**2 / squares.clamp_min(torch.finfo(squares.dtype).tiny)
    return Signal(energy, counts, quanta)


def add_scatter(signal: Signal, strength: float, width: float = 0.15) -> Signal:
    """A surrogate of scattered radiation: S = k G * (-I ln I), added to the signal.

    A ray that loses much but not all of its photons scatters most of them; they arrive as a broad
    Gaussian. No photon is lost at the edges and none appears: for k <= 1 an image never
    holds more than came in.

    Args:
        signal: of `beer_lambert`.
        strength: k, 0 (none) to 1; 0.05 to 0.3 look like a trunk without or with a poor grid.
        width: standard deviation of the Gaussian as a share of the image's columns.

    Raises:
        ValueError: strength or width out of range.
    """
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"scatter: expected a strength of 0 to 1, got {strength!r}")
    if not 0.0 < width < math.inf:
        raise ValueError(f"scatter_width: expected a positive share of the width, got {width!r}")
    if strength == 0.0:
        return signal
    image = signal.energy
    rows, cols = image.shape[-2:]
    sigma = width * cols
    lost = -torch.xlogy(image, image)
    down, across = (_closed_gaussian(n, sigma, image) for n in (rows, cols))
    with torch.autocast(image.device.type, enabled=False):
        scattered = strength * (down @ lost @ across)
    # Scattered photons have about the energy of the others.
    share = 1.0 + scattered / image.clamp_min(torch.finfo(image.dtype).tiny)
    return Signal(image + scattered, signal.counts * share, signal.quanta * share)


def _closed_gaussian(count: int, sigma: float, like: Tensor) -> Tensor:
    """[count, count] Gaussian blur mirrored at both ends: symmetric, its rows sum to one."""
    places = torch.arange(count, dtype=torch.float64, device=like.device)
    kernel = places.new_zeros(count, count)
    turns = math.ceil(4.0 * sigma / count) + 1
    for turn in range(-turns, turns + 1):
        shift = 2.0 * turn * count
        for other in (places + shift, -1.0 - places + shift):
            kernel = kernel + torch.exp(-0.5 * ((places[:, None] - other) / sigma).square())
    return (kernel / kernel.sum(dim=-1, keepdim=True)).to(like)


def add_noise(
    signal: Signal,
    photons: Tensor,
    generator: torch.Generator,
    *,
    electronic: float = 0.0,
) -> Tensor:
    """The energy signal with the noise of its photons and of the electronics: [B, 1, rows, cols].

    Photons are counted, q ~ Poisson(N quanta): the signal's relative fluctuation is q's, which for
    an energy-integrating detector is exact to the second moment and for one energy in law.
    Electronics add N(0, electronic photons). Values may be negative by it.

    Args:
        signal: of `beer_lambert`.
        photons: N a pixel without a patient, [B, 1, 1, 1] or [].
        generator: the numbers are drawn on its device.
        electronic: standard deviation in photons of the mean energy.
    """
    expected = signal.quanta * photons
    drawn = expected.to(generator.device, torch.float64)
    counted = torch.poisson(drawn, generator=generator).to(expected)
    noisy = signal.energy * counted / expected.clamp_min(torch.finfo(expected.dtype).tiny)
    if electronic > 0.0:
        shape = expected.shape
        normal = torch.randn(
            shape, generator=generator, device=generator.device, dtype=expected.dtype
        )
        noisy = noisy + electronic / photons * normal.to(expected)
    return noisy


def gaussian_blur(image: Tensor, sigma_px: float) -> Tensor:
    """Gaussian blur of images [B, C, rows, cols], edge pixels repeated outwards; differentiable.

    sigma_px is the standard deviation in pixels, above 0; the kernel reaches 3 of them. Raises
    ValueError for a sigma that is not positive and finite.
    """
    if not 0 < sigma_px < math.inf:
        raise ValueError(f"sigma_px: expected a positive number of pixels, got {sigma_px!r}")
    radius = max(1, math.ceil(3.0 * sigma_px))
    offsets = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-0.5 * (offsets / sigma_px).square())
    kernel = kernel / kernel.sum()
    channels = image.shape[1]
    for dim in (2, 3):
        shape = [1, 1, 1, 1]
        shape[dim] = -1
        pad = (radius, radius, 0, 0) if dim == 3 else (0, 0, radius, radius)
        padded = functional.pad(image, pad, mode="replicate")
        weight = kernel.reshape(shape).expand(channels, *([-1] * 3))
        image = functional.conv2d(padded, weight, groups=channels)
    return image
