"""A command of drrkit: it returns an `Answer`, and has --json and --config like all others.

With --json a command prints exactly one JSON document on stdout, errors included; progress,
warnings and what would have gone to stdout go to stderr.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TextIO

import click

from drrkit.cli.configuration import config_option, run_record
from drrkit.cli.io import json_text
from drrkit.cli.options import collected, parameters


@dataclass(frozen=True)
class Answer:
    """What a command found.

    Attributes:
        content: for --json; what `drrkit.cli.io.json_text` takes.
        text: for people.
        code: the exit code.
    """

    content: dict[str, Any]
    text: str
    code: int = 0


class Failure(click.ClickException):
    """An error as one sentence and an exit code.

    Args:
        message: for people.
        code: the exit code.
        kind: for programs: "input", "failure", "memory", "interrupted" or "internal".
    """

    def __init__(self, message: str, code: int, kind: str) -> None:
        super().__init__(message)
        self.kind = kind
        # click reads it from the object, although it is annotated as a class variable.
        self.exit_code = code  # ty: ignore[invalid-attribute-access]

    def show(self, file: Any = None) -> None:
        text = self.message if self.kind == "interrupted" else f"Error: {self.message}"
        click.echo(text, file=file, err=file is None)


@dataclass
class Stdout:
    """Destination of the JSON document; `given` once it has been printed."""

    stream: TextIO
    as_json: bool
    given: bool = False

    def fail(self, error: click.ClickException) -> None:
        """Shows an error on stderr and, where no document was printed yet, prints it as one."""
        error.show()
        if not self.as_json or self.given:
            return
        kind = getattr(error, "kind", "usage")
        message = error.format_message()
        content = {"kind": kind, "message": message, "exit_code": error.exit_code}
        click.echo(json_text({"error": content}), file=self.stream, nl=False)
        self.given = True


@contextlib.contextmanager
def stdout_for(arguments: Sequence[str]) -> Iterator[Stdout]:
    """The stdout of a command line; with --json everything else that is printed goes to stderr.

    The command line need not be valid: an error in it is printed as a document, too.
    """
    words = list(arguments)
    words = words[: words.index("--")] if "--" in words else words
    as_json = "--json" in words and not {"-h", "--help", "--version"} & set(words)
    out = Stdout(sys.stdout, as_json)
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield out


def give(ctx: click.Context, answer: Answer) -> None:
    """Prints the answer of a command; the document includes the run, so that it can be repeated.

    Only a command that continues after its answer calls this; the others return their answer.
    """
    out = ctx.find_object(Stdout) or Stdout(sys.stdout, as_json=False)
    if out.as_json:
        text = json_text({**answer.content, "run": run_record(ctx)})
        click.echo(text, file=out.stream, nl=False)
    elif answer.text:
        click.echo(answer.text, file=out.stream)
    out.given = True


class Command(click.Command):
    """A command whose function returns an Answer, or None where it gave one itself."""

    def invoke(self, ctx: click.Context) -> None:
        answer = self.answer(ctx)
        if answer is not None:
            give(ctx, answer)
            ctx.exit(answer.code)

    def answer(self, ctx: click.Context) -> Answer | None:
        """What the command found, not printed."""
        return super().invoke(ctx)


def command(name: str, **settings: Any) -> Callable[[Callable[..., Answer | None]], Command]:
    """Makes a function a command with the options that its signature declares, --json and --config.

    See `drrkit.cli.options.option`.
    """

    def decorate(function: Callable[..., Answer | None]) -> Command:
        @functools.wraps(function)
        def called(**values: Any) -> Answer | None:
            return collected(function, values)

        words = "Print one JSON document, for errors, too; all else goes to stderr."
        as_json = click.Option(["--json", "as_json"], is_flag=True, expose_value=False, help=words)
        params = [*parameters(function), config_option(), as_json]
        return click.command(name, cls=Command, params=params, **settings)(called)

    return decorate


class _Unloaded(click.Command):
    """Placeholder of a command that is not loaded: help and completion need name and summary."""

    def __init__(self, name: str, source: str, summary: str) -> None:
        super().__init__(name, short_help=summary)
        self.source = source


class LazyGroup(click.Group):
    """A group of commands whose modules are imported when one is called."""

    def add_lazy(self, name: str, source: str, summary: str) -> None:
        """Adds the command at `source`, "module:name", with its line in the list."""
        self.add_command(_Unloaded(name, source, summary))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, found, rest = super().resolve_command(ctx, args)
        if isinstance(found, _Unloaded):
            module, _, attribute = found.source.partition(":")
            found = getattr(import_module(module), attribute)
        return name, found, rest
