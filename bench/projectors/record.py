"""The result of a run: one JSON document, and how it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from drrkit.files import whole_file

SCHEMA, KIND = 2, "drrkit bench"
WORKLOAD = ("section", "view", "views", "size", "operation", "edge", "threads")
"""What makes a workload in a row."""
KEYS = {
    "": "command utc revision device threads quick seconds machine load_average versions volume "
    "geometry ceilings effort headline cases absent rows left_out",
    "cases": "case tool method integral note",
    "rows": f"{' '.join(WORKLOAD)} case mode seconds peak_bytes difference floors ratio "
    "ratio_same_integral",
    "left_out": f"{' '.join(WORKLOAD)} case reason",
}
"""What the document and the entries of its lists hold."""


def check(record: Any) -> dict[str, Any]:
    """The record, if it is one of this schema; ValueError names the first entry that is missing."""
    if not isinstance(record, dict) or record.get("kind") != KIND:
        raise ValueError(f'expected a JSON object of the kind "{KIND}"')
    if record.get("schema") != SCHEMA:
        raise ValueError(f"expected schema {SCHEMA}, got {record.get('schema')}")
    for name, keys in KEYS.items():
        for index, entry in enumerate(record[name] if name else [record]):
            for key in keys.split():
                if key not in entry:
                    raise ValueError(f"{name}[{index}].{key} is missing".removeprefix("[0]."))
    return record


def read(path: Path) -> dict[str, Any]:
    """A record from a file. Raises OSError; ValueError naming the file and what is wrong."""
    try:
        return check(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write(record: dict[str, Any], path: Path) -> None:
    """A record into a file, whole or not at all."""
    with whole_file(path) as staged:
        staged.write_text(json.dumps(check(record), indent=1) + "\n")


def rows_of(record: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    """The rows whose entries are as wanted, in the order of the run."""
    return [row for row in record["rows"] if all(row[k] == v for k, v in wanted.items())]
