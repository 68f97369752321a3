"""Tools in processes of their own: none can disturb, crash or block the others or the run."""

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


class Failed(Exception):
    """The tool raised, crashed or did not answer; the text says which."""


class Declined(Exception):
    """The tool says that it has no such operation, or not for this."""


class Worker:
    """The parent's end of a worker process. Dead ones are started again when they are asked.

    name, device, threads  as worker.main takes them
    """

    def __init__(self, name: str, device: str, threads: int) -> None:
        self.name, self.device, self.threads = name, device, threads
        self.process: subprocess.Popen[str] | None = None
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # lives as long as the worker
        self.fresh = True

    def start(self) -> None:
        """Starts the process without waiting until it is ready."""
        if self.process is not None:
            return
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        threads = str(self.threads)
        environment = {
            **os.environ,
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": threads,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "drrkit.bench.worker", self.name, self.device, threads],
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
        with suppress(BrokenPipeError):  # the answer below tells why
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
        return f"the process ended with {how}; {self._last_words()}"

    def _last_words(self) -> str:
        self.log.seek(0)
        lines = [line.strip() for line in self.log.read().splitlines() if line.strip()]
        return f"its last words: {lines[-1][-300:]}" if lines else "it said nothing"
