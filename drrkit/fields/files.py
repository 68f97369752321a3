"""Trained fields in files: written whole or not at all, versioned, read without running code."""

from __future__ import annotations

from typing import Any

import torch

from drrkit.fields.mnerf import MNeRF
from drrkit.fields.nett import NeTT
from drrkit.files import PathLike
from drrkit.training import load_tensors, save_tensors
from drrkit.volume import Volume

SCHEMA, SCHEMA_VERSION = "drrkit.field", 1


def save_field(field: NeTT | MNeRF, path: PathLike) -> None:
    """Writes a network with its settings; an mNeRF with its mask and grid.

    Raises:
        TypeError: it is neither.
        OSError: it cannot be written.
    """
    if not isinstance(field, (NeTT, MNeRF)):
        raise TypeError(f"field: expected a NeTT or MNeRF, got {type(field).__name__}")
    content: dict[str, Any] = {
        "kind": type(field).__name__,
        "settings": {name: getattr(field, name) for name in field.SETTINGS},
        "state": {name: value.detach().cpu() for name, value in field.state_dict().items()},
    }
    if isinstance(field, MNeRF):
        content["grid"] = {
            "spacing": list(field.spacing),
            "origin": list(field.origin),
            "direction": field.direction,
        }
    save_tensors(content, path, SCHEMA, SCHEMA_VERSION)


def load_field(path: PathLike, device: torch.device | str = "cpu") -> NeTT | MNeRF:
    """The field that `save_field` wrote, in evaluation mode. Never runs code (weights_only).

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, no field of drrkit, or of another version.
    """
    content = load_tensors(path, schema=SCHEMA, version=SCHEMA_VERSION, what="field")
    try:
        field = _made(content)
        field.load_state_dict(content["state"])
    except (KeyError, TypeError, RuntimeError, StopIteration) as error:
        raise ValueError(f"{path}: expected a whole field of drrkit: {error}") from error
    return field.to(device).eval()


def _made(content: dict[str, Any]) -> NeTT | MNeRF:
    state = content["state"]
    dtype = next(value.dtype for value in state.values() if value.is_floating_point())
    if content["kind"] == "NeTT":
        return NeTT(**content["settings"]).to(dtype)
    grid = Volume(state["mask"].float(), **content["grid"], unit="mu")
    return MNeRF(state["mask"], grid, **content["settings"]).to(dtype)
