"""`drrkit evaluate`: how often and how well registrations succeed, on named protocols."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from typing import Any

import click
import torch

from drrkit.cli.command import Answer, command
from drrkit.cli.configuration import run_record
from drrkit.cli.io import write_json
from drrkit.cli.options import (
    COUNT,
    argument,
    device_option,
    option,
    out_option,
    quiet_option,
    read_ct,
)
from drrkit.cli.register import (
    INTERRUPTED,
    REGRESSOR_FILE,
    SIMILARITY_FILE,
    SimilarityName,
    plain_stages,
    similarity_stages,
)
from drrkit.evaluation import (
    METHODS,
    PROTOCOLS,
    Protocol,
    Row,
    Subject,
    evaluate,
    read_rows,
    summarise,
    with_similarity,
)
from drrkit.machine import machine
from drrkit.phantoms import torso
from drrkit.training import Processes

PHANTOM_MM = 2.0
SCHEMA_VERSION = 1


@command(
    "evaluate",
    epilog="The folder: rows.N.csv, one row per case, one file per process, mm and degrees; "
    "summary.json, for every method, protocol and CT success rates with Wilson 95 % intervals, "
    "mTRE of the best 50, 75 and 95 %, percentiles of all errors, capture range and run time; "
    "evaluation.json, what was run on what.",
)
def evaluate_command(
    *,
    cts: tuple[Path, ...] = argument(nargs=-1),
    out: Path = out_option("Folder for the results; an evaluation found there is resumed."),
    protocols: tuple[str, ...] = option(
        "How starts are drawn; may be repeated.",
        "--protocol",
        multiple=True,
        default=("narrow",),
        type=click.Choice(list(PROTOCOLS)),
    ),
    methods: tuple[str, ...] = option(
        "Pipeline to evaluate; may be repeated.",
        "--registration",
        multiple=True,
        default=("global",),
        type=click.Choice(list(METHODS)),
    ),
    similarities: tuple[str | Path, ...] = option(
        "Similarity of the last stage instead of its own: a loss of drrkit.losses, mi, nmi, "
        "mattes_mi, or unit_NAME, which maps both images to [0, 1] first. With the file of a "
        "trained similarity: its descent, CMA-ES and Levenberg-Marquardt, instead of "
        "--registration. May be repeated.",
        "--similarity",
        multiple=True,
        type=SimilarityName(),
    ),
    all_stages: bool = option("Use --similarity in all stages."),
    cases: int = option("Cases of every CT.", type=COUNT, default=100),
    starved: bool = option("Photon-starved X-rays."),
    shifted: bool = option("X-rays with another gamma, an uneven field, inversion."),
    device: torch.device = device_option(),
    quiet: bool = quiet_option(),
) -> Answer | None:
    """Register simulated X-rays of CTS (in HU; the built-in torso if none) from random starts.

    X-rays have a spectrum, beam hardening, area pixels, photon noise and blur that the registration
    does not model. Under torchrun, processes share the cases.
    """
    if all_stages and not any(isinstance(name, str) for name in similarities):
        raise click.UsageError("--all-stages belongs to --similarity NAME: give that, too.")
    processes = Processes.of_environment()
    subjects = _subjects(cts, processes.device(device))
    chosen = [PROTOCOLS[name] for name in dict.fromkeys(protocols)]
    chosen = [protocol.starved() for protocol in chosen] if starved else chosen
    chosen = [protocol.shifted_to_another_machine() for protocol in chosen] if shifted else chosen
    pipelines = _registrations(methods, similarities, all_stages, processes.device(device))
    out.mkdir(parents=True, exist_ok=True)
    if processes.writes:
        described = _described(chosen, pipelines, subjects, cases, processes.world)
        write_json(out / "evaluation.json", {**described, "run": run_record()})
    named = ([one.name for one in part] for part in (chosen, subjects))
    wanted = set(product(pipelines, *named, range(cases)))
    try:
        evaluate(pipelines, chosen, subjects, cases, out, progress=None if quiet else _tell)
    except KeyboardInterrupt:
        there = len(wanted & {row.key for row in read_rows(out)})
        text = f"Interrupted: {there} of {len(wanted)} cases are in {out}."
        click.echo(f"{text} The same command runs the others.", err=True)
        so_far = {"complete": False, "cases": there, "wanted": len(wanted)}
        return Answer({"out": str(out), **so_far}, "", INTERRUPTED)
    keys, summaries = _summarised(out)
    if not wanted <= keys:  # of several processes, the last one answers
        return None
    content = {"out": str(out), "complete": True, "cases": len(wanted), "summary": summaries}
    text = "\n".join(f"{name}: {_sentences(summary)}" for name, summary in summaries.items())
    return Answer(content, text)


def _tell(row: Row) -> None:
    click.echo(row.line(), err=True)


def _subjects(paths: Sequence[Path], device: torch.device) -> list[Subject]:
    """The CTs by the names of their files, which must differ; without any the torso."""
    names = [path.name.split(".")[0] for path in paths]
    for name in names:
        if names.count(name) > 1:
            raise click.UsageError(f"CTS: expected files of different names, got several {name!r}.")
    if not paths:
        return [Subject.of("torso", torso(PHANTOM_MM)).to(device)]
    subjects = []
    for path, name in zip(paths, names, strict=True):
        ct = read_ct(path)
        try:
            subjects.append(Subject.of(name, ct).to(device))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return subjects


def _registrations(
    methods: Sequence[str],
    similarities: Sequence[str | Path],
    all_stages: bool,
    device: torch.device,
) -> dict[str, Any]:
    """What is evaluated, by its name in the rows."""
    found: dict[str, Any] = {}
    for similarity in dict.fromkeys(similarities):
        if isinstance(similarity, Path):
            folder = similarity.name in (SIMILARITY_FILE, REGRESSOR_FILE)
            name = f"hybrid-{similarity.resolve().parent.name if folder else similarity.stem}"
            if name in found:
                raise ValueError(f"--similarity: two are called {name}; rename one of the files")
            found[name] = similarity_stages(similarity, device)
            continue
        for method in dict.fromkeys(methods):
            stages = with_similarity(METHODS[method], similarity, all_stages=all_stages)
            found[f"{method}-{'all-' if all_stages else ''}{similarity}"] = stages
    return found or {name: METHODS[name] for name in methods}


def _described(
    protocols: Sequence[Protocol],
    methods: dict[str, Any],
    subjects: Sequence[Subject],
    cases: int,
    processes: int,
) -> dict[str, Any]:
    """What is run, on what machine: run times mean nothing without it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(subjects[0].attenuation.values.device),
        "processes": processes,
        "cases": cases,
        "protocols": [vars(protocol) for protocol in protocols],
        "methods": {name: plain_stages(stages) for name, stages in methods.items()},
        "subjects": {
            subject.name: {
                "size_xyz": subject.ct.shape_xyz,
                "spacing_mm": subject.ct.spacing,
                "targets_world_mm": subject.points.tolist(),
            }
            for subject in subjects
        },
    }


