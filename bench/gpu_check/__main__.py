"""Runs one stage, or collects what they printed into summary.json; see the package."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from drrkit import _C

MARK = "RESULT "
"""Begins the line of a stage's log that holds its result as JSON."""
ENDED = {0: "passed", 124: "out of time", 137: "out of time", 77: "skipped"}


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=__doc__)
    parser.add_argument("stage", choices=("import", "smoke", "streams", "speed", "summary"))
    parser.add_argument("rest", nargs="*", help="of the summary: FOLDER NAME:EXIT_CODE:SECONDS ...")
    parser.add_argument("--dry-run", action="store_true", help="on the emulator, at small sizes")
    parser.add_argument("--repeats", type=int, default=30, help="of each time that is measured")
    given = parser.parse_args(words)
    if given.stage == "summary":
        return summary(Path(given.rest[0]), given.rest[1:])
    if given.stage == "import":
        found = {"torch": torch.__version__, "cuda": torch.version.cuda, "has_cuda": _C.has_cuda}
        if torch.cuda.is_available():
            found |= {"device": torch.cuda.get_device_name()}
            found |= {"capability": torch.cuda.get_device_capability()}
        print(MARK + json.dumps(found))
        return 0 if given.dry_run or (_C.has_cuda and torch.cuda.is_available()) else 1
    from . import checks, speed
    from .machines import Emulated, Gpu

    machine = Emulated() if given.dry_run else Gpu()
    if given.stage == "speed":
        findings, rows = speed.speed(machine, given.repeats)
        result: dict[str, Any] = {**findings.result(), "microseconds": rows}
    else:
        findings = {"smoke": checks.smoke, "streams": checks.streams}[given.stage](machine)
        result = findings.result()
    print(MARK + json.dumps(result))
    return 1 if findings.failed or not findings.passed else 0


def summary(folder: Path, stages: list[str]) -> int:
    """Writes FOLDER/summary.json and prints a line for each stage; 1 if any failed."""
    found: dict[str, Any] = {}
    for stage in stages:
        name, code, seconds = stage.split(":")
        log = (folder / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
        results = [json.loads(line[len(MARK) :]) for line in log if line.startswith(MARK)]
        ended = ENDED.get(int(code), f"failed ({code})")
        found[name] = {
            "ended": ended,
            "seconds": int(seconds),
            "last_line": (log or [""])[-1][:400],
        }
        if results:
            found[name] |= {"last_line": "", "result": results[-1]}
        print(f"{name:10} {seconds:>4} s  {ended}  {found[name]['last_line']}")
    text = json.dumps({"stages": found}, indent=1)
    (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
    return int(any(s["ended"] not in ("passed", "skipped") for s in found.values()))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
