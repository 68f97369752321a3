"""Cost of training on pose gradients: the double backward of a projection, drrkit against torch.

The workload is that of a learned similarity: one 128^3 volume with 3 channels, a batch of 4 images
of 128^2, the gradient in the pose with a graph, and the gradient of that in the volume and in the
image's cotangent. drrkit's joseph and trilinear run it with their own products, "grid_sample" with
torch.nn.functional.grid_sample at exactly trilinear's samples. drrkit is also compared with its own
first order: the adjoint P* and the frame gradient J, each with its own march.

grid_sample's memory grows with the rays: 128^2 pixels (--full) take 11 GB. By default it gets a
smaller image, and drrkit is compared with it at that size. Times are wall times (and process times,
which other programs on the machine disturb less).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

import drrkit
from bench.projectors.timing import peak_bytes
from bench.studies.study import apart, json_file, recorded, write_json

THREADS = 2
SDD, SOD = 1020.0, 800.0  # mm
FIELD = 128 * 2.176  # mm, width of the detector
SPACING = 2.332  # mm, of the voxels
STEP = SPACING  # mm between samples, of trilinear and of grid_sample
PARTS = ("forward", "pose gradient", "double backward")
TIMES = ("median_s", "process_median_s")
# Promised of the double backward: cost in units of a marched P* + J, memory, and how many times
# faster than grid_sample's it is on a CPU.
MOST_COST, MOST_BYTES, LEAST_SPEEDUP = 4.0, 500_000_000, 40.0


@dataclass(frozen=True)
class Workload:
    """One measurement, run in a process of its own."""

    tool: str  # "joseph", "trilinear" or "grid_sample"
    grid: int
    image: int
    channels: int
    views: int
    runs: int
    threads: int
    device: str


class Scene:
    """The inputs of a workload, all of them leaves."""

    def __init__(self, work: Workload, dtype: torch.dtype = torch.float32) -> None:
        n, device = work.grid, torch.device(work.device)
        random = torch.Generator().manual_seed(0)
        values = torch.rand((work.channels, n, n, n), generator=random, dtype=torch.float64)
        spacing = SPACING * 128 / n
        self.volume = drrkit.Volume(values.to(device, dtype), (spacing,) * 3, unit="mu")
        self.size = (work.image, work.image)
        self.camera = drrkit.CArm(SDD, self.size, FIELD / work.image)
        angles = torch.linspace(0.03, 0.12, work.views).tolist()  # rad, off the axes
        poses = [drrkit.view_carm(self.volume, SOD, a, -0.7 * a) for a in angles]
        self.pose = torch.cat(poses).to(device)
        self.center = drrkit.volume_center(self.volume)
        self.values = self.volume.values.requires_grad_()
        self.xi = torch.zeros(work.views, 6, dtype=torch.float64, device=device).requires_grad_()
        shape = (work.views, work.channels, *self.size)
        g = torch.randn(shape, generator=random, dtype=torch.float64)
        self.g = g.to(device, dtype).requires_grad_()
        self.weights = torch.randn(work.views, 6, generator=random, dtype=torch.float64).to(device)
        self.samples = _samples(self.frames().detach(), self.size, n, spacing)

    def frames(self) -> Tensor:
        moved = drrkit.perturb(self.pose, self.xi, self.center)
        return drrkit.view_frames(self.volume, self.camera, moved, extend=True)


def _targets(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Where the rays end, index coordinates: [B, rows, cols, 3]."""
    row, col = (torch.arange(n, dtype=frames.dtype, device=frames.device) for n in size)
    origin, right, down = frames[:, None, None, 1:].unbind(-2)
    return origin + col[:, None] * right + row[:, None, None] * down


def _samples(frames: Tensor, size: tuple[int, int], grid: int, spacing: float) -> Tensor:
    """Distances from the source in mm that cover the way of every ray of a view: [B, K]."""
    source = frames[:, None, None, 0]
    direction = _targets(frames, size) - source
    crossings = torch.stack(((-1 - source) / direction, (grid - source) / direction))
    length = spacing * direction.norm(dim=-1)
    enter, leave = crossings.amin(0).amax(-1), crossings.amax(0).amin(-1)
    near = torch.where(leave > enter, enter * length, torch.inf).amin((1, 2))
    far = torch.where(leave > enter, leave * length, 0.0).amax((1, 2))
    first = (near / STEP - 0.5).floor()
    count = int((far / STEP - 0.5 - first).amax().ceil()) + 1
    steps = torch.arange(count, dtype=frames.dtype, device=frames.device)
    return (first[:, None] + steps + 0.5) * STEP


# ---- what is measured


def drrkit_image(scene: Scene, method: str) -> Tensor:
    options = {"step": STEP} if method == "trilinear" else {}
    spacing = scene.volume.spacing
    frames = scene.frames()
    return drrkit.project(
        scene.values, frames, scene.size, spacing=spacing, method=method, **options
    )


