"""Does a registration's confidence tell right ends from wrong ones? Failures by a starved budget.

    python bench/registration/confidence.py [--again] [--cases 14] --rows FOLDER
    RANK=0 WORLD_SIZE=2 python bench/registration/confidence.py ...    # one of two processes

Far too little is spent on purpose, in good and in photon-starved X-rays of the subjects of
`protocols.py`, and nothing is searched again:

    descent   no search: the local pipeline from the far start
    coarse    a search of 35 degrees and half the pixels, four candidates
    few       the usual search, its two best candidates only
    narrow    a range of 25 degrees and 80 mm of depth, which the truth is mostly outside

All ends are optimised poses, local optima of what the confidence is made of: no random ones.
`report.py` says how well they are told apart. And the same once more, as pipelines do by themselves
when they do not trust their end: "coarse-again" and "narrow-again" search again more densely.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from protocols import SUBJECTS, subjects, tell, warm_up

from drrkit.evaluation import PROTOCOLS, evaluate
from drrkit.registration import AUTO, GLOBAL, Search

# Of cases that no other experiment has seen.
SEED = 1000

STARVED = {
    "descent": AUTO,
    "coarse": Search(
        step=math.radians(35.0), depth_step=1.4, pixels=16, keep=4, voxel=8.0, repeats=0, mm=True
    ),
    "few": Search(keep=2, repeats=0),
    "narrow": Search(rotation=math.radians(25.0), depth=80.0, repeats=0, mm=True),
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    patients = subjects(options.subjects)
    warm_up(patients[0])
    methods = {
        name: (first, *GLOBAL[1:]) if isinstance(first, Search) else first
        for name, first in STARVED.items()
    }
    protocol = replace(PROTOCOLS["prost"], seed=SEED)
    if options.again:
        methods = {
            f"{name}-again": (replace(methods[name][0], repeats=2), *GLOBAL[1:])
            for name in ("coarse", "narrow")
        }
    evaluate(
        methods,
        [protocol.starved(), protocol],
        patients,
        options.cases,
        options.rows,
        progress=tell,
    )
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=SUBJECTS)
    parser.add_argument("--cases", type=int, default=14, help="of every subject (default 14)")
    parser.add_argument("--again", action="store_true", help="the searches that repeat themselves")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--rows", type=Path, required=True, help="folder for cases.*.csv")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
