"""Similarities of images that are brought to one intensity scale first.

A difference of intensities means something only where both images have one scale, and an X-ray out
of another machine has not the scale of line integrals.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["UnitRange"]


class UnitRange:
    """A similarity of images each mapped to [0, 1] by its own lowest and highest intensity.

    The range is that of each view and channel under the mask. It moves with the image, so the
    derivative is exact: u = (I - low) / (high - low) has du = (dI - (1 - u) dlow - u dhigh) /
    (high - low), and dlow is dI where I is lowest. A constant image becomes 0.

    Args:
        similarity: (moving, fixed, mask) -> [B].
    """

    def __init__(self, similarity: Callable[..., Tensor]) -> None:
        self.similarity = similarity
        name = getattr(similarity, "__name__", type(similarity).__name__)
        self.__name__ = f"unit_{name}"

    def __call__(self, moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        """The similarity [B] of the mapped images; arguments as for the losses."""
        low, high = _ends(moving, mask)
        lowest, highest = _ends(fixed, mask)
        return self.similarity(_mapped(moving, low, high), _mapped(fixed, lowest, highest), mask)

    def linearised(
        self, moving: Tensor, jacobian: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The mapped image and its Jacobian, [B, C, rows, cols] and [B, C, 6, rows, cols]."""
        inside = moving if mask is None else torch.where(mask > 0, moving, torch.inf)
        first = inside.flatten(2).argmin(-1)
        inside = moving if mask is None else torch.where(mask > 0, moving, -torch.inf)
        last = inside.flatten(2).argmax(-1)
        ends, moves = [], []
        for index in (first, last):
            ends.append(moving.flatten(2).gather(2, index[..., None])[..., None])
            where = index[..., None, None].expand(*jacobian.shape[:3], 1)
            moves.append(jacobian.flatten(3).gather(3, where)[..., None])
        unit = _mapped(moving, *ends)
        share = unit.unsqueeze(2)
        change = jacobian - (1.0 - share) * moves[0] - share * moves[1]
        return unit, change / _extent(*ends).unsqueeze(2)


def _ends(image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Lowest and highest intensity under the mask, [B, C, 1, 1], differentiable."""
    low = image if mask is None else torch.where(mask > 0, image, torch.inf)
    high = image if mask is None else torch.where(mask > 0, image, -torch.inf)
    return low.amin((-1, -2), keepdim=True), high.amax((-1, -2), keepdim=True)


def _mapped(image: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return (image - low) / _extent(low, high)


def _extent(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp_min(torch.finfo(low.dtype).tiny ** 0.5)
