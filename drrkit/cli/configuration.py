"""Configurations: a command's options from a file, and the record in a result that repeats it.

A configuration is a TOML or JSON table of the options of one command, by their names on the command
line without the dashes; arguments go by their names in the help, in small letters. A result holds a
complete one under "run", beside the command, the versions, the seed and the number of threads.
"""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Any

import click
import torch

from drrkit.cli.io import read_json
from drrkit.cli.options import collected, parameters
from drrkit.machine import versions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

UNRECORDED = ("as_json", "config", "help", "film")


def name_of(ctx: click.Context) -> str:
    """The command of a context as it is called, without the program: "train similarity"."""
    return ctx.command_path.removeprefix(ctx.find_root().command_path).strip()


def run_record(ctx: click.Context | None = None) -> dict[str, Any]:
    """Everything that repeats the command of a context, as JSON has it; --config reads it.

    Without a context: the command that is running.
    """
    ctx = ctx or click.get_current_context()
    return {
        "command": name_of(ctx),
        "options": recorded_options(ctx),
        "seed": ctx.params.get("seed"),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def recorded_options(ctx: click.Context) -> dict[str, Any]:
    """All options and arguments of a command as they were resolved; None where one has no value."""
    found = {}
    for key, param in _keys(ctx.command).items():
        value = ctx.params.get(str(param.name))
        many = param.multiple if isinstance(param, click.Option) else param.nargs == -1
        found[key] = [_plain(param, v) for v in value] if many and value else _plain(param, value)
    return found


def read_configuration(ctx: click.Context, path: Path) -> dict[str, Any]:
    """The options of a command that a configuration or a result gives, by parameter, as words.

    Raises:
        OSError, ValueError: no such file; not TOML or JSON; of another command; an unknown option,
            or a value that no command line could hold.
    """
    content = _parsed(path)
    run = content.get("run")
    if isinstance(run, dict) and isinstance(run.get("options"), dict):
        if run.get("command") != name_of(ctx):
            raise ValueError(f"{path} is of drrkit {run.get('command')}.")
        content = run["options"]
    keys = _keys(ctx.command)
    found = {}
    for given, value in content.items():
        key = given.replace("-", "_")
        if key not in keys:
            nearest = difflib.get_close_matches(key, keys, n=1, cutoff=0.0)
            raise ValueError(
                f"{path}: {given!r} is no option of drrkit {name_of(ctx)}, and the file is not a "
                f"result of it; the nearest option is {nearest[0]!r}."
            )
        name = str(keys[key].name)
        if name in found:
            raise ValueError(f"{path}: {given!r} is there twice.")
        if value is not None:
            found[name] = _value(f"{path}: {given}", keys[key], value)
    return found


def recorded_group(command: click.Command, path: Path, group: Any) -> Any:
    """A group of options, see `drrkit.cli.options`, as a result of another command holds them.

    Raises:
        OSError, ValueError: as `read_configuration`.
        click.BadParameter: a file that an option names is gone.
    """
    parent = click.get_current_context().parent
    options = read_configuration(click.Context(command, parent, command.name), path)
    wanted = click.Command(command.name, params=parameters(group))
    with wanted.make_context(command.name, [], parent, default_map=options) as other:
        return collected(group, other.params)


def config_option() -> click.Option:
    """--config, whose file gives the defaults of the command's options."""

    def take(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
        if path is not None and not ctx.resilient_parsing:
            ctx.default_map = read_configuration(ctx, path)

    return click.Option(
        ["--config"],
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=take,
        help="TOML or JSON file of options, or a result to repeat; options given here come first.",
    )


def _keys(command: click.Command) -> dict[str, click.Parameter]:
    """What a configuration may contain, in the order of the command."""
    found: dict[str, click.Parameter] = {}
    for param in command.params:
        if param.name in UNRECORDED:
            continue
        if isinstance(param, click.Argument):
            found[str(param.name)] = param
            continue
        longest = next(name for name in param.opts if name.startswith("--"))
        found[longest[2:].replace("-", "_")] = param
    return found


def _parsed(path: Path) -> dict[str, Any]:
    kind = path.suffix.lower()
    if kind not in (".toml", ".json"):
        raise ValueError(f"{path}: expected a .toml or .json file.")
    if kind == ".json":
        content = read_json(path)
    else:
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: expected TOML; it does not parse: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a table of options, got {type(content).__name__}.")
    return content


def _value(place: str, param: click.Parameter, value: Any) -> Any:
    """A configuration's value as the words that a command line would have."""
    if isinstance(param, click.Option) and param.is_flag:
        if not isinstance(value, bool):
            raise ValueError(f"{place}: expected true or false, got {value!r}.")
        return value
    if (isinstance(param, click.Option) and param.multiple) or param.nargs == -1:
        return [_one(place, param, v) for v in (value if isinstance(value, list) else [value])]
    return _one(place, param, value)


def _one(place: str, param: click.Parameter, value: Any) -> Any:
    separator = getattr(param.type, "separator", None)
    if isinstance(value, list) and isinstance(param.type, click.Tuple):
        return [_word(place, one) for one in value]
    if isinstance(value, list) and separator is not None:
        return separator.join(_word(place, one) for one in value)
    return _word(place, value)


def _word(place: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"{place}: expected a word or a number, got {value!r}.")
    return str(value)


def _plain(param: click.Parameter, value: Any) -> Any:
    """A parameter's value for JSON; `_value` converts it back to words."""
    plain = getattr(param.type, "plain", None)
    if plain is not None and value is not None:
        return plain(value)
    if isinstance(value, (tuple, list)):
        return [_plain(param, part) for part in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
