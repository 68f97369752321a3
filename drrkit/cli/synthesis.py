"""Options of the images that networks are trained on: the camera, and how X-rays are made."""

from __future__ import annotations

from dataclasses import dataclass

import click
from torch import Tensor

from drrkit.cli.arguments import Number, NumberRange, Size
from drrkit.cli.options import SDD, SOD
from drrkit.cli.poses import pixel_pitch
from drrkit.geometry import Camera, CArm
from drrkit.similarity import Synthesis, simulated
from drrkit.volume import Volume
from drrkit.xray import (
    CdregRandomisation,
    DomainRandomisation,
    Randomisation,
    simulate_xray,
)

__all__ = ["ImageOptions"]

PUBLISHED, SMALL = (128, 128), (64, 64)
FIELD_MM = 128 * 2.176
"""Width of the published detector."""

RANDOMISATIONS: dict[str, Randomisation | None] = {
    "prost": DomainRandomisation(),
    "cdreg": CdregRandomisation(),
    "none": None,
}


def with_scatter(ct: Volume, camera: Camera, world_to_camera: Tensor, seed: int) -> Tensor:
    """X-rays with scattered radiation on top."""
    return simulate_xray(ct, camera, world_to_camera, supersample=2, scatter=0.1, seed=seed)


SYNTHESES: dict[str, Synthesis] = {"simple": simulated, "full": with_scatter}


@dataclass(frozen=True)
class ImageOptions:
    """What training images look like."""

    size: tuple[int, int] | None
    pixel_spacing: float | None
    sdd: float
    sod: float
    xrays: str
    randomise: str

    OPTIONS = (
        click.option(
            "--size",
            type=Size(),
            help="Pixels of the images.  [default: 128x128, or 64x64 for small networks]",
        ),
        click.option(
            "--pixel-spacing",
            type=NumberRange(0, min_open=True),
            help=f"Pixel pitch on the detector, mm.  [default: a detector of {FIELD_MM:.0f} mm]",
        ),
        click.option(
            "--sdd", type=Number(), default=SDD, show_default=True, help="Source to detector, mm."
        ),
        click.option(
            "--sod",
            type=Number(),
            default=SOD,
            show_default=True,
            help="Source to the patient, mm.",
        ),
        click.option(
            "--xrays",
            type=click.Choice(list(SYNTHESES)),
            default="simple",
            show_default=True,
            help="simple: a spectrum through soft tissue and bone, noise, blur. full: scatter too.",
        ),
        click.option(
            "--randomise",
            type=click.Choice(list(RANDOMISATIONS)),
            default="prost",
            show_default=True,
            help="Domain randomisation of the X-rays that are trained on.",
        ),
    )

    def camera(self, network: str) -> Camera:
        """The camera of a network's training images."""
        size = self.size or (SMALL if network.endswith("-small") else PUBLISHED)
        return CArm(self.sdd, size, self.pixel_spacing or FIELD_MM / max(size))

    def pixel_mm(self, camera: Camera) -> float:
        """Width of a pixel at the patient."""
        return pixel_pitch(camera)[0] * self.sod / self.sdd

    @property
    def synthesise(self) -> Synthesis:
        """Makes X-rays."""
        return SYNTHESES[self.xrays]

    @property
    def randomisation(self) -> Randomisation | None:
        """Changes X-rays at random."""
        return RANDOMISATIONS[self.randomise]
