"""The tools that are measured, each behind the same few words; see peer.py."""

from __future__ import annotations

from importlib import import_module

from drrkit.bench.peers.peer import OPERATIONS, Cannot, Peer, TorchPeer

__all__ = ["OPERATIONS", "PEERS", "Cannot", "Peer", "TorchPeer", "load_peer"]

PEERS = {
    "drrkit": "drrkit.bench.peers.own:Drrkit",
    "nanodrr": "drrkit.bench.peers.nanodrr:Nanodrr",
    "diffdrr": "drrkit.bench.peers.diffdrr:DiffDRR",
    "itk-rtk": "drrkit.bench.peers.rtk:Rtk",
    "plastimatch": "drrkit.bench.peers.plastimatch:Plastimatch",
    "leap": "drrkit.bench.peers.leap:Leap",
    "tigre": "drrkit.bench.peers.tigre:Tigre",
    "astra": "drrkit.bench.peers.astra:Astra",
}
"""Adapters by name, in the order of the tables; "module:Class" names one of your own."""


def load_peer(name: str) -> type[Peer]:
    """The adapter's class: a name in PEERS, or "module:Class".

    Raises ValueError for an unknown name, ImportError or AttributeError for a wrong "module:Class".
    """
    target = PEERS.get(name, name)
    if ":" not in target:
        raise ValueError(f"peers: expected some of {', '.join(PEERS)} or module:Class, got {name}")
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)
