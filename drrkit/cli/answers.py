"""What a command tells: text for people or, with --json, exactly one JSON document on stdout.

A command returns an `Answer`. Everything else that is printed meanwhile, progress and warnings,
goes to stderr, with --json also what would have gone to stdout. An error is a document, too.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import click

from drrkit.cli.configuration import run_record
from drrkit.cli.poses import json_text

__all__ = ["Answer", "Failure", "Stdout", "give", "json_option", "stdout_for"]

AS_JSON = "drrkit.json"


@dataclass(frozen=True)
class Answer:
    """What a command found.

    Attributes:
        content: for --json; what `drrkit.cli.poses.json_text` takes.
        text: for people.
        code: what the command exits with.
    """

    content: dict[str, Any]
    text: str
    code: int = 0


class Failure(click.ClickException):
    """An error as one sentence and an exit code.

    Args:
        message: for people.
        code: what the command exits with.
        kind: for programs: "input", "failure", "memory", "interrupted" or "internal".
    """

    def __init__(self, message: str, code: int, kind: str) -> None:
        super().__init__(message)
        self.kind = kind
        # click reads it from the object, whatever its annotation says.
        self.exit_code = code  # ty: ignore[invalid-attribute-access]

    def show(self, file: Any = None) -> None:
        said = self.message if self.kind == "interrupted" else f"Error: {self.message}"
        click.echo(said, file=file, err=file is None)


@dataclass
class Stdout:
    """Where the one document goes; `given` once it is there."""

    stream: TextIO
    as_json: bool
    given: bool = False

    def fail(self, error: click.ClickException) -> None:
        """Tells an error: on stderr, and as the document if there is none yet."""
        error.show()
        if not self.as_json or self.given:
            return
        kind = getattr(error, "kind", "usage")
        message = error.format_message()
        content = {"kind": kind, "message": message, "exit_code": error.exit_code}
        click.echo(json_text({"error": content}), file=self.stream, nl=False)
        self.given = True


def json_option() -> click.Option:
    """--json, which `give` finds."""

    def take(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        ctx.meta[AS_JSON] = value

    return click.Option(
        ["--json", "as_json"],
        is_flag=True,
        expose_value=False,
        callback=take,
        help="Print one JSON document, for errors, too; all else goes to stderr.",
    )


def give(ctx: click.Context, answer: Answer) -> None:
    """Prints the answer of a command; the document holds the run, too, so that it can be repeated.

    A command that goes on afterwards calls it; the others return their answer.
    """
    out = ctx.find_object(Stdout)
    stream = sys.stdout if out is None else out.stream
    if ctx.meta[AS_JSON]:
        text = json_text({**answer.content, "run": run_record(ctx)})
        click.echo(text, file=stream, nl=False)
    elif answer.text:
        click.echo(answer.text, file=stream)
    if out is not None:
        out.given = True


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for a document, even if the rest of it does not parse."""
    words = list(arguments)
    words = words[: words.index("--")] if "--" in words else words
    return "--json" in words and not {"-h", "--help", "--version"} & set(words)


@contextlib.contextmanager
def stdout_for(arguments: Sequence[str]) -> Iterator[Stdout]:
    """The stdout of a command line; with --json whatever else is printed goes to stderr."""
    out = Stdout(sys.stdout, wants_json(arguments))
    with contextlib.redirect_stdout(sys.stderr) if out.as_json else contextlib.nullcontext():
        yield out
