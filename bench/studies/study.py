"""What studies share: records, resumable rows, tables, intervals, processes of their own."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import torch

import drrkit
from drrkit.files import whole_file
from drrkit.machine import machine, versions
from drrkit.metrics import success_rate
from drrkit.volume import Volume

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
DATA = "DRRKIT_DATA"


def recorded(options: argparse.Namespace, /, **content: Any) -> dict[str, Any]:
    """A study's record: what ran, where and when, then the content."""
    known = {name: value for name, value in versions().items() if value is not None}
    return {
        "schema": 1,
        "command": options.command,
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(getattr(options, "device", "cpu")),
        "load_average": {"before": options.load, "after": os.getloadavg()},
        "versions": known,
        **content,
    }


def origin(record: dict[str, Any]) -> str:
    """Where a record comes from, in a sentence."""
    here = record["machine"]
    return (
        f"`{record['command']}` on {here['cores']} cores of {here['cpu']}, torch "
        f"{record['versions']['torch']}, {record['utc'][:10]}."
    )


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """The text in the file, whole or not at all; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as staged:
        staged.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def json_file(options: argparse.Namespace) -> Path:
    """--output as a JSON file: NAME.json unless it is one."""
    return options.output.with_name(options.output.name.removesuffix(".json") + ".json")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file; a line that an interruption cut is dropped."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


@contextmanager
def appended(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Adds rows to a .jsonl file, each at once, so that an interrupted run can go on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as stream:

        def add(row: dict[str, Any]) -> None:
            stream.write(json.dumps(row) + "\n")
            stream.flush()

        yield add


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A table's lines."""
    cells = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell) for cell in row) + " |" for row in cells]


def wilson(errors: Sequence[float], below: float) -> dict[str, Any]:
    """The share of errors below a threshold, with its 95 % Wilson interval."""
    rate = success_rate(torch.as_tensor(errors, dtype=torch.float64), below)
    return {"rate": rate.rate, "low": rate.low, "high": rate.high, "count": rate.successes}


def percent(rate: dict[str, Any], digits: int = 0) -> str:
    """A `wilson` share as text: "65.6 % (60 to 71)"."""
    return (
        f"{100 * rate['rate']:.{digits}f} % ({100 * rate['low']:.0f} to {100 * rate['high']:.0f})"
    )


def in_turns(
    calls: dict[str, Callable[[], Any]],
    rounds: int,
    *,
    unit: str = "s",
    warm_up: int = 1,
    repeat: int = 1,
    between: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, float]]:
    """Times per call: least and median of the wall and of this process's processor time.

    Other programs disturb processor time less. The calls take turns, so that a disturbance does not
    hit one alone; a sample is the mean over `repeat` calls. unit: "s", "ms" or "us".
    """
    scale = {"s": 1.0, "ms": 1e3, "us": 1e6}[unit] / repeat
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for index in range(rounds + warm_up):
        for name, call in calls.items():
            begin = time.perf_counter(), time.process_time()
            for _ in range(repeat):
                call()
            end = time.perf_counter(), time.process_time()
            if index >= warm_up:
                taken[name].append(((end[0] - begin[0]) * scale, (end[1] - begin[1]) * scale))
            between()
    return {
        name: {
            f"{clock}_{which}_{unit}": of(values)
            for clock, values in zip(("wall", "cpu"), zip(*samples, strict=True), strict=True)
            for which, of in (("min", min), ("median", median))
        }
        for name, samples in taken.items()
    }


def ct_option(add: Any) -> None:
    """An optional CT; `read_ct` reads it."""
    add("ct", nargs="?", type=Path, help=f"CT in HU; default: pelvis_2mm.nii.gz of {DATA}")


def read_ct(options: argparse.Namespace) -> Volume:
    """The CT of `ct_option`, float32; options.ct becomes its path."""
    options.ct = options.ct or data_file("pelvis_2mm.nii.gz")
    return drrkit.read_volume(options.ct).to(dtype=torch.float32)


def data_file(name: str) -> Path:
    if not os.environ.get(DATA):
        raise SystemExit(f"{DATA} is not set: expected the folder with {name}")
    return Path(os.environ[DATA]) / name


def apart(study: str, words: Sequence[str]) -> str:
    """What a run of a study in a process of its own prints."""
    command = [sys.executable, "-m", "bench.studies", study, *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return done.stdout


def in_pairs(study: str, parts: Sequence[Sequence[str]]) -> None:
    """Runs of a study in processes of their own, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        for text in pool.map(lambda words: apart(study, words), parts):
            print(text, end="", flush=True)


def figure(size: tuple[float, float]) -> Any:
    """An empty matplotlib Figure."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained", dpi=80)
