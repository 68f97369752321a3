"""Compares the sdist and the wheel in a folder with the sources: nothing missing, nothing more.

    python packaging/check_distributions.py dist

Exit code 1, with the names, where they differ.
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILT = (".so", ".o", ".pyc", ".pyo")
# What an sdist takes whole, and the single files beside these folders.
FOLDERS = ("csrc", "drrkit", "tests", "bench", "docs", "examples", "packaging")
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "Makefile", "README.md", "LICENSE")
FILES += ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", ".clang-format")
# Written by setup.py, and by setuptools.
BUILD_RECORD = "drrkit/_build.py"
MADE = ("PKG-INFO", "setup.cfg", "drrkit.egg-info/")


def sources(root: Path, *folders: str) -> set[str]:
    """The files of folders, without what a build or a run leaves in them."""
    return {
        path.relative_to(root).as_posix()
        for folder in folders
        for path in (root / folder).rglob("*")
        if path.is_file() and path.suffix not in BUILT and path.name != "_build.py"
    }


def wheel_faults(wheel: Path, root: Path = ROOT) -> Iterator[str]:
    """Sentences on what is wrong with a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    names = {name for name in names if ".dist-info/" not in name}
    native = {name for name in names if name.startswith("drrkit/_C.") and name.endswith(".so")}
    if len(native) != 1:
        yield f"{wheel.name}: expected one compiled drrkit/_C, got {sorted(native)}"
    tag = wheel.stem.split("-")[2]  # cp311
    if not all(f"cpython-{tag.removeprefix('cp')}-" in name for name in native):
        yield f"{wheel.name}: {sorted(native)} is not of the Python that the name says"
    yield from _differences(wheel.name, names - native, sources(root, "drrkit") | {BUILD_RECORD})


def sdist_faults(sdist: Path, root: Path = ROOT) -> Iterator[str]:
    """Sentences on what is wrong with an sdist."""
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    names = {name for name in names if not name.startswith(MADE)}
    yield from _differences(sdist.name, names, sources(root, *FOLDERS) | set(FILES))


def _differences(archive: str, names: set[str], wanted: set[str]) -> Iterator[str]:
    for name in sorted(wanted - names):
        yield f"{archive}: {name} is missing"
    for name in sorted(names - wanted):
        yield f"{archive}: {name} does not belong there"


def main(folder: Path) -> int:
    wheels, sdists = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    if not wheels or not sdists:
        print(f"{folder}: expected a wheel and an sdist", file=sys.stderr)
        return 1
    faults = [fault for wheel in wheels for fault in wheel_faults(wheel)]
    faults += [fault for sdist in sdists for fault in sdist_faults(sdist)]
    for fault in faults:
        print(fault, file=sys.stderr)
    for file in (*wheels, *sdists):
        print(f"{file}  {file.stat().st_size / 1e6:.1f} MB")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
