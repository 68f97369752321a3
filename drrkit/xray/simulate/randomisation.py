"""Domain randomisation: X-rays to train on, changed at random so that a network learns no one look.

Two published recipes change finished images, each a sequence of steps that are taken with
probability 1/2, independently for every image: `DomainRandomisation`, of ProST (Gao et al., IEEE
TMI 2024), and `CdregRandomisation`, of the code of CDreg (arXiv 2402.02498). `TargetSynthesis`
makes images with another tube, detector, tool and motion for every batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from drrkit.geometry import Camera, check_numbers, volume_center
from drrkit.volume import Volume
from drrkit.xray.simulate.materials import MaterialVolume, Spectrum, checked_spectrum
from drrkit.xray.simulate.simulation import gaussian_blur, motion_path, simulate_xray
from drrkit.xray.simulate.tools import PlacedTool, Tool, k_wire, random_tool_pose, rod, screw

Range = tuple[float, float]
FILL = 1e-12  # ranges below are those of a constant image


class Randomisation(Protocol):
    """Anything that changes images [B, 1, rows, cols] at random."""

    def __call__(self, images: Tensor, seed: int | torch.Generator = 0) -> Tensor: ...


@dataclass(frozen=True)
class DomainRandomisation:
    """The recipe of ProST: inversion, noise, gamma, boxes of noise, in this order.

    Attributes:
        probability: of each step, for each image.
        noise: standard deviation of Gaussian noise as a share of the image's range, uniform.
        gamma: exponent on the image scaled to [0, 1], uniform.
        boxes: smallest and largest number of corrupted boxes. Their number and size are not
            published; these are drrkit's.
        box_side: their sides as a share of the image's, uniform, drawn separately.
        box_noise: standard deviation of the noise in them as a share of the image's range.
        normalise: scale each image to [0, 1] before the first step and before the boxes, and clip
            the boxes' noise to it, as networks are given targets. False: keep the scale.

    Raises:
        ValueError: a probability outside [0, 1] or a range that is not one.
    """

    probability: float = 0.5
    noise: Range = (0.005, 0.1)
    gamma: Range = (0.7, 1.3)
    boxes: tuple[int, int] = (1, 5)
    box_side: Range = (0.05, 0.25)
    box_noise: float = 1.0
    normalise: bool = True

    def __post_init__(self) -> None:
        check_probability("probability", self.probability)
        for name, lowest in (("noise", 0.0), ("gamma", 1e-6), ("boxes", 0), ("box_side", 0.0)):
            check_interval(name, getattr(self, name), lowest)
        check_numbers(True, box_noise=self.box_noise)

    def __call__(self, images: Tensor, seed: int | torch.Generator = 0) -> Tensor:
        """Changed images [B, 1, rows, cols]; see `randomise`."""
        _check_images(images)
        draw = _Draws(images, seed)
        if self.normalise:
            images = _to_unit_range(images)
        sometimes = partial(draw.sometimes, self.probability)
        images = sometimes(images.amax(dim=(-1, -2), keepdim=True) - images, images)
        noisy = images + draw.uniform(*self.noise) * _range(images) * draw.normal()
        images = sometimes(noisy, images)
        images = sometimes(_gamma(images, draw.uniform(*self.gamma)), images)
        if self.normalise:
            images = _to_unit_range(images)
        images = sometimes(self._with_boxes(images, draw), images)
        # Scaling by the boxes' extremes would leave the anatomy next to no contrast.
        return images.clamp(0.0, 1.0) if self.normalise else images

    def _with_boxes(self, images: Tensor, draw: _Draws) -> Tensor:
        noise = images + self.box_noise * _range(images) * draw.normal()
        fewest, most = self.boxes
        count = (fewest + draw.uniform(0.0, most - fewest + 1.0).floor()).clamp_max(most)
        for box in range(most):
            inside = draw.box(draw.uniform(*self.box_side), draw.uniform(*self.box_side))
            images = torch.where(inside & (box < count), noise, images)
        return images


@dataclass(frozen=True)
class CdregRandomisation:
    """The recipe in CDreg's code: smoothing, noise, scale, gamma, a sine, one erased box.

    Attributes:
        probability: of each step, for each image.
        smoothing: standard deviations in pixels, one of them drawn.
        noise: Gaussian noise has |U(noise)| times noise_scale times the image's maximum.
        noise_scale: see there.
        scale: factor, uniform.
        gamma: exponent on the image scaled to [0, 1], uniform.
        sine_gain, sine_offset: a sin(b I + c), a and b from the first, c from the second, uniform.
        erased_area: share of the image that a box of value 0 covers, uniform.
        erased_aspect: its height to its width, log-uniform between this and its inverse.
        normalise: scale each image to [0, 1] before and after; False: before the scale step only.

    Raises:
        ValueError: a probability outside [0, 1] or a range that is not one.
    """

    probability: float = 0.5
    smoothing: tuple[float, ...] = (1.0, 3.0, 5.0)
    noise: Range = (-0.15, 0.1)
    noise_scale: float = 0.4
    scale: Range = (0.9, 1.05)
    gamma: Range = (0.7, 1.3)
    sine_gain: Range = (0.8, 1.1)
    sine_offset: Range = (-0.5, 0.4)
    erased_area: Range = (0.02, 0.4)
    erased_aspect: float = 0.3
    normalise: bool = True

    def __post_init__(self) -> None:
        check_probability("probability", self.probability)
        for name in ("noise", "sine_gain", "sine_offset"):
            check_interval(name, getattr(self, name), -math.inf)
        for name, lowest in (("scale", 0.0), ("gamma", 1e-6), ("erased_area", 0.0)):
            check_interval(name, getattr(self, name), lowest)
        if not self.smoothing or not all(0.0 < s < math.inf for s in self.smoothing):
            raise ValueError(f"smoothing: expected positive pixels, got {self.smoothing!r}")
        check_numbers(True, noise_scale=self.noise_scale)
        if not 0.0 < self.erased_aspect <= 1.0:
            raise ValueError(f"erased_aspect: expected 0 to 1, got {self.erased_aspect!r}")

    def __call__(self, images: Tensor, seed: int | torch.Generator = 0) -> Tensor:
        """Changed images [B, 1, rows, cols]; see `randomise`."""
        _check_images(images)
        draw = _Draws(images, seed)
        if self.normalise:
            images = _to_unit_range(images)
        images = self._smoothed(images, draw)
        sometimes = partial(draw.sometimes, self.probability)
        sigma = self.noise_scale * images.amax(dim=(-1, -2), keepdim=True)
        noisy = images + sigma * draw.uniform(*self.noise).abs() * draw.normal()
        images = _to_unit_range(sometimes(noisy, images))
        images = sometimes(images * draw.uniform(*self.scale), images)
        images = sometimes(_gamma(images, draw.uniform(*self.gamma)), images)
        gain, slope = draw.uniform(*self.sine_gain), draw.uniform(*self.sine_gain)
        waved = gain * torch.sin(slope * images + draw.uniform(*self.sine_offset))
        images = sometimes(waved, images)
        images = sometimes(torch.where(self._erased(draw), 0.0, images), images)
        return _to_unit_range(images) if self.normalise else images

    def _smoothed(self, images: Tensor, draw: _Draws) -> Tensor:
        which = draw.uniform(0.0, float(len(self.smoothing))).floor()
        happens = draw.happens(self.probability)
        result = images
        for k, sigma in enumerate(self.smoothing):
            chosen = happens & (which.clamp_max(len(self.smoothing) - 1) == k)
            result = torch.where(chosen, gaussian_blur(images, sigma), result)
        return result

    def _erased(self, draw: _Draws) -> Tensor:
        area = draw.uniform(*self.erased_area)
        limit = -math.log(self.erased_aspect)
        aspect = draw.uniform(-limit, limit).exp()
        # Sides as shares of the image's own, which need not be a square.
        rows, cols = draw.size
        height = (area * aspect * cols / rows).sqrt().clamp_max(1.0)
        width = (area / aspect * rows / cols).sqrt().clamp_max(1.0)
        return draw.box(height, width)


RECIPES: dict[str, type[DomainRandomisation] | type[CdregRandomisation]] = {
    "prost": DomainRandomisation,
    "cdreg": CdregRandomisation,
}


def randomise(
    images: Tensor,
    recipe: str | Randomisation = "prost",
    *,
    seed: int | torch.Generator = 0,
) -> Tensor:
    """Images changed at random, each with its own draws.

    Args:
        images: [B, 1, rows, cols], float32 or float64.
        recipe: "prost", "cdreg", or a `DomainRandomisation`, a `CdregRandomisation` or another
            Randomisation.
        seed: an integer, which seeds a generator on the images' device; or a torch.Generator, on
            whose device all numbers are drawn and which is advanced.

    Returns:
        [B, 1, rows, cols] of the images' dtype and device; the input is not modified.

    Raises:
        TypeError, ValueError: an unknown recipe, or images of another shape or dtype.
    """
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, got {recipe!r}")
        recipe = RECIPES[recipe]()
    if not callable(recipe):
        raise TypeError(f"recipe: expected a name or a Randomisation, got {recipe!r}")
    return recipe(images, seed)


def _to_unit_range(images: Tensor) -> Tensor:
    """Each image scaled to [0, 1]; a constant one becomes 0."""
    low = images.amin(dim=(-1, -2), keepdim=True)
    return (images - low) / _range(images).clamp_min(FILL)


class _Draws:
    """Random numbers for a batch of images, drawn on one generator's device."""

    def __init__(self, images: Tensor, seed: int | torch.Generator) -> None:
        if not isinstance(seed, torch.Generator):
            if isinstance(seed, bool) or not isinstance(seed, int):
                raise TypeError(f"seed: expected an integer or a torch.Generator, got {seed!r}")
            seed = torch.Generator(images.device).manual_seed(seed)
        self._images = images
        self._options: dict[str, Any] = {
            "generator": seed,
            "device": seed.device,
            "dtype": images.dtype,
        }
        self.size = (int(images.shape[-2]), int(images.shape[-1]))

    def uniform(self, low: float, high: float) -> Tensor:
        """[B, 1, 1, 1] in [low, high)."""
        unit = torch.rand(self._images.shape[0], 1, 1, 1, **self._options)
        return low + (high - low) * unit.to(self._images)

    def happens(self, probability: float) -> Tensor:
        """[B, 1, 1, 1], true with a probability."""
        return self.uniform(0.0, 1.0) < probability

    def sometimes(self, probability: float, changed: Tensor, images: Tensor) -> Tensor:
        """Each image changed with a probability, drawn after what the change drew."""
        return torch.where(self.happens(probability), changed, images)

    def normal(self) -> Tensor:
        """[B, 1, rows, cols] of standard deviation one."""
        return torch.randn(self._images.shape, **self._options).to(self._images)

    def box(self, height: Tensor, width: Tensor) -> Tensor:
        """[B, 1, rows, cols], true in a box of these shares of the image, anywhere inside it."""
        inside = []
        for count, share, dim in zip(self.size, (height, width), (-2, -1), strict=True):
            extent = (share * count).round().clamp(1, count)
            start = (self.uniform(0.0, 1.0) * (count - extent + 1)).floor()
            places = torch.arange(count, device=self._images.device)
            places = places[:, None] if dim == -2 else places[None, :]
            inside.append((places >= start) & (places < start + extent))
        return inside[0] & inside[1]


