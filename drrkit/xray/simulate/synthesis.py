"""Realistic X-rays of a CT: materials, spectrum, scatter, photons, blur, tools and motion.

The pipeline of DeepDRR (Unberath et al., MICCAI 2018) on drrkit's projector: every material is one
channel of one render, so the line integrals of all of them come from one march.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from drrkit.geometry import Camera, perturb, volume_center
from drrkit.volume import Volume
from drrkit.xray.simulate.detector import (
    Signal,
    add_noise,
    add_scatter,
    beer_lambert,
    gaussian_blur,
)
from drrkit.xray.simulate.materials import (
    MaterialVolume,
    Spectrum,
    checked_spectrum,
    tissue_materials,
)
from drrkit.xray.simulate.tools import PlacedTool

__all__ = ["XrayModel", "motion_path", "synthesise_xray"]


@dataclass(frozen=True)
class XrayModel:
    """A tube and a detector.

    Attributes:
        spectrum: a name of `SPECTRA` ("60kV", "90kV", "120kV"), a photon energy in keV, or
            {keV: relative number of photons}.
        supersample: rays a pixel along each side; intensities of a pixel's rays are averaged.
        scatter: strength k of the scatter surrogate, 0 to 1 (see `add_scatter`).
        scatter_width: its standard deviation as a share of the image's columns.
        photons: photons a pixel, or None for an image without noise of any kind.
        photons_at: "detector": on average over each image, as exposure control sets them;
            "source": before the patient.
        electronic_noise: standard deviation, in photons of the mean energy.
        blur_sigma_px: standard deviation of the detector's blur in pixels, 0 for none.

    Raises:
        TypeError, ValueError: naming the attribute.
    """

    spectrum: Spectrum = "90kV"
    supersample: int = 1
    scatter: float = 0.0
    scatter_width: float = 0.15
    photons: float | None = 2e4
    photons_at: Literal["detector", "source"] = "detector"
    electronic_noise: float = 0.0
    blur_sigma_px: float = 0.5

    def __post_init__(self) -> None:
        checked_spectrum(self.spectrum)
        if isinstance(self.supersample, bool) or not isinstance(self.supersample, int):
            raise TypeError(f"supersample: expected an integer, got {self.supersample!r}")
        if self.supersample < 1:
            raise ValueError(f"supersample: expected 1 or more, got {self.supersample}")
        if not 0.0 <= self.scatter <= 1.0:
            raise ValueError(f"scatter: expected 0 to 1, got {self.scatter!r}")
        if not 0.0 < self.scatter_width < math.inf:
            raise ValueError(f"scatter_width: expected a positive share, got {self.scatter_width}")
        if self.photons is not None and not 0 < self.photons < math.inf:
            raise ValueError(f"photons: expected a positive number or None, got {self.photons!r}")
        if self.photons_at not in ("detector", "source"):
            raise ValueError(
                f"photons_at: expected 'detector' or 'source', got {self.photons_at!r}"
            )
        for name in ("electronic_noise", "blur_sigma_px"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a number >= 0, got {getattr(self, name)!r}")


@torch.no_grad()
def synthesise_xray(
    scene: Volume | MaterialVolume,
    camera: Camera,
    world_to_camera: Tensor,
    *,
    model: XrayModel | None = None,
    tools: Sequence[PlacedTool] = (),
    seed: int | torch.Generator | Sequence[int] = 0,
    output: Literal["line", "intensity"] = "line",
    method: str = "joseph",
) -> Tensor:
    """X-ray images of a CT as a detector records them.

    Args:
        scene: a CT in HU (split by `tissue_materials`), or materials, for instance with an implant
            or contrast agent in them.
        camera: the view.
        world_to_camera: [4, 4] or [B, 4, 4]; [B, P, 4, 4] is a motion during the exposure (see
            `motion_path`): the intensities of the P poses are averaged.
        model: tube and detector; default XrayModel().
        tools: metal in the beam, added to the materials before attenuation. One pose a tool, or
            one a view.
        seed: of the noise; an integer, or a generator, on whose device the noise is drawn and
            which is advanced. An integer is one generator on the scene's device. B integers, one a
            view: each view's noise is then the same in whatever batch it is.
        output: "line": minus the logarithm of the intensity, the scale of line integrals;
            "intensity": the share of an unattenuated pixel's, from 0, 1 in air.
        method: projector method, as in `render`.

    Returns:
        [B, 1, rows, cols] float32 (float64 for a float64 volume), no unit, without gradient.

    Raises:
        TypeError, ValueError: poses of another shape, or as `tissue_materials`, `render`.
    """
    if output not in ("line", "intensity"):
        raise ValueError(f"output: expected 'line' or 'intensity', got {output!r}")
    model = XrayModel() if model is None else model
    materials = scene if isinstance(scene, MaterialVolume) else tissue_materials(scene)
    poses, steps = _flat_poses(world_to_camera)
    generators = _generators(seed, materials.densities.values.device, len(poses) // steps)
    fine = camera if model.supersample == 1 else camera.rescale(1.0 / model.supersample)
    areas = materials.area_densities(fine, poses, method=method)
    names = materials.materials
    for placed in tools:
        names, areas = _with_tool(names, areas, placed, fine, poses, steps)
    signal = beer_lambert(areas, names, model.spectrum)
    signal = Signal(*(_averaged(part, model.supersample, steps) for part in signal))
    signal = add_scatter(signal, model.scatter, model.scatter_width)
    image, floor = _detected(signal, model, generators)
    return image.clamp_min(0.0) if output == "intensity" else -torch.maximum(image, floor).log()


def motion_path(
    world_to_camera: Tensor,
    volume: Volume,
    generator: torch.Generator,
    *,
    rotation_sigma: float = 0.01,
    translation_sigma: float = 1.0,
    steps: int = 5,
) -> Tensor:
    """Short random motions around poses, for `synthesise_xray`: [B, steps, 4, 4].

    Each view's volume moves with constant velocity along a random twist about its centre, from
    half of it before the pose to half of it behind: the mean of the motion is the pose.

    Args:
        world_to_camera: [4, 4] or [B, 4, 4].
        volume: what moves.
        generator: of the twists.
        rotation_sigma, translation_sigma: standard deviation of each component of the whole
            motion, rad and mm.
        steps: poses an exposure, 2 or more.

    Raises:
        ValueError: fewer than two steps, or a negative sigma.
    """
    if steps < 2:
        raise ValueError(f"steps: expected 2 or more, got {steps}")
    if rotation_sigma < 0 or translation_sigma < 0:
        raise ValueError(
            f"rotation_sigma, translation_sigma: expected >= 0, got {rotation_sigma} and "
            f"{translation_sigma}"
        )
    poses = world_to_camera.reshape(-1, 4, 4)
    twist = torch.randn(
        len(poses), 1, 6, generator=generator, device=generator.device, dtype=torch.float64
    ).to(poses)
    scale = twist.new_tensor([rotation_sigma] * 3 + [translation_sigma] * 3)
    along = torch.linspace(-0.5, 0.5, steps, dtype=poses.dtype, device=poses.device)
    xi = (twist * scale * along[None, :, None]).flatten(0, 1)
    moved = perturb(poses.repeat_interleave(steps, dim=0), xi, volume_center(volume).to(poses))
    return moved.unflatten(0, (len(poses), steps))


def _flat_poses(world_to_camera: Tensor) -> tuple[Tensor, int]:
    """Poses [B * P, 4, 4] and P."""
    shape = tuple(world_to_camera.shape)
    if len(shape) not in (2, 3, 4) or shape[-2:] != (4, 4) or 0 in shape:
        raise ValueError(
            f"world_to_camera: expected [4, 4], [B, 4, 4] or [B, P, 4, 4], got {shape}"
        )
    steps = shape[1] if len(shape) == 4 else 1
    return world_to_camera.reshape(-1, 4, 4), steps


def _generators(
    seed: int | torch.Generator | Sequence[int], device: torch.device, views: int
) -> list[torch.Generator]:
    """One generator for all views, or one each."""
    if isinstance(seed, torch.Generator):
        return [seed]
    seeds = [seed] if isinstance(seed, int) else list(seed) if isinstance(seed, Sequence) else []
    if not seeds or not all(isinstance(s, int) and not isinstance(s, bool) for s in seeds):
        raise TypeError(
            f"seed: expected an integer, one a view, or a torch.Generator, got {seed!r}"
        )
    if not isinstance(seed, int) and len(seeds) != views:
        raise ValueError(f"seed: expected {views} integers, one a view, got {len(seeds)}")
    return [torch.Generator(device).manual_seed(s) for s in seeds]


def _with_tool(
    names: tuple[str, ...],
    areas: Tensor,
    placed: PlacedTool,
    camera: Camera,
    poses: Tensor,
    steps: int,
) -> tuple[tuple[str, ...], Tensor]:
    """The materials with a tool's metal, as a channel of its own or on top of one."""
    metal = placed.for_steps(steps).area_density(camera, poses).to(areas)
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


def _detected(
    signal: Signal, model: XrayModel, generators: list[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """The image with noise and blur, and the intensity of half a photon."""
    image = signal.energy
    floor = torch.full_like(image[:, :, :1, :1], torch.finfo(image.dtype).tiny)
    if model.photons is not None:
        emitted = torch.full_like(floor, model.photons)
        if model.photons_at == "detector":
            emitted = emitted / signal.counts.mean(dim=(-1, -2), keepdim=True).clamp_min(1e-12)
        views = zip(*(part.chunk(len(generators)) for part in (*signal, emitted)), strict=True)
        noisy = [
            add_noise(Signal(*parts[:3]), parts[3], generator, electronic=model.electronic_noise)
            for parts, generator in zip(views, generators, strict=True)
        ]
        image, floor = torch.cat(noisy), 0.5 / emitted
    if model.blur_sigma_px > 0:
        with torch.autocast(image.device.type, enabled=False):
            image = gaussian_blur(image, model.blur_sigma_px)
    return image, floor
