"""`drrkit bench`: the benchmark, with the options of drrkit.bench.command."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from drrkit.bench.command import DESCRIPTION, EPILOG, OPTIONS, check, measure
from drrkit.cli.answers import Answer
from drrkit.cli.verbs import Verb

__all__ = ["bench_command"]


def _run(**options: Any) -> Answer:
    given = SimpleNamespace(**options)
    check(given)
    outcome = measure(given, "drrkit bench")
    files = [str(path) for path in outcome.files]
    content = {"written": files, "record": outcome.record}
    return Answer(content, "\n".join([outcome.table, *files]))


def _options() -> list[click.Parameter]:
    made: list[click.Parameter] = []
    for option in OPTIONS:
        flag = [f"--{option.name}"]
        if option.kind is bool:
            made.append(click.Option(flag, is_flag=True, help=option.help))
            continue
        kind: Any = click.Path(path_type=Path) if option.kind is Path else option.kind
        told: dict[str, Any] = {
            "metavar": option.metavar,
            "default": option.default,
            "help": option.help,
        }
        made.append(click.Option(flag, type=kind, **told))
    return made


bench_command = Verb("bench", callback=_run, params=_options(), help=DESCRIPTION, epilog=EPILOG)
