"""Files that appear whole or not at all, and errors that name the file."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["PathLike", "existing_file", "whole_file"]

PathLike = str | os.PathLike[str]


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
            os.replace(part, target.parent / part.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
