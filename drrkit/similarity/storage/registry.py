"""Named configurations of networks, and how one is built.

A family of networks lives in a module of its own with two tables: KINDS, the classes by name, and
NETWORKS, named configurations of them. Both are joined here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from drrkit.similarity.networks import cdreg, deepim, dmw, initialiser, prost, sopi
from drrkit.similarity.networks.configuration import Configuration

__all__ = ["KINDS", "NETWORKS", "build", "construct"]

_FAMILIES = (prost, cdreg, sopi, initialiser, deepim, dmw)

KINDS: dict[str, type[nn.Module]] = {
    name: kind for family in _FAMILIES for name, kind in family.KINDS.items()
}
"""Classes by the name that stands in files."""

NETWORKS: dict[str, Configuration] = {
    name: network for family in _FAMILIES for name, network in family.NETWORKS.items()
}
"""Configurations by the name that `build` takes."""


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
    """A network of a class in KINDS with these settings, which it then knows of itself.

    Raises:
        ValueError: there is no such class.
        TypeError: it has no such setting.
    """
    if kind not in KINDS:
        names = ", ".join(repr(known) for known in KINDS)
        raise ValueError(f"kind: expected one of {names}, got {kind!r}")
    network = KINDS[kind](**settings)
    # torch's annotation knows tensors and modules only.
    network.kind, network.settings = kind, dict(settings)  # ty: ignore[invalid-assignment]
    return network
