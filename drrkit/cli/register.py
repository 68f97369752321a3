"""`drrkit register`: the pose of a CT in an X-ray."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from click.shell_completion import CompletionItem
from torch import Tensor

from drrkit.cli.command import Answer, command
from drrkit.cli.configuration import run_record
from drrkit.cli.io import camera_as_dict, warn, write_json
from drrkit.cli.options import (
    POSITIVE,
    NumberRange,
    OutputFile,
    argument,
    completions,
    option,
    quiet_option,
    seed_option,
)
from drrkit.cli.problem import Problem, ProblemOptions
from drrkit.files import fingerprint
from drrkit.geometry import volume_center
from drrkit.registration import (
    AUTO,
    FORMATIONS,
    PART,
    PIPELINES,
    SIMILARITIES,
    SURE,
    Descent,
    Search,
    Stage,
    hybrid,
    is_accepted,
    is_implant,
    motion_of,
    register,
)
from drrkit.report import (
    ended_far,
    pose_overlays,
    save_image,
    shown_confidence,
    tiled,
    why_doubted,
)
from drrkit.volume import Volume

INTERRUPTED = 130
CLEARLY = 0.2
"""By so much more must the negative of an X-ray agree, that its polarity is said to be wrong."""
SIMILARITY_FILE, REGRESSOR_FILE = "similarity.pt", "regressor.pt"
"""What drrkit train writes into its folder."""


class SimilarityName(click.ParamType):
    """A name of a similarity, or the file of a trained one (or of a regressor), or its folder."""

    name = "NAME|FILE"

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[CompletionItem]:
        return completions(SIMILARITIES, incomplete, files=True)

    def convert(self, value: Any, param: Any, ctx: Any) -> str | Path:
        if isinstance(value, Path) or value in SIMILARITIES:
            return value
        path = Path(value)
        if path.is_dir():
            inside = [path / name for name in (SIMILARITY_FILE, REGRESSOR_FILE)]
            path = next((p for p in inside if p.is_file()), inside[0])
        if not path.is_file():
            names = ", ".join(SIMILARITIES)
            self.fail(f"expected one of {names} or a file, and there is no {path}.", param, ctx)
        return path


def similarity_stages(
    similarity: str | Path, device: torch.device, stages: tuple[Stage | Search, ...] = AUTO
) -> tuple[Stage | Search, ...]:
    """auto with this similarity in all stages; with a trained network: learned, CMA-ES, Levenberg.

    A trained network may follow a search and the stage behind it, which keeps the best candidates.

    Raises:
        click.UsageError: other stages than auto, unless they search and the network is trained.
        ValueError, OSError: as load_similarity.
    """
    searches = tuple(itertools.takewhile(lambda stage: isinstance(stage, Search), stages))
    if stages is not AUTO and (isinstance(similarity, str) or not searches):
        raise click.UsageError(
            "--similarity changes the stages of auto; a trained one may also follow the search of "
            "--stages global."
        )
    if isinstance(similarity, str):
        return tuple(replace(stage, similarity=similarity) for stage in AUTO)
    from drrkit.similarity import load_similarity

    before = stages[: len(searches) + 1] if searches else ()
    return (*before, *hybrid(load_similarity(similarity, device)))


def _trained_center(stages: Sequence[Stage | Search], scene: Volume) -> Tensor | None:
    """The point that a trained network's poses turned about, if one of the stages has a network."""
    from drrkit.similarity import BoneNetwork, bone_center

    for stage in stages:
        if isinstance(stage, Stage):
            for network in (stage.similarity, getattr(stage.optimiser, "network", None)):
                if isinstance(network, BoneNetwork):
                    return bone_center(network.moving(scene))
    return None


def plain_stages(stages: Sequence[Stage | Search]) -> list[dict[str, Any]]:
    """Stages for JSON, networks by their names."""
    found = []
    for stage in stages:
        found.append({**vars(stage), "similarity": stage.name})
        if isinstance(stage, Stage):
            settings = vars(stage.optimiser)
            if "network" in settings:
                settings = {**settings, "network": type(settings["network"]).__name__}
            found[-1]["optimiser"] = {"name": stage.optimiser.name, **settings}
    return found


def known_name(stages: tuple[Stage | Search, ...]) -> str | None:
    """The name of a pipeline in PIPELINES."""
    return next((name for name, known in PIPELINES.items() if known is stages), None)


