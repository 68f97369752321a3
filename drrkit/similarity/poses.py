"""Poses of training: the coordinates theta that networks are trained in, and how they are drawn.

theta = (r, t): a rotation vector in rad, and a translation in units of `unit` mm, half the volume's
width, about a reference view M_0 that shows a point c of the patient, the centre of the bone that
moves, at (0, 0, d) in the camera. With T(theta) = [exp(r), unit t] and Z(d) the shift by (0, 0, d)

    world_to_camera = Z(d) T(theta) Z(-d) M_0

the patient turns about its own centre by r and then moves by unit t along the camera's axes. This
is the chart of drrkit.perturb with the translation taken apart from the rotation. theta = 0 is the
reference view, and theta depends on the pose only. (ProST's published code moves the rays instead:
`drrkit.conversions.to_prost`.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drrkit.conversions import euler_to_matrix
from drrkit.geometry import assemble, check_floating, so3_exp, so3_log, volume_center
from drrkit.volume import Volume


class PoseChart:
    """The map between theta [B, 6] and world_to_camera [B, 4, 4], both float64.

    Args:
        volume: its half width is the unit of translations.
        reference: [4, 4] world_to_camera of theta = 0.
        center: [3] world mm, c; default the volume's centre.

    Attributes:
        unit: mm of one unit of translation.

    Raises:
        ValueError: the reference is not [4, 4].
    """

    def __init__(self, volume: Volume, reference: Tensor, center: Tensor | None = None) -> None:
        if reference.shape != (4, 4):
            raise ValueError(f"reference: expected a tensor [4, 4], got {tuple(reference.shape)}")
        self.unit = volume.shape_xyz[0] * volume.spacing[0] / 2
        self.rotation = reference[:3, :3].double()
        self.center = (volume_center(volume) if center is None else center).to(self.rotation)
        # Where the centre is in the reference view; (0, 0, d) unless it looks past the centre.
        self.place = self.rotation @ self.center + reference[:3, 3].double()

    def world_to_camera(self, theta: Tensor) -> Tensor:
        """Poses [B, 4, 4] float64 of theta [B, 6]; differentiable twice, at 0 too."""
        check_floating("theta", theta, (6,))
        theta = theta.to(self.rotation)
        rotation = so3_exp(theta[:, :3]) @ self.rotation
        translation = self.place + self.unit * theta[:, 3:] - rotation @ self.center
        return assemble(rotation, translation.unsqueeze(-1))

    def theta(self, world_to_camera: Tensor) -> Tensor:
        """theta [B, 6] of poses [B, 4, 4]; the turn from the reference is below pi."""
        pose = world_to_camera.reshape(-1, 4, 4).double()
        turn = pose[:, :3, :3] @ self.rotation.mT
        shift = pose[:, :3, :3] @ self.center + pose[:, :3, 3] - self.place
        return torch.cat((so3_log(turn), shift / self.unit), -1)


@dataclass(frozen=True)
class PoseSampling:
    """How poses are drawn: six widths, turns about the camera's x, y, z (deg) and shifts.

    Turns are combined as Rx Ry Rz. Shifts are in mm, or, with `relative`, in units of half the
    volume's width, as are those of the 2020 code.

    Attributes:
        target: of the true poses about the reference.
        moving: of the poses at which gradients are compared.
        target_normal, moving_normal: widths are standard deviations of normal distributions, or
            half widths of uniform ones.
        about_target: moving poses are drawn about the true pose, not about the reference.
        relative: see above.
    """

    target: tuple[float, ...]
    moving: tuple[float, ...]
    target_normal: bool = False
    moving_normal: bool = True
    about_target: bool = False
    relative: bool = False

    def __post_init__(self) -> None:
        for name in ("target", "moving"):
            widths = getattr(self, name)
            if len(widths) != 6 or not all(0 <= width < math.inf for width in widths):
                raise ValueError(f"{name}: expected six widths >= 0, got {widths!r}")

    def draw(self, chart: PoseChart, count: int, generator: Any) -> tuple[Tensor, Tensor]:
        """Moving and true poses theta [count, 6] float64 each.

        generator: a torch.Generator on the CPU.
        """
        true_turn, true_shift = self._motion(self.target, self.target_normal, count, generator)
        turn, shift = self._motion(self.moving, self.moving_normal, count, generator)
        unit = 1.0 if self.relative else chart.unit
        if self.about_target:
            turn, shift = turn @ true_turn, shift + true_shift
        moving = torch.cat((so3_log(turn), shift / unit), -1)
        return moving, torch.cat((so3_log(true_turn), true_shift / unit), -1)

    def _motion(
        self, widths: tuple[float, ...], normal: bool, count: int, generator: Any
    ) -> tuple[Tensor, Tensor]:
        """Rotations [count, 3, 3] and shifts [count, 3]."""
        options: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
        size = (count, 6)
        drawn = torch.randn(size, **options) if normal else 2 * torch.rand(size, **options) - 1
        drawn = drawn * torch.tensor(widths, dtype=torch.float64)
        angles = torch.deg2rad(drawn[:, :3])
        return euler_to_matrix(angles, "XYZ"), drawn[:, 3:]


_CONFERENCE = (0.15 * 0.35 * 180.0,) * 3 + (0.15,) * 3

_JOURNAL = (15.0,) * 3 + (25.0,) * 3
_ABOUT: dict[str, Any] = {"moving_normal": False, "about_target": True}

SAMPLINGS: dict[str, PoseSampling] = {
    "prost": PoseSampling(_JOURNAL, (25.0,) * 5 + (60.0,)),
    "prost-2020": PoseSampling(_CONFERENCE, _CONFERENCE, target_normal=True, relative=True),
    "uniform": PoseSampling(_JOURNAL, (30.0,) * 3 + (50.0,) * 3, **_ABOUT),
    "narrow": PoseSampling(_JOURNAL, (15.0,) * 3 + (20.0, 20.0, 40.0), **_ABOUT),
}
"""prost: the journal's training poses. prost-2020: those of the published code, N(0, 0.15) in all
six, times 0.35 pi rad and half the volume's width. uniform, narrow: about the true pose;
uniform is that of the measured results (docs/training.md)."""
