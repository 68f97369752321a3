"""Two lower bounds of the time of a projection: memory bandwidth, and loads.

Bandwidth: the part of the volume that the rays see, or no more than they load, once, as float32 or
as the texture holds it, and the images; a gradient in voxels is written once, too. Over the copy
bandwidth of the machine, read plus written.

Loads: samples on all rays times the voxels that one of them needs: 4 for Joseph's method (a
plane), 1 for Siddon's (a chord), 8 for trilinear samples; a volume gradient makes them twice. Over
the rate at which the machine reads values out of its first cache. For packed volumes on CUDA a
sample is one bilinear texture lookup, of which a multiprocessor makes four per clock.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.projectors.plan import Workload
from bench.projectors.scene import Scene
from drrkit.geometry import project_points, view_frames

try:
    import triton
    import triton.language as tl
except ImportError:  # comes with torch for CUDA
    triton = None

FLOAT = 4  # bytes
TAPS = {"joseph": 4, "siddon": 1, "trilinear": 8}
TEXTURE_LOOKUPS = 4  # per clock and multiprocessor, bilinear, of every card since Volta
MOST_VIEWS, MOST_SIDE, MOST_EDGE = 16, 40, 32
"""At most so many views, rays per side of a view and voxels per edge are counted, then scaled."""
SHORT, LONG, REPEATS = 256, 2048, 1000  # floats of a vector: two long ones fill 16 KiB
TABLE, BLOCK, ROUNDS = 4096, 1024, 512  # 16 KiB; elements per program; a quarter of their loads
STRIDE = 33 * 32  # elements between two loads: whole cache lines, so that a warp reads one


def ceilings(device: torch.device, threads: int, gpu: dict[str, Any] | None) -> dict[str, Any]:
    """Bytes and loads per second that this machine reaches, and how they were measured."""
    found: dict[str, Any] = {"copy_bytes_per_s": copy_bandwidth(device)}
    if device.type == "cpu":
        found["fetches_per_s"] = threads * cpu_loads_per_s()
        found["fetches_by"] = f"dot product in the first cache, one core, times {threads}"
        return found
    try:
        found["fetches_per_s"] = cuda_loads_per_s(device)
        found["fetches_by"] = "Triton kernel that reads a table in the first cache"
    except Exception as error:  # an unknown rate must not end the run
        found["fetches_per_s"] = None
        found["fetches_by"] = f"not measured: {type(error).__name__}: {error}"[:300]
    if gpu and gpu.get("clock_mhz"):
        clock = 1e6 * gpu["clock_mhz"]
        found["lookups_per_s"] = TEXTURE_LOOKUPS * gpu["multiprocessors"] * clock
        found["lookups_by"] = "four bilinear lookups per clock and multiprocessor: computed"
    return found


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read plus written, of a large copy on the device."""
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
    """Bounds of workloads on a machine with these rates; geometry is counted once per view."""

    def __init__(self, limits: dict[str, Any]) -> None:
        self.limits = limits
        self.samples: dict[tuple[Any, ...], float] = {}
        self.seen: dict[tuple[Any, ...], float] = {}

    def of(
        self, work: Workload, scene: Scene, integral: str, texel: int | None = None
    ) -> dict[str, Any] | None:
        """Bytes and loads of a workload and the least seconds they take; None for "double".

        integral  drrkit's method
        texel     bytes per voxel where images come from textures: packed volumes on CUDA
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


def cpu_loads_per_s() -> float:
    """Of one core, by a BLAS dot product of two vectors in the first cache.

    The slope between two lengths: what a call costs besides does not count. Contiguous vectors in
    full width: gathers, as a projector needs them, are slower, so this is a ceiling. No BLAS uses
    a second thread for so few numbers.
    """
    a, b = np.ones(LONG, np.float32), np.ones(LONG, np.float32)
    seconds = {n: min(_dots(a[:n], b[:n]) for _ in range(15)) for n in (SHORT, LONG)}
    slope = (seconds[LONG] - seconds[SHORT]) / (LONG - SHORT)
    return 2.0 / max(slope, 1e-12)


def cuda_loads_per_s(device: torch.device) -> float | None:
    """Of the whole card, by a Triton kernel; None without Triton."""
    if triton is None:
        return None
    programs = 64 * torch.cuda.get_device_properties(device).multi_processor_count
    table = torch.ones(TABLE, device=device)
    out = torch.empty(programs * BLOCK, device=device)
    best = float("inf")
    for _ in range(6):  # the first compiles
        torch.cuda.synchronize(device)
        begin = time.perf_counter()
        _walk[(programs,)](
            table, out, SIZE=TABLE, BLOCK=BLOCK, ROUNDS=ROUNDS, STRIDE=STRIDE, num_warps=8
        )
        torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return 4.0 * ROUNDS * BLOCK * programs / best


def _dots(a: np.ndarray, b: np.ndarray) -> float:
    begin = time.perf_counter()
    for _ in range(REPEATS):
        np.dot(a, b)
    return (time.perf_counter() - begin) / REPEATS


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if triton is not None:

    @triton.jit
    def _walk(
        table,
        out,
        SIZE: tl.constexpr,
        BLOCK: tl.constexpr,
        ROUNDS: tl.constexpr,
        STRIDE: tl.constexpr,
    ):
        lane = tl.arange(0, BLOCK)
        index = lane + 32 * tl.program_id(0)
        total = tl.zeros([BLOCK], tl.float32)
        for _ in range(ROUNDS):
            # Four independent loads a round, so that they overlap.
            a = tl.load(table + (index & (SIZE - 1)))
            b = tl.load(table + ((index + STRIDE) & (SIZE - 1)))
            c = tl.load(table + ((index + 2 * STRIDE) & (SIZE - 1)))
            d = tl.load(table + ((index + 3 * STRIDE) & (SIZE - 1)))
            total += (a + b) + (c + d)
            index += 4 * STRIDE
        tl.store(out + tl.program_id(0) * BLOCK + lane, total)
