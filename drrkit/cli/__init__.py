"""The command line: `drrkit render`, `register`, `report`, `convert`, `evaluate`, `train`, ...

Exit codes: 0 success; 1 the run failed or a registration was not accepted; 2 wrong usage, an input
that is not what it should be, or a file that cannot be read or written; 130 interrupted.
"""

from __future__ import annotations

from typing import Any

import click

from drrkit import __version__
from drrkit.cli.deferred import DeferringGroup

__all__ = ["main"]

BAD_INPUT = 2
INTERRUPTED = 130


class Failure(click.ClickException):
    """An error as one sentence and an exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        # click reads it from the object, whatever its annotation says.
        self.exit_code = code  # ty: ignore[invalid-attribute-access]


class Commands(DeferringGroup):
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


_COMMANDS = {
    "render": ("render:render_command", "Render an X-ray image (DRR) of a CT."),
    "simulate": ("simulate:simulate_command", "Simulate a realistic X-ray of a CT."),
    "register": ("register:register_command", "Find the pose of a CT in X-rays."),
    "evaluate": ("evaluate:evaluate_command", "Measure registrations of simulated X-rays."),
    "report": ("report:report_command", "Write the result of a registration as a page."),
    "convert": ("convert:convert_command", "Convert a pose to another program's, or from it."),
    "train": ("train:train_group", "Train networks for registration."),
    "demo": ("demo:demo_command", "Simulate an X-ray of a phantom and register it."),
    "info": ("info:info_command", "Versions, devices; what a geometry looks like."),
    "doctor": ("doctor:doctor_command", "Check that this installation computes what it should."),
    "view": ("view:view_command", "Look at CT and X-ray in the browser, and register them."),
    "bench": ("bench:bench_command", "Measure drrkit against other projectors."),
}
for _name, (_source, _summary) in _COMMANDS.items():
    main.defer(_name, f"drrkit.cli.{_source}", _summary)
