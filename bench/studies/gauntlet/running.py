"""Cases registered and scored, a row each as it comes; a run killed at any moment goes on."""

from __future__ import annotations

import csv
import os
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch

import drrkit
from bench.studies.gauntlet.cases import CHAIN, STARTS, Case
from bench.studies.gauntlet.conditions import CONDITIONS


@dataclass(frozen=True)
class Job:
    """One registration: a set of seeds, a condition, a start protocol and a number."""

    seeds: str
    condition: str
    start: str
    number: int


@dataclass(frozen=True)
class Row:
    """What became of a job; lengths in mm, NaN where there is none.

    Attributes:
        scale: of the scene's lengths; the thresholds of 2 and 10 mm shrink with it below one.
        start_mtre, mtre, in_plane, depth, reprojection, degrees: see Case.errors.
        confidence, confidence_10mm, accepted, sigma_depth, reasons: as `register` returns them.
        cpu_s: CPU seconds of the registration.
        error: what it raised.
    """

    seeds: str
    condition: str
    start: str
    number: int
    subject: str = ""
    view: str = ""
    scale: float = 1.0
    start_mtre: float = float("nan")
    mtre: float = float("nan")
    in_plane: float = float("nan")
    depth: float = float("nan")
    reprojection: float = float("nan")
    degrees: float = float("nan")
    confidence: float = float("nan")
    confidence_10mm: float = float("nan")
    accepted: bool = False
    sigma_depth: float = float("nan")
    cpu_s: float = float("nan")
    reasons: str = ""
    error: str = ""
    chain: int = CHAIN
    version: str = field(default_factory=lambda: drrkit.__version__)

    @property
    def job(self) -> Job:
        """What it is a row of."""
        return Job(self.seeds, self.condition, self.start, self.number)


def develop_jobs(conditions: Iterable[str] = CONDITIONS) -> list[Job]:
    """8 narrow and 4 ProST cases per condition, `auto` first, every condition early."""
    return jobs("develop", {"narrow": 8, "prost": 4}, conditions)


def jobs(seeds: str, counts: dict[str, int], conditions: Iterable[str] = CONDITIONS) -> list[Job]:
    """So many cases per condition and start, start by start, number by number."""
    return [
        Job(seeds, condition, start, number)
        for start, count in counts.items()
        for number in range(count)
        for condition in conditions
    ]


def measure(job: Job, cache: Path) -> Row:
    """Register one case and score it; what `register` raises is in the row."""
    start = STARTS[job.start]
    case = Case.of(CONDITIONS[job.condition], job.seeds, job.number, start, cache)
    known = {**vars(job), "subject": case.subject, "view": case.view, "scale": case.scale}
    known["start_mtre"] = case.errors(case.start.double().numpy())["mtre"]
    began = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = drrkit.register(
                case.volume,
                case.camera,
                case.xray,
                case.start[None],
                stages=start.stages,
                mask=case.mask,
            )
    except Exception as error:  # a row says what happened; the run goes on
        seconds = time.process_time() - began
        return Row(**known, cpu_s=seconds, error=f"{type(error).__name__}: {error}"[:300])
    seconds = time.process_time() - began
    pose = torch.as_tensor(result.world_to_camera).detach().double().cpu().reshape(4, 4).numpy()
    return Row(**known, **case.errors(pose), **answer(result), cpu_s=seconds)


def answer(result: object) -> dict[str, object]:
    """Confidence, acceptance, depth's standard deviation and reasons, as the result has them.

    A result without `accepted` is accepted as the documentation said then: a confidence of at least
    0.7.
    """
    confidence = _number(getattr(result, "confidence", None))
    if hasattr(result, "accepted"):
        accepted = bool(result.accepted)
    else:
        accepted = confidence >= 0.7
    covariance = getattr(result, "covariance", None)
    sigma = float("nan")
    if covariance is not None:
        sigma = float(covariance.reshape(-1, 6, 6)[0, 5, 5].clamp_min(0.0).sqrt())
    return {
        "confidence": confidence,
        "confidence_10mm": _number(getattr(result, "confidence_10mm", None)),
        "accepted": accepted,
        "sigma_depth": sigma,
        "reasons": " ".join(str(reason) for reason in getattr(result, "reasons", ())),
    }


def _number(value: object) -> float:
    """A number or tensor of one element as float, None as NaN."""
    return float("nan") if value is None else float(value)  # ty: ignore[invalid-argument-type]


def run(wanted: list[Job], folder: Path, cache: Path, shard: tuple[int, int]) -> Iterator[Row]:
    """The rows of a shard's jobs that no file in the folder has yet, written as they come.

    shard: (index, count); jobs are dealt out in turn. Each shard appends to a file of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = {row.job for row in read_rows(folder)}
    index, count = shard
    path = folder / f"rows.{index}-of-{count}.csv"
    names = [one.name for one in fields(Row)]
    _drop_unfinished_line(path)
    fresh = not path.exists() or path.stat().st_size == 0
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, names)
        if fresh:
            writer.writeheader()
        for job in wanted[index::count]:
            if job in done:
                continue
            row = measure(job, cache)
            writer.writerow({name: _text(getattr(row, name)) for name in names})
            file.flush()
            os.fsync(file.fileno())
            yield row


def read_rows(folder: Path) -> list[Row]:
    """All rows of a folder; a line that a kill cut short is left out, a job's first row counts."""
    kinds = {one.name: str(one.type) for one in fields(Row)}
    parsers = {"int": int, "float": float, "bool": lambda word: word == "True", "str": str}
    rows: dict[Job, Row] = {}
    for path in sorted(folder.glob("rows.*.csv")):
        whole = path.read_text().rpartition("\n")[0]
        for values in csv.DictReader(whole.splitlines()):
            row = Row(**{name: parsers[kinds[name]](word) for name, word in values.items()})
            rows.setdefault(row.job, row)
    return list(rows.values())


def shard_of(text: str | None) -> tuple[int, int]:
    """ "i/n" counted from 0, or torchrun's RANK and WORLD_SIZE, or all."""
    if text is None:
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise SystemExit(f"--shard: expected i/n with 0 <= i < n, as 0/2, got {text!r}")
    return int(index), int(count)


def _drop_unfinished_line(path: Path) -> None:
    """What a kill left of the last line would spoil the next one."""
    if path.exists():
        data = path.read_bytes()
        if data and not data.endswith(b"\n"):
            path.write_bytes(data[: data.rfind(b"\n") + 1])


def _text(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value.replace("\n", " ") if isinstance(value, str) else value
