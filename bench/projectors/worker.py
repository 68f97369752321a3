"""A process that holds one tool: it answers each line of JSON on stdin with one on stdout.

All that the tool prints goes to stderr. Started by isolation.py; ends with its stdin. drrkit may be
that of another checkout: only names that every version has are imported here and in peers.own.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.projectors.peers import OPERATIONS, Cannot, Peer, TorchPeer, load_peer
from bench.projectors.plan import Workload
from bench.projectors.scene import Scene, load_scene
from bench.projectors.timing import Stopwatch, available_bytes, peak_bytes

GRADIENT_BLOCK = 4
"""Gradients in voxels are compared as means over blocks of this many voxels per edge."""
MEMORY_SHARE = 0.8
"""The share of the free memory that a worker may take on the CPU."""
MOST_IMAGES = 16
"""Images of a workload that are compared."""


class ToolProcess:
    """The tool, the scenes it has seen and the workload it is at."""

    def __init__(self, name: str, device: str, threads: int) -> None:
        self.device, self.threads = torch.device(device), threads
        torch.set_num_threads(threads)
        self.type = load_peer(name)
        self.peers: dict[tuple[str, str], Peer] = {}
        self.scenes: dict[str, Scene] = {}
        self.running: dict[str, tuple[Peer, Stopwatch]] = {}  # method -> its part of the workload

    def describe(self) -> dict[str, Any]:
        """Whether the tool runs here, its methods and versions."""
        reason = self.type.unavailable(self.device)
        if reason is not None:
            return {"unavailable": reason}
        methods = self.type.methods_on(self.device)
        return {
            "name": self.type.name,
            "methods": list(methods),
            "operations": {m: self._operations(m) for m in methods},
            "integral": {m: self.type.integral[m] for m in methods},
            "physical": self.type.physical,
            "note": self.type.note,
            "versions": self._versions(),
        }

    def start(
        self, method: str, folder: str, workload: dict[str, Any], save: str
    ) -> dict[str, Any]:
        """Prepares a workload and runs it twice: the answer is saved, pace, memory and what the
        second call adds to the samples are returned."""
        work = Workload(**workload)
        peer, scene = self._prepared(method, folder), self.scenes[folder]
        camera = scene.camera(work.size)
        inputs = [
            peer.views(camera, scene.poses(work.view, work.views, index))
            for index in range(work.inputs)
        ]
        run = getattr(peer, work.operation)
        answer = peer.answer(work.operation, inputs[0], run(inputs[0]))
        np.save(save, _comparable(work.operation, answer))
        del answer
        stopwatch = Stopwatch([partial(run, i) for i in inputs], self.device)
        self.running[method] = (peer, stopwatch)
        return self._second_call(peer, stopwatch)

    def time(
        self, method: str, count: int, graphs: bool = False, warm: bool = False
    ) -> dict[str, Any]:
        """A turn; warm: after a call that is not counted, for other tools have run since."""
        if warm:
            self._samples(method, 1, graphs)
        return {"seconds": self._samples(method, count, graphs)}

    def capture(self, method: str) -> dict[str, Any]:
        """Captures the workload in CUDA graphs."""
        stopwatch = self._running(method)[1]
        try:
            stopwatch.capture()
        except Exception as error:
            stopwatch.graphs.clear()
            torch.cuda.synchronize(self.device)
            stopwatch.calls[0]()  # fails, and ends this process, if the card is left unusable
            reason = f"no CUDA graph: {type(error).__name__}: {str(error).splitlines()[0]}"
            raise Cannot(reason[:300]) from error
        return {}

    def clear(self) -> dict[str, Any]:
        """Drops the workload."""
        self.running.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return {}

    def _second_call(self, peer: Peer, stopwatch: Stopwatch) -> dict[str, Any]:
        """Memory and wall time; pace is the wall time of a call, also for tools with a clock."""
        walls: list[float] = []

        def timed() -> Any:
            begin = time.perf_counter()
            result = stopwatch.calls[0]()
            walls.append(time.perf_counter() - begin)
            return result

        # Memory of another process, or that is not from torch's allocator, is not seen.
        unseen = peer.seconds is not None or (
            self.device.type == "cuda" and not isinstance(peer, TorchPeer)
        )
        peak = peak_bytes(timed, self.device)
        found: dict[str, Any] = {"peak_bytes": None if unseen else peak}
        if self.device.type == "cuda":
            return found | {"pace": stopwatch.samples(1)[0], "seconds": []}
        seconds = walls[-1] if peer.seconds is None else peer.seconds
        return found | {"pace": walls[-1], "seconds": [seconds]}

    def _samples(self, method: str, count: int, graphs: bool = False) -> list[float]:
        peer, stopwatch = self._running(method)
        return stopwatch.samples(count, graphs, lambda: peer.seconds)

    def _running(self, method: str) -> tuple[Peer, Stopwatch]:
        if method not in self.running:
            raise Cannot("its process ended during another of its methods")
        return self.running[method]

    def _versions(self) -> dict[str, str]:
        found = {}
        for package in (self.type.package, "triton"):
            with suppress(PackageNotFoundError):
                found[package] = version(package)
        return found | self.type.version()

    def _operations(self, method: str) -> list[str]:
        peer = self.type(method, self.device, self.threads)
        return [operation for operation in OPERATIONS if peer.supports(operation)]

    def _prepared(self, method: str, folder: str) -> Peer:
        if folder not in self.scenes:  # one volume at a time
            self.peers.clear()
            self.scenes.clear()
            gc.unfreeze()
            gc.collect()
            self.scenes[folder] = load_scene(Path(folder), self.device)
        if (method, folder) not in self.peers:
            peer = self.type(method, self.device, self.threads)
            peer.prepare(self.scenes[folder])
            self.peers[method, folder] = peer
            gc.collect()
            gc.freeze()  # modules and volumes stay: looking at them again costs 0.1 s a turn
        return self.peers[method, folder]


def _comparable(operation: str, answer: np.ndarray) -> np.ndarray:
    """What is kept of an answer: some images; gradients in voxels as means over blocks."""
    answer = np.asarray(answer, np.float32)
    if operation == "forward":
        return answer[:MOST_IMAGES]
    if operation == "pose":
        return answer
    block = min(GRADIENT_BLOCK, *answer.shape)
    voxels = torch.from_numpy(np.ascontiguousarray(answer))[None, None]
    return torch.nn.functional.avg_pool3d(voxels, block, ceil_mode=True)[0, 0].numpy()


def serve(session: ToolProcess, requests: Any, answers: Any) -> None:
    """Gives one answer per request; {"cannot"} and {"error"} are answers, too."""
    for line in requests:
        request = json.loads(line)
        action: Callable[..., dict[str, Any]] = getattr(session, request.pop("do"))
        try:
            answer = action(**request)
        except Cannot as reason:
            answer = {"cannot": str(reason)}
        except NotImplementedError as reason:
            answer = {"cannot": str(reason) or "not implemented by the tool"}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(answer), file=answers, flush=True)


def _limit_memory() -> None:
    """An allocation beyond the machine's memory fails here instead of ending other programs."""
    try:
        import resource

        limit = int(MEMORY_SHARE * available_bytes())
        resource.setrlimit(
            resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1])
        )
    except (ImportError, ValueError, OSError):
        return  # not on this system


def main(arguments: list[str]) -> int:
    name, device, threads = arguments[0], arguments[1], int(arguments[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a tool that prints must not be taken for an answer
    if hasattr(os, "sched_setaffinity"):  # also for tools that count cores by themselves
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    if device == "cpu":
        _limit_memory()
    try:
        session = ToolProcess(name, device, threads)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers, flush=True)
        return 1
    print(json.dumps({"ready": True}), file=answers, flush=True)
    serve(session, sys.stdin, answers)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
