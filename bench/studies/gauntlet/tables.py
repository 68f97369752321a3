"""Rows made into tables: every condition by start protocol, with Wilson intervals and goals."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

from bench.studies.gauntlet.conditions import CONDITIONS
from bench.studies.gauntlet.running import Row

STARTS_IN_WORDS = {
    "narrow": "`auto`, narrow",
    "prost": "`global`, ProST",
    "cdreg": "`global`, CDreg",
}


# Combinations in which the geometry is wrong, too: depth follows it.
_GEOMETRY_TOO = ("everything", "intensifier")


def limit(row: Row, mm: float) -> float:
    """A threshold in mm, smaller for an object below the usual size."""
    return mm * min(1.0, row.scale)


def error(row: Row) -> float:
    """What decides right or wrong: mTRE, or what a wrong geometry leaves to be found."""
    scoring = CONDITIONS[row.condition].scoring
    if scoring == "geometry" or row.condition in _GEOMETRY_TOO:
        return row.in_plane
    if scoring == "reprojection":
        return row.reprojection
    return row.mtre


def right(row: Row, mm: float = 2.0) -> bool:
    """The error is below the threshold (never where no pose is right)."""
    return CONDITIONS[row.condition].scoring != "refuse" and error(row) < limit(row, mm)


def said(row: Row) -> bool:
    """A mirrored image was said to be one."""
    return row.condition == "mirrored" and "handedness" in row.reasons


def fault(row: Row) -> bool:
    """Accepted and wrong.

    More than 10 mm off in plane (the principal point: in the image); with a wrong geometry also
    depth beyond three of its own standard deviations; where no pose is right, accepted at all
    without saying so.
    """
    if not row.accepted:
        return False
    scoring = CONDITIONS[row.condition].scoring
    if scoring == "refuse":
        return not said(row)
    across = row.reprojection if scoring == "reprojection" else row.in_plane
    far = not across <= limit(row, 10.0)
    if scoring == "geometry":
        far = far or not row.depth <= 3.0 * max(row.sigma_depth, 0.0)
    return far


def wilson(successes: int, total: int) -> tuple[float, float]:
    """The 95 % score interval of a share, as fractions of one."""
    if total == 0:
        return 0.0, 1.0
    z2 = 1.959963984540054**2
    middle = successes + z2 / 2
    half = math.sqrt(z2 * (successes * (total - successes) / total + z2 / 4))
    low, high = ((middle + sign * half) / (total + z2) for sign in (-1.0, 1.0))
    return max(low, 0.0), min(high, 1.0)


def counts(rows: list[Row]) -> tuple[int, int, int, int, int, int]:
    """Cases, right, below 10 mm, accepted, accepted and wrong, right but not accepted."""
    return (
        len(rows),
        sum(right(row) for row in rows),
        sum(right(row, 10.0) for row in rows),
        sum(row.accepted for row in rows),
        sum(fault(row) for row in rows),
        sum(right(row) and not row.accepted for row in rows),
    )


def cell(rows: list[Row]) -> str:
    """ "< 2 mm / < 10 mm / accepted / accepted and wrong" of so many, faults in bold."""
    if not rows:
        return ""
    total, good, near, accepted, wrong, _ = counts(rows)
    faults = f"**{wrong}**" if wrong else "0"
    return f"{good} / {near} / {accepted} / {faults} of {total}"


def share(successes: int, total: int) -> str:
    """ "12 of 20, 60 % (39-78)"."""
    if total == 0:
        return "none"
    low, high = wilson(successes, total)
    rate = 100 * successes / total
    return f"{successes} of {total}, {rate:.1f} % ({100 * low:.0f}-{100 * high:.0f})"


def pooled(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    """Groups of cells that have one goal."""

    def of(keep) -> list[Row]:
        return [row for row in rows if keep(CONDITIONS[row.condition], row)]

    def plain(condition) -> bool:
        return condition.scoring == "plain" and not condition.hard

    groups = [
        (f"plain, {words}", of(lambda c, row, name=name: plain(c) and row.start == name))
        for name, words in STARTS_IN_WORDS.items()
    ]
    wrong = ("geometry", "reprojection")
    groups += [
        ("wrong geometry", of(lambda c, row: c.scoring in wrong and not c.hard)),
        ("hard", of(lambda c, row: c.hard)),
        ("no right answer", of(lambda c, row: c.scoring == "refuse")),
        ("combinations", of(lambda c, row: c.scoring == "combination")),
        ("all", rows),
    ]
    return [(name, group) for name, group in groups if group]


def markdown(runs: dict[str, list[Row]]) -> str:
    """Tables of one run, or of several side by side over the jobs that all of them have."""
    shared = set.intersection(*({row.job for row in rows} for rows in runs.values()))
    runs = {name: [row for row in rows if row.job in shared] for name, rows in runs.items()}
    starts = [name for name in STARTS_IN_WORDS if any(job.start == name for job in shared)]
    several = len(runs) > 1
    heads = [
        STARTS_IN_WORDS[start] + (f", {name}" if several else "")
        for start in starts
        for name in runs
    ]
    cells: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for name, rows in runs.items():
        for row in rows:
            cells[row.condition, row.start, name].append(row)
    lines = [
        "Cells: < 2 mm / < 10 mm / accepted / **accepted and wrong**, of so many cases.",
        "",
        _line(["condition", *heads]),
        _line(["---", *["---"] * len(heads)]),
    ]
    for name, condition in CONDITIONS.items():
        row = [cell(cells[name, start, run]) for start in starts for run in runs]
        if any(row):
            lines.append(_line([name + (" (hard)" if condition.hard else ""), *row]))
    lines += ["", *_summary(runs), "", *legend()]
    return "\n".join(lines) + "\n"


def _summary(runs: dict[str, list[Row]]) -> Iterable[str]:
    """The pooled groups, with Wilson 95 % intervals."""
    yield _line(
        [
            "group",
            "run",
            "< 2 mm",
            "< 10 mm",
            "wrong of accepted",
            "refused of right",
            "median CPU s",
        ]
    )
    yield _line(["---"] * 7)
    for name, rows in runs.items():
        for group, members in pooled(rows):
            total, good, near, accepted, wrong, refused = counts(members)
            times = sorted(row.cpu_s for row in members)
            yield _line(
                [
                    group,
                    name,
                    share(good, total),
                    share(near, total),
                    share(wrong, accepted),
                    share(refused, good),
                    f"{times[len(times) // 2]:.2f}",
                ]
            )


def legend() -> Iterable[str]:
    """One line per condition."""
    yield from (f"- {name}: {condition.text}" for name, condition in CONDITIONS.items())


def _line(words: list[str]) -> str:
    return "| " + " | ".join(words) + " |"
