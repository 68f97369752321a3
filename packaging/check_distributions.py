"""Compares sdist and wheels in a folder with the sources: nothing missing, more, or changed.

    python packaging/check_distributions.py dist

Says for which Python and CUDA each wheel was built. Exit code 1, with the names, where they differ.
"""

from __future__ import annotations

import ast
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
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


def record(wheel: Path) -> dict[str, str | None]:
    """What the wheel's drrkit/_build.py says: TORCH, CUDA, ARCHITECTURES and more."""
    with zipfile.ZipFile(wheel) as archive:
        if BUILD_RECORD not in archive.namelist():
            return {}
        tree = ast.parse(archive.read(BUILD_RECORD))
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def label(cuda: str | None) -> str:
    """The local version of a build: "+cu13" for any CUDA 13, nothing for CPU."""
    return f"+cu{cuda.split('.')[0]}" if cuda else ""


def wheel_faults(wheel: Path, root: Path = ROOT) -> Iterator[str]:
    """Sentences on what is wrong with a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        contents = {name: archive.read(name) for name in names if ".dist-info/" not in name}
    native = {name for name in contents if name.startswith("drrkit/_C.") and name.endswith(".so")}
    if len(native) != 1:
        yield f"{wheel.name}: expected one compiled drrkit/_C, got {sorted(native)}"
    _, version, tag = wheel.stem.split("-")[:3]  # 0.1.0+cu13, cp311
    if not all(f"cpython-{tag.removeprefix('cp')}-" in name for name in native):
        yield f"{wheel.name}: {sorted(native)} is not of the Python that the name says"
    cuda = record(wheel).get("CUDA")
    if "".join(version.partition("+")[1:]) != label(cuda):
        yield f"{wheel.name}: is built for {f'CUDA {cuda}' if cuda else 'CPU'}, its name differs"
    for name in native:
        del contents[name]
    wanted = sources(root, "drrkit") | {BUILD_RECORD}
    yield from _differences(wheel.name, contents, wanted, root)


def sdist_faults(sdist: Path, root: Path = ROOT) -> Iterator[str]:
    """Sentences on what is wrong with an sdist."""
    with tarfile.open(sdist) as archive:
        contents = {
            member.name.partition("/")[2]: file.read()
            for member in archive
            if (file := archive.extractfile(member)) is not None
        }
    contents = {name: text for name, text in contents.items() if not name.startswith(MADE)}
    yield from _differences(sdist.name, contents, sources(root, *FOLDERS) | set(FILES), root)


def _differences(
    archive: str, contents: Mapping[str, bytes], wanted: set[str], root: Path
) -> Iterator[str]:
    for name in sorted(wanted - set(contents)):
        yield f"{archive}: {name} is missing"
    for name in sorted(set(contents) - wanted):
        yield f"{archive}: {name} does not belong there"
    for name in sorted(wanted & set(contents) - {BUILD_RECORD}):
        if (root / name).is_file() and (root / name).read_bytes() != contents[name]:
            yield f"{archive}: {name} differs from the source"


def describe(wheel: Path) -> str:
    """For what a wheel was built."""
    build = record(wheel)
    kernels = f"CUDA {build.get('CUDA')}: {build.get('ARCHITECTURES')}"
    return (
        f"for Python {build.get('PYTHON')} and every torch from 2.10 on (built with "
        f"{build.get('TORCH')}), CPU{f' and {kernels}' if build.get('CUDA') else ' only'}"
    )


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
        text = f"{file}  {file.stat().st_size / 1e6:.1f} MB"
        print(f"{text}  {describe(file)}" if file in wheels else text)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
