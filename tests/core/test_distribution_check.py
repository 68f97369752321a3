"""packaging/check_distributions.py names what a distribution lacks and what it should not have."""

from __future__ import annotations

import io
import runpy
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from drrkit import _C

SCRIPT = Path(__file__).resolve().parents[2] / "packaging" / "check_distributions.py"
CHECK = runpy.run_path(str(SCRIPT))
NATIVE = "drrkit/_C.cpython-311-x86_64-linux-gnu.so"
INFO = "drrkit-0.1.0.dist-info/METADATA"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Sources, with what a build and a run leave beside them."""
    files = ("__init__.py", "py.typed", "_C.pyi", "_build.py", "_C.so", "web/static/page.js")
    for name in (*files, "__pycache__/a.pyc"):
        path = tmp_path / "drrkit" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return tmp_path


def wheel(
    folder: Path, *names: str, tag: str = "cp311", label: str = "", cuda: str | None = None
) -> Path:
    file = folder / f"drrkit-0.1.0{label}-{tag}-{tag}-linux_x86_64.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            record = name == "drrkit/_build.py"
            archive.writestr(name, f"TORCH = '2.13.0'\nCUDA = {cuda!r}\n" if record else "x")
    return file


WHOLE = (
    "drrkit/__init__.py",
    "drrkit/py.typed",
    "drrkit/_C.pyi",
    "drrkit/_build.py",
    "drrkit/web/static/page.js",
    NATIVE,
    INFO,
)


def test_a_whole_wheel_has_no_faults(root: Path) -> None:
    assert not list(CHECK["wheel_faults"](wheel(root, *WHOLE), root))


@pytest.mark.parametrize(
    "less, more, tag, message",
    [
        *(([name], [], "cp311", f"{name} is missing") for name in WHOLE[:-2]),
        ([NATIVE, INFO], [], "cp311", "expected one compiled drrkit/_C"),
        ([], [], "cp312", "not of the Python that the name says"),
        *(
            ([], [name], "cp311", f"{name} does not belong there")
            for name in ("tests/test_a.py", "build/lib/a.o", "drrkit/__pycache__/a.pyc")
        ),
    ],
)
def test_what_a_wheel_lacks_or_should_not_have_is_named(
    root: Path, less: list[str], more: list[str], tag: str, message: str
) -> None:
    names = [name for name in (*WHOLE, *more) if name not in less]
    (fault,) = CHECK["wheel_faults"](wheel(root, *names, tag=tag), root)
    assert message in fault


def test_a_file_that_is_not_the_sources_is_named(root: Path) -> None:
    (root / "drrkit" / "__init__.py").write_text("changed since")
    (fault,) = CHECK["wheel_faults"](wheel(root, *WHOLE), root)
    assert "drrkit/__init__.py differs from the source" in fault


@pytest.mark.parametrize(
    "label, cuda, fits",
    [("", None, True), ("+cu13", "13.2", True), ("", "13.2", False), ("+cu12", "13.0", False)]
    + [("+cu13", None, False)],
)
def test_a_wheel_is_called_what_it_was_built_for(
    root: Path, label: str, cuda: str | None, fits: bool
) -> None:
    faults = list(CHECK["wheel_faults"](wheel(root, *WHOLE, label=label, cuda=cuda), root))
    assert len(faults) == (not fits)
    assert fits or f"is built for {'CUDA ' + cuda if cuda else 'CPU'}" in faults[0]


def test_a_wheel_says_for_what_it_was_built(root: Path) -> None:
    assert CHECK["describe"](wheel(root, *WHOLE)).endswith("(built with 2.13.0), CPU only")
    assert "CUDA 13.2" in CHECK["describe"](wheel(root, *WHOLE, cuda="13.2"))


def sdist(folder: Path, names: set[str]) -> Path:
    file = folder / "drrkit-0.1.0.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        for name in sorted(names):
            member = tarfile.TarInfo(f"drrkit-0.1.0/{name}")
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
    return file


def test_an_sdist_takes_the_sources_without_what_was_built(root: Path) -> None:
    kept = CHECK["sources"](root, "drrkit")
    assert kept == {name for name in WHOLE[:-2] if "_build" not in name}
    names = kept | set(CHECK["FILES"]) | {"PKG-INFO", "drrkit.egg-info/SOURCES.txt"}
    assert not list(CHECK["sdist_faults"](sdist(root, names), root))
    faults = list(CHECK["sdist_faults"](sdist(root, names - {"setup.py"} | {NATIVE}), root))
    assert len(faults) == 2
    assert "setup.py is missing" in faults[0] and "does not belong there" in faults[1]


def test_a_folder_without_distributions_is_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert CHECK["main"](tmp_path) == 1
    assert "expected a wheel and an sdist" in capsys.readouterr().err


def test_the_binary_asks_torch_for_nothing_but_its_stable_c_abi() -> None:
    """That is why one build serves every torch from 2.10 on: C++ symbols change with each."""
    command = ["nm", "-D", "--undefined-only", str(_C.__file__)]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    asked = [line.split()[-1] for line in table.splitlines()]
    assert "aoti_torch_abi_version" in asked  # read right: torch is asked for something
    mangled = ("3c10", "2at", "5torch", "3aot")  # c10::, at::, torch::, aot...::
    assert not [name for name in asked if name.startswith("_Z") and any(m in name for m in mangled)]
