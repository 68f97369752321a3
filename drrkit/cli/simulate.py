"""`drrkit simulate`: an X-ray image of a CT as a detector would record it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
import torch
from torch import Tensor

from drrkit.cli.command import Answer, command
from drrkit.cli.options import NumberRange, Numbers, argument, option, seed_option
from drrkit.cli.render import ImageOptions
from drrkit.geometry import Camera, volume_center
from drrkit.report import to_display
from drrkit.volume import Volume
from drrkit.xray import (
    DENSITIES,
    SPECTRA,
    PlacedTool,
    k_wire,
    motion_path,
    random_tool_pose,
    randomise,
    rod,
    screw,
    simulate_xray,
    tissue_materials,
)

TOOLS = {"k-wire": k_wire, "screw": screw, "rod": rod}
RANDOMISATIONS = ("prost", "cdreg")


class SpectrumOption(click.ParamType):
    """A named spectrum, or one photon energy in keV."""

    name = "SPECTRUM"

    def convert(self, value: Any, param: Any, ctx: Any) -> str | float:
        if not isinstance(value, str) or value in SPECTRA:
            return value
        try:
            return float(value)
        except ValueError:
            self.fail(f"expected {', '.join(SPECTRA)} or keV, got {value!r}.", param, ctx)


@dataclass(frozen=True)
class ModelOptions:
    """Tube, detector and what is in the beam."""

    spectrum: str | float = option(
        f"{', '.join(SPECTRA)}, or one energy in keV.", type=SpectrumOption(), default="90kV"
    )
    supersample: int = option("N x N rays per pixel.", type=click.IntRange(1, 16), default=1)
    photons: float = option(
        "Photons per pixel; 0 for an image without noise.", type=NumberRange(0, 1e12), default=2e4
    )
    photons_at: Literal["detector", "source"] = option(
        "Where --photons are counted: mean over the image, or before the patient.",
        default="detector",
    )
    electronic_noise: float = option(
        "Electronic noise, standard deviation in photons.", type=NumberRange(0), default=0.0
    )
    scatter: float = option("Strength of scattered radiation.", type=NumberRange(0, 1), default=0.1)
    blur_sigma_px: float = option(
        "Detector blur, standard deviation in pixels.",
        "--blur",
        type=NumberRange(0, 100),
        default=0.5,
    )
    tools: tuple[str, ...] = option(
        "Metal at a random place near the CT's centre; may be given several times.",
        "--tool",
        multiple=True,
        type=click.Choice(list(TOOLS)),
    )
    metal: str | None = option(
        "Material of voxels above 2500 HU.  [default: dense bone]",
        type=click.Choice([name for name, density in DENSITIES.items() if density > 4]),
    )
    motion: tuple[float, float] | None = option(
        "Random motion of the patient during the exposure, standard deviations.",
        type=Numbers("DEG,MM", (2,)),
    )
    randomise: str | None = option(
        "Randomise the image as in the training of these similarities.",
        type=click.Choice(RANDOMISATIONS),
    )
    seed: int = seed_option("Seed of noise, tools, motion and randomisation.")

    def image(self, ct: Volume, camera: Camera, pose: Tensor, method: str) -> Tensor:
        """The X-ray [1, 1, rows, cols], on the scale of line integrals unless randomised."""
        generator = torch.Generator().manual_seed(self.seed)
        placed = [
            PlacedTool(TOOLS[name](), random_tool_pose(volume_center(ct).cpu(), generator)[0])
            for name in self.tools
        ]
        if self.motion is not None:
            degrees, millimetres = self.motion
            path = {"rotation_sigma": degrees * torch.pi / 180, "translation_sigma": millimetres}
            pose = motion_path(pose, ct, generator, **path, steps=9)
        names = ("spectrum", "supersample", "scatter", "photons_at", "electronic_noise")
        settings = {name: getattr(self, name) for name in (*names, "blur_sigma_px")}
        settings |= {"photons": self.photons or None, "tools": placed, "seed": generator}
        materials = tissue_materials(ct, metal=self.metal)
        image = simulate_xray(materials, camera, pose, method=method, **settings)
        if self.randomise is None:
            return image
        return randomise(image, self.randomise, seed=generator)


@command("simulate", epilog="A geometry option overrides the pose file.")
def simulate_command(
    *,
    ct: Path = argument(),
    how: ImageOptions,
    exposure: ModelOptions,
) -> Answer:
    """Simulate a realistic X-ray of CT: materials, spectrum, scatter, noise, blur, metal tools.

    CT is in Hounsfield units; bone is bright in what is written.
    """
    if how.ct.unit != "HU" or how.ct.energy is not None:
        raise click.UsageError("--unit and --energy: simulate needs a CT in HU and a --spectrum.")
    if how.invert and not how.is_picture:
        raise click.UsageError(f"--invert makes pictures; {how.output.name} takes numbers.")
    posed = how.load(ct, in_hu=True)
    image = exposure.image(*posed, how.method)
    picture = to_display(image, invert=how.invert) if how.is_picture else image
    return how.write(posed, picture, image, "values")
