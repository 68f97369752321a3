"""`drrkit register`: the pose of a CT in an X-ray."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click
import torch
from click.shell_completion import CompletionItem
from torch import Tensor

from drrkit.cli.answers import Answer
from drrkit.cli.arguments import NumberRange, OutputFile, completions, existing
from drrkit.cli.configuration import run_record
from drrkit.cli.options import grouped, seed_option
from drrkit.cli.poses import camera_as_dict, write_json
from drrkit.cli.problem import Problem, ProblemOptions
from drrkit.cli.similarities import SimilarityName, plain_stages, similarity_stages
from drrkit.cli.verbs import verb
from drrkit.files import fingerprint
from drrkit.geometry import se3_log, volume_center
from drrkit.registration import (
    AUTO,
    PIPELINES,
    TRUSTED,
    RegistrationResult,
    Search,
    Stage,
    register,
)
from drrkit.report import pose_overlays, save_image
from drrkit.volume import Volume

__all__ = ["move_between", "register_command"]

INTERRUPTED = 130
FAR_DEG, FAR_MM = 45.0, 150.0  # beyond what a local optimiser is started from


class Stages(click.ParamType):
    """auto, global, or SIMILARITY:DOWNSAMPLE[:STEPS] separated by commas: stages."""

    name = "STAGES"

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[CompletionItem]:
        return completions(PIPELINES, incomplete)

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Stage | Search, ...]:
        if isinstance(value, tuple):
            return value
        if value in PIPELINES:
            return PIPELINES[value]
        try:
            return tuple(self._stage(word) for word in value.split(","))
        except (TypeError, ValueError) as error:
            self.fail(
                "expected auto, global, or SIMILARITY:DOWNSAMPLE[:STEPS] separated by commas, such "
                f"as ncc:4,gradient_ncc:1, got {value!r} ({error}).",
                param,
                ctx,
            )

    def plain(self, value: tuple[Stage | Search, ...]) -> str:
        """The word that makes these stages."""
        for name, stages in PIPELINES.items():
            if value is stages:
                return name
        plain = (s for s in value if isinstance(s, Stage))
        return ",".join(f"{s.similarity}:{s.downsample}:{s.iterations}" for s in plain)

    def _stage(self, word: str) -> Stage:
        similarity, *numbers = word.split(":")
        if not similarity or not 1 <= len(numbers) <= 2:
            raise ValueError(f"{word!r} has not one or two numbers")
        factor, steps = int(numbers[0]), int(numbers[1]) if len(numbers) == 2 else 100
        # As in the stages of auto: large steps where pixels are large.
        return Stage(
            similarity,
            downsample=factor,
            supersample=2 if factor > 2 else 1,
            iterations=steps,
            step=1.0 * factor,
            final_step=0.05 * factor,
        )


@verb("register", epilog="A geometry option overrides what the pose file says.")
@click.argument("ct", type=existing)
@click.argument("xray", type=existing)
@click.option(
    "--output", "-o", required=True, type=OutputFile(".json"), help="The result, a pose file too."
)
@click.option("--overlay", type=OutputFile(".png"), help="Picture of the pose before and after.")
@grouped(ProblemOptions, "given")
@click.option(
    "--similarity",
    type=SimilarityName(),
    help="Similarity of all stages; or the file of a trained one, whose descent comes first.",
)
@click.option(
    "--stages",
    type=Stages(),
    default="auto",
    show_default=True,
    help="auto: coarse to fine from a start nearby. global: search all around the start first. "
    "SIMILARITY:DOWNSAMPLE[:STEPS],...: your own.",
)
@click.option(
    "--min-confidence",
    type=NumberRange(0, 1),
    default=TRUSTED,
    show_default=True,
    help="Confidence below which the result is not accepted (exit code 1).",
)
@seed_option("Of the starts that stages draw; the same gives the same result.")
@click.option("--quiet", "-q", is_flag=True, help="No progress bar.")
@click.pass_context
def register_command(
    ctx: click.Context,
    ct: Path,
    xray: Path,
    output: Path,
    overlay: Path | None,
    given: ProblemOptions,
    similarity: str | Path | None,
    stages: tuple[Stage | Search, ...],
    min_confidence: float,
    seed: int,
    quiet: bool,
) -> Answer:
    """Find the pose of CT in XRAY: DICOM, .npy, .png, .tif, NIfTI, NRRD or MetaImage.

    A C-arm's DICOM file says where detector and source stood; other formats need --pixel-spacing,
    --sdd and --init (PA where the source is behind the patient), or --calibration. Pixels must be
    bright where the patient attenuates; --xray-kind converts others. Gain and offset do not matter,
    and with --similarity mi no remapping does. Ctrl-C writes the best pose so far.
    """
    began = time.perf_counter()
    stages = _with_similarity(stages, similarity, given.device)
    searching = isinstance(stages[0], Search)
    problem = given.load(ct, xray, [output, overlay], searching)
    with _warnings_told():
        result = register(
            problem.volume,
            problem.camera,
            problem.line,
            problem.start,
            stages=stages,
            mask=problem.weights,
            method=given.method,
            seed=seed,
            progress=not quiet,
        )
    judged = _judged(result, min_confidence, problem)
    content = {
        "schema": "drrkit.registration",
        **result.as_dict(),
        **judged,
        "camera": camera_as_dict(problem.camera),
        "settings": {"stages": plain_stages(stages)},
        "files": {"ct": fingerprint(ct), "xray": fingerprint(xray)},
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "total_seconds": time.perf_counter() - began,
    }
    write_json(output, {**content, "run": run_record(ctx)})
    if overlay is not None:
        poses = [problem.start[0], result.world_to_camera]
        drawn = pose_overlays(
            problem.volume, problem.camera, problem.line, poses, method=given.method
        )
        save_image(drawn, overlay)
    code = _verdict(result, judged, stages)
    return Answer({"written": str(output), **content}, _sentence(result, judged), code)


def motion_as_dict(before: Tensor, after: Tensor, volume: Volume) -> dict[str, Any]:
    """How far one pose [4, 4] is from another, in degrees and mm about the volume's centre."""
    xi = move_between(before, after, volume_center(volume))
    rotation, translation = torch.rad2deg(xi[:3]), xi[3:]
    return {
        "rotation_deg": float(rotation.norm()),
        "translation_mm": float(translation.norm()),
        "xi_deg_mm": [*rotation.tolist(), *translation.tolist()],
    }


