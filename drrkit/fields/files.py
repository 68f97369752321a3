"""Trained fields in files: written whole or not at all, versioned, read without running code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from drrkit.fields.networks.mnerf import MNeRF
from drrkit.fields.networks.nett import NeTT
from drrkit.files import write_whole
from drrkit.training import load_tensors
from drrkit.volume import Volume

__all__ = ["load_field", "save_field"]

SCHEMA, SCHEMA_VERSION = "drrkit.field", 1


def save_field(field: NeTT | MNeRF, path: Path | str) -> None:
    """Writes a network with its settings; an mNeRF with its mask and grid.

    Raises:
        TypeError: it is neither.
        OSError: it cannot be written.
    """
    if not isinstance(field, (NeTT, MNeRF)):
        raise TypeError(f"field: expected a NeTT or MNeRF, got {type(field).__name__}")
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "kind": type(field).__name__,
        "settings": field.settings,
        "state": {name: value.detach().cpu() for name, value in field.state_dict().items()},
    }
    if isinstance(field, MNeRF):
        content["grid"] = {
            "spacing": list(field.spacing),
            "origin": list(field.origin),
            "direction": field.direction,
        }
    write_whole(Path(path), lambda stream: torch.save(content, stream))


def load_field(path: Path | str, device: torch.device | str = "cpu") -> NeTT | MNeRF:
    """Reads what `save_field` wrote, in evaluation mode.

    Only tensors and plain values are read (torch's weights_only), never code.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, no field of drrkit, or of a newer version.
    """
    content = _read(Path(path))
    try:
        field = _made(content)
        field.load_state_dict(content["state"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path}: expected a whole field of drrkit: {error}") from error
    return field.to(device).eval()


def _made(content: dict[str, Any]) -> NeTT | MNeRF:
    state = content["state"]
    dtype = next(value.dtype for value in state.values() if value.is_floating_point())
    if content["kind"] == "NeTT":
        return NeTT(**content["settings"]).to(dtype)
    grid = Volume(state["mask"].float(), **content["grid"], unit="mu")
    return MNeRF(state["mask"], grid, **content["settings"]).to(dtype)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = load_tensors(path)
    except ValueError as error:
        raise ValueError(f"{path}: expected a field of drrkit ({error})") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ValueError(f"{path}: expected a field of drrkit, got another file of torch")
    if content.get("schema_version") != SCHEMA_VERSION:
        found = content.get("schema_version")
        raise ValueError(f"{path}: expected schema_version {SCHEMA_VERSION}, got {found!r}")
    if content.get("kind") not in ("NeTT", "MNeRF"):
        raise ValueError(f"{path}: expected a NeTT or MNeRF, got {content.get('kind')!r}")
    return content
