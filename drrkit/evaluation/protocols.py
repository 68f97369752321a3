"""Protocols: which poses are registered from which starts, and what the X-ray looks like.

Every case is drawn from a seed: a protocol's name, a subject's name and a number identify a case,
and no two cases share a pose or a start. X-rays are not rendered like the moving images: they have
a spectrum with beam hardening, area pixels, photon noise and blur.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from drrkit.conversions import euler_to_matrix
from drrkit.geometry import Camera, CArm, assemble, view_ap, volume_center
from drrkit.metrics import bone_points
from drrkit.volume import Volume
from drrkit.xray import simulate_xray

GAMMA = (0.7, 1.3)
FIELD = 0.3
_CONTROL_POINTS = 4
TARGET = (15.0, 15.0, 15.0, 25.0, 25.0, 25.0)


class Subject(NamedTuple):
    """A patient: name, CT in HU, the same in mu for registrations, targets [P, 3] world mm."""

    name: str
    ct: Volume
    attenuation: Volume
    points: Tensor

    @staticmethod
    def of(name: str, ct: Volume) -> Subject:
        """A CT in HU with the targets of every protocol: 2000 voxels of bone, drawn with seed 0."""
        return Subject(name, ct, ct.to_mu(), bone_points(ct))

    def to(self, device: torch.device | str) -> Subject:
        """The same with volumes on another device."""
        return self._replace(ct=self.ct.to(device), attenuation=self.attenuation.to(device))


@dataclass(frozen=True, eq=False)
class Case:
    """One registration to run: an X-ray [1, 1, rows, cols], where to start, and the truth."""

    protocol: Protocol
    subject: Subject
    number: int
    camera: Camera
    xray: Tensor
    start: Tensor
    truth: Tensor


@dataclass(frozen=True)
class Protocol:
    """How cases are drawn: six numbers for turns about the camera's x, y, z (degrees) and shifts
    of the volume's centre along them (mm).

    Attributes:
        name: as in PROTOCOLS.
        start: half widths of uniform distributions, or standard deviations of normal ones.
        normal: which of the two.
        about_truth: starts are drawn about the true pose; otherwise about the frontal view.
        target: half widths of the true pose's uniform distribution about the frontal view.
        sdd, sod, size, pixel_mm: the camera, mm; sod is the frontal view's distance.
        photons, photons_at: see simulate_xray.
        shifted: change the X-ray's appearance after its noise, see shifted_appearance.
        seed: of all draws, with the subject's name; another one for every protocol.
    """

    name: str
    start: tuple[float, ...]
    normal: bool = False
    about_truth: bool = True
    target: tuple[float, ...] = TARGET
    sdd: float = 1020.0
    sod: float = 800.0
    size: tuple[int, int] = (128, 128)
    pixel_mm: float = 2.176
    photons: float | None = 2e4
    photons_at: str = "detector"
    shifted: bool = False
    seed: int = 0

    def case(self, subject: Subject, number: int) -> Case:
        """The case of this number, always the same one."""
        name = zlib.crc32(subject.name.encode())
        draw = np.random.default_rng((self.seed, number, name))
        center = volume_center(subject.ct).cpu()
        frontal = view_ap(subject.ct, self.sod)[0].cpu()
        truth = moved_about(frontal, rad_and_mm(draw.uniform(-1, 1, 6) * self.target), center)
        offset = draw.standard_normal(6) if self.normal else draw.uniform(-1, 1, 6)
        origin = truth if self.about_truth else frontal
        start = moved_about(origin, rad_and_mm(offset * self.start), center)
        camera = CArm(self.sdd, self.size, self.pixel_mm)
        xray = simulate_xray(
            subject.ct,
            camera,
            truth.to(subject.ct.values.device),
            photons=self.photons,
            photons_at=self.photons_at,
            seed=int(draw.integers(2**31)),
        )
        if self.shifted:
            xray = shifted_appearance(xray, int(draw.integers(2**31)))
        return Case(self, subject, number, camera, xray, start, truth)

    def starved(self) -> Protocol:
        """The same poses in photon-starved X-rays: the photons are counted before the patient."""
        return replace(self, name=f"{self.name}-starved", photons_at="source")

    def shifted_to_another_machine(self) -> Protocol:
        """The same poses in X-rays of shifted appearance."""
        return replace(self, name=f"{self.name}-shifted", shifted=True)


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("narrow", (10.0, 10.0, 10.0, 20.0, 20.0, 50.0)),
        Protocol("prost", (50.0, 50.0, 50.0, 200.0, 200.0, 300.0), about_truth=False, seed=1),
        Protocol("cdreg", (20.0, 20.0, 20.0, 30.0, 30.0, 60.0), normal=True, seed=2),
    )
}
"""narrow: starts within 10 degrees, 20 mm in plane and 50 mm of depth of the truth. prost: the test
of the Projective Spatial Transformers (Gao et al. 2023). cdreg: that of Chen et al. (2024)."""


def moved_about(world_to_camera: Tensor, motion: Tensor, center: Tensor) -> Tensor:
    """The pose [4, 4] after turns Rx Ry Rz about a world point and a shift of it.

    motion: [6], three angles (rad) about the camera's axes and three mm along them.
    """
    rotation = euler_to_matrix(motion[:3], "XYZ") @ world_to_camera[:3, :3]
    middle = world_to_camera[:3, :3] @ center + world_to_camera[:3, 3] + motion[3:]
    return assemble(rotation, (middle - rotation @ center)[:, None])


def shifted_appearance(
    xray: Tensor,
    seed: int,
    inversion: bool | None = None,
    *,
    gamma: bool = True,
    field: bool = True,
) -> Tensor:
    """An X-ray with another gamma, perhaps inverted, under an uneven field: values about 0 to 1.

    The image is mapped to [0, 1], raised to a power drawn from U(0.7, 1.3), inverted with
    probability 1/2, and multiplied by a smooth field between 0.7 and 1.3: random numbers on a
    4 x 4 grid, interpolated by cubic splines that are clamped to that range.

    Args:
        xray: [1, 1, rows, cols].
        seed: of all three.
        inversion: whether to invert; None leaves it to the seed.
        gamma, field: False leaves that part out; the others stay those of the seed.

    Raises:
        ValueError: a constant image.
    """
    power, inverted, knots = _drawn(seed)
    low, high = xray.amin(), xray.amax()
    if not bool(high > low):
        raise ValueError(f"xray: expected an image that is not constant, got {float(low):g} only")
    image = (xray - low) / (high - low)
    if gamma:
        image = image**power
    if inverted if inversion is None else inversion:
        image = 1.0 - image
    if not field:
        return image
    uneven = functional.interpolate(
        torch.from_numpy(knots).to(image), size=image.shape[-2:], mode="bicubic", align_corners=True
    )
    return image * uneven.clamp(1 - FIELD, 1 + FIELD)


def is_inverted(seed: int) -> bool:
    """Whether `shifted_appearance` inverts with this seed when it is left to it."""
    return _drawn(seed)[1]


def _drawn(seed: int) -> tuple[float, bool, np.ndarray]:
    """The power, whether to invert, and the field's values on its grid."""
    draw = np.random.default_rng(seed)
    power, inverted = float(draw.uniform(*GAMMA)), bool(draw.random() < 0.5)
    return power, inverted, draw.uniform(1 - FIELD, 1 + FIELD, (1, 1, *2 * (_CONTROL_POINTS,)))


def rad_and_mm(numbers: Iterable[float]) -> Tensor:
    """Six numbers, degrees and mm, as rad and mm: [6] float64."""
    unit = torch.tensor([math.pi / 180] * 3 + [1.0] * 3, dtype=torch.float64)
    return torch.tensor(tuple(numbers), dtype=torch.float64) * unit
