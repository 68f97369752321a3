"""Lists the studies, or runs one.

    python -m bench.studies                    the list
    python -m bench.studies NAME --help        what it measures, its options
    python -m bench.studies NAME [options]

Every study has --threads and --output (a file, or a folder of bench/results).
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

from bench.studies.study import RESULTS

HERE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else list(arguments)
    found = studies()
    if not words or words[0] not in found:
        print(__doc__)
        print("\n".join(f"{name:24} {summary}" for name, summary in found.items()))
        return 0 if not words or words[0] in ("-h", "--help") else 2
    name, *rest = words
    if (HERE / name / "__main__.py").exists():
        return import_module(f"bench.studies.{name}.__main__").main(rest)
    return int(run(name, rest) or 0)


def studies() -> dict[str, str]:
    """Name and summary of every study, without importing any."""
    files = {path.stem: path for path in HERE.glob("*.py") if path.stem[0] != "_"}
    files |= {path.parent.name: path for path in HERE.glob("*/__init__.py")}
    found = {}
    for name, path in sorted(files.items()):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        runs = any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body)
        if runs or ((path.parent / "__main__.py").exists() and path.parent != HERE):
            found[name] = (ast.get_docstring(tree) or "").split("\n")[0]
    return found


def parse(name: str, words: Sequence[str]) -> argparse.Namespace:
    """The options of a study, with `study`, `command` and `load` for its record."""
    module = import_module(f"bench.studies.{name}")
    parser = argparse.ArgumentParser(
        prog=f"python -m bench.studies {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    threads = getattr(module, "THREADS", 1)
    parser.add_argument("--threads", type=int, default=threads, help=f"of torch ({threads})")
    parser.add_argument("--output", type=Path, default=RESULTS / name, help="folder, or JSON file")
    module.options(parser.add_argument)
    options = parser.parse_args(words)
    for key, value in vars(options).items():
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            parser.error(f"--{key.replace('_', '-')} must be at least 1")
    # Folders of this machine are left out of the record.
    shown = [Path(word).name if "/" in word else word for word in words]
    options.study, options.command = name, " ".join([parser.prog, *shown])
    options.load = os.getloadavg()
    return options


def run(name: str, words: Sequence[str]) -> int | None:
    options = parse(name, words)
    torch.set_num_threads(options.threads)
    return import_module(f"bench.studies.{name}").run(options)


if __name__ == "__main__":
    raise SystemExit(main())
