"""Volumes that are a part of what the X-ray shows: one bone, an implant. What surrounds them is
left out, so that it neither pulls the pose nor takes time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from drrkit.registration.lengths import pixel_at
from drrkit.registration.problem.rendering import SceneRenderer
from drrkit.registration.problem.views import FEWEST_PIXELS, View

__all__ = ["around"]

# Pixels along the longer side of the images in which the object is looked for.
_PIXELS = 128

# Share of the brightest pixel above which a pixel belongs to the object.
_SEEN = 0.05


def around(
    views: Sequence[View], drawn: SceneRenderer, pose: Tensor, depth: float, margin: float
) -> list[View]:
    """The views, cropped to where the object is seen at the poses, and a margin around it.

    A view that does not show it stays as it is.

    Args:
        pose: [K, 4, 4] of the first camera, [K, n, 4, 4] of n bodies.
        depth: of the object, mm from the source.
        margin: mm at the object.
    """
    return [_cropped(view, drawn, pose, margin / pixel_at(view.camera, depth)) for view in views]


def _cropped(view: View, drawn: SceneRenderer, pose: Tensor, margin: float) -> View:
    factor = max(1, round(max(view.camera.size) / _PIXELS))
    factor = min(factor, min(view.camera.size))
    with torch.no_grad():
        image = drawn.renderer(view.camera.rescale(factor), None)(view.pose(pose)).sum(1).amax(0)
    seen = image > _SEEN * image.amax()
    if not bool(seen.any()):
        return view
    window = []
    for across, size in zip((1, 0), view.camera.size, strict=True):
        places = seen.any(across).nonzero()
        first = max(0, round(int(places[0]) * factor - margin))
        last = min(size, round((int(places[-1]) + 1) * factor + margin))
        wanted = min(size, max(last, first + FEWEST_PIXELS))
        window.append((max(0, min(first, wanted - FEWEST_PIXELS)), wanted))
    (row, below), (col, right) = window
    part = (..., slice(row, below), slice(col, right))
    return replace(
        view,
        camera=view.camera.crop(row, col, below - row, right - col),
        xray=view.xray[part],
        mask=None if view.mask is None else view.mask[part],
    )
