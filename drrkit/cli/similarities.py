"""Similarities on the command line: a name, or the file of a trained one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from click.shell_completion import CompletionItem

from drrkit.cli.arguments import completions
from drrkit.registration import AUTO, SIMILARITIES, Search, Stage, hybrid
from drrkit.similarity import load_similarity

__all__ = [
    "REGRESSOR_FILE",
    "SIMILARITY_FILE",
    "SimilarityName",
    "plain_stages",
    "similarity_stages",
]

SIMILARITY_FILE, REGRESSOR_FILE = "similarity.pt", "regressor.pt"
"""What drrkit train writes into its folder."""


class SimilarityName(click.ParamType):
    """A name of a similarity, or the file of a trained one (or of a regressor), or its folder."""

    name = "NAME|FILE"

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[CompletionItem]:
        return completions(SIMILARITIES, incomplete, files=True)

    def convert(self, value: Any, param: Any, ctx: Any) -> str | Path:
        if isinstance(value, Path) or value in SIMILARITIES:
            return value
        path = Path(value)
        if path.is_dir():
            inside = [path / name for name in (SIMILARITY_FILE, REGRESSOR_FILE)]
            path = next((p for p in inside if p.is_file()), inside[0])
        if not path.is_file():
            names = ", ".join(SIMILARITIES)
            self.fail(f"expected one of {names} or a file, and there is no {path}.", param, ctx)
        return path


def similarity_stages(similarity: str | Path, device: torch.device) -> tuple[Stage, ...]:
    """auto with this similarity in all stages; with a trained network: learned, CMA-ES, Levenberg.

    Raises:
        ValueError, OSError: as load_similarity.
    """
    if isinstance(similarity, str):
        return tuple(replace(stage, similarity=similarity) for stage in AUTO)
    return hybrid(load_similarity(similarity, device))


def plain_stages(stages: Sequence[Stage | Search]) -> list[dict[str, Any]]:
    """Stages as JSON has them, networks by their names."""
    plain = [{**vars(stage), "similarity": stage.name} for stage in stages]
    for stage in plain:
        if stage.get("regressor") is not None:
            stage["regressor"] = type(stage["regressor"]).__name__
    return plain