def _summarised(folder: Path) -> tuple[set[Any], dict[str, Any]]:
    """The keys of all rows of the folder; a summary of every method, protocol and CT, and of all
    CTs together, which is written there.

    Processes end one after the other: one that finds rows which another has added meanwhile writes
    the summary again, so that the last summary has all rows.
    """
    rows: list[Row] = []
    summaries: dict[str, Any] = {}
    while len(found := read_rows(folder)) != len(rows):
        rows, groups = found, {}
        for row in sorted(rows, key=lambda row: row.key):
            for subject in (row.subject, "all"):
                groups.setdefault(f"{row.method} {row.protocol} {subject}", []).append(row)
        summaries = {name: summarise(group) for name, group in sorted(groups.items())}
        write_json(folder / "summary.json", summaries)
    return {row.key for row in rows}, summaries


def _sentences(summary: dict[str, Any]) -> str:
    """The summary of a group in a few lines."""
    rates = ", ".join(
        f"{100 * rate['rate']:.1f} % below {name} ({100 * rate['low']:.1f} to "
        f"{100 * rate['high']:.1f})"
        for name, rate in summary["success"].items()
    )
    tops = ", ".join(
        f"{share} {top['mean']:.3f} +- {top['std']:.3f}"
        for share, top in summary["mtre_top"].items()
    )
    lines = [
        f"{summary['cases']} cases, {rates}, median {summary['mtre']['50 %']:.3f} mm, "
        f"{summary['seconds']['50 %']:.2f} s",
        f"mTRE of the best, mm: {tops}",
    ]
    units = {"mtre": "mTRE, mm", "rotation": "rotation, degrees", "translation": "translation, mm"}
    for name, words in units.items():
        shares = (f"{share} {value:.3f}" for share, value in summary[name].items())
        lines.append(f"{words}: {', '.join(shares)}")
    lines.append(f"capture range: initial mTRE up to {summary['capture_range']:.1f} mm")
    return "\n    ".join(lines)
