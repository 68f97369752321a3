"""Two floors under the time of a projection: bytes that must move, and fetches that must be made.

Bytes: the part of the volume that the rays see, or no more than they fetch, once, as float32 or as
the texture holds it, and the images; a gradient in voxels is written once, too. Over the copy
bandwidth of the machine, read plus written.

Fetches: samples on all rays times the voxels that one of them needs: 4 for Joseph's method (a
plane), 1 for Siddon's (a chord), 8 for trilinear samples; a volume gradient makes them twice. Over
the rate at which the machine reads values out of its first cache. For packed volumes on CUDA a
sample is one bilinear texture lookup, of which a multiprocessor makes four a clock.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from drrkit.bench import l1
from drrkit.bench.plan import Workload
from drrkit.bench.scene import Scene
from drrkit.geometry import project_points, view_frames

FLOAT = 4  # bytes
TAPS = {"joseph": 4, "siddon": 1, "trilinear": 8}
TEXTURE_LOOKUPS = 4  # a clock and multiprocessor, bilinear, of every card since Volta
MOST_VIEWS, MOST_SIDE, MOST_EDGE = 16, 40, 32
"""Counted are at most so many views, rays a side of a view and voxels an edge; then scaled."""


def ceilings(device: torch.device, threads: int, gpu: dict[str, Any] | None) -> dict[str, Any]:
    """What this machine reaches: bytes and fetches a second, and how that was found."""
    found: dict[str, Any] = {"copy_bytes_per_s": copy_bandwidth(device)}
    if device.type == "cpu":
        found["fetches_per_s"] = threads * l1.cpu_loads_per_s()
        found["fetches_by"] = f"dot product in the first cache, one core, times {threads}"
        return found
    try:
        found["fetches_per_s"] = l1.cuda_loads_per_s(device)
        found["fetches_by"] = "Triton kernel that reads a table in the first cache"
    except Exception as error:  # a ceiling that is not known must not cost the run
        found["fetches_per_s"] = None
        found["fetches_by"] = f"not measured: {type(error).__name__}: {error}"[:300]
    if gpu and gpu.get("clock_mhz"):
        clock = 1e6 * gpu["clock_mhz"]
        found["lookups_per_s"] = TEXTURE_LOOKUPS * gpu["multiprocessors"] * clock
        found["lookups_by"] = "four bilinear lookups a clock and multiprocessor: computed"
    return found


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read plus written, of a large copy on the device."""
    count = 1 << (28 if device.type == "cuda" else 25)  # floats
    source, target = torch.ones(count, device=device), torch.empty(count, device=device)
    best = float("inf")
    for _ in range(8):
        _wait(device)
        begin = time.perf_counter()
        target.copy_(source)
        _wait(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * FLOAT * count / best


class Floors:
    """Floors of workloads on a machine with these ceilings; geometry is counted once a view."""

    def __init__(self, limits: dict[str, Any]) -> None:
        self.limits = limits
        self.samples: dict[tuple[Any, ...], float] = {}
        self.seen: dict[tuple[Any, ...], float] = {}

    def of(
        self, work: Workload, scene: Scene, integral: str, texel: int | None = None
    ) -> dict[str, Any] | None:
        """Bytes and fetches of a workload and the seconds they take at least; None for "double".

        integral  drrkit's method
        texel     bytes a voxel where images come from textures, as those of packed volumes on CUDA
        """
        if work.operation == "double":
            return None
        lookups = (
            texel is not None and work.operation == "forward" and "lookups_per_s" in self.limits
        )
        samples, voxels = self._samples(work, scene, integral), scene.volume.values.numel()
        # Few rays do not touch all that lies between them.
        touched = min(self._seen(work, scene) * voxels, TAPS[integral] * samples)
        touched *= texel / FLOAT if lookups and texel else 1.0
        moved = {
            "forward": touched + work.rays,
            "pose": touched + work.rays,
            "volume": touched + 2 * work.rays + voxels,
            "adjoint": work.rays + voxels,
        }[work.operation]
        rate = self.limits["lookups_per_s" if lookups else "fetches_per_s"]
        fetches = samples * (1 if lookups else TAPS[integral])
        fetches *= 2 if work.operation == "volume" else 1
        return {
            "bytes": FLOAT * moved,
            "bytes_s": FLOAT * moved / self.limits["copy_bytes_per_s"],
            "fetches": fetches,
            "fetches_s": None if rate is None else fetches / rate,
            "fetch": "texture lookup" if lookups else "load",
        }

    def _samples(self, work: Workload, scene: Scene, integral: str) -> float:
        key = (work.view, work.views, work.size, work.edge, integral)
        if key not in self.samples:
            poses = scene.poses(work.view, work.views)
            self.samples[key] = samples(scene, work, poses, integral)
        return self.samples[key]

    def _seen(self, work: Workload, scene: Scene) -> float:
        key = (work.view, work.views, work.size, work.edge)
        if key not in self.seen:
            self.seen[key] = seen_share(scene, work, scene.poses(work.view, work.views))
        return self.seen[key]


def samples(scene: Scene, work: Workload, poses: Tensor, integral: str) -> float:
    """Samples on all rays of a workload: planes crossed, chords, or steps of one voxel."""
    volume = scene.volume
    chosen = poses[:: max(1, len(poses) // MOST_VIEWS)]
    side = min(work.size, MOST_SIDE)
    # A smaller detector with the same field sees rays of the same lengths.
    frames = view_frames(volume, scene.camera(side), chosen, extend=True)
    steps = torch.arange(side, dtype=torch.float64)
    source = frames[:, None, None, 0]
    target = frames[:, None, None, 1] + steps[None, None, :, None] * frames[:, None, None, 2]
    target = target + steps[None, :, None, None] * frames[:, None, None, 3]
    inside = _inside(source, target, torch.tensor(volume.shape_xyz).double())
    per_axis = (target - source).abs() * inside[..., None]  # voxels along every axis
    if integral == "joseph":
        counts = per_axis.amax(-1)
    elif integral == "siddon":
        counts = per_axis.sum(-1)
    else:
        spacing = torch.tensor(volume.spacing, dtype=torch.float64)
        counts = (per_axis * spacing).norm(dim=-1) / spacing.min()
    return float(counts.mean()) * work.rays


def seen_share(scene: Scene, work: Workload, poses: Tensor) -> float:
    """Share of the volume's voxels that lie in some view's pyramid of rays."""
    volume, camera = scene.volume, scene.camera(work.size)
    axes = [
        torch.linspace(0, n - 1, min(n, MOST_EDGE), dtype=torch.float64) for n in volume.shape_xyz
    ]
    points = volume.affine.cpu()[:3, :3] @ torch.cartesian_prod(*axes).mT
    points = points.mT + volume.affine.cpu()[:3, 3]
    chosen = poses[:: max(1, len(poses) // MOST_VIEWS)]
    pixels = project_points(camera, chosen, points)
    limit = torch.tensor(camera.size, dtype=torch.float64) - 0.5
    hit = ((pixels >= -0.5) & (pixels <= limit)).all(-1).any(0)
    return float(hit.double().mean())


def _inside(source: Tensor, target: Tensor, count: Tensor) -> Tensor:
    """Which share of the way from source to target lies in the grid's box of whole voxels."""
    way = target - source
    low, high = (-0.5 - source) / way, (count - 0.5 - source) / way
    enter = torch.minimum(low, high).amax(-1).clamp(0.0, 1.0)
    leave = torch.maximum(low, high).amin(-1).clamp(0.0, 1.0)
    return (leave - enter).clamp(min=0.0)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
