"""Checkpoints: written whole or not at all, versioned, loaded without running code from the file.

A folder keeps last.pt, the one before it as previous.pt, and best.pt.
"""

from __future__ import annotations

import fcntl
import os
import struct
import warnings
import zipfile
import zlib
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drrkit.files import write_whole

__all__ = [
    "BEST",
    "LAST",
    "PREVIOUS",
    "Checkpoint",
    "check_plain",
    "find_checkpoint",
    "latest_checkpoint",
    "load_checkpoint",
    "load_tensors",
    "reserved",
    "save_checkpoint",
]

SCHEMA, SCHEMA_VERSION = "drrkit.training", 1
PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)
LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
DAMAGES = (
    zipfile.BadZipFile,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What zipfile raises where an archive is damaged: OSError for a place before the file's start."""


@dataclass
class Checkpoint:
    """All that a training run is at one moment.

    Attributes:
        step: steps done.
        model: state of the task's model.
        optimiser, schedule, scaler: their states; None where there is none.
        settings: arguments of `train` that the numbers depend on.
        config: what the caller wants to find again: how the task was made.
        metrics: of the last validation.
        best: step and value of the best validation so far; empty before the first.
        skipped: steps left out because their gradient was not finite.
        seconds: spent in training up to here.

    All states are tensors and plain values in dicts, lists and tuples.
    """

    step: int
    model: dict[str, Tensor]
    optimiser: dict[str, Any] | None = None
    schedule: dict[str, Any] | None = None
    scaler: dict[str, Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    skipped: int = 0
    seconds: float = 0.0


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Writes a checkpoint, whole or not at all; a last.pt that is there becomes previous.pt.

    Raises:
        OSError: it cannot be written.
        TypeError: it holds something that could not be read again.
    """
    content = {f.name: getattr(checkpoint, f.name) for f in fields(checkpoint)}
    check_plain(content, "checkpoint")
    content = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, **content}
    if path.name == LAST and path.exists():
        # A link first: there is never a moment without last.pt.
        spare = path.with_name(f".{PREVIOUS}.{os.getpid()}.tmp")
        spare.unlink(missing_ok=True)
        try:
            os.link(path, spare)
            os.replace(spare, path.with_name(PREVIOUS))
        except OSError:  # a file system without links
            os.replace(path, path.with_name(PREVIOUS))
        finally:
            spare.unlink(missing_ok=True)  # renaming to a link of the same file does nothing
    write_whole(path, lambda stream: torch.save(content, stream))


def load_checkpoint(path: Path | str, device: torch.device | str = "cpu") -> Checkpoint:
    """Reads a checkpoint; a folder stands for its best.pt, or last.pt where there is no best.

    Only tensors and plain values are read (torch's weights_only), never code.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, no checkpoint of drrkit, or of a newer version.
    """
    path = find_checkpoint(path)
    content = load_tensors(path, device)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ValueError(f"{path}: expected a checkpoint of drrkit, got another file of torch")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path}: expected schema_version {SCHEMA_VERSION}, got {version!r}")
    names = {f.name for f in fields(Checkpoint)}
    missing = names - set(content)
    if missing:
        raise ValueError(f"{path}: expected a whole checkpoint, {sorted(missing)} are missing")
    return Checkpoint(**{name: content[name] for name in names})


def load_tensors(path: Path | str, device: torch.device | str = "cpu") -> Any:
    """What torch.save wrote, if that is tensors and plain values and the file is sound.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or holds code.
    """
    _check_archive(Path(path))
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds, some with advice to load code
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: expected tensors and plain values, got {reason}") from None


def find_checkpoint(path: Path | str) -> Path:
    """The file meant: a folder stands for its best.pt, or last.pt where there is no best.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(path)
    if path.is_dir():
        for name in (BEST, LAST, PREVIOUS):
            if (path / name).is_file():
                return path / name
        raise FileNotFoundError(f"{path}: no {BEST} or {LAST} in this folder")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    return path


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """What to resume in a folder: last.pt; with a warning previous.pt where last.pt is damaged.

    Called by the process that writes there, before it writes: it takes a damaged last.pt out of
    the way (it would become previous.pt) and what a killed run had not finished writing.

    Raises:
        ValueError: there are checkpoints and none can be read.
    """
    for rest in folder.glob(".*.tmp"):
        rest.unlink(missing_ok=True)
    complaints = []
    for name in (LAST, PREVIOUS):
        path = folder / name
        if not path.is_file():
            continue
        try:
            found = load_checkpoint(path)
        except ValueError as error:
            complaints.append(str(error))
            continue
        if complaints:
            warnings.warn(f"{complaints[0]}; going on from {PREVIOUS}", stacklevel=4)
            os.replace(folder / LAST, folder / f"{LAST}.damaged")
        return found
    if complaints:
        raise ValueError("; ".join(complaints))
    return None


def check_plain(value: Any, name: str) -> None:
    """Raises TypeError, naming the place, for what weights_only would not read again."""
    if isinstance(value, Mapping) and type(value) in (dict, OrderedDict, Counter):
        for key, inner in value.items():
            check_plain(key, f"a key of {name}")
            check_plain(inner, f"{name}[{key!r}]")
    elif type(value) in (list, tuple):
        for number, inner in enumerate(value):
            check_plain(inner, f"{name}[{number}]")
    elif not isinstance(value, Tensor) and type(value) not in PLAIN:
        raise TypeError(
            f"{name}: expected tensors and plain values, got {type(value).__name__}; it could not "
            "be resumed"
        )


@contextmanager
def reserved(folder: Path) -> Iterator[None]:
    """Makes a folder and keeps other processes from training in it; the system ends it by itself.

    Raises:
        ValueError: another one does already.
        OSError: the folder cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another process is training in this folder") from None
        except OSError:
            pass  # a file system without locks
        yield


def _check_archive(path: Path) -> None:
    """Raises ValueError unless the checksums of a file of torch agree; torch does not look."""
    with open(path, "rb") as stream:  # what cannot be opened is no damage
        try:
            with zipfile.ZipFile(stream) as archive:
                damaged = archive.testzip()
        except DAMAGES:
            raise ValueError(f"{path}: damaged or cut off, or no file of torch at all") from None
    if damaged is not None:
        raise ValueError(f"{path}: damaged, the checksum of {damaged} is wrong")
