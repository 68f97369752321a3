"""`drrkit bench`: the benchmark, whose own parser knows the options (see drrkit.bench.command)."""

from __future__ import annotations

import click

__all__ = ["bench_command"]


@click.command(
    "bench",
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    short_help="Measure drrkit against the other projectors that are installed.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def bench_command(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    """Measure drrkit against the other projectors that are installed."""
    from drrkit.bench.command import main

    ctx.exit(main(arguments, prog="drrkit bench"))
