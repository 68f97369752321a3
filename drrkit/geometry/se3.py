"""Rotations and rigid motions: exponential and logarithm of SO(3) and SE(3), perturbed poses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from drrkit._native import apply_map
from drrkit.geometry.checks import batched, check_floating

# Below these squares (of the angle; of tan(angle / 2)) the derivatives of the closed forms lose
# digits and the series take over, long enough for second derivatives in float64 at the seam.
_EXP_SMALL = 1e-3
_LOG_SMALL = 1e-2
_COSINE_SERIES = tuple((-1) ** k / math.factorial(2 * k + 2) for k in range(4))
_SINE_SERIES = tuple((-1) ** k / math.factorial(2 * k + 3) for k in range(4))
_ATAN_SERIES = tuple((-1) ** k / (2 * k + 1) for k in range(9))
# |Bernoulli(2 k)| / (2 k)!, k = 1, 2, ...
_COTANGENT_SERIES = (1 / 12, 1 / 720, 1 / 30240, 1 / 1209600)


def so3_exp(omega: Tensor) -> Tensor:
    """Rotation matrices of rotation vectors (Rodrigues): omega [..., 3] rad -> [..., 3, 3].

    Smooth everywhere: first and second derivatives are exact at omega = 0, too. Raises TypeError
    or ValueError when omega is not a floating point tensor [..., 3].
    """
    check_floating("omega", omega, (3,))
    x, y, z = omega.unbind(-1)
    zero = torch.zeros_like(x)
    hat = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3))
    return _exponential(hat, omega)


def se3_exp(xi: Tensor) -> Tensor:
    """Rigid motions of twists: xi [..., 6] = (omega rad, tau mm) -> [..., 4, 4].

    The matrix exponential of [[hat(omega), tau], [0, 0]]: the translation is V(omega) tau, not
    tau. Smooth everywhere: first and second derivatives are exact at xi = 0, too. Raises TypeError
    or ValueError when xi is not a floating point tensor [..., 6].
    """
    check_floating("xi", xi, (6,))
    x, y, z, u, v, w = xi.unbind(-1)
    zero = torch.zeros_like(x)
    rows = (zero, -z, y, u, z, zero, -x, v, -y, x, zero, w, zero, zero, zero, zero)
    return _exponential(torch.stack(rows, -1).unflatten(-1, (4, 4)), xi[..., :3])


def so3_log(rotation: Tensor) -> Tensor:
    """Rotation vectors of rotation matrices: [..., 3, 3] -> [..., 3] rad, angle in [0, pi].

    The inverse of so3_exp, through the quaternion of largest pivot (Shepperd 1978), so that no
    digits are lost near pi; exact to second order at the identity. At the angle pi itself one of
    the two opposite vectors is returned. Orthonormality is assumed. Raises TypeError or ValueError
    when rotation is not a floating point tensor [..., 3, 3].
    """
    check_floating("rotation", rotation, (3, 3))
    quaternion = _quaternion_direction(rotation)
    scalar, vector = quaternion[..., 0], quaternion[..., 1:]
    square = (vector * vector).sum(-1)
    small = square < _LOG_SMALL * scalar * scalar
    divisor = torch.where(small, scalar, 1.0)
    ratio = torch.where(small, square, 0.0) / (divisor * divisor)
    near = _polynomial(_ATAN_SERIES, ratio) / divisor
    norm = torch.where(small, 1.0, square).sqrt()
    far = torch.atan2(norm, scalar) / norm
    return vector * (2.0 * torch.where(small, near, far)).unsqueeze(-1)


def quaternion_rotation(quaternion: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of quaternions [..., 4] = (w, x, y, z) of any length but 0."""
    w, x, y, z = (quaternion / quaternion.norm(dim=-1, keepdim=True)).unbind(-1)
    entries = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(entries, -1).unflatten(-1, (3, 3))


def se3_log(motion: Tensor) -> Tensor:
    """Twists of rigid motions: [..., 4, 4] -> [..., 6] = (omega rad, tau mm), angle in [0, pi].

    The inverse of se3_exp: tau = V(omega)^-1 t with, for a = |omega|,
    V^-1 = I - hat / 2 + (1 - a / 2 cot(a / 2)) / a^2 hat^2. Exact to second order at the identity.
    Raises TypeError or ValueError when motion is not a floating point tensor [..., 4, 4].
    """
    check_floating("motion", motion, (4, 4))
    omega, translation = so3_log(motion[..., :3, :3]), motion[..., :3, 3]
    square = (omega * omega).sum(-1)
    small = square < _EXP_SMALL
    near = _polynomial(_COTANGENT_SERIES, torch.where(small, square, 0.0))
    safe = torch.where(small, 1.0, square)
    half = 0.5 * safe.sqrt()
    far = (1.0 - half * half.cos() / half.sin()) / safe
    once = torch.linalg.cross(omega, translation, dim=-1)
    twice = torch.linalg.cross(omega, once, dim=-1)
    tau = translation - 0.5 * once + torch.where(small, near, far).unsqueeze(-1) * twice
    return torch.cat((omega, tau), -1)


