"""How uncertain a registered pose is, from the residuals at it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from drrkit.registration.levenberg import linearised
from drrkit.registration.stages import Stage
from drrkit.registration.views import View

__all__ = ["pose_covariance"]

# Residuals may depend on each other within square blocks: this many along the longer side, none
# smaller than so many pixels.
_BLOCKS, _LEAST_SIDE = 12, 4


def pose_covariance(
    scene: Any,
    views: Sequence[View],
    stage: Stage,
    factor: int | Sequence[int],
    method: str,
    center: Tensor,
    world_to_camera: Tensor,
) -> Tensor:
    """Covariance [6, 6] float64 of xi (rad, mm) about the centre at an optimum of a stage's loss.

    The sandwich H^-1 S H^-1 (Huber 1967): H is the Gauss-Newton matrix, S the covariance of the
    gradient. The gradient is a sum over pixels, and S the sum over blocks of pixels of the outer
    products of their shares, so that residuals may be correlated within a block (Liang and Zeger
    1986) as those of blurred noise and of wrong attenuations are. Errors that all blocks share,
    such as a wrong focal length, are not in it.

    Arguments as for `expansion`; world_to_camera is one pose [1, 4, 4].
    """
    hessian = torch.zeros(6, 6, dtype=torch.float64, device=world_to_camera.device)
    spread = torch.zeros_like(hessian)
    for part in linearised(scene, views, stage, factor, method, center)(world_to_camera):
        hessian += part.matrix[0].double()
        shares = _shares_of_blocks(part.moving[0], part.jacobian[0], part.slope[0])
        spread += shares @ shares.mT
    inverse = torch.linalg.pinv(hessian, hermitian=True)
    return inverse @ spread @ inverse


def _shares_of_blocks(moving: Tensor, jacobian: Tensor, slope: Tensor) -> Tensor:
    """What every block of pixels adds to the gradient: [6, blocks] float64.

    Args:
        moving, slope: [C, rows, cols], the image and the loss's derivative in it.
        jacobian: [C, 6, rows, cols].
    """
    # Changes of offset and gain do not change a correlation: without them in the Jacobian the
    # total is the same, and the blocks' shares are those of the pose alone.
    flat = jacobian.flatten(2)
    plain = torch.stack((torch.ones_like(moving.flatten(1)), moving.flatten(1)), 1)
    basis = torch.linalg.qr(plain.mT)[0]
    flat = flat - (flat @ basis) @ basis.mT
    share = (flat.reshape_as(jacobian) * slope[:, None]).sum(0)
    side = min(max(_LEAST_SIDE, max(share.shape[-2:]) // _BLOCKS), *share.shape[-2:])
    pooled = functional.avg_pool2d(share[None], side, ceil_mode=True, divisor_override=1)
    return pooled[0].flatten(1).double()
