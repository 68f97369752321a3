"""A whole run: workers, workloads in order, the record."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from bench.projectors import record as records
from bench.projectors.contest import Contender, Contest, report, with_ratios
from bench.projectors.floors import Floors, ceilings
from bench.projectors.isolation import Declined, Failed, Worker
from bench.projectors.peers.own import PACKED
from bench.projectors.plan import Effort, Workload
from bench.projectors.scene import Scene
from drrkit.machine import machine, revision, versions

BUSY = 0.5  # load average above which other programs distort times
START_TIMEOUT = 180.0  # s: importing a tool; RTK's first filter takes ten seconds


@dataclass(frozen=True)
class Settings:
    """What to run.

    device   "cpu" or "cuda"
    threads  of every tool on the CPU
    peers    names in peers.PEERS, "module:Class", or "drrkit@FOLDER" for the drrkit of another
             checkout; drrkit itself always takes part
    command  for the record
    """

    device: str
    threads: int
    peers: tuple[str, ...]
    workloads: tuple[Workload, ...]
    effort: Effort
    quick: bool = False
    command: str = "python -m bench.projectors"


def run(scene: Scene, settings: Settings) -> dict[str, Any]:
    """Measures everything; returns the record (record.DOCUMENT)."""
    begin = time.monotonic()
    torch.set_num_threads(settings.threads)
    before = _load()
    if before and before[0] > BUSY:
        report(f"load average {before[0]:.1f}: other programs distort the times")
    names = ("drrkit", *(name for name in settings.peers if name != "drrkit"))
    with (
        tempfile.TemporaryDirectory(prefix="drrkit_bench_") as scratch,
        _workers(names, settings.device, settings.threads) as workers,
    ):
        contenders, absent, known = _roll_call(workers)
        # After all have loaded, or that would disturb it.
        found = machine(settings.device)
        limits = ceilings(torch.device(settings.device), settings.threads, found.get("gpu"))
        contest = Contest(settings.device, settings.effort, Floors(limits), Path(scratch))
        deadline = begin + 60 * settings.effort.minutes
        _measure(scene, settings, contest, contenders, deadline)
    cases = {c.case: c for c in contenders}
    headline = f"drrkit joseph{PACKED}"
    headline = headline if headline in cases else "drrkit joseph"
    with_ratios(contest.rows, headline, {name: c.compared_with for name, c in cases.items()})
    return records.check(
        {
            "schema": records.SCHEMA,
            "kind": records.KIND,
            "command": settings.command,
            "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "revision": revision(),
            "device": settings.device,
            "threads": settings.threads,
            "quick": settings.quick,
            "seconds": time.monotonic() - begin,
            "machine": found,
            "load_average": {"before": before, "after": _load()},
            "versions": known | versions(("torch", "numpy")),
            "volume": {
                "name": scene.name,
                "xyz": list(scene.volume.shape_xyz),
                "spacing_mm": list(scene.volume.spacing),
            },
            "geometry": {
                "sdd_mm": scene.sdd,
                "sod_mm": scene.sod,
                "samples": scene.samples,
                "drrkit_trilinear_step_mm": min(scene.volume.spacing),
            },
            "ceilings": limits,
            "effort": asdict(settings.effort),
            "headline": headline,
            "cases": [c.as_dict() for c in contenders],
            "absent": absent,
            "rows": contest.rows,
            "left_out": contest.left_out,
        }
    )


def _measure(
    scene: Scene,
    settings: Settings,
    contest: Contest,
    contenders: list[Contender],
    deadline: float,
) -> None:
    """All workloads in order; other numbers of threads have workers of their own."""
    folders = _Folders(scene, contest.scratch)
    sets: dict[int | None, list[Contender]] = {None: contenders, settings.threads: contenders}
    names = tuple(dict.fromkeys(c.worker.given for c in contenders))
    with ExitStack() as others:
        for work in settings.workloads:
            if time.monotonic() > deadline:
                contest.leave_out(work, "all", "out of time")
                continue
            if work.threads not in sets:
                assert work.threads is not None
                workers = others.enter_context(_workers(names, settings.device, work.threads))
                sets[work.threads] = _roll_call(workers)[0]
            contest.run(work, *folders.of(work), sets[work.threads])


class _Folders:
    """Scenes on disk for the workers: the volume itself and, one at a time, other grids of it."""

    def __init__(self, scene: Scene, scratch: Path) -> None:
        self.scene, self.scratch = scene, scratch
        self.kept: dict[int | None, tuple[Scene, Path]] = {}

    def of(self, work: Workload) -> tuple[Scene, Path]:
        if work.edge not in self.kept:
            scene = self.scene if work.edge is None else self.scene.on_grid(work.edge)
            folder = self.scratch / f"scene_{work.edge or 'itself'}"
            folder.mkdir()
            scene.save(folder)
            self.kept[work.edge] = (scene, folder)
        return self.kept[work.edge]


@contextmanager
def _workers(names: tuple[str, ...], device: str, threads: int) -> Iterator[list[Worker]]:
    """A worker for each tool; they load at the same time."""
    workers = [Worker(name, device, threads) for name in names]
    try:
        for worker in workers:
            worker.start()
        yield workers
    finally:
        for worker in workers:
            worker.close()


def _roll_call(
    workers: list[Worker],
) -> tuple[list[Contender], dict[str, str], dict[str, str]]:
    """The methods that run here, why other tools do not, and versions."""
    contenders: list[Contender] = []
    absent: dict[str, str] = {}
    known: dict[str, str] = {}
    for worker in workers:
        answer: dict[str, Any]
        try:
            answer = worker.ask(START_TIMEOUT, "describe")
        except (Failed, Declined) as reason:
            answer = {"unavailable": str(reason)}
        if "unavailable" in answer:
            absent[worker.name] = answer["unavailable"]
            report(f"{worker.name}: absent ({answer['unavailable']})")
            worker.close()
            continue
        if worker.checkout:
            known[worker.name] = revision(worker.checkout) or "unknown"
        else:
            known |= answer["versions"]
        tool = worker.name if worker.checkout else answer["name"]
        for method in answer["methods"]:
            operations = tuple(answer["operations"][method])
            integral = answer["integral"][method]
            contenders.append(
                Contender(
                    *(worker, tool, method, operations, integral),
                    *(answer["physical"], answer["note"]),
                )
            )
    if not any(c.own for c in contenders):
        raise RuntimeError(f"drrkit itself does not run: {absent.get('drrkit')}")
    return contenders, absent, known


def _load() -> list[float] | None:
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else None
