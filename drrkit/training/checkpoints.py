"""Checkpoints and other files of tensors: written whole, versioned, read without running code.

A training's folder keeps last.pt, the one before it as previous.pt, and best.pt.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drrkit.files import PathLike, write_whole

SCHEMA, SCHEMA_VERSION = "drrkit.training", 1
PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)
LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"


@dataclass
class Checkpoint:
    """The whole state of a training run after a step: tensors and plain values.

    Attributes:
        step: steps done.
        model: state of the task's model.
        optimiser, schedule, scaler: their states; None where there is none.
        settings: arguments of `train` that the numbers depend on.
        config: what the caller wants to find again: how the task was made.
        metrics: of the last validation.
        best: step and value of the best validation so far; empty before the first.
        skipped: steps left out because their gradient was not finite.
        seconds: spent in training so far.
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


def save_tensors(content: Mapping[str, Any], path: PathLike, schema: str, version: int) -> None:
    """Writes tensors and plain values to a file, whole or not at all.

    Args:
        content: dicts, lists and tuples of tensors and plain values.
        path: of the file; one that is there is replaced in one move.
        schema, version: of the content, which `load_tensors` asks for.

    Raises:
        TypeError: content holds something that could not be read again.
        OSError: the file cannot be written.
    """
    _check_plain(dict(content), "content")
    whole = {"schema": schema, "schema_version": version, **content}
    write_whole(path, lambda stream: torch.save(whole, stream))


def load_tensors(
    path: PathLike, device: torch.device | str = "cpu", *, schema: str, version: int, what: str
) -> dict[str, Any]:
    """The content that `save_tensors` wrote. Never runs code (torch's weights_only).

    Args:
        path: of the file.
        device: where tensors go.
        schema, version: that the file must have.
        what: the kind of file expected, for error messages.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, holds code, or has another schema or version.
    """
    _check_archive(Path(path))
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds, some with advice to load code
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: expected tensors and plain values, got {reason}") from None
    if not isinstance(content, dict) or content.get("schema") != schema:
        raise ValueError(f"{path}: expected a {what} of drrkit, got another file of torch")
    if content.get("schema_version") != version:
        found = content.get("schema_version")
        raise ValueError(f"{path}: expected schema_version {version}, got {found!r}")
    return content


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Writes a checkpoint (see `save_tensors`); a last.pt that is there becomes previous.pt."""
    content = {f.name: getattr(checkpoint, f.name) for f in fields(checkpoint)}
    spare = path.with_name(f".{path.name}.partial")
    save_tensors(content, spare, SCHEMA, SCHEMA_VERSION)
    if path.name == LAST and path.exists():
        os.replace(path, path.with_name(PREVIOUS))  # a run killed here resumes from previous.pt
    os.replace(spare, path)


def load_checkpoint(path: Path | str, device: torch.device | str = "cpu") -> Checkpoint:
    """Reads a checkpoint; a folder stands for its best.pt, or last.pt where there is no best.

    Raises:
        FileNotFoundError: there is none.
        ValueError: see `load_tensors`.
    """
    path = find_checkpoint(path)
    content = load_tensors(path, device, schema=SCHEMA, version=SCHEMA_VERSION, what="checkpoint")
    names = {f.name for f in fields(Checkpoint)}
    missing = names - set(content)
    if missing:
        raise ValueError(f"{path}: expected a whole checkpoint, {sorted(missing)} are missing")
    return Checkpoint(**{name: content[name] for name in names})


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
    """The checkpoint to resume from: last.pt, or with a warning previous.pt if last.pt is damaged.

    For the process that writes in the folder, before it writes: renames a damaged last.pt (which
    would become previous.pt) and deletes what a killed run had not finished writing.

    Raises:
        ValueError: there are checkpoints and none can be read.
    """
    for rest in folder.glob(".*.partial"):
        shutil.rmtree(rest) if rest.is_dir() else rest.unlink(missing_ok=True)
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


@contextmanager
def reserved(folder: Path) -> Iterator[None]:
    """Makes a folder and keeps other processes from training in it, until this process ends.

    Raises:
        ValueError: another process trains there.
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


def _check_plain(value: Any, name: str) -> None:
    """Raises TypeError, naming the place, for what weights_only would not read again."""
    if isinstance(value, Mapping) and type(value) in (dict, OrderedDict, Counter):
        for key, inner in value.items():
            _check_plain(key, f"a key of {name}")
            _check_plain(inner, f"{name}[{key!r}]")
    elif type(value) in (list, tuple):
        for number, inner in enumerate(value):
            _check_plain(inner, f"{name}[{number}]")
    elif not isinstance(value, Tensor) and type(value) not in PLAIN:
        raise TypeError(
            f"{name}: expected tensors and plain values, got {type(value).__name__}; it could not "
            "be read again"
        )


def _check_archive(path: Path) -> None:
    """Raises ValueError unless the checksums of a file of torch agree, which torch ignores."""
    with open(path, "rb") as stream:  # OSError here is not damage
        try:
            with zipfile.ZipFile(stream) as archive:
                damaged = archive.testzip()
        except Exception:  # zipfile lets through what zlib, struct and seek() raise
            raise ValueError(f"{path}: damaged or cut off, or no file of torch at all") from None
    if damaged is not None:
        raise ValueError(f"{path}: damaged, the checksum of {damaged} is wrong")
