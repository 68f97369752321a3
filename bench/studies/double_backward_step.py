"""Memory and time of one training step of a learned similarity: losses, backward, optimiser.

The published workload: a 128^3 volume shared by a batch of 4 images of 128^2 (about 15 GB with the
published code). Everything is counted: X-rays synthesised from the full CT, the 3D network, the
projector twice, the 2D network, Adam's moments. Each network runs in a process of its own; memory
is the whole process at its peak (CPU: resident, torch and Python included), or what torch holds on
the GPU.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from statistics import median
from typing import Any

import torch

import drrkit
from bench.studies.study import apart, json_file, markdown, recorded, write_json
from drrkit.phantoms import torso
from drrkit.similarity import SAMPLINGS, SimilarityTask, TrainingPatient, TrainingRecipe, build

THREADS = 2
LIMIT_BYTES = 4 * 1024**3
"""The promised limit of a step's memory."""


def options(add: Any) -> None:
    add("--network", nargs="+", default=["prost-2020", "prost"])
    add("--grid", type=int, default=128, help="voxels along an axis (128)")
    add("--image", type=int, default=128, help="rows and columns (128)")
    add("--batch", type=int, default=4, help="images of a step (4)")
    add("--steps", type=int, default=3, help="the first one is not timed (3)")
    add("--device", default="cpu", help="cpu or cuda")
    add("--child", help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    if options.child:
        print(json.dumps(measure(options.child, options)))
        return 0
    names = ("grid", "image", "batch", "steps", "threads", "device")
    words = [word for name in names for word in (f"--{name}", str(getattr(options, name)))]
    results = []
    for network in options.network:  # each in a process of its own
        print(f"[{time.strftime('%H:%M:%S')}] {network}", flush=True)
        text = apart("double_backward_step", ["--child", network, *words])
        results.append(json.loads(text.splitlines()[-1]))
    kept = all(r["peak_bytes"] < LIMIT_BYTES for r in results)
    record = recorded(options, limit_bytes=LIMIT_BYTES, kept=kept, results=results)
    write_json(json_file(options), record)
    head = ["network", "weights", "peak memory", "per step", "process time"]
    rows = [
        [r["network"], f"{r['weights']:,}", f"{r['peak_bytes'] / 2**30:.2f} GiB"]
        + [f"{r['median_s']:.2f} s", f"{r['process_median_s']:.2f} s"]
        for r in results
    ]
    print("\n".join(markdown(head, rows)))
    return 0 if kept else 1


def measure(network: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and bytes of a few steps; for a fresh process."""
    device = torch.device(options.device)
    before = _resident()
    task = _task(network, options, device)
    optimiser = task.optimiser()
    seconds, process = [], []
    for step in range(options.steps):
        began, used = time.perf_counter(), time.process_time()
        loss = task.losses(step, 0, 1)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
        process.append(time.process_time() - used)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident()
    return {
        "network": network,
        "weights": sum(p.numel() for p in task.model.parameters()),
        "grid": options.grid,
        "image": options.image,
        "batch": options.batch,
        "device": options.device,
        "peak_bytes": peak,
        "bytes_before": before,
        "median_s": median(seconds[1:] or seconds),
        "process_median_s": median(process[1:] or process),
        "steps": options.steps,
    }


def _task(name: str, options: argparse.Namespace, device: torch.device) -> SimilarityTask:
    n = options.grid
    spacing = 2.332 * 128 / n
    like = drrkit.Volume(torch.zeros(n, n, n), (spacing,) * 3, (-spacing * (n - 1) / 2,) * 3)
    ct = torso(3.0).resample(like=like)
    network = build(name).to(device)
    patient = TrainingPatient.of("torso", ct.to(device), network)
    camera = drrkit.CArm(1020.0, (options.image, options.image), 2.176 * 128 / options.image)
    recipe = TrainingRecipe(batch=options.batch)
    return SimilarityTask(network, [patient], [], camera.to(device), SAMPLINGS["prost"], recipe)


def _resident() -> int:
    """Largest resident memory of this process so far, bytes (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
