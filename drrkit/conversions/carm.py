"""Angles of a C-arm as DICOM writes them, and ProST's pose parameters."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from drrkit.conversions.vectors import checked_view
from drrkit.geometry import (
    Camera,
    VolumeLike,
    assemble,
    batched,
    batched_pose,
    check_floating,
    checked_positive,
    project_points,
    so3_exp,
    so3_log,
    view_carm,
    volume_center,
)

SDD_MM, DETECTOR_MM = (300.0, 6000.0), (20.0, 2000.0)
"""Distances and detectors outside these are probably in another unit."""
WIDEST_DEG = 45.0
"""No C-arm sees more: a flat panel of 43 cm from 1 m is 24 degrees wide."""


class DicomAngles(NamedTuple):
    """A C-arm's position; degrees and mm, each [B] float64, isocenter [B, 3]."""

    primary: Tensor
    """(0018,1510) Positioner Primary Angle, LAO positive."""
    secondary: Tensor
    """(0018,1511) Positioner Secondary Angle, CRA positive."""
    roll: Tensor
    """Turn of the detector about the beam, right-handed along the beam; DICOM's zero."""
    source_to_isocenter: Tensor
    """(0018,1111) Distance Source to Patient, for XA."""
    isocenter: Tensor
    """World mm."""


def to_dicom_angles(camera: Camera, world_to_camera: Tensor, volume: Any) -> DicomAngles:
    """The C-arm's angles of views [4, 4] or [B, 4, 4], the patient head first and supine.

    The isocentre is the foot of the volume's centre on the camera's axis. A beam along the
    patient's long axis has no primary angle of its own: zero then.
    """
    pose = checked_view(camera, world_to_camera)
    turn = pose[:, :3, :3]
    x, y, z = turn[:, 2].unbind(-1)
    secondary = torch.atan2(z, torch.hypot(x, y))
    primary = torch.atan2(x, -y)
    upright = view_carm(volume, 1.0, primary, secondary, base="PA").to(pose)[:, :3, :3]
    # turn = Rz(roll)^T upright
    between = turn @ upright.mT
    roll = torch.atan2(between[:, 0, 1], between[:, 0, 0])
    center = volume_center(volume).to(pose)
    source = -(turn.mT @ pose[:, :3, 3:]).squeeze(-1)
    sod = ((center - source) * turn[:, 2]).sum(-1)
    isocenter = source + sod[:, None] * turn[:, 2]
    return DicomAngles(primary.rad2deg(), secondary.rad2deg(), roll.rad2deg(), sod, isocenter)


def from_dicom_angles(
    primary: float | Tensor,
    secondary: float | Tensor,
    sod: float | Tensor,
    volume: Any,
    *,
    roll: float | Tensor = 0.0,
    isocenter: Tensor | None = None,
) -> Tensor:
    """Poses [B, 4, 4] float64 of a C-arm: degrees, mm; the inverse of to_dicom_angles.

    primary    (0018,1510), LAO positive; zero is posterior-anterior, the detector in front
    secondary  (0018,1511), CRA positive
    sod        (0018,1111) source to isocentre
    isocenter  [3] or [B, 3] world mm, default the volume's centre: DICOM does not say where the
               patient lies, so this is a start for a registration, not a pose

    Raises ValueError for a sod that is not positive. For the projection geometry proper:
    CArm(sdd=(0018,1110), pixel_spacing=(0018,1164), ...).
    """
    if not isinstance(sod, Tensor):
        sod = checked_positive("sod", sod)
    device = volume.values.device
    given = (
        torch.as_tensor(v, dtype=torch.float64, device=device) for v in (primary, secondary, roll)
    )
    p, s, r = (value.deg2rad().reshape(-1) for value in given)
    depth = torch.as_tensor(sod, dtype=torch.float64, device=device).reshape(-1)
    p, s, r, depth = torch.broadcast_tensors(p, s, r, depth)
    upright = view_carm(volume, depth, p, s, base="PA")[:, :3, :3]
    zero = torch.zeros_like(r)
    turn = so3_exp(torch.stack((zero, zero, -r), -1)) @ upright
    center = volume_center(volume) if isocenter is None else isocenter.to(turn)
    shift = torch.stack((zero, zero, depth), -1) - (turn @ center[..., None]).squeeze(-1)
    return assemble(turn, shift[..., None])


