"""X-rays of a CT as a detector records them: one chain from materials to noisy, blurred pixels.

The chain of DeepDRR (Unberath et al., MICCAI 2018) on drrkit's projector: every material is one
channel of one render, its line integrals attenuate each energy of a spectrum, intensities of a
pixel's rays are averaged, scatter is added, photons are counted, light spreads in the detector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from drrkit.geometry import Camera, check_counts, check_numbers, perturb, volume_center
from drrkit.volume import Volume
from drrkit.xray.simulate.materials import (
    MaterialVolume,
    Spectrum,
    checked_spectrum,
    mass_attenuation,
    tissue_materials,
)
from drrkit.xray.simulate.tools import PlacedTool

CHUNK = 2**22  # pixels times energies held at a time


@torch.no_grad()
def simulate_xray(
    volume: Volume | MaterialVolume,
    camera: Camera,
    world_to_camera: Tensor,
    *,
    spectrum: Spectrum = "90kV",
    tools: Sequence[PlacedTool] = (),
    supersample: int = 3,
    scatter: float = 0.0,
    scatter_width: float = 0.15,
    photons: float | None = 2e4,
    photons_at: str = "detector",
    electronic_noise: float = 0.0,
    blur_sigma_px: float = 0.5,
    output: str = "line",
    seed: int | torch.Generator | Sequence[int] = 0,
    method: str = "joseph",
) -> Tensor:
    """X-ray images of a CT as a detector records them.

    Args:
        volume: a CT in HU with one channel (split into water and bone by `tissue_materials`), or
            materials, for instance with an implant or contrast agent in them.
        camera: the view.
        world_to_camera: [4, 4] or [B, 4, 4]; [B, P, 4, 4] is a motion during the exposure (see
            `motion_path`): the intensities of the P poses are averaged.
        spectrum: a name of `SPECTRA` ("60kV", "90kV", "120kV"), a photon energy in keV, or
            {keV: relative number of photons}; 10 to 150 keV.
        tools: metal in the beam, added to the materials before attenuation.
        supersample: rays per pixel along each side; their intensities are averaged.
        scatter: strength of the scatter surrogate, 0 to 1, see `add_scatter`.
        scatter_width: its standard deviation as a share of the image's columns.
        photons: photons per pixel, or None for an image without noise of any kind.
        photons_at: where they are counted. "detector": on average over each image's pixels, as
            automatic exposure control sets them. "source": before the patient; a trunk lets fewer
            than one in a thousand pass.
        electronic_noise: standard deviation, in photons of the mean energy.
        blur_sigma_px: standard deviation of the detector's blur in pixels; 0 for none.
        output: "line": minus the logarithm of the intensity, which is on the scale of line
            integrals but no multiple of any of them; "intensity": the share of an unattenuated
            pixel's, 1 in air. A pixel without photons counts as half of one in the logarithm.
        seed: of the noise. An integer draws it on the CPU: one image on every device. B integers,
            one per view: a view's noise then does not depend on its batch. A generator
            draws on its own device and is advanced.
        method: projector method, as in `render`.

    Returns:
        [B, 1, rows, cols] float32 (float64 for a float64 volume), no unit, without gradient.

    Raises:
        TypeError, ValueError: the volume is not in HU, poses of another shape, or an option that is
            none of those described.
    """
    _check_options(supersample, photons, photons_at, electronic_noise, blur_sigma_px, output)
    checked_spectrum(spectrum)
    _check_scatter(scatter, scatter_width)
    materials = volume if isinstance(volume, MaterialVolume) else tissue_materials(volume)
    poses, steps = _flat_poses(world_to_camera)
    generators = _generators(seed, len(poses) // steps)
    fine = camera if supersample == 1 else camera.rescale(1.0 / supersample)
    areas = materials.area_densities(fine, poses, method=method)
    names = materials.materials
    for placed in tools:
        names, areas = _with_tool(names, areas, placed.for_steps(steps), fine, poses)
    signal = beer_lambert(areas, names, spectrum)
    signal = Signal(*(_averaged(part, supersample, steps) for part in signal))
    signal = add_scatter(signal, scatter, scatter_width)
    image = signal.energy
    darkest = torch.full_like(image[:, :, :1, :1], torch.finfo(image.dtype).tiny)
    if photons is not None:
        emitted = torch.full_like(darkest, photons)
        if photons_at == "detector":
            emitted = emitted / signal.counts.mean(dim=(-1, -2), keepdim=True).clamp_min(1e-12)
        views = zip(*(part.chunk(len(generators)) for part in (*signal, emitted)), strict=True)
        noisy = [
            add_noise(Signal(*parts[:3]), parts[3], generator, electronic=electronic_noise)
            for parts, generator in zip(views, generators, strict=True)
        ]
        image, darkest = torch.cat(noisy), 0.5 / emitted
    if blur_sigma_px > 0:
        with torch.autocast(image.device.type, enabled=False):
            image = gaussian_blur(image, blur_sigma_px)
    return image.clamp_min(0.0) if output == "intensity" else -torch.maximum(image, darkest).log()


def motion_path(
    world_to_camera: Tensor,
    volume: Volume,
    generator: torch.Generator,
    *,
    rotation_sigma: float = 0.01,
    translation_sigma: float = 1.0,
    steps: int = 5,
) -> Tensor:
    """Short random motions around poses, for `simulate_xray`: [B, steps, 4, 4].

    Each view's volume moves with constant velocity along a random twist about its centre, from
    half of it before the pose to half of it after: the mean of the motion is the pose.

    Args:
        world_to_camera: [4, 4] or [B, 4, 4].
        volume: what moves.
        generator: of the twists.
        rotation_sigma, translation_sigma: standard deviation of each component of the whole
            motion, rad and mm.
        steps: poses per exposure, 2 or more.

    Raises:
        ValueError: fewer than two steps, or a negative sigma.
    """
    check_counts(2, steps=steps)
    check_numbers(True, rotation_sigma=rotation_sigma, translation_sigma=translation_sigma)
    poses = world_to_camera.reshape(-1, 4, 4)
    twist = torch.randn(
        len(poses), 1, 6, generator=generator, device=generator.device, dtype=torch.float64
    ).to(poses)
    scale = twist.new_tensor([rotation_sigma] * 3 + [translation_sigma] * 3)
    along = torch.linspace(-0.5, 0.5, steps, dtype=poses.dtype, device=poses.device)
    xi = (twist * scale * along[None, :, None]).flatten(0, 1)
    path = perturb(poses.repeat_interleave(steps, dim=0), xi, volume_center(volume).to(poses))
    return path.unflatten(0, (len(poses), steps))


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
        ValueError: a wrong number of materials, an unknown one, or a spectrum that
            `checked_spectrum` rejects.
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
    with torch.autocast(pixels.device.type, enabled=False):  # 8 bits are too few for an exponent
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
    _check_scatter(strength, width)
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
    Electronics add N(0, electronic photons), which may make values negative.

    Args:
        signal: of `beer_lambert`.
        photons: N per pixel without a patient, [B, 1, 1, 1] or [].
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
    check_numbers(sigma_px=sigma_px)
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


def _check_options(
    supersample: int,
    photons: float | None,
    photons_at: str,
    electronic_noise: float,
    blur_sigma_px: float,
    output: str,
) -> None:
    check_counts(supersample=supersample)
    if photons is not None:
        check_numbers(photons=photons)
    if photons_at not in ("detector", "source"):
        raise ValueError(f"photons_at: expected 'detector' or 'source', got {photons_at!r}")
    check_numbers(True, electronic_noise=electronic_noise, blur_sigma_px=blur_sigma_px)
    if output not in ("line", "intensity"):
        raise ValueError(f"output: expected 'line' or 'intensity', got {output!r}")


def _check_scatter(strength: float, width: float) -> None:
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"scatter: expected a strength of 0 to 1, got {strength!r}")
    check_numbers(scatter_width=width)


def _flat_poses(world_to_camera: Tensor) -> tuple[Tensor, int]:
    """Poses [B * P, 4, 4] and P."""
    shape = tuple(world_to_camera.shape)
    if len(shape) not in (2, 3, 4) or shape[-2:] != (4, 4) or 0 in shape:
        raise ValueError(
            f"world_to_camera: expected [4, 4], [B, 4, 4] or [B, P, 4, 4], got {shape}"
        )
    steps = shape[1] if len(shape) == 4 else 1
    return world_to_camera.reshape(-1, 4, 4), steps


def _generators(seed: int | torch.Generator | Sequence[int], views: int) -> list[torch.Generator]:
    """One generator for all views, or one each."""
    if isinstance(seed, torch.Generator):
        return [seed]
    seeds = [seed] if isinstance(seed, int) else list(seed) if isinstance(seed, Sequence) else []
    if not seeds or not all(isinstance(s, int) and not isinstance(s, bool) for s in seeds):
        raise TypeError(
            f"seed: expected an integer, one per view, or a torch.Generator, got {seed!r}"
        )
    if not isinstance(seed, int) and len(seeds) != views:
        raise ValueError(f"seed: expected {views} integers, one per view, got {len(seeds)}")
    return [torch.Generator().manual_seed(s) for s in seeds]


def _with_tool(
    names: tuple[str, ...], areas: Tensor, placed: PlacedTool, camera: Camera, poses: Tensor
) -> tuple[tuple[str, ...], Tensor]:
    """The materials with a tool's metal, as a channel of its own or on top of one."""
    metal = placed.area_density(camera, poses).to(areas)
    material = placed.tool.material
    if material not in names:
        return (*names, material), torch.cat([areas, metal], dim=1)
    areas = areas.clone()
    areas[:, names.index(material)] += metal[:, 0]
    return names, areas


def _averaged(part: Tensor, supersample: int, steps: int) -> Tensor:
    """Mean over a pixel's rays and an exposure's poses."""
    if supersample > 1:
        part = functional.avg_pool2d(part, supersample)
    return part.unflatten(0, (-1, steps)).mean(dim=1)
