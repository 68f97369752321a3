"""A named choice of a network's class and settings."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["Configuration"]


class Configuration(NamedTuple):
    """Which class, and what its constructor gets."""

    kind: str
    settings: dict[str, Any]

    def but(self, **changes: Any) -> Configuration:
        """The same with some settings changed."""
        return Configuration(self.kind, {**self.settings, **changes})
