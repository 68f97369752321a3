"""Networks in files: their settings beside their weights, written whole or not at all."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from drrkit.files import write_whole
from drrkit.similarity.storage.registry import construct
from drrkit.training import load_tensors

__all__ = ["VERSION", "load_similarity", "save_similarity"]

FORMAT = "drrkit.similarity"
VERSION = 1
"""Of the file's layout; a reader refuses a newer one."""


def save_similarity(network: nn.Module, path: str | os.PathLike[str], /, **notes: Any) -> None:
    """Write a network that `build`, `construct` or `load_similarity` made.

    The file appears under its name only once it is complete, and replaces one of the same name in
    one move: a reader never meets half of it.

    Args:
        network: to write.
        path: of the file; its folder must exist.
        notes: kept beside the weights: numbers, strings, lists and dicts of these.

    Raises:
        TypeError: the network does not know its settings.
        OSError: the file cannot be written.
    """
    kind, settings = getattr(network, "kind", None), getattr(network, "settings", None)
    if not isinstance(kind, str) or not isinstance(settings, dict):
        raise TypeError(
            "network: expected one made by build(), construct() or load_similarity(), "
            f"got a {type(network).__name__} without settings"
        )
    state = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    content = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "settings": settings,
        "state": state,
        "notes": notes,
    }
    write_whole(path, lambda stream: torch.save(content, stream))


def load_similarity(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> nn.Module:
    """The network of a file, in evaluation mode, its parameters frozen; `notes` is what was noted.

    Only tensors and plain values are read (weights_only): a file cannot run code.

    Args:
        path: of a file that `save_similarity` wrote.
        device: where the weights go.

    Raises:
        ValueError: a damaged file, another kind, a newer layout, or weights that do not fit.
        OSError: the file cannot be read.
    """
    content = load_tensors(os.fspath(path), device)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"path: expected a file of {FORMAT}, got another one in {path}")
    if content["version"] > VERSION:
        raise ValueError(
            f"path: expected layout {VERSION} or older, got {content['version']} in {path}"
        )
    network = construct(content["kind"], content["settings"])
    try:
        network.load_state_dict(content["state"])
    except RuntimeError as error:
        raise ValueError(f"path: weights do not fit {content['kind']} in {path}: {error}") from None
    network.notes = content["notes"]
    network.to(device).eval().requires_grad_(False)
    return network
