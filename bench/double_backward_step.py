"""Memory and time of one training step of a learned similarity: losses, backward, optimiser.

    python bench/double_backward_step.py [--network prost prost-2020] [--device cuda] [--output F]

The published workload: a 128^3 volume shared by a batch of 4 images of 128^2 (about 15 GB with the
published code). Everything is counted: X-rays synthesised from the full CT, the 3D network, the
projector twice, the 2D network, Adam's moments. Each network runs in a process of its own; memory
is the whole process at its peak (CPU: resident, torch and Python included), or what torch holds on
the GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import torch

import drrkit
from drrkit.machine import machine, versions
from drrkit.phantoms import torso
from drrkit.similarity import SAMPLINGS, SimilarityTask, TrainingPatient, TrainingRecipe, build

SCHEMA = 1
LIMIT_BYTES = 4 * 1024**3
"""What a step is promised to need less than."""


def run(network: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and bytes of a few steps; for a fresh process."""
    torch.set_num_threads(options.threads)
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


def measured(network: str, options: argparse.Namespace) -> dict[str, Any]:
    """run(network) in a process of its own."""
    print(f"[{time.strftime('%H:%M:%S')}] {network}", file=sys.stderr, flush=True)
    names = ("grid", "image", "batch", "steps", "threads", "device")
    words = [word for name in names for word in (f"--{name}", str(getattr(options, name)))]
    command = [sys.executable, __file__, "--child", network, *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| network | weights | peak memory | a step | process time |", "|---|---|---|---|---|"]
    lines += [
        f"| {r['network']} | {r['weights']:,} | {r['peak_bytes'] / 2**30:.2f} GiB "
        f"| {r['median_s']:.2f} s | {r['process_median_s']:.2f} s |"
        for r in results
    ]
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", nargs="+", default=["prost-2020", "prost"])
    parser.add_argument("--grid", type=int, default=128, help="voxels along an axis (default 128)")
    parser.add_argument("--image", type=int, default=128, help="rows and columns (default 128)")
    parser.add_argument("--batch", type=int, default=4, help="images of a step (default 4)")
    parser.add_argument("--steps", type=int, default=3, help="the first one is not timed (3)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    default = Path(__file__).parent / "results" / "double_backward_step.json"
    parser.add_argument("--output", type=Path, default=default, help="JSON file to write")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.child:
        print(json.dumps(run(options.child, options)))
        return 0
    results = [measured(network, options) for network in options.network]
    record = {
        "schema": SCHEMA,
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine() | {"torch_threads": options.threads},
        "versions": versions(("torch", "numpy")) | {"drrkit": drrkit.__version__},
        "load_average_after": os.getloadavg(),
        "limit_bytes": LIMIT_BYTES,
        "kept": all(r["peak_bytes"] < LIMIT_BYTES for r in results),
        "results": results,
    }
    options.output.write_text(json.dumps(record, indent=2) + "\n")
    print(table(results))
    return 0 if record["kept"] else 1


if __name__ == "__main__":
    sys.exit(main())
