"""What a registration is given: scenes and starts, checked or made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from drrkit.geometry import Camera, view_ap, volume_center
from drrkit.registration.problem.bodies import Bodies
from drrkit.registration.problem.landmarks import Landmarks
from drrkit.registration.problem.prior import PosePrior
from drrkit.registration.problem.views import check_rotations
from drrkit.registration.stages import Search, Stage
from drrkit.volume import Volume

__all__ = ["check_options", "computing_place", "self_rendering", "start_poses"]


def self_rendering(scene: Any) -> Any:
    """The scene, or its `volume` where it cannot render itself but has one."""
    grid = getattr(scene, "volume", None)
    return (
        grid if isinstance(grid, Volume) and not callable(getattr(scene, "render", None)) else scene
    )


def computing_place(volume: Any, center: Tensor | None) -> tuple[Tensor, Tensor]:
    """An empty tensor of the dtype and device to compute in, and what rotations turn about.

    Returns:
        the empty tensor, and the centre [3] float64 world mm, [n, 3] for n bodies.

    Raises:
        TypeError, ValueError: no scene, a Volume in HU, no centre or one of another shape.
    """
    bodies = isinstance(volume, Bodies)
    shape = (len(volume), 3) if bodies else (3,)
    if center is not None and (not isinstance(center, Tensor) or center.shape != shape):
        found = tuple(center.shape) if isinstance(center, Tensor) else type(center).__name__
        wanted = "[3]" if not bodies else f"[{len(volume)}, 3], one a body,"
        raise ValueError(f"center: expected a tensor {wanted} in world mm, got {found}")
    if center is not None and not bool(center.isfinite().all()):
        raise ValueError("center: expected finite numbers, got some that are not")
    if bodies:
        values = volume.bodies[0].values
        middle = volume.center if center is None else center
    elif getattr(volume, "unit", None) is not None:
        if volume.unit != "mu":
            raise ValueError(
                f"volume: expected attenuation (unit 'mu'), got unit {volume.unit!r}; "
                "volume.to_mu() converts Hounsfield units"
            )
        values = volume.values
        middle = volume_center(volume) if center is None else center
    else:
        if not callable(getattr(volume, "render", None)):
            raise TypeError(
                f"volume: expected a Volume or a scene with render(), got {type(volume).__name__}"
            )
        center = getattr(volume, "center", None) if center is None else center
        if center is None:
            raise ValueError("center: expected a tensor [3] in world mm for a scene, got None")
        values, middle = torch.empty(0, dtype=torch.float32, device=center.device), center
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    like = torch.empty(0, dtype=dtype, device=values.device)
    return like, middle.detach().to(device=values.device, dtype=torch.float64)


def check_options(prior: Any, seed: Any, progress: Any) -> None:
    """Raises TypeError where one of these options of `register` is something else."""
    if prior is not None and not isinstance(prior, PosePrior):
        raise TypeError(f"prior: expected a PosePrior or None, got {type(prior).__name__}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed: expected an integer, got {type(seed).__name__}")
    if not isinstance(progress, bool) and not callable(progress):
        raise TypeError(
            f"progress: expected True, False or a function, got {type(progress).__name__}"
        )


def start_poses(init: Any, stages: Sequence[Stage | Search], camera: Camera, volume: Any) -> Tensor:
    """The poses [K, 4, 4] float64 to start from, [K, n, 4, 4] for n bodies.

    For a search without any, an AP view of the volume.
    """
    searched = isinstance(stages[0], Search)
    if isinstance(volume, Bodies) and any(
        isinstance(stage, Search) or not stage.optimiser.many_poses for stage in stages
    ):
        raise ValueError(
            "stages: expected no Search and no Regressor for Bodies, as these find one pose; "
            "register a Volume of all bodies first"
        )
    if isinstance(init, Landmarks):
        init = init.pose(camera)
    if init is not None:
        return _check_init(init, volume)
    if not searched:
        raise TypeError("init: expected a tensor [K, 4, 4], got NoneType and no Search to find one")
    if not isinstance(volume, Volume):
        raise TypeError("init: expected a tensor [K, 4, 4] for a scene, got NoneType")
    nearest, farthest = stages[0].between
    sdd = float(torch.as_tensor(camera.sdd).mean())
    return view_ap(volume, math.sqrt(nearest * farthest) * sdd)


def _check_init(init: Any, volume: Any) -> Tensor:
    """Starts as float64 [K, ...], or an error that says what is wrong with them."""
    if not isinstance(init, Tensor):
        raise TypeError(f"init: expected a tensor [K, 4, 4], got {type(init).__name__}")
    one: tuple[int, ...] = (4, 4)
    if isinstance(volume, Bodies):
        one = (len(volume), 4, 4)
        if init.shape[-2:] == (4, 4) and init.numel() == 16:  # one pose for all bodies
            init = init.reshape(4, 4).expand(one)
    if init.dim() not in (len(one), len(one) + 1) or init.shape[-len(one) :] != one:
        wanted = ", ".join(str(n) for n in one)
        raise ValueError(
            f"init: expected shape [{wanted}] or [K, {wanted}], got {tuple(init.shape)}"
        )
    pose = init.detach().reshape(-1, *one).to(torch.float64)
    if len(pose) == 0:
        raise ValueError(f"init: expected at least one pose, got shape {tuple(init.shape)}")
    check_rotations("init", pose)
    return pose
