"""What is measured: workloads, and the lists of them for a CPU and for a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

SECTIONS = ("main", "views", "detector", "volume", "threads")


@dataclass(frozen=True)
class Workload:
    """One operation on one set of views.

    section    "main": the table; "views", "detector", "volume", "threads": a scaling curve
    view       see Scene.poses
    views      how many in one call
    size       rows and columns of the detector
    operation  see peers/peer.py
    edge       cubic voxels along the longest side; None: the volume as it is
    threads    None: all that the run was given
    inputs     sets of views that take turns
    """

    section: str
    view: str
    views: int
    size: int
    operation: str
    edge: int | None = None
    threads: int | None = None
    inputs: int = 4

    @property
    def rays(self) -> int:
        return self.views * self.size**2

    @property
    def label(self) -> str:
        """For tables: "AP 16 x 200²"."""
        label = f"{self.view} {self.views} x {self.size}²"
        if self.edge is not None:
            label += f", {self.edge} voxels"
        return label if self.threads is None else f"{label}, {self.threads} threads"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Effort:
    """How long a run may take.

    rounds    turns of every tool at a workload
    turn      seconds that a turn takes at least, unless one call takes longer
    cell      seconds after which a workload ends for a tool that has two samples or more
    limit     seconds: a tool that needs longer for one call is left out of the workload
    minutes   of the whole run: afterwards no further workload is begun
    """

    rounds: int
    turn: float
    cell: float
    limit: float
    minutes: float

    def of(self, work: Workload) -> Effort:
        """Curves have many points and get a third."""
        if work.section == "main":
            return self
        rounds = min(self.rounds, 3)
        return replace(self, rounds=rounds, cell=self.cell / 3, limit=self.limit / 3)


def effort(device: str, quick: bool) -> Effort:
    """The default effort on a "cpu" or "cuda" device."""
    if device == "cuda":
        return Effort(2, 0.01, 1.0, 2.0, 2.0) if quick else Effort(5, 0.02, 1.0, 4.0, 7.0)
    return Effort(2, 0.05, 0.5, 3.0, 0.8) if quick else Effort(5, 0.2, 6.0, 9.0, 9.5)


def workloads(device: str, quick: bool, threads: int) -> list[Workload]:
    """The list for a device, the most important first: a run out of time drops the rest."""
    if device == "cuda":
        return list(_cuda_quick() if quick else _cuda())
    return list(_cpu_quick() if quick else _cpu(threads))


def _main(view: str, views: int, size: int, operations: str, inputs: int = 4) -> Iterator[Workload]:
    for operation in operations.split():
        yield Workload("main", view, views, size, operation, inputs=inputs)


def _curves(
    views: tuple[int, ...], sizes: tuple[int, ...], edges: tuple[int, ...], size: int = 128
) -> Iterator[Workload]:
    """Forward projections, one thing changing at a time around one AP view of size x size."""
    for count in views:
        yield Workload("views", "AP", count, size, "forward", inputs=2)
    for rows in sizes:
        yield Workload("detector", "AP", 1, rows, "forward", inputs=2)
    for edge in edges:
        yield Workload("volume", "AP", 1, size, "forward", edge=edge, inputs=2)


def _cpu(threads: int) -> Iterator[Workload]:
    yield from _main("AP", 1, 200, "forward pose volume")
    yield from _main("lateral", 1, 200, "forward pose volume")
    for count in sorted({1, threads}):
        yield Workload("threads", "AP", 1, 200, "forward", threads=count)
    yield from _main("AP", 16, 200, "forward pose volume", inputs=2)
    yield from _main("orbit", 16, 200, "adjoint", inputs=1)
    yield from _main("AP", 1, 512, "forward pose", inputs=2)
    yield from _main("AP", 1, 64, "double", inputs=2)  # where the others have the memory for it
    yield from _main("AP", 1, 200, "double", inputs=2)
    yield from _curves((1, 4, 16), (64, 128, 256, 512), (64, 128, 256))
    yield from _main("random", 1, 200, "forward")
    yield from _main("lateral", 16, 200, "forward pose", inputs=2)
    yield from _main("AP", 1, 1024, "forward", inputs=2)
    yield from _main("AP", 300, 128, "forward", inputs=1)


def _cpu_quick() -> Iterator[Workload]:
    yield from _main("AP", 1, 64, "forward pose volume", inputs=2)
    yield from _main("lateral", 1, 64, "forward pose", inputs=2)
    yield from _main("orbit", 4, 64, "adjoint", inputs=1)
    yield from _curves((1, 4), (32, 64), (64, 128), size=64)


def _cuda() -> Iterator[Workload]:
    for view in ("AP", "lateral"):
        yield from _main(view, 1, 200, "forward pose volume")
        yield from _main(view, 16, 200, "forward pose volume")
        yield from _main(view, 1, 1024, "forward pose")
    yield from _main("AP", 300, 128, "forward pose", inputs=2)
    yield from _main("AP", 1, 200, "double")
    yield from _main("AP", 16, 200, "double", inputs=2)
    yield from _main("orbit", 360, 512, "forward adjoint", inputs=1)
    yield from _curves((1, 4, 16, 64, 256), (64, 128, 256, 512, 1024), (64, 128, 256, 512))
    yield from _main("random", 16, 200, "forward pose volume")
    yield from _main("AP", 1, 512, "forward pose volume")
    yield from _main("AP", 16, 512, "forward pose", inputs=2)
    yield from _main("lateral", 1, 512, "forward pose")
    yield from _main("lateral", 16, 512, "forward pose", inputs=2)
    yield from _main("orbit", 16, 200, "forward adjoint", inputs=1)
    yield from _main("random", 1, 200, "forward pose")
    yield from _main("lateral", 300, 128, "forward", inputs=2)
    yield from _main("random", 300, 128, "forward", inputs=2)


def _cuda_quick() -> Iterator[Workload]:
    yield from _main("AP", 1, 200, "forward pose volume double")
    yield from _main("AP", 16, 200, "forward pose volume")
    yield from _main("lateral", 16, 200, "forward pose")
    yield from _main("orbit", 16, 200, "forward adjoint", inputs=1)
    yield from _curves((1, 16), (128, 512), (128, 256))
