"""Scenes the projector's tests share: volumes, frames of every kind, methods with their options."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import drrkit

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
BEAMS = ("cone", "parallel")
SPACING = (0.8, 1.1, 1.4)  # mm, (x, y, z)
SHAPE = (5, 6, 7)  # (D, H, W): 7 x 6 x 5 voxels along (x, y, z)
SMALL = (3, 4, 3)

METHODS: dict[str, dict[str, Any]] = {
    "joseph": {"method": "joseph"},
    "siddon": {"method": "siddon"},
    "trilinear": {"method": "trilinear", "step": 0.37},
    "foot": {"method": "trilinear", "step": 0.37, "anchor": "foot"},
}
"""Every method whose derivative is the exact one of what it computes."""

LINES: dict[str, dict[str, Any]] = {
    "line": {"method": "trilinear", "step": 0.37, "derivative": "line"},
    "line-foot": {"method": "trilinear", "step": 0.37, "derivative": "line", "anchor": "foot"},
}
"""The methods that leave the sliding of samples along the ray out of their derivative."""

TWICE = {name: options for name, options in METHODS.items() if name != "foot"}
"""The methods that can be differentiated twice in the geometry."""

every_method = pytest.mark.parametrize("method", METHODS)
every_option = pytest.mark.parametrize("method", [*METHODS, *LINES])
every_beam = pytest.mark.parametrize("beam", BEAMS)
twice_differentiable = pytest.mark.parametrize("method", TWICE)


def options_of(method: str, beam: str = "cone", **change: Any) -> dict[str, Any]:
    return {"spacing": SPACING, "beam": beam, **{**METHODS, **LINES}[method], **change}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Uniform in [0, 1), float64, the same on every machine and device."""
    return torch.rand(shape, generator=generator(seed), dtype=torch.float64)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def rotation(seed: int) -> Tensor:
    """A random rotation, [3, 3]."""
    q, r = torch.linalg.qr(randn(3, 3, seed=seed))
    q = q * r.diagonal().sign()
    return q * torch.linalg.det(q)


def towards(
    axis: int,
    *,
    sign: int = 1,
    shape: tuple[int, ...] = SHAPE,
    size: tuple[int, int] = (4, 5),
    tilt: float = 0.13,
    pitch: float = 1.3,
    near: float = 2.5,
    far: float = 2.5,
    seed: int = 0,
) -> Tensor:
    """A frame [1, 4, 3] that looks along one index axis, tilted by about `tilt` rad.

    The source stands `near` times the grid's half extent before its centre, the detector `far`
    times behind it (below 1: inside the grid). `pitch` voxels between pixels.
    """
    extent = torch.tensor(shape[:-4:-1], dtype=torch.float64)
    centre = (extent - 1) / 2
    forward = torch.zeros(3, dtype=torch.float64)
    forward[axis] = sign
    right, down = forward.roll(1), forward.roll(2)
    turn = torch.linalg.matrix_exp(tilt * _skew(randn(3, seed=seed)))
    forward, right, down = turn @ forward, turn @ right, turn @ down
    half = float(extent[axis]) / 2
    middle = torch.tensor([(size[0] - 1) / 2, (size[1] - 1) / 2], dtype=torch.float64)
    shift = 0.2 * randn(3, seed=seed + 1000)  # no ray through a face by symmetry
    source = centre + shift - near * half * forward
    u, v = pitch * right, pitch * down
    corner = centre + shift + far * half * forward - middle[1] * u - middle[0] * v
    return torch.stack([source, corner, u, v])[None]


def _skew(a: Tensor) -> Tensor:
    x, y, z = a.tolist()
    return torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=torch.float64)


def six_views(seed: int = 0, **options: Any) -> Tensor:
    """Oblique frames [6, 4, 3], one along every index axis and back."""
    return torch.cat(
        [
            towards(axis, sign=sign, seed=seed + 10 * axis + sign, **options)
            for axis in range(3)
            for sign in (1, -1)
        ]
    )