def odd_lengths(
    sdd: float | None,
    sod: float | None = None,
    spacing: tuple[float, float] | None = None,
    size: tuple[int, int] = (1, 1),
) -> list[str]:
    """What is odd about the lengths of a C-arm, in words: another unit, an impossible order.

    sdd, sod, spacing  (row, col), all in mm; None where not known
    size               (rows, cols) of the detector
    """
    told = []
    for what, value in (("source-to-detector", sdd), ("source-to-isocentre", sod)):
        if value is None or SDD_MM[0] <= value <= SDD_MM[1]:
            continue
        scaled = (
            f" (in {u}: {f * value:g} mm)"
            for u, f in (("cm", 10), ("m", 1000))
            if SDD_MM[0] <= f * value <= SDD_MM[1]
        )
        unit = next(scaled, "")
        told.append(f"the {what} distance is {value:g} mm: is it in another unit{unit}?")
    if sdd is not None and sod is not None and sod >= sdd:
        told.append(
            f"the isocentre, {sod:g} mm from the source, lies behind the detector at {sdd:g} mm: "
            "one of the two is wrong"
        )
    if spacing is not None:
        sides = [n * step for n, step in zip(size, spacing, strict=True)]
        if not DETECTOR_MM[0] <= max(sides) <= DETECTOR_MM[1]:
            told.append(
                f"the image is {sides[0]:.4g} x {sides[1]:.4g} mm large by its pixel spacing "
                f"{spacing[0]:g}, {spacing[1]:g} mm: is it in another unit?"
            )
    return told


def odd_camera(camera: Camera, sod: float | None = None, matrix: bool = False) -> list[str]:
    """What is odd about one camera, in words: `odd_lengths`, and a K that cannot be of its image.

    sod     source-to-isocentre distance in mm, where known
    matrix  whether K stands in a file as it is: then it may be in mm, or of images of another size
    """
    rows, cols = camera.size
    sdd, (row, col) = float(camera.sdd), map(float, camera.pixel_spacing)
    cx, cy = camera.K.detach()[:2, 2].tolist()
    told = odd_lengths(sdd, sod, (row, col), camera.size)
    across, down = (cx + 0.5) / cols, (cy + 0.5) / rows
    if min(across, down) < -2 or max(across, down) > 3:
        told.append(
            f"the foot of the source lies at column {cx:.6g}, row {cy:.6g}, far from the image of "
            f"{rows} x {cols} pixels: is it that of another image?"
        )
    elif matrix and abs(across - down) < 0.03 and not 1 / 3 < across < 2 / 3:
        told.append(
            f"the foot of the source lies at {across:.0%} of the image's width and {down:.0%} of "
            f"its height: is K in pixels, and of images of {rows} x {cols}?"
        )
    wide = 2 * math.degrees(math.atan(max(rows * row, cols * col) / 2 / sdd))
    if matrix and not 0.7 < row / col < 1.4:
        told.append(f"pixels of {row:.4g} x {col:.4g} mm by K: are fx and fy of the same image?")
    if matrix and max(abs(row - 1), abs(col - 1)) < 1e-6:
        told.append(f"K's focal length is {sdd:g}, the detector's distance in mm: is it in pixels?")
    elif matrix and camera.beam == "cone" and wide > WIDEST_DEG:
        told.append(f"the image is {wide:.0f} degrees wide by K's focal length: is it in pixels?")
    return told


