"""Adapters of the tools that are measured, with the interface of peer.py."""

from __future__ import annotations

from importlib import import_module

from bench.projectors.peers.peer import OPERATIONS, Cannot, Peer, TorchPeer

__all__ = ["OPERATIONS", "PEERS", "Cannot", "Peer", "TorchPeer", "load_peer"]

PEERS = {
    "drrkit": "bench.projectors.peers.own:Drrkit",
    "nanodrr": "bench.projectors.peers.nanodrr:Nanodrr",
    "diffdrr": "bench.projectors.peers.diffdrr:DiffDRR",
    "itk-rtk": "bench.projectors.peers.rtk:Rtk",
    "plastimatch": "bench.projectors.peers.plastimatch:Plastimatch",
    "leap": "bench.projectors.peers.leap:Leap",
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
