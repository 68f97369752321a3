"""packaging/check_torch_versions.py: what it makes of versions, reports and failures."""

from __future__ import annotations

import io
import runpy
import sys
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "packaging" / "check_torch_versions.py"
TOOL = runpy.run_path(str(SCRIPT))
Failure = TOOL["Failure"]
ATTRIBUTES = 'tests="12" failures="1" errors="2" skipped="3"'


def test_errors_count_as_failures(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(f"<testsuites><testsuite {ATTRIBUTES} /></testsuites>")
    numbers = TOOL["counts"](report)
    assert numbers == {"passed": 6, "failed": 3, "skipped": 3}
    assert TOOL["in_words"](numbers) == "6 passed, 3 failed, 3 skipped"
    assert TOOL["in_words"](numbers | {"failed": 0, "skipped": 0}) == "6 passed"


def test_tests_are_unpacked_without_the_package_that_they_test(tmp_path: Path) -> None:
    sdist = tmp_path / "drrkit-0.1.0.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        for name in ("drrkit/__init__.py", "tests/test_a.py", "docs/tour.md"):
            member = tarfile.TarInfo(f"drrkit-0.1.0/{name}")
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
    folder = TOOL["unpack_tests"](sdist, tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == ["docs", "tests"]


def test_a_command_that_fails_is_reported_with_its_last_words_and_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = "import sys; print('first'); print('last'); sys.exit(3)"
    with pytest.raises(Failure, match=r"ended with 3: first \| last"):
        TOOL["run"](log, sys.executable, "-c", code, cwd=tmp_path)
    assert "first\nlast" in log.read_text() and log.read_text().startswith("$ ")


def test_no_checkout_can_be_found_from_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SCRIPT.parents[1]))
    code = "import os; print(os.environ.get('PYTHONPATH'))"
    assert TOOL["run"](tmp_path / "log", sys.executable, "-c", code, cwd=tmp_path) == "None\n"


def test_a_wheel_without_its_sdist_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "drrkit-0.1.0+cu13-cp311-cp311-linux_x86_64.whl"
    wheel.write_bytes(b"")
    with pytest.raises(SystemExit, match=r"drrkit-0\.1\.0\.tar\.gz: no such file"):
        TOOL["main"]([str(wheel), "--torch", "2.10.0"])


def test_an_environment_that_cannot_be_made_is_a_fault_not_a_crash(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    wheel = tmp_path / "drrkit-0.1.0-cp311-cp311-linux_x86_64.whl"
    wheel.write_bytes(b"")
    with tarfile.open(tmp_path / "drrkit-0.1.0.tar.gz", "w:gz") as archive:
        folder = tarfile.TarInfo("drrkit-0.1.0/drrkit")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(folder)
    words = [str(wheel), "--torch", "2.10.0", "--work", str(tmp_path / "work")]
    assert TOOL["main"]([*words, "--python", "/bin/false"]) == 1
    assert "torch 2.10.0: ('-m', 'venv'" in capsys.readouterr().out
    assert not (tmp_path / "work" / "0" / "env").exists()