def oblique(views: int, seed: int = 0) -> Tensor:
    """Frames [B, 4, 3] in directions without preference, most rays hitting the grid."""
    frames = []
    for view in range(views):
        turn = rotation(seed + 100 * view)
        frame = towards(2, tilt=0.0, near=3.5, far=3.0, seed=seed + view)[0]
        centre = (torch.tensor(SHAPE[::-1], dtype=torch.float64) - 1) / 2
        frame = torch.cat([(frame[:2] - centre) @ turn.mT + centre, frame[2:] @ turn.mT])
        frames.append(frame)
    return torch.stack(frames)


def small_frames(views: int, seed: int = 2) -> Tensor:
    """Oblique frames [B, 4, 3] about a grid of SMALL."""
    frames = oblique(views, seed=seed)
    shift = torch.tensor([-2.0, -1.0, -1.0], dtype=torch.float64)  # between the grids' centres
    moved = frames.clone()
    moved[:, :2] += shift
    return moved


def axis_parallel(offset: float = 0.0) -> Tensor:
    """Frames [6, 4, 3] for a parallel beam exactly along the axes, pixels one voxel apart.

    offset 0 puts every ray through voxel centres, where interpolation cells meet.
    """
    frames = []
    for axis in range(3):
        for sign in (1.0, -1.0):
            frame = torch.full((4, 3), -1.0 + offset, dtype=torch.float64)
            frame[0, axis] = 3.0 - 8.0 * sign
            frame[1, axis] = 3.0 + 8.0 * sign
            frame[2:] = 0.0
            frame[2, (axis + 1) % 3] = 1.0
            frame[3, (axis + 2) % 3] = 1.0
            frames.append(frame)
    return torch.stack(frames)


FRAMES: dict[str, Callable[[], Tensor]] = {
    "along-axes": lambda: six_views(seed=1),
    "oblique": lambda: oblique(6, seed=3),
    "wide": lambda: six_views(seed=5, pitch=6.0),  # the outer rays miss
    "misses": lambda: six_views(seed=7) + torch.tensor([[60.0], [60.0], [0.0], [0.0]]).double(),
    "source-inside": lambda: six_views(seed=9, near=0.4),
    "detector-inside": lambda: six_views(seed=11, far=0.4),
    "both-inside": lambda: six_views(seed=13, near=0.5, far=0.6, pitch=0.4),
    "short": lambda: six_views(seed=15, near=0.05, far=0.06, pitch=0.05),
    "before": lambda: six_views(seed=17, near=4.0, far=-2.0),  # the ray ends before the grid
    "behind": lambda: six_views(seed=19, near=-2.0, far=4.0),  # the ray starts behind the grid
    "far-away": lambda: six_views(seed=21, near=400.0, far=300.0),
    "converging": lambda: six_views(seed=23, pitch=-1.1),
}
"""Frames [6, 4, 3] of every kind about a grid of SHAPE, to be rendered with 4 x 5 pixels."""


def endpoints(frames: Tensor, size: tuple[int, int], beam: str) -> Tensor:
    """Source and target of every pixel, [B, rows * cols, 2, 3]."""
    rows, cols = torch.meshgrid(*(torch.arange(n).double() for n in size), indexing="ij")
    s, o, u, v = frames[:, None].unbind(-2)
    offset = cols.reshape(-1, 1) * u + rows.reshape(-1, 1) * v
    source = s + offset if beam == "parallel" else s.expand_as(offset)
    return torch.stack([source, o + offset], dim=-2)


def relative(found: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    """Largest difference over the largest expected magnitude (or `floor`, if that is larger)."""
    if expected.numel() == 0:
        return 0.0
    found, expected = found.detach(), expected.detach()
    scale = max(float(expected.abs().max()), floor)
    worst = float((found - expected).abs().max())
    return worst / scale if scale > 0 else worst


def fluoroscope(shape: tuple[int, ...] = SHAPE, size: tuple[int, int] = (4, 5)):
    """A volume in mu away from the origin, a C-arm and a pose [1, 4, 4]."""
    volume = drrkit.Volume(rand(*shape, seed=1), SPACING, origin=(3.0, -2.0, 5.0), unit="mu")
    camera = drrkit.CArm(60.0, size, pixel_spacing=2.1)
    return volume, camera, drrkit.view_carm(volume, 40.0, 0.3, -0.2)


def rms(values: Tensor) -> float:
    return math.sqrt(float(values.double().square().mean()))