def torch_image(scene: Scene) -> Tensor:
    """The same integral as drrkit's trilinear, by grid_sample."""
    frames, n = scene.frames(), scene.values.shape[-1]
    source = frames[:, None, None, 0]
    direction = _targets(frames, scene.size) - source
    unit = direction / (scene.volume.spacing[0] * direction.norm(dim=-1, keepdim=True))
    dtype = scene.values.dtype
    # Normalised coordinates in double at the source and for the unit, as accurate as need be.
    start, unit = ((2 * source + 1) / n - 1).to(dtype), (2 * unit / n).to(dtype)
    along = scene.samples.to(dtype)[:, None, None, :, None]
    where = start[..., None, :] + along * unit[..., None, :]
    volumes = scene.values.expand(len(frames), *scene.values.shape)
    sampled = grid_sample(volumes, where, align_corners=False)
    return sampled.sum(-1) * STEP


def training_step(scene: Scene, image_of: Callable[[Scene], Tensor]) -> tuple[list, list]:
    """(wall, process) seconds of every part, and the two second-order gradients."""
    clock = Clock(scene.xi.device)
    image = image_of(scene)
    clock.lap()
    pose_gradient = torch.autograd.grad(image, scene.xi, scene.g, create_graph=True)[0]
    clock.lap()
    loss = (pose_gradient * scene.weights).sum()
    gradients = torch.autograd.grad(loss, (scene.values, scene.g))
    clock.lap()
    return clock.laps, list(gradients)


def marched_first_order(scene: Scene, method: str) -> list:
    """(wall, process) seconds of P*, then of J with a march of its own."""
    options = {"spacing": scene.volume.spacing, "method": method}
    options |= {"step": STEP} if method == "trilinear" else {}
    frames, g = scene.frames().detach().requires_grad_(), scene.g.detach()
    values = scene.values.detach()
    clock = Clock(frames.device)
    with torch.no_grad():
        drrkit.backproject(g, frames, values.shape, **options)
    clock.lap()
    torch.autograd.grad(drrkit.project(values, frames, scene.size, **options), frames, g)
    clock.lap()
    return clock.laps


class Clock:
    """Wall and process time between calls of lap()."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.laps: list[tuple[float, float]] = []
        self.last = self._now()

    def lap(self) -> None:
        now = self._now()
        self.laps.append((now[0] - self.last[0], now[1] - self.last[1]))
        self.last = now

    def _now(self) -> tuple[float, float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter(), time.process_time()


def measure(work: Workload) -> dict[str, Any]:
    """Every number of a workload; for a fresh process, so that its memory is its own."""
    torch.set_num_threads(work.threads)
    image_of = torch_image if work.tool == "grid_sample" else lambda s: drrkit_image(s, work.tool)
    small = Workload(work.tool, 16, 4, work.channels, work.views, 1, work.threads, work.device)
    training_step(Scene(small), image_of)  # loads code and starts threads
    scene = Scene(work)
    laps: list[list[tuple[float, float]]] = []

    def call() -> list[Tensor]:
        times, gradients = training_step(scene, image_of)
        laps.append(times)
        return gradients

    call()
    peak = peak_bytes(call, scene.xi.device)
    while len(laps) < work.runs:
        call()
    record = asdict(work) | {"samples": scene.samples.shape[1], "peak_bytes": peak}
    record["parts"] = {
        name: summary(part) for name, part in zip(PARTS, transposed(laps), strict=True)
    }
    if work.tool != "grid_sample":
        first = [marched_first_order(scene, work.tool) for _ in range(work.runs)]
        both = [tuple(map(sum, transposed(laps))) for laps in first]
        record["marched P* + J"] = summary(both)
        for name, part in zip(("P*", "J"), transposed(first), strict=True):
            record[f"marched {name}"] = summary(part)
    return record


def transposed(rows: Sequence[Sequence[Any]]) -> list[tuple]:
    return list(zip(*rows, strict=True))


def summary(laps: Sequence[tuple[float, float]]) -> dict[str, Any]:
    wall, process = transposed(laps)
    return {
        "median_s": median(wall),
        "min_s": min(wall),
        "process_median_s": median(process),
        "process_min_s": min(process),
        "runs": len(laps),
    }


def agreement() -> dict[str, float]:
    """Largest relative difference of the second-order gradients, trilinear and grid_sample."""
    work = Workload("", 16, 12, 3, 2, 1, torch.get_num_threads(), "cpu")
    scene = Scene(work, torch.float64)
    own = training_step(scene, lambda s: drrkit_image(s, "trilinear"))[1]
    other = training_step(scene, torch_image)[1]
    names = ("volume", "cotangent")
    return {
        name: float((a - b).abs().max() / b.abs().max())
        for name, a, b in zip(names, own, other, strict=True)
    }


# ---- the script


def options(add: Any) -> None:
    add("--image", type=int, default=128, help="rows and columns (128)")
    add("--torch-image", type=int, default=48, help="same for grid_sample (48)")
    add("--full", action="store_true", help="grid_sample at --image too: 11 GB")
    add("--grid", type=int, default=128, help="voxels along an axis (128)")
    add("--runs", type=int, default=7, help="timed runs of drrkit (7)")
    add("--device", default="cpu", help="cpu or cuda")
    add("--child", help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> None:
    if options.child:
        print(json.dumps(measure(Workload(**json.loads(options.child)))))
        return
    agree, results = agreement(), [in_own_process(work) for work in workloads(options)]
    record = recorded(
        options,
        device=torch.cuda.get_device_name() if options.device.startswith("cuda") else "cpu",
        geometry={"sdd_mm": SDD, "sod_mm": SOD, "voxel_mm": SPACING, "step_mm": STEP},
        agreement_float64=agree,
        results=results,
        promises=promises(results),
    )
    write_json(json_file(options), record)
    print(table(record))


def workloads(options: argparse.Namespace) -> list[Workload]:
    """drrkit at full size; grid_sample, and the drrkit to compare with it, at grid_sample's."""
    theirs = options.image if options.full else options.torch_image

    def one(tool: str, image: int, runs: int) -> Workload:
        return Workload(tool, options.grid, image, 3, 4, runs, options.threads, options.device)

    sizes = sorted({options.image, theirs}, reverse=True)
    own = [one(tool, n, options.runs) for n in sizes for tool in ("joseph", "trilinear")]
    return [*own, one("grid_sample", theirs, 2)]


