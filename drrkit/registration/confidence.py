"""How well an X-ray agrees with the volume at a pose, whatever the X-ray's noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from drrkit import losses
from drrkit.registration.problem.views import View, blurred, renderer

__all__ = ["agreement"]

# Pixels along the X-ray's longer side: fine enough to tell poses apart, coarse enough that photon
# noise hardly lowers the correlation. A share of the X-ray and not of the patient at the pose: a
# wrong pose near the source would choose pixels so coarse that nothing much is left to differ.
_PIXELS = 64

# Standard deviation of the blur and half the side of a patch, in these.
_BLUR, _RADIUS = 2.75, 8


def agreement(
    scene: Any, views: Sequence[View], world_to_camera: Tensor, method: str = "joseph"
) -> float:
    """How well the X-rays' patches agree with the scene at one pose [1, 4, 4], 0 to 1.

    The mean over patches of the correlation of image derivatives (`patch_gradient_ncc`), on about
    64 pixels along an X-ray's longer side, after a blur by 2.75 of them, in patches of 17 x 17; of
    several views the mean. In patches, because one outline that is matched well would outweigh
    everything else in a correlation of whole images.

    Args:
        scene: a Volume in mu, or anything that renders itself.
        method: projector method.
    """
    with torch.no_grad():
        found = [_agreement(scene, view, world_to_camera, method) for view in views]
    return min(max(sum(found) / len(found), 0.0), 1.0)


def _agreement(scene: Any, view: View, world_to_camera: Tensor, method: str) -> float:
    longer, shorter = max(view.camera.size), min(view.camera.size)
    factor = min(max(1, round(longer / _PIXELS)), shorter)
    share = longer / factor / _PIXELS
    seen = view.downsampled(factor).blurred(_BLUR * share)
    moving = renderer(scene, seen.camera, 1, method)(seen.pose(world_to_camera))
    moving = blurred(moving.sum(dim=1, keepdim=True), seen.mask, _BLUR * share)
    radius = max(1, min(round(_RADIUS * share), (shorter // factor - 3) // 2))
    mask = seen.mask
    if mask is not None:  # a derivative next to what is left out is none of the patient's
        mask = -functional.max_pool2d(-mask, 3, stride=1, padding=1)
    loss = losses.patch_gradient_ncc(
        moving, seen.xray, mask, radius=radius, stride=2, blur=0, masked_statistics=True
    )
    return 1.0 - float(loss)