def _range(images: Tensor) -> Tensor:
    low, high = images.amin(dim=(-1, -2), keepdim=True), images.amax(dim=(-1, -2), keepdim=True)
    return high - low


def _gamma(images: Tensor, exponent: Tensor) -> Tensor:
    """The exponent on each image scaled to [0, 1], back on its scale."""
    low = images.amin(dim=(-1, -2), keepdim=True)
    return low + _range(images) * _to_unit_range(images).pow(exponent)


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.dtype not in (torch.float32, torch.float64):
        found = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images: expected a float32 or float64 tensor, got {found}")
    if images.dim() != 4 or images.shape[1] != 1 or images.numel() == 0:
        raise ValueError(f"images: expected [B, 1, rows, cols], got {tuple(images.shape)}")


def check_probability(name: str, probability: float) -> None:
    """Raise ValueError, naming the setting, unless it is a number from 0 to 1."""
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"{name}: expected 0 to 1, got {probability!r}")


def check_interval(name: str, pair: Range, lowest: float, highest: float = math.inf) -> None:
    """Raise ValueError, naming the setting, unless it is finite (low, high) within the limits."""
    low, high = pair
    if not (lowest <= low <= high <= highest and math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name}: expected (low, high), rising and finite, got {pair!r}")


@dataclass(frozen=True)
class TargetSynthesis:
    """Draws the options of `simulate_xray` and calls it: (ct, camera, poses, seed) -> X-rays.

    The function that training asks for to make its targets. Settings of tube and detector are drawn
    once per call, tools and motion for every view.

    Attributes:
        spectra: one of them is drawn, each a name, an energy or a table.
        photons: per pixel at the detector, log-uniform.
        scatter: strength, uniform.
        electronic_noise: photons, uniform.
        blur_sigma_px: of the detector, uniform.
        supersample: rays per pixel along each side.
        tools: each may be seen in each view.
        tool_probability: of each tool in each view.
        tool_spread_mm: of the tools' tips about the volume's centre.
        motion_probability: of a motion during a view's exposure.
        motion_sigma: of its rotation (rad) and translation (mm), see `motion_path`.
        motion_steps: poses per exposure.

    Raises:
        ValueError: no spectrum, a probability outside [0, 1] or a range that is not one.
    """

    spectra: tuple[Spectrum, ...] = ("60kV", "90kV", "120kV")
    photons: Range = (5e3, 5e4)
    scatter: Range = (0.05, 0.3)
    electronic_noise: Range = (0.0, 5.0)
    blur_sigma_px: Range = (0.3, 0.8)
    supersample: int = 1
    tools: tuple[Tool, ...] = (k_wire(), screw(), rod())
    tool_probability: float = 0.0
    tool_spread_mm: float = 30.0
    motion_probability: float = 0.0
    motion_sigma: Range = (0.01, 1.0)
    motion_steps: int = 5

    def __post_init__(self) -> None:
        if not self.spectra:
            raise ValueError("spectra: expected at least one, got none")
        for spectrum in self.spectra:
            checked_spectrum(spectrum)
        for name, lowest, highest in (
            ("photons", 1e-9, math.inf),
            ("scatter", 0.0, 1.0),
            ("electronic_noise", 0.0, math.inf),
            ("blur_sigma_px", 0.0, math.inf),
        ):
            check_interval(name, getattr(self, name), lowest, highest)
        for name in ("tool_probability", "motion_probability"):
            check_probability(name, getattr(self, name))

    def __call__(
        self,
        scene: Volume | MaterialVolume,
        camera: Camera,
        world_to_camera: Tensor,
        seed: int = 0,
    ) -> Tensor:
        """X-rays [B, 1, rows, cols] on the scale of line integrals, bone bright.

        Args:
            scene: a CT in HU or materials, as for `simulate_xray`.
            camera: the view.
            world_to_camera: [4, 4] or [B, 4, 4].
            seed: of everything that is drawn.
        """
        generator = torch.Generator().manual_seed(seed)
        poses = world_to_camera.detach().reshape(-1, 4, 4)
        volume = scene.densities if isinstance(scene, MaterialVolume) else scene
        settings = self._settings(generator)
        placed = self._placed(volume, len(poses), generator)
        if self.motion_probability > 0.0:
            poses = self._moving(poses, volume, generator)
        noise = int(torch.randint(2**62, (), generator=generator))
        return simulate_xray(scene, camera, poses, tools=placed, seed=noise, **settings)

    def _settings(self, generator: torch.Generator) -> dict[str, Any]:
        """Of tube and detector."""
        which, *units = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        photons, scatter, noise, blur = units
        fewest, most = self.photons

        def at(unit: float, limits: Range) -> float:
            return limits[0] + (limits[1] - limits[0]) * unit

        return {
            "spectrum": self.spectra[int(which * len(self.spectra))],
            "photons": math.exp(at(photons, (math.log(fewest), math.log(most)))),
            "scatter": at(scatter, self.scatter),
            "electronic_noise": at(noise, self.electronic_noise),
            "blur_sigma_px": at(blur, self.blur_sigma_px),
            "supersample": self.supersample,
        }

    def _placed(self, volume: Volume, views: int, generator: torch.Generator) -> list[PlacedTool]:
        center = volume_center(volume).cpu()
        placed = []
        for tool in self.tools if self.tool_probability > 0.0 else ():
            present = torch.rand(views, generator=generator) < self.tool_probability
            pose = random_tool_pose(center, generator, views, spread_mm=self.tool_spread_mm)
            if bool(present.any()):
                placed.append(PlacedTool(tool, pose, present))
        return placed

    def _moving(self, poses: Tensor, volume: Volume, generator: torch.Generator) -> Tensor:
        """[B, P, 4, 4]: a path for the views that move, P times the pose for the others."""
        rotation, translation = self.motion_sigma
        path = motion_path(
            poses,
            volume,
            generator,
            rotation_sigma=rotation,
            translation_sigma=translation,
            steps=self.motion_steps,
        )
        moves = torch.rand(len(poses), 1, 1, 1, generator=generator) < self.motion_probability
        return torch.where(moves.to(path.device), path, poses[:, None].to(path))
