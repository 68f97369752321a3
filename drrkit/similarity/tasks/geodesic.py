"""The squared geodesic distance of poses (rotation vector, translation), and its gradient.

The left-canonical metric of SE(3) as the product metric on rotations and translations: log at m of
t, pulled back to the identity, is [rotvec(R_m' R_t), R_m' (t_t - t_m)], so

    L(m, t) = |rotvec(R_m' R_t)|^2 + |t_t - t_m|^2

in rad and in the unit of the translations. With phi = rotvec(R_m' R_t) the gradient in the
coordinates of m is  dL/dr_m = -2 J_l(r_m) phi,  dL/dt_m = 2 (t_m - t_t),  because
d phi / d r_m = -J_l(phi)^-1 J_r(r_m), phi' J_l(phi)^-1 = phi' and J_r' = J_l. The distance is not
differentiable where the rotations differ by pi.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from drrkit.geometry import check_floating, so3_exp, so3_log

__all__ = ["geodesic_gradient", "geodesic_loss", "left_jacobian"]

# Squared angles below which the series of J_l take over, long enough for two derivatives.
_SMALL = 1e-2
_COSINE_SERIES = tuple((-1) ** k / math.factorial(2 * k + 2) for k in range(6))
_SINE_SERIES = tuple((-1) ** k / math.factorial(2 * k + 3) for k in range(6))


def geodesic_loss(theta: Tensor, target: Tensor) -> Tensor:
    """Squared distance of poses theta and target [..., 6] = (rotation vector, translation): [...].

    Differentiable twice, at equal poses and at the identity too. Raises TypeError or ValueError
    when one is no floating point tensor [..., 6].
    """
    phi, shift = _difference(theta, target)
    return phi.square().sum(-1) + shift.square().sum(-1)


def geodesic_gradient(theta: Tensor, target: Tensor) -> Tensor:
    """d geodesic_loss / d theta in closed form, [..., 6]; arguments and errors as there."""
    phi, shift = _difference(theta, target)
    turn = (left_jacobian(theta[..., :3]) @ phi.unsqueeze(-1)).squeeze(-1)
    return torch.cat((-2.0 * turn, -2.0 * shift), -1)


def left_jacobian(omega: Tensor) -> Tensor:
    """J_l of SO(3) at rotation vectors [..., 3] rad: exp(omega + d) = exp(J_l d) exp(omega).

    I + (1 - cos a) / a^2 [omega] + (a - sin a) / a^3 [omega]^2, a = |omega|: [..., 3, 3]. Smooth
    everywhere, as so3_exp.
    """
    check_floating("omega", omega, (3,))
    square = omega.square().sum(-1)
    small = square < _SMALL
    near = torch.where(small, square, 0.0)
    safe = torch.where(small, 1.0, square)
    angle = safe.sqrt()
    first = torch.where(small, _series(_COSINE_SERIES, near), (1.0 - angle.cos()) / safe)
    far = (angle - angle.sin()) / (angle * safe)
    second = torch.where(small, _series(_SINE_SERIES, near), far)
    x, y, z = omega.unbind(-1)
    zero = torch.zeros_like(x)
    hat = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3))
    identity = torch.eye(3, dtype=omega.dtype, device=omega.device)
    return identity + first[..., None, None] * hat + second[..., None, None] * (hat @ hat)


def _difference(theta: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """rotvec(R' R_target) and t_target - t."""
    check_floating("theta", theta, (6,))
    check_floating("target", target, (6,))
    relative = so3_exp(theta[..., :3]).mT @ so3_exp(target[..., :3])
    return so3_log(relative), target[..., 3:] - theta[..., 3:]


def _series(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    value = x * coefficients[-1] + coefficients[-2]
    for coefficient in reversed(coefficients[:-2]):
        value = value * x + coefficient
    return value
