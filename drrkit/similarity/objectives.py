"""Training objectives: how far a similarity's pose gradient is from that of the geodesic distance.

The distance of poses m and t (rotation vector r in rad, translation in some unit) is that of the
product metric on rotations and translations:

    L_geo(m, t) = |rotvec(R_m' R_t)|^2 + |t_t - t_m|^2

It is not differentiable where the rotations differ by pi. With q = dS / d theta and
g = d L_geo / d theta, both [B, 6] = (rotations, translations):

    "direction"  mean |g_r / |g_r| - q_r / |q_r||^2 + |g_t / |g_t| - q_t / |q_t||^2, in [0, 8]:
                 random directions give 4. Published code of 2020, and the default.
    "geodesic"   mean of the squared geodesic distance of q and g taken as poses, the journal's.
    "mse"        mean (S - L_geo)^2: no gradients are compared. The published ablation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drrkit.geometry import check_floating, so3_exp, so3_log

OBJECTIVES = ("direction", "geodesic", "mse")

# Inside a square root: far below any gradient that float64 resolves, and no NaN where one is zero.
_TINY = 1e-40


def objective_loss(name: str, similarity: Tensor, theta: Tensor, target: Tensor) -> Tensor:
    """The objective of a batch, a scalar that is differentiable in a network's weights.

    Args:
        name: one of OBJECTIVES.
        similarity: S [B], computed from theta.
        theta: poses [B, 6] that require a gradient.
        target: true poses [B, 6].

    Raises:
        ValueError: another name.
    """
    if name == "mse":
        return (similarity - geodesic_loss(theta, target).detach()).square().mean()
    if name not in OBJECTIVES:
        raise ValueError(f"objective: expected one of {OBJECTIVES}, got {name!r}")
    found = pose_gradient(similarity, theta, create_graph=True)
    wanted = geodesic_gradient(theta, target)
    distance = direction_distance if name == "direction" else geodesic_distance
    return distance(found, wanted).mean()


def pose_gradient(similarity: Tensor, theta: Tensor, create_graph: bool = False) -> Tensor:
    """dS[i] / d theta[i], [B, 6]: one backward pass, as S[i] depends on pose i alone."""
    (gradient,) = torch.autograd.grad(similarity.sum(), theta, create_graph=create_graph)
    return gradient


def geodesic_loss(theta: Tensor, target: Tensor) -> Tensor:
    """L_geo of poses theta and target [..., 6] = (rotation vector, translation): [...].

    Differentiable twice, at equal poses and at the identity too. Raises TypeError or ValueError
    when one is no floating point tensor [..., 6].
    """
    check_floating("theta", theta, (6,))
    check_floating("target", target, (6,))
    relative = so3_exp(theta[..., :3]).mT @ so3_exp(target[..., :3])
    shift = target[..., 3:] - theta[..., 3:]
    return so3_log(relative).square().sum(-1) + shift.square().sum(-1)


def geodesic_gradient(theta: Tensor, target: Tensor) -> Tensor:
    """d geodesic_loss / d theta, [..., 6], a constant; arguments and errors as there."""
    with torch.enable_grad():
        theta = theta.detach().requires_grad_()
        return torch.autograd.grad(geodesic_loss(theta, target.detach()).sum(), theta)[0]


def direction_distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared distance of unit vectors, rotations and translations apart: [B, 6] -> [B], 0 to 8."""
    return (_directions(found) - _directions(wanted)).square().sum((-1, -2))


def geodesic_distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared geodesic distance of gradients [B, 6] taken as poses: [B].

    It depends on their scale and wraps where a rotation reaches pi, so each half is first shortened
    to v / (1 + |v|): directions and the order of magnitudes stay.
    """
    return geodesic_loss(_shortened(found), _shortened(wanted))


def cosines(found: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine of the angle between gradients [B, 6], of the rotations and of the translations."""
    product = (_directions(found) * _directions(wanted)).sum(-1)
    return product[..., 0], product[..., 1]


def _directions(gradient: Tensor) -> Tensor:
    """[..., 6] as two unit vectors [..., 2, 3]."""
    halves = gradient.unflatten(-1, (2, 3))
    return halves / (halves.square().sum(-1, keepdim=True) + _TINY).sqrt()


def _shortened(gradient: Tensor) -> Tensor:
    halves = gradient.unflatten(-1, (2, 3))
    length = (halves.square().sum(-1, keepdim=True) + _TINY).sqrt()
    return (halves / (1.0 + length)).flatten(-2)
