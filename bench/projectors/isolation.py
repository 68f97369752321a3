"""Tools in processes of their own: none can disturb, crash or block another or the run."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GRACE = 5.0  # s for a process to end by itself
# The benchmark is this checkout's, drrkit may be another's.
START = """
import sys
root, drrkit = sys.argv.pop(1), sys.argv.pop(1)
sys.path.insert(0, root)
import bench.projectors
sys.path.insert(0, drrkit)
from bench.projectors.worker import main
raise SystemExit(main(sys.argv[1:]))
"""


class Failed(Exception):
    """The tool raised, crashed or did not answer; the text says which."""


class Declined(Exception):
    """The tool has no such operation, or not for this workload."""


class Worker:
    """The parent's end of a worker process. A dead one is started again by the next request.

    name             a peer's, or drrkit@FOLDER: the drrkit of another checkout
    device, threads  as worker.main takes them
    """

    def __init__(self, name: str, device: str, threads: int) -> None:
        peer, _, folder = name.partition("@")
        self.peer, self.checkout = peer, Path(folder) if folder else None
        self.name = f"{peer}@{self.checkout.name}" if self.checkout else peer
        self.given, self.device, self.threads = name, device, threads
        self.process: subprocess.Popen[str] | None = None
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # lives as long as the worker
        self.fresh = True

    def start(self) -> None:
        """Starts the process without waiting until it is ready."""
        if self.process is not None:
            return
        threads = str(self.threads)
        names = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"]
        names.append("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
        environment = os.environ | dict.fromkeys(names, threads)
        folders = [str(ROOT), str(self.checkout or ROOT)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, *folders, self.peer, self.device, threads],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )
        self.fresh = True

    def ask(self, timeout: float, do: str, **arguments: Any) -> dict[str, Any]:
        """One request. Raises Declined; Failed, after which the process is gone if it was stuck."""
        self.start()
        assert self.process and self.process.stdin
        if self.fresh:
            self.fresh = False
            try:
                self._answer(timeout)
            except Failed:
                self.close()
                raise
        with suppress(BrokenPipeError):  # the reason comes with the answer below
            print(json.dumps({"do": do, **arguments}), file=self.process.stdin, flush=True)
        return self._answer(timeout)

    def close(self) -> None:
        """Ends the process."""
        process, self.process = self.process, None
        if process is None:
            return
        assert process.stdin and process.stdout
        with suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def _answer(self, timeout: float) -> dict[str, Any]:
        assert self.process and self.process.stdout
        with selectors.DefaultSelector() as ready:
            ready.register(self.process.stdout, selectors.EVENT_READ)
            if not ready.select(timeout):
                self.process.kill()
                self.close()
                raise Failed(f"no answer within {timeout:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise Failed(self._death())
        answer = json.loads(line)
        if "cannot" in answer:
            raise Declined(answer["cannot"])
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def _death(self) -> str:
        assert self.process
        code = self.process.wait()
        self.close()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"the process ended with {how}; {self._last_line()}"

    def _last_line(self) -> str:
        self.log.seek(0)
        lines = [line.strip() for line in self.log.read().splitlines() if line.strip()]
        return f"its last line: {lines[-1][-300:]}" if lines else "it printed nothing"