class Stages(click.ParamType):
    """auto, global, part, or SIMILARITY:DOWNSAMPLE[:STEPS] separated by commas: stages."""

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
                "expected auto, global, part, or SIMILARITY:DOWNSAMPLE[:STEPS] separated by "
                f"commas, such as ncc:4,gradient_ncc:1, got {value!r} ({error}).",
                param,
                ctx,
            )

    def plain(self, value: tuple[Stage | Search, ...]) -> str:
        """The word that makes these stages."""
        if name := known_name(value):
            return name
        plain = (s for s in value if isinstance(s, Stage))
        return ",".join(f"{s.similarity}:{s.downsample}:{s.iterations}" for s in plain)

    def _stage(self, word: str) -> Stage:
        similarity, *numbers = word.split(":")
        if not similarity or not 1 <= len(numbers) <= 2:
            raise ValueError(f"{word!r} has not one or two numbers")
        factor, steps = int(numbers[0]), int(numbers[1]) if len(numbers) == 2 else 100
        if factor < 1:
            raise ValueError(f"downsample: expected a whole number of at least 1, got {factor}")
        # As in the stages of auto: large steps where pixels are large.
        return Stage(
            similarity,
            optimiser=Descent(factor / 300, final_step=factor / 6000),
            downsample=factor,
            supersample=2 if factor > 2 else 1,
            iterations=steps,
        )


@command("register", epilog="A geometry option overrides the pose file.")
def register_command(
    *,
    ct: Path = argument(),
    xray: Path = argument(),
    others: tuple[Path, ...] = argument(nargs=-1),
    output: Path = option(
        "The result, a pose file too.", "--output", "-o", required=True, type=OutputFile(".json")
    ),
    overlay: Path | None = option(
        "Picture of the pose before and after, a row per X-ray.", type=OutputFile(".png")
    ),
    given: ProblemOptions,
    similarity: str | Path | None = option(
        "Similarity of all stages; or the file of a trained one, whose descent comes first, or "
        "after the search of --stages global.",
        type=SimilarityName(),
    ),
    stages: tuple[Stage | Search, ...] = option(
        "auto: coarse to fine from a start nearby. global: search all around the start first. "
        "part: CT is a part of what the X-ray shows (auto of a metal surface). "
        "SIMILARITY:DOWNSAMPLE[:STEPS],...: your own.",
        type=Stages(),
        default="auto",
    ),
    formation: str = option(
        "Compare line integrals, or 1 - exp(-gain L), in which metal is opaque; auto: intensity "
        "for metal.",
        type=click.Choice(FORMATIONS),
        default="auto",
    ),
    gain: float = option(
        "Of rendered line integrals, for intensity.",
        type=POSITIVE,
        default=1.0,
    ),
    min_confidence: float = option(
        "Probability of less than 10 mm of error below which the result is not accepted (exit "
        "code 1).",
        type=NumberRange(0, 1),
        default=SURE,
    ),
    seed: int = seed_option("Seed of the starts that stages draw."),
    quiet: bool = quiet_option(),
) -> Answer:
    """Find the pose of CT in XRAY: DICOM, .npy, .png, .tif, NIfTI, NRRD or MetaImage.

    A C-arm's DICOM file says where detector and source stood; other formats need --pixel-spacing,
    --sdd and --init (PA where the source is behind the patient), or --calibration. Pixels must be
    bright where the patient attenuates; --xray-kind converts others. Gain and offset do not matter;
    --similarity mi also allows for other grey scales. Ctrl-C writes the best pose so far.

    OTHERS are X-rays of the same moment: one pose, that of XRAY's camera, is found in all. How the
    cameras stand to each other is said by a --calibration for each, by --rig, or by DICOM files
    with the C-arms' angles.
    """
    began = time.perf_counter()
    if similarity is not None:
        stages = similarity_stages(similarity, given.device, stages)
    searching = isinstance(stages[0], Search)
    files = (xray, *others)
    problem = given.load(ct, [[file] for file in files], [output, overlay], searching)
    if stages is AUTO and is_implant(problem.volume):
        stages = PART
    named = known_name(stages)  # of which register tries more than the stages themselves
    run = partial(
        register,
        problem.volume,
        init=problem.start,
        stages=named or stages,
        center=_trained_center(stages, problem.volume) if isinstance(similarity, Path) else None,
        method=given.method,
        formation=formation,
        gain=gain,
        xray_kind=problem.xray_kind,
        seed=seed,
    )
    result = run(**problem.arguments(), progress=not quiet)
    kind, reasons = problem.xrays[0].kind, list(result.reasons)
    if "negative" in result.inferred:
        _warn_dark(xray, kind, "only the negative agrees, and was taken")
        reasons += ["polarity"] if given.xray.xray_kind else []  # what was said of the X-ray counts
    elif not (named or result.accepted or result.stop_reason == "interrupted"):
        negative = run(**problem.arguments(negative=True)).agreement
        if negative > result.agreement + CLEARLY:
            both = f"({negative:.2f} against {result.agreement:.2f})"
            _warn_dark(xray, kind, f"the negative agrees far better {both}")
    if "field" in result.inferred and not quiet:
        click.echo("The open field was found in the X-ray; --mask gives another.", err=True)
    sure = result.confidence_10mm
    accepted = is_accepted(sure, result.loss, reasons, min_confidence)
    motion = _motion(problem, result.world_to_camera)
    content = {
        "schema": "drrkit.registration",
        **result.as_dict(),
        "accepted": accepted,
        "reasons": reasons,
        "min_confidence": min_confidence,
        "initial_world_to_camera": problem.start[0].tolist(),
        "motion": motion,
        "camera": camera_as_dict(problem.cameras[0]),
        "settings": {"stages": plain_stages(stages)},
        "files": {"ct": fingerprint(ct), "xray": fingerprint(xray)},
        **_views(problem, files),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "total_seconds": time.perf_counter() - began,
    }
    write_json(output, {**content, "run": run_record()})
    if overlay is not None:
        poses = torch.stack((problem.start[0], result.world_to_camera))
        drawn = [
            [pose_overlays(problem.volume, camera, line, list(seen), method=given.method)]
            for camera, line, seen in problem.views(poses)
        ]
        save_image(tiled(drawn), overlay)
    text = (
        f"moved {motion['rotation_deg']:.2f} degrees and {motion['translation_mm']:.2f} mm; loss "
        f"{result.loss:.4f}, confidence {shown_confidence(result.confidence)}, "
        f"{result.stop_reason} after {result.seconds:.1f} s"
    )
    return Answer({"written": str(output), **content}, text, _exit_code(content, searching))


