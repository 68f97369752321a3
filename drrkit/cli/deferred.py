"""Commands that are imported when they are called: help and completion need their names only."""

from __future__ import annotations

from importlib import import_module

import click

from drrkit.cli.verbs import Verb

__all__ = ["DeferringGroup"]


class _Deferred(click.Command):
    """Stands for a command in lists; `source` says where the command is, "module:name"."""

    def __init__(self, name: str, source: str, summary: str) -> None:
        super().__init__(name, short_help=summary)
        self.source = source

    def load(self) -> click.Command:
        module, _, attribute = self.source.partition(":")
        return getattr(import_module(module), attribute)


class DeferringGroup(click.Group):
    """A group some of whose commands are in modules that only these commands import."""

    command_class = Verb

    def defer(self, name: str, source: str, summary: str) -> None:
        """Add the command at `source`, "module:name", of which help lists the summary."""
        self.add_command(_Deferred(name, source, summary))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if isinstance(command, _Deferred):
            command = command.load()
        return name, command, rest
