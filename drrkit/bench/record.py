"""The result of a run: one JSON document, its schema, and how others read it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

SCHEMA = 2
KIND = "drrkit bench"

NUMBER = (int, float)
TEXT = (str,)
OPTIONAL_NUMBER = (int, float, type(None))
DOCUMENT: dict[str, Any] = {
    "schema": (int,),
    "kind": TEXT,
    "command": TEXT,
    "utc": TEXT,
    "revision": (str, type(None)),
    "device": TEXT,
    "threads": (int,),
    "quick": (bool,),
    "seconds": NUMBER,
    "machine": {"cpu": TEXT, "cores": (int,), "torch_threads": (int,), "system": TEXT},
    "load_average": {"before": (list, type(None)), "after": (list, type(None))},
    "versions": {"python": TEXT, "torch": TEXT, "drrkit": TEXT},
    "volume": {"name": TEXT, "xyz": (list,), "spacing_mm": (list,)},
    "geometry": {"sdd_mm": NUMBER, "sod_mm": NUMBER, "samples": (int,)},
    "ceilings": {"copy_bytes_per_s": NUMBER, "fetches_per_s": OPTIONAL_NUMBER},
    "effort": {"rounds": (int,), "minutes": NUMBER},
    "headline": TEXT,
    "cases": (list,),
    "absent": (dict,),
    "rows": (list,),
    "left_out": (list,),
}
CASE: dict[str, Any] = {"case": TEXT, "tool": TEXT, "method": TEXT, "integral": TEXT, "note": TEXT}
WORKLOAD: dict[str, Any] = {
    "section": TEXT,
    "view": TEXT,
    "views": (int,),
    "size": (int,),
    "operation": TEXT,
    "edge": (int, type(None)),
    "threads": (int, type(None)),
}
ROW: dict[str, Any] = WORKLOAD | {
    "case": TEXT,
    "mode": TEXT,
    "seconds": {
        "median": NUMBER,
        "quartiles": (list,),
        "least": NUMBER,
        "greatest": NUMBER,
        "samples": (int,),
    },
    "peak_bytes": (int, type(None)),
    "difference": (dict,),
    "floors": (dict, type(None)),
    "ratio": OPTIONAL_NUMBER,
    "ratio_same_integral": OPTIONAL_NUMBER,
}
LEFT_OUT: dict[str, Any] = WORKLOAD | {"case": TEXT, "reason": TEXT}


def check(record: Any) -> dict[str, Any]:
    """The record, if it is one of this schema; ValueError names the first entry that is not."""
    if not isinstance(record, dict) or record.get("kind") != KIND:
        raise ValueError(f'expected a JSON object of the kind "{KIND}"')
    if record.get("schema") != SCHEMA:
        raise ValueError(f"expected schema {SCHEMA}, got {record.get('schema')}")
    _check("", record, DOCUMENT)
    for name, shape in (("cases", CASE), ("rows", ROW), ("left_out", LEFT_OUT)):
        for index, entry in enumerate(record[name]):
            _check(f"{name}[{index}].", entry, shape)
    return record


def read(path: Path) -> dict[str, Any]:
    """A record from a file. Raises OSError; ValueError naming the file and what is wrong."""
    try:
        return check(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write(record: dict[str, Any], path: Path) -> None:
    """A record into a file, whole or not at all."""
    check(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(path)


def rows_of(record: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    """The rows whose entries are as wanted, in the order of the run."""
    return [row for row in record["rows"] if all(row[k] == v for k, v in wanted.items())]


def _check(where: str, entry: Any, shape: dict[str, Any]) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{where[:-1]}: expected an object, got {type(entry).__name__}")
    for key, kind in shape.items():
        if key not in entry:
            raise ValueError(f"{where}{key} is missing")
        if isinstance(kind, dict):
            _check(f"{where}{key}.", entry[key], kind)
        elif not isinstance(entry[key], kind):
            raise ValueError(f"{where}{key}: got {type(entry[key]).__name__}")
