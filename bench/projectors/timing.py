"""The measuring core: laps of prepared calls, warm, without garbage collection; peak memory."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], Any]


class Stopwatch:
    """Times calls on a device. Several calls, each with its own inputs, take turns.

    On the CPU every call is a sample. On CUDA a sample is one lap over all calls, synchronised
    before and after, divided by their number: what a loop measures that seldom synchronises.
    """

    def __init__(self, calls: Sequence[Call], device: torch.device) -> None:
        self.calls, self.device = list(calls), device
        self.next = 0
        self.graphs: list[torch.cuda.CUDAGraph] = []

    def samples(
        self, count: int, graphs: bool = False, reported: Callable[[], float | None] | None = None
    ) -> list[float]:
        """Seconds per call, `count` times; `reported` gives a tool's own seconds instead."""
        with _without_garbage_collection():
            if self.device.type == "cuda":
                return [self._lap(graphs) for _ in range(count)]
            return [self._one(reported) for _ in range(count)]

    def capture(self) -> None:
        """Records every call in a CUDA graph. Raises what the tool raises when it cannot."""
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for call in self.calls:
                call()
        torch.cuda.current_stream(self.device).wait_stream(side)
        for call in self.calls:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                call()
            self.graphs.append(graph)

    def _one(self, reported: Callable[[], float | None] | None) -> float:
        call = self.calls[self.next % len(self.calls)]
        self.next += 1
        begin = time.perf_counter()
        call()
        seconds = time.perf_counter() - begin
        own = reported() if reported else None
        return seconds if own is None else own

    def _lap(self, graphs: bool) -> float:
        laps = [graph.replay for graph in self.graphs] if graphs else self.calls
        torch.cuda.synchronize(self.device)
        begin = time.perf_counter()
        for call in laps:
            call()
        torch.cuda.synchronize(self.device)
        return (time.perf_counter() - begin) / len(laps)


def statistics_of(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles, least, greatest and number of some samples."""
    low, middle, high = (
        statistics.quantiles(seconds, n=4, method="inclusive")
        if len(seconds) > 1
        else [seconds[0]] * 3
    )
    return {
        "median": middle,
        "quartiles": [low, high],
        "least": min(seconds),
        "greatest": max(seconds),
        "samples": len(seconds),
    }


def peak_bytes(call: Call, device: torch.device | str = "cpu") -> int | None:
    """Memory at the call's peak above what was in use before it; call it before, to be warm.

    On the CPU the resident memory (Linux, else None): every page touched counts, be it torch's, a
    kernel's or a thread's stack. Memory that was freed but not returned is returned
    first, or its reuse would not be seen. On CUDA what torch's allocator counts.
    """
    device = torch.device(device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
    else:
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to VmRSS
            before = _status_bytes("VmRSS")
            result = call()
            peak = _status_bytes("VmHWM")
        except OSError:
            call()
            return None
    del result  # alive until here, as a caller would keep it
    return max(0, peak - before)


def available_bytes(device: torch.device | str = "cpu") -> int:
    """Memory of a device that is free without swapping; a large number where it is not known."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 1 << 62
    return next((1024 * int(x.split()[1]) for x in lines if x.startswith("MemAvailable")), 1 << 62)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    found = next((line for line in lines if line.startswith(field)), None)
    if found is None:
        raise OSError(f"/proc/self/status has no {field}")
    return 1024 * int(found.split()[1])
