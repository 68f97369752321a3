"""Files that appear whole or not at all, and errors that name the file."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PathLike = str | os.PathLike[str]


class FileWarning(UserWarning):
    """What a file leaves open or says wrongly, and what was assumed instead."""


def existing_file(path: PathLike) -> Path:
    """The path of a file that can be opened.

    Raises:
        TypeError: it is no file name.
        OSError: it does not exist or cannot be read.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: expected a file name, got {type(path).__name__}")
    with open(path, "rb"):  # Python's own errors name the file and the reason.
        pass
    return Path(path)


def fingerprint(path: PathLike) -> dict[str, str | int]:
    """What identifies a file, or a folder of files: its path, bytes and sha256.

    A folder's SHA-256 is that of its files' names and SHA-256, in the order of their names.

    Raises:
        OSError: it does not exist or cannot be read.
    """
    source = Path(path)
    if not source.is_dir():
        with open(source, "rb") as stream:
            digest, size = _sha256(stream), stream.tell()
        return {"path": str(source), "bytes": size, "sha256": digest}
    files = (part for part in source.rglob("*") if part.is_file())
    parts = {part.relative_to(source).as_posix(): fingerprint(part) for part in files}
    told = "".join(f"{name}\n{parts[name]['sha256']}\n" for name in sorted(parts))
    size = sum(int(part["bytes"]) for part in parts.values())
    digest = hashlib.sha256(os.fsencode(told)).hexdigest()
    return {"path": str(source), "bytes": size, "sha256": digest}


def _sha256(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


@contextmanager
def whole_file(path: PathLike) -> Iterator[Path]:
    """A place to write a file, of the same name; moved to `path` if the block ends without error.

    Files that the block writes beside it, the data of a header, move along, before it: until then
    the name shows the old file or none.

    Raises:
        TypeError: path is no file name.
        OSError: the folder does not exist or cannot be written to.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: expected a file name, got {type(path).__name__}")
    target = Path(path)
    try:
        prefix, suffix = f".{target.name}.", ".partial"
        folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=target.parent))
    except OSError as error:
        raise type(error)(
            f"{target}: cannot write to the folder {target.parent}: {error.strerror or error}"
        ) from error
    try:
        yield folder / target.name
        for part in sorted(folder.iterdir(), key=lambda p: p.name == target.name):
            _sync(part)
            os.replace(part, target.parent / part.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _sync(target.parent)


def write_whole(path: PathLike, write: Callable[[BinaryIO], object]) -> None:
    """`whole_file` for what writes to an open binary file; raises as it."""
    with whole_file(path) as staged, open(staged, "wb") as stream:
        write(stream)


def _sync(path: Path) -> None:
    """Brings a file, or the names in a folder, to the disk where the system can."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
