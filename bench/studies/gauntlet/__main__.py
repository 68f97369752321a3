"""Run the gauntlet, make its tables, look at its X-rays.

    python -m bench.studies.gauntlet --develop --name before
    python -m bench.studies.gauntlet --report --name before          # 20 cases per cell
    python -m bench.studies.gauntlet --table before
    python -m bench.studies.gauntlet --develop --starts narrow --without patches --name no_patches
    python -m bench.studies.gauntlet --compare before after
    python -m bench.studies.gauntlet --sheet build/gauntlet/sheet.png --conditions table gas

DRRKIT_DATA names the folder of the CTs. The same command goes on where an earlier one stopped.
`--shard 0/2` and `--shard 1/2`, or torchrun's RANK and WORLD_SIZE, share the work. Subjects, X-rays
and rows stand in --out (default build/gauntlet), rows in its folder runs/NAME.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.studies.gauntlet.cases import STARTS, cached_xray, draw
from bench.studies.gauntlet.conditions import CONDITIONS
from bench.studies.gauntlet.leaving_out import PARTS, without
from bench.studies.gauntlet.running import Job, develop_jobs, jobs, read_rows, run, shard_of
from bench.studies.gauntlet.sheet import contact_sheet
from bench.studies.gauntlet.subjects import SEEDS
from bench.studies.gauntlet.tables import markdown


def main(argv: Sequence[str] | None = None) -> int:
    """See the module's text."""
    options = _parser().parse_args(argv)
    out = Path(options.out)
    names = options.conditions or list(CONDITIONS)
    if options.sheet:
        contact_sheet(Path(options.sheet), names, options.seeds, options.count, out, options.zoom)
        return 0
    if options.table or options.compare:
        folders = {name: _folder(out, name) for name in options.compare or [options.table]}
        print(markdown({name: read_rows(folder) for name, folder in folders.items()}))
        return 0
    if not options.name:
        raise SystemExit("--name: expected a name for this run's rows, as --name before")
    torch.set_num_threads(options.threads)
    wanted, shard = _wanted(options, names), shard_of(options.shard)
    if options.simulate_only:
        for job in wanted[shard[0] :: shard[1]]:
            condition = CONDITIONS[job.condition]
            recipe = draw(condition, job.seeds, job.number, out)
            cached_xray(condition, job.seeds, job.number, out, recipe)
        return 0
    folder = out / "runs" / options.name
    with without(options.without):
        for row in run(wanted, folder, out, shard):
            print(
                f"{row.condition:16} {row.start:6} {row.number:2} {row.subject:17} {row.view:8} "
                f"{row.start_mtre:6.1f} -> {row.mtre:7.2f} mm, in plane {row.in_plane:6.2f}, "
                f"confidence {row.confidence:.3f} {'accepted' if row.accepted else 'refused':8} "
                f"{row.cpu_s:5.1f} s {row.error}",
                flush=True,
            )
    if shard[1] == 1:
        print(markdown({options.name: read_rows(folder)}))
    return 0


def _wanted(options: argparse.Namespace, names: list[str]) -> list[Job]:
    """The jobs of --develop, --choose, --report, or of --seeds with --count and --starts."""
    if options.develop:
        wanted = develop_jobs(names)
    elif options.report or options.choose:
        counts = dict.fromkeys(options.starts, 20)
        wanted = jobs("report" if options.report else "choose", counts, names)
    else:
        wanted = jobs(options.seeds, dict.fromkeys(options.starts, options.count), names)
    return [job for job in wanted if job.start in options.starts]


def _folder(out: Path, name: str) -> Path:
    """Where a run's rows are: a folder by path, or a name under --out."""
    for folder in (Path(name), out / "runs" / name):
        if any(folder.glob("rows.*.csv")):
            return folder
    raise SystemExit(
        f"{name}: expected a folder with rows.*.csv, or a run's name in {out / 'runs'}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.studies.gauntlet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--develop", action="store_true", help="8 narrow, 4 ProST cases a condition")
    which.add_argument("--choose", action="store_true", help="20 cases per cell, choosing seeds")
    which.add_argument("--report", action="store_true", help="20 cases per cell, reporting seeds")
    which.add_argument("--table", metavar="NAME", help="the table of a run's rows")
    which.add_argument("--compare", nargs="+", metavar="NAME", help="tables of runs side by side")
    which.add_argument("--sheet", metavar="PNG", help="a picture of the X-rays")
    parser.add_argument("--name", help="of the run whose rows are written or gone on with")
    parser.add_argument("--out", default="build/gauntlet", help="folder of X-rays and rows")
    parser.add_argument("--conditions", nargs="+", choices=list(CONDITIONS), metavar="CONDITION")
    parser.add_argument("--starts", nargs="+", choices=list(STARTS), default=list(STARTS))
    parser.add_argument("--seeds", choices=list(SEEDS), default="develop")
    parser.add_argument(
        "--count", type=int, default=8, help="cases per cell, or columns of --sheet"
    )
    parser.add_argument("--shard", metavar="i/n", help="this process' share of the work, from 0")
    parser.add_argument(
        "--without", choices=list(PARTS), help="; ".join(f"{n}: {w}" for n, (w, _) in PARTS.items())
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch in this process")
    parser.add_argument("--simulate-only", action="store_true", help="fill the cache of X-rays")
    parser.add_argument("--zoom", type=int, default=1, help="of the pictures in --sheet")
    return parser


if __name__ == "__main__":
    sys.exit(main())
