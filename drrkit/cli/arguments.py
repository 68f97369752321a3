"""Types of command-line arguments: each turns a word into a value or says what it expected."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from click.shell_completion import CompletionItem

__all__ = [
    "Device",
    "Integers",
    "Number",
    "NumberRange",
    "Numbers",
    "OutputFile",
    "Size",
    "completions",
    "existing",
    "refuse_overwriting",
]

existing = click.Path(exists=True, path_type=Path)


class Size(click.ParamType):
    """ROWSxCOLS in pixels, or one number for a square: (rows, cols)."""

    name = "ROWSxCOLS"
    separator = "x"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d{1,6})(?:[xX](\d{1,6}))?", value.strip())
        rows, cols = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if rows < 1 or cols < 1:
            self.fail(f"expected ROWSxCOLS pixels such as 256x256, got {value!r}.", param, ctx)
        return rows, cols


class _Finite(click.ParamType):
    """Refuses nan and infinity, which click's own numbers let pass."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"expected a finite number, got {value!r}.", param, ctx)
        return number


class Number(_Finite, click.types.FloatParamType):
    """A finite number."""


class NumberRange(_Finite, click.FloatRange):
    """A finite number in a range."""


class Numbers(click.ParamType):
    """Finite numbers separated by commas.

    Args:
        name: shown in the help.
        counts: how many numbers may come; a single one stands for all when 1 is among them.
        positive: refuse zero and less.
    """

    separator = ","

    def __init__(self, name: str, counts: tuple[int, ...], positive: bool = False) -> None:
        self.name, self.counts, self.positive = name, counts, positive

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        kind = "positive numbers" if self.positive else "numbers"
        wanted = " or ".join(str(n) for n in self.counts)
        try:
            numbers = tuple(float(word) for word in value.split(","))
        except ValueError:
            self.fail(f"expected {wanted} {kind} separated by commas, got {value!r}.", param, ctx)
        usable = all(math.isfinite(n) and (n > 0 or not self.positive) for n in numbers)
        if len(numbers) not in self.counts or not usable:
            self.fail(f"expected {wanted} {kind} separated by commas, got {value!r}.", param, ctx)
        return numbers * max(self.counts) if len(numbers) == 1 else numbers


class Integers(click.ParamType):
    """Whole numbers separated by commas, at least one."""

    name = "N,N,..."
    separator = ","

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(word) for word in value.split(","))
        except ValueError:
            self.fail(f"expected whole numbers separated by commas, got {value!r}.", param, ctx)


class OutputFile(click.ParamType):
    """A file to write, checked before any work is done: its suffix, and that its folder is there.

    Args:
        suffixes: the endings it may have.
    """

    name = "FILE"

    def __init__(self, *suffixes: str) -> None:
        self.suffixes = suffixes

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[CompletionItem]:
        return completions((), incomplete, files=True)

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        path = Path(value)
        if not path.name.lower().endswith(self.suffixes):
            choices = ", ".join(self.suffixes)
            self.fail(f"expected a file name ending in {choices}, got {value!r}.", param, ctx)
        if not path.parent.is_dir():
            self.fail(f"the folder {str(path.parent)!r} does not exist.", param, ctx)
        if path.is_dir():
            self.fail(f"{value!r} is a folder.", param, ctx)
        if not os.access(path.parent, os.W_OK):
            self.fail(f"the folder {str(path.parent)!r} cannot be written to.", param, ctx)
        return path


class Device(click.ParamType):
    """auto (a GPU where drrkit and torch can use one), cpu, cuda or cuda:N: a torch.device."""

    name = "DEVICE"

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[CompletionItem]:
        return completions(("auto", "cpu", "cuda"), incomplete)

    def convert(self, value: Any, param: Any, ctx: Any) -> torch.device:
        if isinstance(value, torch.device):
            return value
        from drrkit import _C

        if value == "auto":
            return torch.device("cuda" if _C.has_cuda and torch.cuda.is_available() else "cpu")
        if value == "cpu":
            return torch.device("cpu")
        if not re.fullmatch(r"cuda(:\d{1,3})?", value):
            self.fail(f"expected auto, cpu, cuda or cuda:N, got {value!r}.", param, ctx)
        if not _C.has_cuda:
            self.fail("this drrkit was built without CUDA; drrkit info tells more.", param, ctx)
        device, count = torch.device(value), torch.cuda.device_count()
        if (device.index or 0) >= count:
            self.fail(f"{value!r}: torch sees {count} CUDA devices.", param, ctx)
        return device


def completions(names: Iterable[str], incomplete: str, files: bool = False) -> list[CompletionItem]:
    """What a shell proposes for a word: the names that begin like it, and files.

    Files come first: bash forgets what it was told before.
    """
    found = [CompletionItem(n) for n in names if n.lower().startswith(incomplete.lower())]
    return [CompletionItem(incomplete, type="file")] * files + found


def refuse_overwriting(outputs: Sequence[Path | None], inputs: Sequence[Path | None]) -> None:
    """Raises ValueError when an output is one of the inputs, or two outputs are one file."""
    seen: list[Path] = [path.resolve() for path in inputs if path is not None]
    for path in outputs:
        if path is None:
            continue
        if path.resolve() in seen:
            raise ValueError(f"{path}: would overwrite another file of this command")
        seen.append(path.resolve())
