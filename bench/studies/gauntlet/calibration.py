"""Calibrate `confidence`: how often registrations that agree so well are right.

    python -m bench.studies.gauntlet.calibration ROWS.csv --run [--shard 0/2]    # go on with it
    python -m bench.studies.gauntlet.calibration ROWS.csv                        # fit and print

Cases of the choosing seeds: every condition as it is, and some of them behind masks and at fewer
pixels, where images agree more by chance. The regressions are of
`drrkit.registration.certainty.probability`, whose numbers are those printed.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

import drrkit
from bench.studies.gauntlet.cases import SIZE, STARTS, Case
from bench.studies.gauntlet.conditions import CONDITIONS
from bench.studies.gauntlet.running import shard_of

LIMITS = (2.0, 10.0)
RIDGE = 1e-4  # of the squared coefficients: rows that a threshold separates have no steepest fit

PARTLY = [
    "none",
    "soft_tissue",
    "table",
    "implants",
    "screws",
    "cables",
    "gas",
    "spine",
    "scatter_3",
    "femurs",
    "wrong_patient",
    "wrong_side",
    "wrong_vertebra",
    "mirrored",
    "rotated_90",
    "theatre",
    "everything",
]


@dataclass(frozen=True)
class End:
    """Where a registration ended: in-plane error (mm of a 300 mm object), agreement on pixels.

    reasons: for which it is refused whatever its confidence, which is not calibrated on it then.
    """

    condition: str
    start: str
    number: int
    variant: str
    error_mm: float
    agreement: float
    pixels: int
    reasons: str

    def right(self, limit: float) -> bool:
        """Whether the error is below a limit, where a pose can be right at all."""
        return self.error_mm < limit and CONDITIONS[self.condition].scoring != "refuse"


def disc(row: float, col: float, radius: float) -> Tensor:
    """A mask of one round field."""
    rows, cols = (torch.arange(float(n)) for n in SIZE)
    return ((rows[:, None] - row) ** 2 + (cols - col) ** 2 < radius**2).float()


def band(dim: int, start: int, stop: int) -> Tensor:
    """A mask of some rows (0) or columns (1)."""
    mask = torch.zeros(SIZE)
    mask.narrow(dim, start, stop - start).fill_(1.0)
    return mask


MASKS = {
    "disc 45": disc(66, 60, 45),
    "disc 30": disc(64, 64, 30),
    "disc 20": disc(55, 70, 20),
    "columns": band(1, 41, 70),
    "rows": band(0, 51, 80),
}
COARSE = {"64 pixels": 64, "48 pixels": 48}


def masked(case: Case, mask: Tensor) -> Case:
    """The case behind a mask."""
    given = 1.0 if case.mask is None else torch.as_tensor(case.mask).reshape(SIZE)
    return replace(case, mask=mask * given)


def coarse(case: Case, pixels: int) -> Case:
    """The case at fewer pixels."""

    def pooled(image: Tensor) -> Tensor:
        image = torch.as_tensor(image).float().reshape(1, 1, *SIZE)
        return functional.interpolate(image, size=(pixels, pixels), mode="area")

    mask = None if case.mask is None else pooled(case.mask)
    camera = case.camera.rescale(SIZE[1] / pixels)
    return replace(case, camera=camera, xray=pooled(case.xray), mask=mask)


def variants() -> dict[str, Callable[[Case], Case]]:
    """What is done to cases, by name."""
    return {
        "whole": lambda case: case,
        **{name: lambda case, m=mask: masked(case, m) for name, mask in MASKS.items()},
        **{name: lambda case, n=pixels: coarse(case, n) for name, pixels in COARSE.items()},
    }


def wanted() -> list[tuple[str, str, int, str]]:
    """Condition, start, number and variant of all rows."""
    whole = [
        (name, start, number, "whole")
        for number in range(2)
        for start in ("narrow", "prost")
        for name in CONDITIONS
    ]
    partly = [(name, "narrow", 0, variant) for name in PARTLY for variant in (*MASKS, *COARSE)]
    return whole + partly


def measure(condition: str, start: str, number: int, variant: str, cache: Path) -> End:
    """Register one of the cases."""
    case = Case.of(CONDITIONS[condition], "choose", number, STARTS[start], cache)
    case = variants()[variant](case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = drrkit.register(
            case.volume,
            case.camera,
            torch.as_tensor(case.xray),
            case.start[None],
            stages=STARTS[start].stages,
            mask=case.mask,
        )
    errors = case.errors(found.world_to_camera.double().numpy())
    kind = "reprojection" if CONDITIONS[condition].scoring == "reprojection" else "in_plane"
    error = errors[kind] / min(1.0, case.scale)
    return End(
        condition,
        start,
        number,
        variant,
        error,
        found.agreement,
        found.compared_pixels,
        " ".join(found.reasons),
    )


def read(path: Path) -> list[End]:
    """The rows of a file."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = {"number": int, "pixels": int, "error_mm": float, "agreement": float}
    return [End(**{k: numbers.get(k, str)(v) for k, v in row.items()}) for row in rows]


def run(path: Path, cache: Path, shard: tuple[int, int]) -> None:
    """Append the rows that are missing, as they come."""
    known = set()
    if path.exists():
        known = {(end.condition, end.start, end.number, end.variant) for end in read(path)}
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(End)])
        if not known:
            writer.writeheader()
        for job in wanted()[shard[0] :: shard[1]]:
            if job not in known:
                end = asdict(measure(*job, cache))
                writer.writerow({**end, **{k: f"{end[k]:.4g}" for k in ("error_mm", "agreement")}})
                file.flush()


def fitted(ends: Sequence[End], limit: float) -> tuple[float, float, float]:
    """Slope, Fisher's z at even odds in whole images, and how much more of it per halving."""
    most = SIZE[0] * SIZE[1]
    ends = [end for end in ends if not end.reasons]
    columns = [
        (1.0, math.atanh(min(end.agreement, 0.9999)), max(0.0, math.log2(most / end.pixels)))
        for end in ends
    ]
    design = torch.tensor(columns, dtype=torch.float64)
    right = torch.tensor([end.right(limit) for end in ends], dtype=torch.float64)
    weights = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(design @ weights, right)
        loss = loss + RIDGE * (weights / 10.0).square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)  # ty: ignore[invalid-argument-type]
    offset, slope, halving = weights.detach().tolist()
    return slope, -offset / slope, -halving / slope


def main(argv: Sequence[str] | None = None) -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--run", action="store_true", help="register what is missing first")
    parser.add_argument("--shard", metavar="i/n", help="this process' share, from 0")
    parser.add_argument("--cache", type=Path, default=Path("build/gauntlet"))
    options = parser.parse_args(argv)
    if options.run:
        torch.set_num_threads(1)
        run(options.rows, options.cache, shard_of(options.shard))
        return 0
    ends = read(options.rows)
    for limit in LIMITS:
        slope, middle, halving = fitted(ends, limit)
        print(f"{limit:g} mm: ({slope:.1f}, {middle:.3f}, {halving:.3f}) of {len(ends)} ends")
    return 0


if __name__ == "__main__":
    sys.exit(main())