def move_between(before: Tensor, after: Tensor, center: Tensor) -> Tensor:
    """The xi [6] (rad, mm) with perturb(before, xi, center) = after; poses [4, 4], center [3]."""
    shift = torch.eye(4, dtype=torch.float64, device=before.device)
    shift[:3, 3] = before[:3, :3] @ center + before[:3, 3]
    motion = torch.linalg.inv(shift) @ after @ torch.linalg.inv(before) @ shift
    return se3_log(motion)


@contextmanager
def _warnings_told() -> Iterator[None]:
    """Warnings as lines of this command's own, not as Python's."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in told:
        click.echo(f"Warning: {warning.message}", err=True)


def _with_similarity(
    stages: tuple[Stage | Search, ...], similarity: str | Path | None, device: torch.device
) -> tuple[Stage | Search, ...]:
    """The stages of auto with another similarity in all of them, or with a trained one first."""
    if similarity is None:
        return stages
    if stages is not AUTO:
        raise click.UsageError("--similarity changes the stages of auto; --stages names its own.")
    return similarity_stages(similarity, device)


def _judged(result: RegistrationResult, min_confidence: float, problem: Problem) -> dict[str, Any]:
    """Whether the result is accepted, and how far it lies from its start."""
    start = problem.start[0]
    return {
        "accepted": math.isfinite(result.loss) and result.confidence >= min_confidence,
        "min_confidence": min_confidence,
        "initial_world_to_camera": start.tolist(),
        "motion": motion_as_dict(start, result.world_to_camera, problem.volume),
    }


def _sentence(result: RegistrationResult, judged: dict[str, Any]) -> str:
    motion = judged["motion"]
    return (
        f"moved {motion['rotation_deg']:.2f} degrees and {motion['translation_mm']:.2f} mm; loss "
        f"{result.loss:.4f}, confidence {result.confidence:.3f}, {result.stop_reason} after "
        f"{result.seconds:.1f} s"
    )


def _verdict(
    result: RegistrationResult, judged: dict[str, Any], stages: tuple[Stage | Search, ...]
) -> int:
    """The exit code; what there is to complain of is told."""
    searched = isinstance(stages[0], Search)
    if result.stop_reason == "interrupted":
        return INTERRUPTED
    if not judged["accepted"]:
        click.echo(
            f"Not accepted: confidence {result.confidence:.3f} is below "
            f"{judged['min_confidence']:g}. {_doubts(searched)}",
            err=True,
        )
        return 1
    motion = judged["motion"]
    far = motion["rotation_deg"] > FAR_DEG or motion["translation_mm"] > FAR_MM
    if far and not searched:
        click.echo("Warning: the pose ended far from its start; look at --overlay.", err=True)
    return 0


def _doubts(searched: bool) -> str:
    """What most often makes a registration fail, in the order in which to look at it."""
    place = (
        "does the C-arm look as --init says or, without it, about from the front (--init PA where "
        "the source is behind the patient)"
        if searched
        else "is the start within 10 degrees and 5 cm (else --stages global, and --init PA where "
        "the source is behind the patient)"
    )
    return (
        f"Is it this patient's CT; {place}; is bone bright (--xray-kind, --preprocess); is the "
        "image as seen from the source, neither mirrored nor upside down; are --pixel-spacing and "
        "--sdd right; are collimator and metal masked (--mask, --preprocess)? The overlay of "
        "drrkit report shows most of it."
    )
