"""Named networks: which there are, how one is built, written to a file and read back.

Each family of networks has two tables in its module: KINDS, the classes by name, and NETWORKS,
named configurations of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from drrkit.files import PathLike
from drrkit.similarity.networks import cdreg, pose_regressors, prost, sopi, sopi_initialiser
from drrkit.similarity.networks.interfaces import Configuration
from drrkit.training import load_tensors, save_tensors

_FAMILIES = (prost, cdreg, sopi, sopi_initialiser, pose_regressors)
SCHEMA, SCHEMA_VERSION = "drrkit.similarity", 1

KINDS: dict[str, type[nn.Module]] = {
    name: kind for family in _FAMILIES for name, kind in family.KINDS.items()
}
"""Classes by the name that stands in files."""

NETWORKS: dict[str, Configuration] = {
    name: network for family in _FAMILIES for name, network in family.NETWORKS.items()
}
"""Configurations by the name that `build` takes: published sizes, and small ones."""

MEASURED = tuple(name for name in NETWORKS if name.endswith("-small"))
"""The networks with a measured result (docs/training.md); no published size was trained here."""


def build(name: str, seed: int = 0) -> nn.Module:
    """A network with fresh weights.

    Args:
        name: one of NETWORKS.
        seed: of the weights; torch's global generator is left as it was.

    Raises:
        ValueError: there is no network of this name.
    """
    if name not in NETWORKS:
        names = ", ".join(repr(known) for known in NETWORKS)
        raise ValueError(f"name: expected one of {names}, got {name!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return construct(NETWORKS[name].kind, NETWORKS[name].settings)


def construct(kind: str, settings: Mapping[str, Any]) -> nn.Module:
    """A network of a class in KINDS, which keeps `kind` and `settings` as attributes.

    Raises:
        ValueError: there is no such class.
        TypeError: it has no such setting.
    """
    if kind not in KINDS:
        names = ", ".join(repr(known) for known in KINDS)
        raise ValueError(f"kind: expected one of {names}, got {kind!r}")
    network = KINDS[kind](**settings)
    # torch's annotation allows tensors and modules only.
    network.kind, network.settings = kind, dict(settings)  # ty: ignore[invalid-assignment]
    return network


def save_similarity(network: nn.Module, path: PathLike, /, **notes: Any) -> None:
    """Writes a similarity or regressor with its settings, whole or not at all.

    Args:
        network: made by `build`, `construct` or `load_similarity`.
        path: of the file; its folder must exist.
        notes: kept beside the weights: numbers, strings, lists and dicts of these.

    Raises:
        TypeError: the network has no settings, or a note is not plain.
        OSError: the file cannot be written.
    """
    kind, settings = getattr(network, "kind", None), getattr(network, "settings", None)
    if not isinstance(kind, str) or not isinstance(settings, dict):
        raise TypeError(
            "network: expected one made by build(), construct() or load_similarity(), "
            f"got a {type(network).__name__} without settings"
        )
    state = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    content = {"kind": kind, "settings": settings, "state": state, "notes": notes}
    save_tensors(content, path, SCHEMA, SCHEMA_VERSION)


def load_similarity(path: PathLike, device: torch.device | str = "cpu") -> nn.Module:
    """The network of a file, in evaluation mode and frozen; its `notes` are those written with it.

    Only tensors and plain values are read (weights_only): a file cannot run code.

    Args:
        path: of a file that `save_similarity` wrote.
        device: where the weights go.

    Raises:
        ValueError: a damaged file, another kind or version, or weights that do not fit.
        OSError: the file cannot be read.
    """
    content = load_tensors(
        path, device, schema=SCHEMA, version=SCHEMA_VERSION, what="similarity or regressor"
    )
    try:
        network = construct(content["kind"], content["settings"])
        network.load_state_dict(content["state"])
        network.notes = content["notes"]
    except (KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path}: weights do not fit their network: {error}") from None
    return network.to(device).eval().requires_grad_(False)
