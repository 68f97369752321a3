"""Devices, seeds, CT volumes, files for the command line; in CI a skipped test is a failure.

The command line's packages load where they are used: the core's tests run where they are missing.
"""

from __future__ import annotations

import locale
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import drrkit

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
NO_DATA = (
    "DRRKIT_DATA is not set: this test needs the folder with chest_2mm.nii.gz and pelvis_2mm.nii.gz"
)
NO_NVCC = "there is no nvcc on this machine"
ALLOWED_IN_CI = (NO_NVCC,)
"""Reasons to skip that are the machine's and not a fault of how it was set up."""
_skipped: dict[str, str] = {}


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device of this machine in turn; on a GPU sums have a fixed order.

    Atomic sums come in any order: what tests compare to the bit, or derive twice, must not depend
    on them. The path that uses them has a test with a tolerance (test_ops.py).
    """
    if request.param == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)  # torch's own may have no other
        request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _same_start_for_every_test() -> Iterator[None]:
    """Seeds, thread count, default dtype and locale do not travel from one test to another.

    GDCM sets the locale "C" where it rescales, and torch.compile reads its own sources by it.
    """
    threads, place = torch.get_num_threads(), locale.setlocale(locale.LC_ALL)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    locale.setlocale(locale.LC_ALL, place)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real CT volumes; for tests marked `data`."""
    return Path(os.environ["DRRKIT_DATA"])


@pytest.fixture(scope="module")
def ct() -> drrkit.Volume:
    """The CT that the tests of the command line work on."""
    from tests.support.commands import small_ct

    return small_ct()


@pytest.fixture(scope="module")
def camera() -> drrkit.Camera:
    """What the options CAMERA of the command line's tests say."""
    from tests.support.commands import small_camera

    return small_camera()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files for the command line: see write_data."""
    from tests.support.commands import write_data

    return write_data(tmp_path_factory.mktemp("data"))


def pytest_configure(config: pytest.Config) -> None:
    folder = os.environ.get("DRRKIT_DATA")
    if folder and not Path(folder).is_dir():
        raise pytest.UsageError(f"DRRKIT_DATA: expected a folder, got {folder!r}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get("DRRKIT_DATA"):
        for item in items:
            if item.get_closest_marker("data"):
                item.add_marker(pytest.mark.skip(reason=NO_DATA))


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false", "no")


def _note_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        if not any(allowed in str(reason) for allowed in ALLOWED_IN_CI):
            _skipped[report.nodeid] = str(reason)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note_skip(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note_skip(report)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _in_ci() and _skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _in_ci() and _skipped:
        terminalreporter.section("skipped in continuous integration: a failure", red=True)
        for test, reason in _skipped.items():
            terminalreporter.line(f"{test}: {reason}")
