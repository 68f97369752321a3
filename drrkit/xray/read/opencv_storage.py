"""What OpenCV's FileStorage writes, as YAML, XML or JSON: matrices, lists and numbers by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from torch import Tensor

__all__ = ["STORAGE_SUFFIXES", "as_matrix", "read_storage"]

STORAGE_SUFFIXES = (".yml", ".yaml", ".xml", ".json")

_ENTRY = re.compile(r"^([A-Za-z_][\w.-]*)[ \t]*:(.*(?:\n(?:[ \t].*)?)*)", re.MULTILINE)
_NUMBERS = re.compile(r"\[([^\[\]]*)\]")


def read_storage(source: Path) -> dict[str, Any]:
    """The top-level entries of a file: matrices as {rows, cols, data}, lists, and numbers.

    Other entries, such as the maps that OpenCV's samples write for their own use, are texts or left
    as they are. Raises ValueError for a file that is none of the three formats.
    """
    try:
        text = source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: expected a calibration as text ({error})") from None
    suffix = source.suffix.lower()
    if suffix == ".xml":
        return _from_xml(source, text)
    if suffix in (".yml", ".yaml"):
        return _from_yaml(source, text)
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{source}: expected a calibration as JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{source}: expected a JSON object, got {type(content).__name__}")
    return content


def as_matrix(source: Path, name: str, value: Any, shape: tuple[int, int] | None = None) -> Tensor:
    """A finite float64 tensor of lists, or of a matrix {rows, cols, data}; [1, ...] counts, too.

    Raises ValueError naming the file and the entry.
    """
    try:
        if isinstance(value, dict):
            rows, cols = int(value["rows"]), int(value["cols"])
            matrix = torch.tensor(value["data"], dtype=torch.float64).reshape(rows, cols)
        else:
            matrix = torch.tensor(value, dtype=torch.float64)
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(
            f"{source}: {name}: expected numbers or OpenCV's matrix, got {str(value)[:60]}"
        ) from None
    if shape is not None and tuple(matrix.shape) == (1, *shape):
        matrix = matrix[0]
    if shape is not None and tuple(matrix.shape) != shape:
        raise ValueError(f"{source}: {name}: expected {shape}, got {tuple(matrix.shape)}")
    if not bool(matrix.isfinite().all()):
        raise ValueError(f"{source}: {name}: expected finite numbers, got {str(value)[:60]}")
    return matrix


def _from_yaml(source: Path, text: str) -> dict[str, Any]:
    """The YAML that FileStorage writes: entries at the margin, what is theirs indented."""
    found: dict[str, Any] = {}
    for name, rest in _ENTRY.findall(text):
        if "!!opencv-matrix" in rest or re.search(r"^\s+rows\s*:", rest, re.MULTILINE):
            parts = dict(re.findall(r"(\w+)\s*:\s*(\d+)", rest))
            data = _NUMBERS.search(rest)
            found[name] = {
                "rows": parts.get("rows"),
                "cols": parts.get("cols"),
                "data": _numbers(data[1]) if data else None,
            }
        elif rest.strip().startswith("["):
            rows = [_numbers(row) for row in _NUMBERS.findall(rest)]
            found[name] = rows[0] if len(rows) == 1 else rows
        else:
            found[name] = _scalar(rest)
    if not found:
        raise ValueError(f"{source}: expected a calibration as OpenCV's YAML, got no entries")
    return found


def _from_xml(source: Path, text: str) -> dict[str, Any]:
    if "<!ENTITY" in text or "<!DOCTYPE" in text:
        raise ValueError(f"{source}: expected OpenCV's XML, got one with definitions of its own")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{source}: expected a calibration as XML ({error})") from None
    found: dict[str, Any] = {}
    for entry in root:
        parts = {part.tag: (part.text or "").strip() for part in entry}
        if {"rows", "cols", "data"} <= set(parts):
            size = {name: _scalar(parts[name]) for name in ("rows", "cols")}
            found[entry.tag] = {**size, "data": _numbers(parts["data"])}
        elif not parts:
            words = _numbers(entry.text or "")
            single = words is None or len(words) < 2
            found[entry.tag] = _scalar(entry.text or "") if single else words
    if not found:
        raise ValueError(f"{source}: expected a calibration as OpenCV's XML, got no entries")
    return found


def _numbers(text: str) -> list[float] | None:
    """Numbers as OpenCV writes them: `1.`, `.Nan`, `-.Inf`; None for something else."""
    try:
        words = re.split(r"[,\s]+", text.strip())
        return [float(re.sub(r"^([-+]?)\.(?=[NnIi])", r"\1", word)) for word in words if word]
    except ValueError:
        return None


def _scalar(text: str) -> Any:
    words = _numbers(text)
    return words[0] if words is not None and len(words) == 1 else text.strip().strip('"')
