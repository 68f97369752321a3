"""The command line: `drrkit render`, `register`, `report`, `convert`, `evaluate`, `train`, ...

Exit codes: 0 success; 1 the run failed or a registration was not accepted; 2 wrong usage, an input
that is not what it should be, or a file that cannot be read or written; 130 interrupted.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
import torch

from drrkit import __version__
from drrkit.cli.command import Failure, LazyGroup, stdout_for

__all__ = ["main"]

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
NO_MEMORY = ("out of memory", "allocate memory", "bad_alloc", "bad alloc", "aten::new_empty")
"""Words in errors of torch and SimpleITK that mean too little memory but are no MemoryError. The
last is in the kernels' error when torch cannot allocate their result."""


class Commands(LazyGroup):
    """Turns errors into one sentence and an exit code; with --json, into a document."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        given = sys.argv[1:] if args is None else list(args)
        if not standalone_mode:
            return super().main(given, prog_name, complete_var, False, **extra)
        with stdout_for(given) as out:
            try:
                code = super().main(given, prog_name, complete_var, False, obj=out, **extra)
            except click.ClickException as error:
                out.fail(error)
                code = error.exit_code
            except (click.Abort, KeyboardInterrupt):
                out.fail(Failure("Interrupted.", INTERRUPTED, "interrupted"))
                code = INTERRUPTED
            except Exception as error:
                if not out.as_json:
                    raise
                traceback.print_exc()
                text = f"{type(error).__name__}: {error}"
                out.fail(Failure(text, FAILED, "internal"))
                code = FAILED
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _warnings_as_lines():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click ends quietly when the reader of a pipe closes it
        except KeyboardInterrupt:
            raise click.Abort() from None
        except Exception as error:
            known = None if ctx.params["debug"] else _failure(error)
            if known is None:
                raise
            raise known from error


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Prints every warning that is meant for users once, as a line like those of the commands."""
    shown: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *place: Any, **rest: Any) -> None:
        line = " ".join(f"Warning: {message}".split()).rstrip(".") + "."
        if line not in shown:
            click.echo(line, err=True)
        shown.add(line)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show  # ty: ignore[invalid-assignment]
        yield


def _failure(error: Exception) -> Failure | None:
    """The error as a sentence; None for an unexpected one, which is a bug."""
    text = str(error) or type(error).__name__
    if _is_out_of_memory(error):
        reason = text.strip().splitlines()[0]
        detail = "" if "aten::" in reason else f" ({reason})"
        return Failure(
            f"not enough memory{detail}. Fewer pixels (--size), voxels or poses at once need less.",
            FAILED,
            "memory",
        )
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return Failure(f"{error.filename}: {error.strerror}", BAD_INPUT, "input")
    if isinstance(error, (ValueError, OSError, ImportError, EOFError)):
        return Failure(text, BAD_INPUT, "input")
    return Failure(text, FAILED, "failure") if isinstance(error, RuntimeError) else None


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in NO_MEMORY)


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.version_option(__version__, prog_name="drrkit")
@click.option("--debug", is_flag=True, help="Show a traceback with an error.")
def main(debug: bool) -> None:
    """Render X-ray images of CT volumes and register X-rays to CT.

    Lengths are mm, angles degrees, world coordinates patient LPS; sizes are ROWSxCOLS.

    Exit codes: 0 success, 1 the run failed or a registration was not accepted, 2 wrong usage or
    input, 130 interrupted. Every command takes --json, for programs, and --config, for its options
    from a file or from a result that is to be repeated.
    """


_COMMANDS = {
    "render": ("render:render_command", "Render an X-ray image (DRR) of a CT."),
    "simulate": ("simulate:simulate_command", "Simulate a realistic X-ray of a CT."),
    "register": ("register:register_command", "Find the pose of a CT in X-rays."),
    "track": ("track:track_command", "Follow a CT through the frames of a film."),
    "evaluate": ("evaluate:evaluate_command", "Measure registrations of simulated X-rays."),
    "report": ("report:report_command", "Write the result of a registration as a page."),
    "convert": ("convert:convert_command", "Convert a pose to another program's, or from it."),
    "train": ("train:train_group", "Train networks for registration."),
    "demo": ("demo:demo_command", "Simulate an X-ray of a phantom and register it."),
    "info": ("info:info_command", "Versions, devices; what a geometry looks like."),
    "doctor": ("doctor:doctor_command", "Check that this installation computes what it should."),
    "view": ("view:view_command", "Look at CT and X-ray in the browser, and register them."),
    "bench": ("bench:bench_command", "Measure how fast drrkit is on this machine."),
}
for _name, (_source, _summary) in _COMMANDS.items():
    main.add_lazy(_name, f"drrkit.cli.{_source}", _summary)
