"""How well an X-ray agrees with the volume at a pose, whatever the X-ray's noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from drrkit import losses
from drrkit.registration.stages import Stage
from drrkit.registration.views import View, blurred, downsampling, renderer

__all__ = ["agreement"]

# Fine enough to tell poses apart, coarse enough that photon noise hardly lowers the correlation.
_SCALE = Stage(losses.gradient_ncc, pixel_mm=3.5, blur=1.5)


def agreement(
    scene: Any, views: Sequence[View], world_to_camera: Tensor, depth: float, method: str
) -> float:
    """Gradient correlation of the X-rays with the scene at one pose [1, 4, 4], 0 to 1.

    The mean over the views of the correlation at pixels of about 3.5 mm at the patient, after a
    blur by 1.5 of them.

    Args:
        scene: a Volume in mu, or anything that renders itself.
        depth: of the patient, mm from the source.
        method: projector method.
    """
    factor = downsampling(_SCALE, views[0].camera, depth)
    total = 0.0
    with torch.no_grad():
        for view in views:
            seen = view.downsampled(factor).blurred(_SCALE.blur)
            draw = renderer(scene, seen.camera, 1, method)
            moving = draw(seen.pose(world_to_camera)).sum(dim=1, keepdim=True)
            moving = blurred(moving, seen.mask, _SCALE.blur)
            total += 1.0 - float(losses.gradient_ncc(moving, seen.xray, seen.mask))
    return min(max(total / len(views), 0.0), 1.0)