def perturb(world_to_camera: Tensor, xi: Tensor, center: Tensor) -> Tensor:
    """Move the patient by a twist about a world point: M' = Trans(c) exp(xi) Trans(-c) M.

    world_to_camera  [4, 4] or [B, 4, 4], M
    xi               [6] or [B, 6] = (omega rad, tau mm) in camera axes
    center           [3] or [B, 3] world mm, normally volume_center(volume); c = M center

    Returns [B, 4, 4] in the wider dtype of world_to_camera and xi, differentiable in all three,
    twice, exactly at xi = 0 too.
    Raises TypeError or ValueError for wrong shapes and dtypes.
    """
    pose = batched("world_to_camera", world_to_camera, (4, 4))
    twist, point = batched("xi", xi, (6,)), batched("center", center, (3,))
    if len({len(pose), len(twist), len(point)} - {1}) > 1:
        raise ValueError(
            "world_to_camera, xi and center: expected one batch size, got "
            f"{list(world_to_camera.shape)}, {list(xi.shape)} and {list(center.shape)}"
        )
    if twist.device != pose.device:
        raise ValueError(f"xi: expected device {pose.device}, got {twist.device}")
    point = point.to(pose.device, torch.float64)
    moved = apply_map("perturb", 0, pose.double(), twist.double(), point)
    return moved.to(torch.promote_types(pose.dtype, twist.dtype))


def assemble(rotation: Tensor, translation: Tensor) -> Tensor:
    """[[R, t], [0, 1]] of rotation [..., 3, 3] and translation [..., 3, 1]."""
    upper = torch.cat((rotation, translation), -1)
    last = torch.zeros_like(upper[..., :1, :])
    # No tensor is made from Python numbers here: on a GPU that would be a copy from the host.
    last = torch.cat((last[..., :3], last[..., 3:] + 1.0), -1)
    return torch.cat((upper, last), -2)


def _exponential(generator: Tensor, omega: Tensor) -> Tensor:
    """exp X = I + X + (1 - cos a) / a^2 X^2 + (a - sin a) / a^3 X^3, a = |omega|.

    Because X^4 = -a^2 X^2 on so(3) and on se(3). In float64 whatever comes in: autocast would
    round the matrix products of anything less.
    """
    dtype = generator.dtype
    generator, omega = generator.double(), omega.double()
    square = (omega * omega).sum(-1)
    small = square < _EXP_SMALL
    near = torch.where(small, square, 0.0)
    safe = torch.where(small, 1.0, square)
    angle = safe.sqrt()
    second_far, third_far = (1.0 - angle.cos()) / safe, (angle - angle.sin()) / (angle * safe)
    second = torch.where(small, _polynomial(_COSINE_SERIES, near), second_far)
    third = torch.where(small, _polynomial(_SINE_SERIES, near), third_far)
    identity = torch.eye(generator.shape[-1], dtype=generator.dtype, device=generator.device)
    squared = generator @ generator
    higher = second[..., None, None] * squared + third[..., None, None] * (squared @ generator)
    return (identity + generator + higher).to(dtype)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Horner's rule, coefficients from the constant term on."""
    value = x * coefficients[-1] + coefficients[-2]
    for coefficient in reversed(coefficients[:-2]):
        value = value * x + coefficient
    return value


def _quaternion_direction(rotation: Tensor) -> Tensor:
    """A positive multiple of the unit quaternion (w, x, y, z), w >= 0: [..., 3, 3] -> [..., 4]."""
    r00, r01, r02, r10, r11, r12, r20, r21, r22 = rotation.flatten(-2).unbind(-1)
    ww, xx = 1.0 + r00 + r11 + r22, 1.0 + r00 - r11 - r22
    yy, zz = 1.0 - r00 + r11 - r22, 1.0 - r00 - r11 + r22
    wx, wy, wz = r21 - r12, r02 - r20, r10 - r01
    xy, xz, yz = r01 + r10, r02 + r20, r12 + r21
    # 4 q q': each row is a multiple of q, and the one with the largest diagonal keeps its digits.
    outer = torch.stack((ww, wx, wy, wz, wx, xx, xy, xz, wy, xy, yy, yz, wz, xz, yz, zz), -1)
    pivot = torch.stack((ww, xx, yy, zz), -1).argmax(-1, keepdim=True)
    row = outer.gather(-1, 4 * pivot + torch.arange(4, device=rotation.device))
    return torch.where(row[..., :1] < 0, -row, row)
