"""Tries one wheel with several versions of torch, each in a clean environment of its own.

    python packaging/check_torch_versions.py dist/drrkit-0.1.0-cp311-*.whl --torch 2.10.0 2.15.0

For each: that torch and the wheel with its extras from the index, then `pip check`, `drrkit
doctor`, `drrkit demo` and the quick tests, run from the sdist's tests where no drrkit but the
installed one can be found. With --rebuild the sdist is then built against that torch, and tested
again; DRRKIT_CUDA=0 keeps that a build for CPU. Prints a table for docs/install.md; exit code 1
where anything failed. Logs stay in --work. A torch with CUDA takes 5 to 8 GB of disk while it is
there.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

BUILD_TOOLS = ("setuptools>=77", "wheel", "pybind11>=2.13", "ninja")
# Those read drrkit's sources, which are not there, or build distributions themselves.
NEED_SOURCES = (
    "core/test_architecture.py",
    "core/test_packaging.py",
    "core/test_distribution_check.py",
)
VERSIONS = """
import torch, drrkit
from drrkit import _build
assert "site-packages" in drrkit.__file__, drrkit.__file__
print(drrkit.__version__, _build.TORCH, torch.__version__, sep="|")
"""


class Step(NamedTuple):
    """One thing that was tried: its name, and what went wrong; None where nothing did."""

    name: str
    fault: str | None


class Row(NamedTuple):
    """One line of the table."""

    drrkit: str
    built_with: str
    run_with: str
    tests: str


class Failure(Exception):
    """A command that had to succeed did not."""


def run(log: Path, *command: object, cwd: Path) -> str:
    """What the command prints; both streams go to the log, too. Failure names the log."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CI")}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**environment, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with log.open("a") as file:
        file.write(f"$ {' '.join(map(str, command))}\n{result.stdout}\n")
    if result.returncode:
        last = " | ".join(result.stdout.strip().splitlines()[-3:])
        raise Failure(f"{command[1:4]} ended with {result.returncode}: {last} (see {log})")
    return result.stdout


def unpack_tests(sdist: Path, target: Path) -> Path:
    """The sdist's folder without its drrkit: tests, and what tests read."""
    with tarfile.open(sdist) as archive:
        if sys.version_info >= (3, 12):
            archive.extractall(target, filter="data")
        else:
            archive.extractall(target)
    (folder,) = target.iterdir()
    shutil.rmtree(folder / "drrkit")
    return folder


def counts(report: Path) -> dict[str, int]:
    """Numbers of tests in a JUnit file: passed, failed (with errors) and skipped."""
    suite = xml.etree.ElementTree.parse(report).getroot()
    suite = suite if suite.tag == "testsuite" else suite[0]
    total, failed, errors, skipped = (
        int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")
    )
    failed += errors
    return {"passed": total - failed - skipped, "failed": failed, "skipped": skipped}


def in_words(numbers: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in numbers.items() if number)


def requirement(torch: str) -> str:
    """`2.10.0` is a version of the index; anything else is what pip takes, such as a file."""
    return f"torch=={torch}" if torch[:1].isdigit() else torch


def create(folder: Path, torch: str, log: Path, base: str) -> Path:
    """An environment with nothing but that torch; its Python."""
    run(log, base, "-m", "venv", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    run(log, python, "-m", "pip", "install", "--no-cache-dir", requirement(torch), cwd=folder)
    return python


def install(python: Path, distribution: Path, log: Path, *options: str) -> None:
    """drrkit with its extras; what is there of torch must stay there."""
    torch = "from importlib.metadata import version; print(version('torch'))"
    before = run(log, python, "-c", torch, cwd=python.parent)
    pip = (python, "-m", "pip", "install", "--no-cache-dir", *options)
    run(log, *pip, f"{distribution}[test,plots,view]", cwd=python.parent)
    run(log, python, "-m", "pip", "check", cwd=python.parent)
    after = run(log, python, "-c", torch, cwd=python.parent)
    if before != after:
        raise Failure(f"{distribution.name} exchanged torch {before.strip()} for {after.strip()}")


def examine(python: Path, tests: Path, log: Path, chosen: Sequence[str]) -> tuple[Row, Step]:
    """The installed drrkit: doctor, demo and the chosen tests, from a folder without sources."""
    drrkit, built, torch = run(log, python, "-c", VERSIONS, cwd=tests).strip().split("|")
    command = python.parent / "drrkit"
    run(log, command, "doctor", cwd=tests)
    with tempfile.TemporaryDirectory() as out:
        run(log, command, "demo", "--out", out, cwd=tests)
    report = log.with_suffix(".xml")
    report.unlink(missing_ok=True)
    skip = [f"--ignore=tests/{name}" for name in NEED_SOURCES]
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}")
    fault = None
    try:
        run(log, *pytest, *skip, *chosen, cwd=tests)
    except Failure as failure:
        fault = str(failure)
    numbers = in_words(counts(report)) if report.exists() else "none ran"
    return Row(drrkit, built, torch, numbers), Step(f"tests with torch {torch}", fault)


def check(
    torch: str, wheel: Path, sdist: Path, work: Path, options: argparse.Namespace
) -> tuple[list[Row], list[Step]]:
    """One torch, in an environment that is removed afterwards."""
    work.mkdir(parents=True)
    log = work / "wheel.log"
    rows: list[Row] = []
    steps: list[Step] = []
    try:
        tests = unpack_tests(sdist, work / "tests")
        python = create(work / "env", torch, log, options.python)
        install(python, wheel, log)
        row, step = examine(python, tests, log, options.tests)
        rows.append(row)
        steps.append(step)
        if options.rebuild:
            log = work / "rebuilt.log"
            run(log, python, "-m", "pip", "uninstall", "--yes", "drrkit", cwd=work)
            run(log, python, "-m", "pip", "install", "--no-cache-dir", *BUILD_TOOLS, cwd=work)
            install(python, sdist, log, "--no-build-isolation")
            row, step = examine(python, tests, log, options.tests)
            rows.append(row)
            steps.append(step)
    except Failure as failure:
        steps.append(Step(f"torch {torch}", str(failure)))
    finally:
        shutil.rmtree(work / "env", ignore_errors=True)
    return rows, steps


def table(rows: Sequence[Row]) -> str:
    lines = ["| drrkit | built with torch | run with torch | tests |", "|---|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("wheel", type=Path, help="its sdist is expected beside it")
    parser.add_argument("--torch", nargs="+", required=True, help="versions, or what pip takes")
    parser.add_argument("--rebuild", action="store_true", help="build the sdist there, too")
    parser.add_argument("--python", default=sys.executable, help="the wheel's CPython")
    parser.add_argument("--work", type=Path, help="where environments and logs go; new")
    parser.add_argument(
        "--tests", type=shlex.split, default=["-m", "not slow"], help="what pytest is told, quoted"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    wheel = options.wheel.resolve()
    sdist = wheel.parent / f"drrkit-{wheel.name.split('-')[1].partition('+')[0]}.tar.gz"
    for file in (wheel, sdist):
        if not file.is_file():
            raise SystemExit(f"{file}: no such file")
    work = options.work or Path(tempfile.mkdtemp(prefix="drrkit-torch-"))
    rows: list[Row] = []
    faults = 0
    for number, torch in enumerate(options.torch):
        new, steps = check(torch, wheel, sdist, (work / str(number)).resolve(), options)
        rows += new
        for step in steps:
            faults += step.fault is not None
            print(f"{step.name}: {step.fault or 'passed'}", flush=True)
    print(f"\n{wheel.name}, logs in {work}\n\n{table(rows)}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
