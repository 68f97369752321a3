"""The same X-ray as another machine would show it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

GAMMA = (0.7, 1.3)
FIELD = 0.3
_CONTROL_POINTS = 4


def shifted_appearance(
    xray: Tensor,
    seed: int,
    inversion: bool | None = None,
    *,
    gamma: bool = True,
    field: bool = True,
) -> Tensor:
    """An X-ray with another gamma, perhaps inverted, under an uneven field: values about 0 to 1.

    The image is mapped to [0, 1], raised to a power drawn from U(0.7, 1.3), inverted with
    probability 1/2, and multiplied by a smooth field between 0.7 and 1.3: random numbers on a
    4 x 4 grid, interpolated by cubic splines that are clamped to that range.

    Args:
        xray: [1, 1, rows, cols].
        seed: of all three.
        inversion: whether to invert; None leaves it to the seed.
        gamma, field: False leaves that part out; the others stay those of the seed.

    Raises:
        ValueError: a constant image.
    """
    power, inverted, knots = _drawn(seed)
    low, high = xray.amin(), xray.amax()
    if not bool(high > low):
        raise ValueError(f"xray: expected an image that is not constant, got {float(low):g} only")
    image = (xray - low) / (high - low)
    if gamma:
        image = image**power
    if inverted if inversion is None else inversion:
        image = 1.0 - image
    if not field:
        return image
    uneven = functional.interpolate(
        torch.from_numpy(knots).to(image), size=image.shape[-2:], mode="bicubic", align_corners=True
    )
    return image * uneven.clamp(1 - FIELD, 1 + FIELD)


def is_inverted(seed: int) -> bool:
    """Whether `shifted_appearance` inverts with this seed when it is left to it."""
    return _drawn(seed)[1]


def _drawn(seed: int) -> tuple[float, bool, np.ndarray]:
    """The power, whether to invert, and the field's values on its grid."""
    draw = np.random.default_rng(seed)
    power, inverted = float(draw.uniform(*GAMMA)), bool(draw.random() < 0.5)
    return power, inverted, draw.uniform(1 - FIELD, 1 + FIELD, (1, 1, *2 * (_CONTROL_POINTS,)))
