"""A command of drrkit: it returns an `Answer`, and has --json and --config like all others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from drrkit.cli.answers import Answer, give, json_option
from drrkit.cli.configuration import config_option

__all__ = ["Verb", "verb"]


class Verb(click.Command):
    """A command whose function returns an Answer, or None where it gave one itself.

    Its options are those of the function, and --config and --json.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params = [*self.params, config_option(), json_option()]

    def invoke(self, ctx: click.Context) -> None:
        answer = super().invoke(ctx)
        if answer is None:
            return
        if not isinstance(answer, Answer):
            raise TypeError(f"{ctx.command_path}: expected an Answer, got {type(answer).__name__}")
        give(ctx, answer)
        ctx.exit(answer.code)


def verb(name: str, **settings: Any) -> Callable[[Callable], click.Command]:
    """Makes a function that returns an Answer a command of drrkit."""
    return click.command(name, cls=Verb, **settings)
