"""`drrkit evaluate`: how often and how well registrations succeed, on named protocols."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import click
import torch

from drrkit.cli.arguments import existing
from drrkit.cli.options import device_option
from drrkit.cli.poses import write_json
from drrkit.cli.similarities import (
    REGRESSOR_FILE,
    SIMILARITY_FILE,
    SimilarityName,
    similarity_stages,
)
from drrkit.evaluation import METHODS, PROTOCOLS, Row, Subject, evaluate, shard, summarise
from drrkit.phantoms import torso
from drrkit.volume import read_volume

__all__ = ["evaluate_command"]

PHANTOM_MM = 2.0


@click.command("evaluate")
@click.argument("cts", nargs=-1, type=existing)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for cases.*.csv and summary.json; an evaluation found there is resumed.",
)
@click.option(
    "--protocol",
    "protocols",
    multiple=True,
    default=("narrow",),
    show_default=True,
    type=click.Choice(list(PROTOCOLS)),
    help="How far off starts are; may be repeated.",
)
@click.option(
    "--registration",
    "methods",
    multiple=True,
    type=click.Choice(list(METHODS)),
    help="What is evaluated; may be repeated.  [default: global, without --similarity]",
)
@click.option(
    "--similarity",
    "similarities",
    multiple=True,
    type=SimilarityName(),
    help="Also evaluate auto with this similarity; or, with the file of a trained one, its descent "
    "followed by CMA-ES and Levenberg-Marquardt (hybrid). May be repeated.",
)
@click.option(
    "--cases", type=click.IntRange(1), default=100, show_default=True, help="Of every CT."
)
@click.option("--starved", is_flag=True, help="Photon-starved X-rays.")
@click.option("--shifted", is_flag=True, help="Another gamma, an uneven field, inversion.")
@device_option
@click.option("--quiet", "-q", is_flag=True, help="No line for every case.")
def evaluate_command(
    cts: tuple[Path, ...],
    out: Path,
    protocols: tuple[str, ...],
    methods: tuple[str, ...],
    similarities: tuple[str | Path, ...],
    cases: int,
    starved: bool,
    shifted: bool,
    device: torch.device,
    quiet: bool,
) -> None:
    """Register simulated X-rays of CTS (in HU; the built-in torso if none) from random starts.

    X-rays have a spectrum, beam hardening, area pixels, photon noise and blur, none of which the
    registration knows. Under torchrun, processes share the cases.
    """
    rank, world = shard()
    if device.type == "cuda" and world > 1:
        device = torch.device("cuda", rank % torch.cuda.device_count())
    subjects = [_subject(path, device) for path in cts or (None,)]
    chosen = [PROTOCOLS[name] for name in protocols]
    if starved:
        chosen = [protocol.starved() for protocol in chosen]
    if shifted:
        chosen = [protocol.shifted_to_another_machine() for protocol in chosen]
    registrations = _registrations(methods, similarities, device)
    rows = evaluate(
        registrations,
        chosen,
        subjects,
        cases,
        out,
        progress=(lambda row: None) if quiet else lambda row: click.echo(_line(row)),
    )
    wanted = {
        (name, protocol.name, subject.name, number)
        for name, protocol, subject, number in product(
            registrations, chosen, subjects, range(cases)
        )
    }
    # Of several processes the one that ends last sees all rows.
    if wanted <= {row.key for row in rows}:
        summaries = _summaries(rows)
        write_json(out / "summary.json", summaries)
        for name, summary in summaries.items():
            click.echo(f"{name}: {_sentence(summary)}")


def _registrations(
    methods: tuple[str, ...], similarities: tuple[str | Path, ...], device: torch.device
) -> dict[str, Any]:
    """What is evaluated, by name; a trained similarity has that of its file or folder."""
    if not methods and not similarities:
        methods = ("global",)
    found: dict[str, Any] = {name: METHODS[name] for name in methods}
    for similarity in similarities:
        name = f"auto-{similarity}"
        if isinstance(similarity, Path):
            folder = similarity.name in (SIMILARITY_FILE, REGRESSOR_FILE)
            name = f"hybrid-{similarity.resolve().parent.name if folder else similarity.stem}"
        if name in found:
            raise ValueError(f"--similarity: two are called {name}; rename one of the files")
        found[name] = similarity_stages(similarity, device)
    return found


def _subject(path: Path | None, device: torch.device) -> Subject:
    if path is None:
        return Subject.of("torso", torso(PHANTOM_MM)).to(device)
    name = path.name.split(".")[0]
    ct = read_volume(path).to(dtype=torch.float32)
    return Subject.of(name, ct).to(device)


def _summaries(rows: Sequence[Row]) -> dict[str, Any]:
    """A summary of every method, protocol and CT, and of all CTs together."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        for subject in (row.subject, "all"):
            groups.setdefault(f"{row.method} {row.protocol} {subject}", []).append(row)
    return {name: summarise(group) for name, group in sorted(groups.items())}


def _line(row: Row) -> str:
    return (
        f"{row.method} {row.protocol} {row.subject} {row.number:3d}  mTRE {row.start_mtre:6.1f} -> "
        f"{row.mtre:7.3f} mm  confidence {row.confidence:.3f}  {row.seconds:5.2f} s"
    )


def _sentence(summary: dict[str, Any]) -> str:
    rates = ", ".join(
        f"{100 * rate['rate']:.1f} % below {name} ({100 * rate['low']:.1f} to "
        f"{100 * rate['high']:.1f})"
        for name, rate in summary["success"].items()
    )
    return (
        f"{summary['cases']} cases, {rates}, median {summary['mtre']['50 %']:.3f} mm, "
        f"{summary['seconds']['50 %']:.2f} s"
    )