def odd_place(volume: VolumeLike, camera: Camera, world_to_camera: Tensor) -> list[str]:
    """Why one camera cannot see a volume from [4, 4] or one of [B, 4, 4], in words.

    It can where the volume's centre lies between source and detector, the source outside of its
    grid, and the sphere around the grid meets the field of view.
    """
    pose, center = (
        batched_pose(world_to_camera.detach().double().cpu()),
        volume_center(volume).cpu(),
    )
    depth = pose[:, 2, :3] @ center + pose[:, 2, 3]
    spacing, direction = (
        torch.as_tensor(part, dtype=torch.float64, device="cpu")
        for part in (volume.spacing, volume.direction)
    )
    extent = torch.tensor(volume.values.shape[:-4:-1], dtype=torch.float64) * spacing
    source = -(pose[:, :3, :3].mT @ pose[:, :3, 3:]).squeeze(-1) - center
    within = ((source @ direction.reshape(3, 3)).abs() < extent / 2).all(1)
    sdd = float(camera.sdd)
    if camera.beam == "parallel":
        depth = torch.full_like(depth, sdd)
    elif not bool(((depth > 0) & (depth < sdd)).all()):
        away = float(depth[(depth <= 0) | (depth >= sdd)][0])
        where = "in front of it, behind the detector" if away > 0 else "behind it"
        return [
            f"the volume's centre lies {abs(away):.4g} mm from the source, {where}: is the pose of "
            "another volume, in another unit, camera_to_world, or of a camera that looks along -z?"
        ]
    elif bool(within.any()):
        away = float(source[within][0].norm())
        return [
            f"the source lies inside the volume, {away:.4g} mm from its centre: is the pose in "
            "another unit, or of another volume?"
        ]
    seen = project_points(camera.to("cpu"), pose, center[None])[:, 0]
    last = torch.tensor(camera.size, dtype=torch.float64) - 0.5
    beyond = torch.maximum(-0.5 - seen, seen - last).clamp_min(0.0)
    beyond = (beyond * torch.tensor(camera.pixel_spacing)).norm(dim=1) * depth / sdd
    outside = beyond > extent.norm() / 2
    if not bool(outside.any()):
        return []
    row, col = seen[outside][0].tolist()
    return [
        f"the volume is not in the picture: its centre would be seen at row {row:.4g}, column "
        f"{col:.4g} of {camera.size[0]} x {camera.size[1]} pixels"
    ]


_PROST_AXES = ((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, -1.0))
"""ProST's frame in camera axes: rows of the image along x, columns along y, z to the source."""


def prost_scale(volume: Any) -> float:
    """ProST's unit of length s in mm: half the extent of the grid along its x axis."""
    return volume.values.shape[-1] * float(volume.spacing[0]) / 2


def to_prost(world_to_camera: Tensor, volume: Any, sod: float) -> Tensor:
    """ProST's theta [B, 6] = (rotation vector rad, translation / s) of poses.

    world_to_camera  [4, 4] or [B, 4, 4]
    sod              the source-to-isocentre distance of its canonical geometry, mm

    theta moves the rays in the volume's own frame: x' = R x + t, x in units of s = prost_scale
    about the volume's centre along its index axes, the source at (0, 0, sod / s) and the detector
    towards -z, pixel (m, n) of the image at row m along x and column n along y. Differentiable.
    Raises ValueError for a volume whose axes are left-handed.
    """
    pose = batched("world_to_camera", world_to_camera, (4, 4)).double()
    axes, direction, center, scale, depth = _prost_frame(volume, sod, pose)
    turn, shift = pose[:, :3, :3], pose[:, :3, 3]
    # X_cam = A R^T (D^T (X - c) - s t) + sod e_z
    rotation = direction.mT @ turn.mT @ axes
    at_center = (turn @ center) + shift - depth
    moved = -(rotation @ (axes.mT @ at_center[:, :, None])).squeeze(-1) / scale
    return torch.cat((so3_log(rotation), moved), -1)


def from_prost(theta: Tensor, volume: Any, sod: float) -> Tensor:
    """Poses [B, 4, 4] float64 of ProST's theta [6] or [B, 6]; the inverse of to_prost."""
    theta = batched("theta", theta, (6,)).double()
    axes, direction, center, scale, depth = _prost_frame(volume, sod, theta)
    back = axes @ so3_exp(theta[:, :3]).mT
    turn = back @ direction.mT
    shift = depth - turn @ center - scale * (back @ theta[:, 3:, None]).squeeze(-1)
    return assemble(turn, shift[..., None])


def _prost_frame(
    volume: Any, sod: float, like: Tensor
) -> tuple[Tensor, Tensor, Tensor, float, Tensor]:
    direction = torch.as_tensor(volume.direction, dtype=torch.float64).to(like.device)
    check_floating("direction", direction, (3, 3))
    if math.copysign(1.0, float(torch.linalg.det(direction))) < 0:
        raise ValueError("volume: expected a right-handed direction, got a reflection")
    axes = torch.tensor(_PROST_AXES, dtype=torch.float64, device=like.device)
    center = volume_center(volume).to(like.device)
    depth = axes.new_tensor((0.0, 0.0, checked_positive("sod", sod)))
    return axes, direction, center, prost_scale(volume), depth
