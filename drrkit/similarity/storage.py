"""Named networks: which there are, how one is built, written to a file and read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from drrkit.files import PathLike
from drrkit.similarity.cdreg import CDReg
from drrkit.similarity.prost import EncoderProST, TransformerProST
from drrkit.similarity.regressors import DMW, DeepIM, PoseInitialiser
from drrkit.similarity.sopi import SopiSimilarity
from drrkit.training import load_tensors, save_tensors

SCHEMA, SCHEMA_VERSION = "drrkit.similarity", 1


class Configuration(NamedTuple):
    """A network's class, by name, and the settings of its constructor."""

    kind: str
    settings: dict[str, Any]

    def but(self, **changes: Any) -> Configuration:
        """The same with some settings changed."""
        return Configuration(self.kind, {**self.settings, **changes})


KINDS: dict[str, type[nn.Module]] = {
    "prost-encoder": EncoderProST,
    "prost-transformer": TransformerProST,
    "cdreg": CDReg,
    "sopi": SopiSimilarity,
    "initialiser": PoseInitialiser,
    "deepim": DeepIM,
    "dmw": DMW,
}
"""Classes by the name that stands in files."""

_STANDARD = {"moving_scale": "standard", "fixed_scale": "standard"}
_SMALL: dict[str, dict[str, Any]] = {
    "prost": {
        "images": (64, 64),
        "patches": (8, 16),
        "dims": (64, 96),
        "depth": (1, 2),
        "stages": 2,
        "mlp": (2.0, 2.0),
        **_STANDARD,
    },
    "prost-2020": {"expansion": (4, 8, 3), "widths": (16, 32, 64, 32), **_STANDARD},
    "cdreg": {
        "image": 64,
        "features": (8, 16, 32, 32),
        "expansion": (4, 8, 3),
        "score_side": 4,
        "dropout": 0.0,
    },
    "sopi": {"image": 64, "stem": (4, 8), "widths": (16, 32, 32)},
    "sopi-initialiser": {
        "image": 64,
        "volume": 32,
        "width": (8, 16),
        "localisation": (16, 16),
        "hidden": (64, 32),
        "dropout": 0.0,
    },
    "deepim": {
        "image": 64,
        "widths": (16, 32, 64, 64, 64),
        "kernels": (7, 5, 3, 3, 3),
        "strides": (2, 2, 2, 1, 2),
        "hidden": 64,
    },
    "dmw": {"image": 64, "stem": 32, "layers": (4, 4, 4), "growth": 8},
}
_KIND_OF = {
    "prost": "prost-transformer",
    "prost-2020": "prost-encoder",
    "sopi-initialiser": "initialiser",
}

NETWORKS: dict[str, Configuration] = {
    name + suffix: Configuration(_KIND_OF.get(name, name), settings)
    for name, small in _SMALL.items()
    for suffix, settings in (("", {}), ("-small", small))
}
"""Configurations by the name that `build` takes: the published sizes, the defaults of the classes
(prost: the journal's network with CrossViT-9; prost-2020: the published code with group
normalisation; deepim: FlowNetSimple's sizes on images of 128 x 128), and small ones for two cores
and images of 64 x 64."""

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
