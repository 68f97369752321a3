"""What a registration is given: scenes and starts, checked or made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from drrkit.geometry import Camera, view_ap
from drrkit.registration.stages import Search, Stage
from drrkit.volume import Volume

__all__ = ["check_scene", "start_poses"]


def check_scene(volume: Any, center: Tensor | None) -> tuple[torch.dtype, torch.device]:
    """The dtype and device to compute in, or an error that names the argument."""
    if center is not None and (not isinstance(center, Tensor) or center.shape != (3,)):
        found = tuple(center.shape) if isinstance(center, Tensor) else type(center).__name__
        raise ValueError(f"center: expected a tensor [3] in world mm, got {found}")
    unit = getattr(volume, "unit", None)
    if unit is not None:
        if unit != "mu":
            raise ValueError(
                f"volume: expected attenuation (unit 'mu'), got unit {unit!r}; "
                "volume.to_mu() converts Hounsfield units"
            )
        wide = volume.values.dtype == torch.float64
        return (torch.float64 if wide else torch.float32), volume.values.device
    if not callable(getattr(volume, "render", None)):
        raise TypeError(
            f"volume: expected a Volume or a scene with render(), got {type(volume).__name__}"
        )
    if center is None:
        raise ValueError("center: expected a tensor [3] in world mm for a scene, got None")
    return torch.float32, center.device


def start_poses(init: Any, stages: Sequence[Stage | Search], camera: Camera, volume: Any) -> Tensor:
    """The poses [K, 4, 4] to start from; for a search without any, an AP view of the volume."""
    if init is not None:
        return _check_init(init)
    if not isinstance(stages[0], Search):
        raise TypeError("init: expected a tensor [K, 4, 4], got NoneType and no Search to find one")
    if not isinstance(volume, Volume):
        raise TypeError("init: expected a tensor [K, 4, 4] for a scene, got NoneType")
    nearest, farthest = stages[0].between
    sdd = float(torch.as_tensor(camera.sdd).mean())
    return view_ap(volume, math.sqrt(nearest * farthest) * sdd)


def _check_init(init: Any) -> Tensor:
    """Starts as float64 [K, 4, 4], or an error that says what is wrong with them."""
    if not isinstance(init, Tensor):
        raise TypeError(f"init: expected a tensor [K, 4, 4], got {type(init).__name__}")
    if init.dim() not in (2, 3) or init.shape[-2:] != (4, 4) or init.numel() == 0:
        raise ValueError(f"init: expected shape [4, 4] or [K, 4, 4], got {tuple(init.shape)}")
    pose = init.detach().reshape(-1, 4, 4).to(torch.float64)
    if not bool(pose.isfinite().all()):
        raise ValueError("init: expected finite poses, got values that are not")
    rotation = pose[:, :3, :3]
    error = (rotation @ rotation.mT - torch.eye(3, dtype=pose.dtype, device=pose.device)).abs()
    if float(error.max()) > 1e-3 or bool((torch.linalg.det(rotation) < 0).any()):
        raise ValueError(
            f"init: expected rotations, got matrices off by {float(error.max()):.2g} "
            "or of negative determinant"
        )
    return pose
