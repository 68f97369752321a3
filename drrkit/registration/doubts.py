"""What speaks against a pose whose image agrees: places that cannot be, and the mirrored image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from drrkit.registration.problem.motion import motion_of
from drrkit.registration.problem.views import View

__all__ = ["left_range", "mirrored", "out_of_room"]

# Farther turns than this, and shifts by more than this share of the field's diagonal at the
# patient, are not what "auto" is for.
_FARTHEST_RAD, _FARTHEST = math.radians(45.0), 0.5


def left_range(starts: Tensor, pose: Tensor, center: Tensor, field: float) -> bool:
    """Whether a body of a pose [1, ...] is farther from every start than "auto" is for.

    field: diagonal of the field of view at the patient, mm.
    """
    moves = torch.cat([motion_of(start, pose, center) for start in starts])
    turns, shifts = moves.unflatten(1, (-1, 2, 3)).norm(dim=-1).unbind(-1)
    return bool(((turns > _FARTHEST_RAD) | (shifts > _FARTHEST * field)).any(1).all())


def out_of_room(faces: Sequence[Tensor | None], views: Sequence[View], pose: Tensor) -> bool:
    """Whether an object stands where it has no room: about the source, or across the detector.

    A prior on distance without a number in it: pixels that are declared too small, or a wrong
    source-to-detector distance, put the patient where the room ends. However it is turned, an
    object needs at least a quarter of its shortest side on both sides of its middle (half of it,
    were it as thick at its ends); the detector's distance counts as known to one of its standard
    deviations.

    Args:
        faces: of every body the centres [6, 3] (world mm) of its box's faces; None: not known.
        pose: [1, 4, 4] of the first camera, or [1, n, 4, 4].
    """
    for view in views:
        if view.camera.beam != "cone":
            continue
        farthest = float(torch.as_tensor(view.camera.sdd)) * (1.0 + view.camera.sigma.focal)
        for points, body in zip(faces, pose.reshape(-1, 4, 4), strict=True):
            if points is None:
                continue
            seen = view.pose(body[None])[0].cpu()
            depth = float(points.mean(0) @ seen[2, :3] + seen[2, 3])
            room = float((points[0::2] - points[1::2]).norm(dim=1).min()) / 4
            if not room < depth < farthest - room:
                return True
    return False


def mirrored(views: Sequence[View], pose: Tensor, center: Tensor) -> tuple[list[View], Tensor]:
    """The views with their columns in reverse, and the pose at which a symmetric patient shows so.

    The patient is reflected in the plane x = center[0] (left and right change places, in LPS) and
    the camera in its own x: what is left is a rigid pose again.

    Args:
        pose: [1, 4, 4]; center: [3] world mm.
    """
    flip = torch.diag(pose.new_tensor([-1.0, 1.0, 1.0, 1.0]))
    reflection = flip.clone()
    reflection[0, 3] = 2.0 * center[0]
    return [_mirrored(view, flip) for view in views], flip @ pose @ reflection


def _mirrored(view: View, flip: Tensor) -> View:
    K = view.camera.K.clone()
    K[0, 2] = view.camera.size[1] - 1.0 - K[0, 2]
    rig, mask = view.rig_to_camera, view.mask
    return replace(
        view,
        camera=replace(view.camera, K=K),
        xray=view.xray.flip(-1),
        mask=None if mask is None else mask.flip(-1),
        rig_to_camera=None if rig is None else flip @ rig @ flip,
    )