def _views(problem: Problem, files: Sequence[Path]) -> dict[str, Any]:
    """The cameras and files of several X-rays, a rig for others; nothing of one."""
    if problem.rig_to_camera is None:
        return {}
    views = zip(problem.cameras, problem.rig_to_camera.tolist(), files, strict=True)
    return {
        "views": [
            {
                "camera": camera_as_dict(camera),
                "rig_to_camera": pose,
                "xray": str(file),
                "sha256": fingerprint(file)["sha256"],
            }
            for camera, pose, file in views
        ]
    }


def _motion(problem: Problem, found: Tensor) -> dict[str, Any]:
    """How far a pose [4, 4] is from the start, in degrees and mm about the volume's centre."""
    center = volume_center(problem.volume)
    xi = motion_of(problem.start[0], found[None], center)[0]
    rotation, translation = torch.rad2deg(xi[:3]), xi[3:]
    return {
        "rotation_deg": float(rotation.norm()),
        "translation_mm": float(translation.norm()),
        "xi_deg_mm": [*rotation.tolist(), *translation.tolist()],
    }


def _warn_dark(xray: Path, kind: str, why: str) -> None:
    """Says that an X-ray's polarity is wrong, and how to say so."""
    other = "line" if kind in ("intensity", "inverted") else "inverted or intensity"
    warn(
        f"{xray}: bone looks dark, and should be bright: {why}. Its pixels were taken for {kind}; "
        f"--xray-kind {other} converts"
    )


def _exit_code(content: dict[str, Any], searched: bool) -> int:
    """The exit code; the reason for one above 0 goes to stderr."""
    if content["stop_reason"] == "interrupted":
        return INTERRUPTED
    if not content["accepted"]:
        click.echo(f"Not accepted: {why_doubted(content)}. {_doubts(searched)}", err=True)
        return 1
    if ended_far(content):
        warn("the pose ended far from its start; look at --overlay")
    return 0


def _doubts(searched: bool) -> str:
    """What most often makes a registration fail, in the order in which to look at it."""
    place = (
        "does the C-arm look as --init says or, without it, about from the front (--init PA where "
        "the source is behind the patient)"
        if searched
        else "is the start within 10 degrees, 20 mm across the beam and 50 mm of depth (else "
        "--stages global, and --init PA where the source is behind the patient)"
    )
    return (
        f"Is it this patient's CT; {place}; is bone bright (--xray-kind, --preprocess); is the "
        "image as seen from the source, neither mirrored nor upside down; are --pixel-spacing and "
        "--sdd right; are collimator and metal masked (--mask, --preprocess)? The overlays of "
        "drrkit report show most of it."
    )
