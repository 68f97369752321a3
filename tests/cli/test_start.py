"""The command line starts without what it does not need, and completes in the shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from drrkit.cli import main
from tests.support.commands import ROOT, python, succeed

# What only some commands need: networks, training with its processes, evaluation, pictures.
NEEDED_BY_SOME = ("fields", "similarity", "training", "evaluation", "report", "viewer")

COMMANDS = sorted(main.commands)


def loaded_after(*arguments: str) -> set[str]:
    """Which of NEEDED_BY_SOME a fresh `drrkit ...` has imported when it is done."""
    code = (
        "import sys, json\n"
        "from drrkit.cli import main\n"
        f"main({list(arguments)!r}, prog_name='drrkit', standalone_mode=False)\n"
        "found = [name.split('.')[1] for name in sys.modules if name.startswith('drrkit.')]\n"
        "print('\\n' + json.dumps(found))\n"
    )
    process = python("-c", code)
    assert process.returncode == 0, process.stderr
    return set(json.loads(process.stdout.splitlines()[-1])) & set(NEEDED_BY_SOME)


@pytest.mark.parametrize("arguments", [("--help",), ("info",)], ids=" ".join)
def test_starting_loads_nothing_that_only_other_commands_need(arguments: tuple[str, ...]) -> None:
    assert loaded_after(*arguments) == set()


def test_no_package_is_loaded_before_a_command_needs_it() -> None:
    heavy = {"SimpleITK", "cma", "scipy", "starlette", "uvicorn", "websockets"}
    code = f"import sys, drrkit.cli, drrkit.viewer; print(sorted({heavy} & set(sys.modules)))"
    process = python("-c", code)
    assert process.stdout.strip() == "[]", process.stderr


def test_a_command_loads_what_it_needs() -> None:
    assert {"evaluation"} <= loaded_after("evaluate", "--help")


def test_the_help_has_exit_codes_and_a_line_for_every_command() -> None:
    head, _, commands = succeed("--help").output.partition("Commands:\n")
    assert "Exit codes" in head
    lines = commands.splitlines()
    assert [line.split()[0] for line in lines] == COMMANDS
    assert all(len(line.split(None, 1)[1]) > 20 and not line.endswith("...") for line in lines)


def completion(shell: str, **environment: str) -> str:
    """What `drrkit` answers to a shell's completion code, or with "source" that code."""
    asked = {"_DRRKIT_COMPLETE": shell, **environment}
    return CliRunner().invoke(main, [], prog_name="drrkit", env=asked).output


@pytest.mark.parametrize(
    "shell, hook", [("bash", "complete -o"), ("zsh", "compdef"), ("fish", "complete --")]
)
def test_shells_get_their_completion_script(shell: str, hook: str) -> None:
    script = completion(f"{shell}_source")
    assert hook in script and "_DRRKIT_COMPLETE" in script and " drrkit" in script


FILES = "compopt -o default"
"""What makes bash propose files by itself."""


@pytest.mark.parametrize(
    ("line", "proposed"),
    [
        ("drrkit re", {"register", "render", "report"}),
        ("drrkit register --init l", {FILES, "LEFT-LATERAL"}),
        ("drrkit render --config x", {FILES}),
    ],
)
def test_bash_itself_completes(line: str, proposed: set[str], bash_folder: Path) -> None:
    """What bash does on Tab after it has read the script, by the variables that it sets."""
    script = f"""
        source script.bash
        compopt() {{ echo "compopt $1 $2"; }}
        COMP_WORDS=({line})
        COMP_CWORD={len(line.split()) - 1}
        $(complete -p drrkit | sed 's/.*-F *//; s/ .*//') drrkit
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        cwd=bash_folder,
        env={**os.environ, "PATH": f"{bash_folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert set(done.stdout.splitlines()) - {""} == proposed, done.stderr


@pytest.mark.parametrize(
    ("line", "proposed"),
    [
        ("drrkit re", ["plain,register", "plain,render", "plain,report"]),
        ("drrkit train s", ["plain,similarity"]),
        ("drrkit train mnerf --ab", ["plain,--absolute"]),
        ("drrkit register --pre", ["plain,--preprocess"]),
        ("drrkit render --js", ["plain,--json"]),
        ("drrkit render --method j", ["plain,joseph"]),
        ("drrkit register --stages g", ["plain,global"]),
        ("drrkit register --similarity unit_s", ["file,unit_s", "plain,unit_soft_dice"]),
        ("drrkit register --device c", ["plain,cpu", "plain,cuda"]),
        ("drrkit render -o le", ["file,le"]),
        ("drrkit bench --si", ["plain,--size"]),
    ],
)
def test_values_are_completed(line: str, proposed: list[str]) -> None:
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    assert completion("bash_complete", **asked).split()[: len(proposed)] == proposed


@pytest.fixture(scope="module")
def bash_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a program drrkit, its completion script and a file to complete."""
    folder = tmp_path_factory.mktemp("bash")
    (folder / "left.json").write_text("{}")
    (folder / "script.bash").write_text(completion("bash_source"))
    program = folder / "drrkit"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m drrkit "$@"\n')
    program.chmod(0o755)
    return folder


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_answered_in_their_own_way(shell: str) -> None:
    asked = {"COMP_WORDS": "drrkit re", "COMP_CWORD": "1" if shell == "zsh" else "re"}
    shown = completion(f"{shell}_complete", **asked)
    assert all(name in shown for name in ("register", "render", "report"))
    assert "Find the pose of a CT in X-rays." in shown and "simulate" not in shown