def in_own_process(work: Workload) -> dict[str, Any]:
    """measure(work), so that its memory is its own."""
    print(f"[{time.strftime('%H:%M:%S')}] {work.tool}, {work.image}^2", flush=True)
    words = ["--child", json.dumps(asdict(work)), "--device", work.device]
    return json.loads(apart("double_backward", words).splitlines()[-1])


def promises(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was promised, what was measured, whether it is kept; by medians of wall time."""
    found = []
    largest = max(r["image"] for r in results if r["tool"] != "grid_sample")
    (other,) = (r for r in results if r["tool"] == "grid_sample")
    for r in results:
        if r["tool"] == "grid_sample":
            continue
        name = f"drrkit {r['tool']}, {r['image']}^2"
        if r["image"] == largest:
            cost = [second(r, time) / r["marched P* + J"][time] for time in TIMES]
            found.append(promise(f"{name}: double backward in marched P* + J", cost, MOST_COST))
            if r["peak_bytes"] is not None:
                found.append(promise(f"{name}: peak bytes", [r["peak_bytes"]], MOST_BYTES))
        if r["image"] == other["image"]:
            least = LEAST_SPEEDUP if r["device"] == "cpu" else None
            for what, seconds, bound in (
                ("double backward", second, least),
                ("whole step", whole, None),
            ):
                faster = [seconds(other, time) / seconds(r, time) for time in TIMES]
                text = f"{name}: {what}, times faster than grid_sample"
                found.append(promise(text, faster, bound, most=False))
    return found


def second(record: dict[str, Any], time: str) -> float:
    return record["parts"]["double backward"][time]


def whole(record: dict[str, Any], time: str) -> float:
    return sum(part[time] for part in record["parts"].values())


def promise(
    what: str, values: list[float], bound: float | None, most: bool = True
) -> dict[str, Any]:
    """values: by wall time, which decides, and by process time, which load changes less."""
    value = values[0]
    kept = None if bound is None else value <= bound if most else value >= bound
    record = {"what": what, "measured": value, "bound": bound, "kept": kept}
    return record | ({"by_process_time": values[1]} if len(values) > 1 else {})


def table(record: dict[str, Any]) -> str:
    machine = record["machine"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['torch_threads']} threads, "
        f"{record['device']}; load {record['load_average']['before'][0]:.1f}",
        ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        "median seconds, wall (process); peak above the inputs",
        "",
        f"{'':12} {'image':>6}"
        + "".join(f"{name:>19}" for name in (*PARTS, "marched P* + J"))
        + f"{'peak MB':>9}",
    ]
    for r in record["results"]:
        parts = [*r["parts"].values(), r.get("marched P* + J")]
        cells = [
            "" if p is None else f"{p['median_s']:.3f} ({p['process_median_s']:.3f})" for p in parts
        ]
        peak = "" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 1e6:.0f}"
        row = "".join(f"{cell:>19}" for cell in cells)
        lines.append(f"{r['tool']:12} {r['image']:>4}^2{row}{peak:>9}")
    agree = ", ".join(f"{k} {v:.0e}" for k, v in record["agreement_float64"].items())
    lines += ["", f"trilinear and grid_sample differ, in float64, by: {agree}"]
    for p in record["promises"]:
        verdict = "" if p["kept"] is None else " kept" if p["kept"] else " NOT KEPT"
        bound = "" if p["bound"] is None else f" (promised {p['bound']:g})"
        process = f", by process time {p['by_process_time']:.3g}" if "by_process_time" in p else ""
        lines.append(f"{p['what']}: {p['measured']:.3g}{bound}{verdict}{process}")
    return "\n".join(lines)
