"""The command line: `drrkit render`, `register`, `report`, `convert`, `evaluate`, `train`, ...

Exit codes: 0 success; 1 the run failed or a registration was not accepted; 2 wrong usage, an input
that is not what it should be, or a file that cannot be read or written; 130 interrupted.
"""

from __future__ import annotations

from typing import Any

import click

from drrkit import __version__
from drrkit.cli.bench import bench_command
from drrkit.cli.convert import convert_command
from drrkit.cli.demo import demo_command
from drrkit.cli.doctor import doctor_command
from drrkit.cli.evaluate import evaluate_command
from drrkit.cli.info import info_command
from drrkit.cli.register import register_command
from drrkit.cli.render import render_command
from drrkit.cli.report import report_command
from drrkit.cli.simulate import simulate_command
from drrkit.cli.train import train_group
from drrkit.cli.train_fields import mnerf_command, nett_command

__all__ = ["main"]

BAD_INPUT = 2
INTERRUPTED = 130


class Failure(click.ClickException):
    """An error as one sentence and an exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]


class Commands(click.Group):
    """Turns the library's errors into one sentence on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort):  # RuntimeErrors, too
            raise
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(INTERRUPTED)
        except (ValueError, OSError, ImportError) as error:
            raise _failure(ctx, error, BAD_INPUT) from error
        except (RuntimeError, MemoryError) as error:
            raise _failure(ctx, error, 1) from error


def _failure(ctx: click.Context, error: BaseException, code: int) -> BaseException:
    if ctx.params["debug"]:
        return error
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    return Failure(text, code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="drrkit")
@click.option("--debug", is_flag=True, help="Show a traceback with an error.")
def main(debug: bool) -> None:
    """Render X-ray images of CT volumes and register X-rays to CT.

    Lengths are mm, angles degrees, world coordinates patient LPS; sizes are ROWSxCOLS.

    Exit codes: 0 success, 1 the run failed or a registration was not accepted, 2 wrong usage or
    input, 130 interrupted.
    """


for _command in (
    render_command,
    simulate_command,
    register_command,
    evaluate_command,
    report_command,
    convert_command,
    train_group,
    demo_command,
    info_command,
    doctor_command,
    bench_command,
):
    main.add_command(_command)
for _command in (nett_command, mnerf_command):
    train_group.add_command(_command)
