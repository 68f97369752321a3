"""X-rays to train on: another tube, detector, tool and motion for every batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drrkit.geometry import Camera, volume_center
from drrkit.volume import Volume
from drrkit.xray.simulate.materials import MaterialVolume, Spectrum, checked_spectrum
from drrkit.xray.simulate.randomisation import Range, check_interval, check_probability
from drrkit.xray.simulate.simulation import motion_path, simulate_xray
from drrkit.xray.simulate.tools import PlacedTool, Tool, k_wire, random_tool_pose, rod, screw


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
