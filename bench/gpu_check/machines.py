"""Where the stages run: on the GPU, or, for a dry run, on the emulator."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tests.emulator.packed import PackedOps, Stream, emulated_packs

Step = Callable[[], Any]


class Gpu:
    """CUDA's current device."""

    dry = False

    def put(self, tensor: Tensor) -> Tensor:
        return tensor.cuda()

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """drrkit's calls inside run on this machine."""
        yield

    def stream(self) -> Any:
        return torch.cuda.Stream()

    @contextlib.contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        with torch.cuda.stream(stream):
            yield

    def wait(self, stream: Any = None) -> None:
        (stream or torch.cuda).synchronize()

    def poison(self, tensors: Iterator[Tensor] | list[Tensor]) -> None:
        """Leave NaN in memory that the allocator hands out next for tensors of these sizes."""
        for tensor in tensors:
            torch.full_like(tensor, torch.nan)

    def capture(self, step: Step, meanwhile: Step = lambda: None) -> tuple[Step, Any]:
        """A replay of `step` and what it returned; `meanwhile` runs during the capture."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = step()
            meanwhile()
        return graph.replay, result

    def microseconds(self, step: Step, repeats: int) -> list[float]:
        ends = [torch.cuda.Event(enable_timing=True) for _ in range(2 * repeats)]
        for start, end in zip(ends[::2], ends[1::2], strict=True):
            start.record()
            step()
            end.record()
        torch.cuda.synchronize()
        return [1e3 * s.elapsed_time(e) for s, e in zip(ends[::2], ends[1::2], strict=True)]


class Emulated:
    """The emulator in the GPU's place; a captured step is one that runs again."""

    dry = True

    def __init__(self) -> None:
        self.ops: PackedOps | None = None

    def put(self, tensor: Tensor) -> Tensor:
        return tensor.clone()

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        with emulated_packs() as self.ops:
            yield

    def stream(self) -> Stream:
        return Stream()

    @contextlib.contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        assert self.ops is not None
        with self.ops.on(stream):
            yield

    def wait(self, stream: Stream | None = None) -> None:
        if stream is not None:
            stream.synchronize()

    def poison(self, tensors: Iterator[Tensor] | list[Tensor]) -> None:
        """The emulator fills all outputs with NaN itself."""

    def capture(self, step: Step, meanwhile: Step = lambda: None) -> tuple[Step, Any]:
        result = step()
        meanwhile()
        return step, result

    def microseconds(self, step: Step, repeats: int) -> list[float]:
        spent = []
        for _ in range(repeats):
            start = time.perf_counter()
            step()
            spent.append(1e6 * (time.perf_counter() - start))
        return spent


class Findings:
    """Cases that passed, and what became of the others; no case ends the stage."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed: dict[str, str] = {}

    @contextlib.contextmanager
    def case(self, name: str) -> Iterator[None]:
        try:
            yield
            self.passed += 1
        except Exception as error:
            self.failed[name] = f"{type(error).__name__}: {error}"[:400]
            print(f"FAILED {name}: {self.failed[name]}", flush=True)

    def result(self) -> dict[str, Any]:
        return {"passed": self.passed, "failed": self.failed}
