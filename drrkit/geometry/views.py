"""Named views: poses from a volume and a distance, in patient LPS, each a proper rotation."""

from __future__ import annotations

import torch
from torch import Tensor

from drrkit.geometry.checks import as_distance, checked_positive
from drrkit.geometry.frames import VolumeLike, volume_center
from drrkit.geometry.se3 import assemble

# Rows: the camera's axes x, y, z in LPS; y points down the patient in all of them.
_AXES = {
    "AP": ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0)),
    "PA": ((-1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, -1.0, 0.0)),
    "left lateral": ((0.0, -1.0, 0.0), (0.0, 0.0, -1.0), (1.0, 0.0, 0.0)),
    "right lateral": ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0), (-1.0, 0.0, 0.0)),
}


def view_ap(volume: VolumeLike, sod: float) -> Tensor:
    """Anterior-posterior: source anterior, detector posterior, the patient's left on the right.

    sod: source-to-isocentre distance in mm. Returns [1, 4, 4] float64 on the device of the
    volume's values; the volume's centre stands at camera (0, 0, sod), its superior side is up.
    Raises TypeError or ValueError when sod is not a positive number.
    """
    return _named("AP", volume, sod)


def view_pa(volume: VolumeLike, sod: float) -> Tensor:
    """Posterior-anterior: source posterior, the patient's right on the right; as view_ap."""
    return _named("PA", volume, sod)


def view_left_lateral(volume: VolumeLike, sod: float) -> Tensor:
    """Left side at the detector, source on the right, anterior on the right; as view_ap."""
    return _named("left lateral", volume, sod)


def view_right_lateral(volume: VolumeLike, sod: float) -> Tensor:
    """Right side at the detector, source on the left, posterior on the right; as view_ap."""
    return _named("right lateral", volume, sod)


def view_carm(
    volume: VolumeLike,
    sod: float | Tensor,
    primary: float | Tensor = 0.0,
    secondary: float | Tensor = 0.0,
    *,
    base: str = "AP",
) -> Tensor:
    """A C-arm turned about the volume's centre: [B, 4, 4] float64 (B = 1 for numbers).

    The whole C-arm starts in the base view and turns rigidly, with DICOM's signs and order:

    primary    rad, right-handed about the patient's +S axis: the anterior end of the arm moves to
               the patient's left (LAO positive)
    secondary  rad, then, right-handed about the camera's own x axis, which the primary angle has
               turned along: the detector moves towards the head (CRA positive), in either base

    Camera axes in the world, as columns: Rz(primary) Base Rx(secondary). sod in mm; all three may
    be tensors [] or [B], and the pose is differentiable in them.

    base="PA"  detector anterior at zero, where DICOM counts (0018,1510) and (0018,1511) from.
               Detector direction, LPS: (sin p cos s, -cos p cos s, sin s).
               primary = 90 degrees is the left lateral view.
    base="AP"  detector posterior at zero: DICOM's primary angle less 180 degrees.
               Detector direction, LPS: (-sin p cos s, cos p cos s, sin s); the source is the end
               that moves to the left. primary = 90 degrees is the right lateral view.

    Hence view_carm(base="AP", primary=p) is view_carm(base="PA", primary=p + pi), whatever the
    secondary angle. Raises TypeError or ValueError for another base or a sod that is not positive.
    """
    if base not in ("AP", "PA"):
        raise ValueError(f"base: expected 'AP' or 'PA', got {base!r}")
    device = volume.values.device
    p, s = (torch.as_tensor(a, dtype=torch.float64, device=device) for a in (primary, secondary))
    turned = torch.broadcast_tensors(as_distance("sod", sod, device), p, s)
    distance, p, s = (x.reshape(-1) for x in turned)
    zero, one = torch.zeros_like(p), torch.ones_like(p)
    # Transposed rotations, for the pose maps world to camera.
    about_z = torch.stack((p.cos(), p.sin(), zero, -p.sin(), p.cos(), zero, zero, zero, one), -1)
    about_x = torch.stack((one, zero, zero, zero, s.cos(), s.sin(), zero, -s.sin(), s.cos()), -1)
    axes = torch.tensor(_AXES[base], dtype=torch.float64, device=device)
    rotation = about_x.unflatten(-1, (3, 3)) @ axes @ about_z.unflatten(-1, (3, 3))
    return _isocentric(rotation, volume, distance)


def _named(name: str, volume: VolumeLike, sod: float) -> Tensor:
    device = volume.values.device
    axes = torch.tensor([_AXES[name]], dtype=torch.float64, device=device)
    return _isocentric(axes, volume, as_distance("sod", checked_positive("sod", sod), device)[None])


def _isocentric(rotation: Tensor, volume: VolumeLike, sod: Tensor) -> Tensor:
    """The pose of rotation [B, 3, 3] with the volume's centre at camera (0, 0, sod [B])."""
    zero = torch.zeros_like(sod)
    translation = torch.stack((zero, zero, sod), -1) - rotation @ volume_center(volume)
    return assemble(rotation, translation.unsqueeze(-1))
