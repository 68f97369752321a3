"""Pipelines: those that `register` knows by name, and those that begin with a learned one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from drrkit.registration.optimisers import CmaEs, Descent, Directions, Levenberg, Regressor
from drrkit.registration.similarities import Similarity
from drrkit.registration.stages import Search, Stage

__all__ = [
    "AUTO",
    "FOLLOW",
    "GLOBAL",
    "PART",
    "PART_MARGIN",
    "PIPELINES",
    "hybrid",
    "is_part",
    "resolve_stages",
]

_VOXEL = 1 / 75  # of coarse stages

AUTO: tuple[Stage, ...] = (
    Stage(
        "patch_gradient_ncc",
        pixel=1 / 44,
        optimiser=Levenberg(0.1, final_step=1e-3),
        voxel=_VOXEL,
        iterations=20,
        starts=32,
        spread=(0.3, 0.13),
        halve_every=5,
        keep=3,
        apart=1 / 60,
    ),
    Stage(
        "patch_gradient_ncc",
        pixel=1 / 88,
        optimiser=Levenberg(1 / 30, final_step=1 / 3000),
        voxel=_VOXEL,
        iterations=20,
        keep=1,
    ),
    Stage(
        "robust_patch_gradient_ncc",
        pixel=1 / 176,
        optimiser=Levenberg(1 / 60, final_step=1 / 30000),
        iterations=30,
    ),
)
"""Coarse to fine, for starts within about 10 degrees, 2 cm in plane and 5 cm in depth (of a torso).
Every patch of the image counts for itself, so that what the CT does not show (tools, tables, the
rim of a collimated field, tissue beyond the CT's ends) costs a few patches and does not pull the
pose. Several poses go on from the large pixels, 7 mm in a torso, because patches have narrower
basins than the whole image. In the last stage a patch counts the less the worse it matches: what
moved by itself, as ribs and limbs do, loses its pull on depth, which a few tenths of a pixel at the
image's rim decide."""

_GRADIENT: tuple[Stage, ...] = tuple(
    replace(stage, similarity="gradient_ncc", iterations=steps, blur=blur)
    for stage, steps, blur in zip(AUTO[1:], (10, 15), (0.0, 1.0), strict=True)
)
# Ignores most of what the beam's energy changes, and costs a third of patches.

GLOBAL: tuple[Stage | Search, ...] = (
    Search(),
    Stage(
        "ncc",
        pixel=1 / 44,
        optimiser=Levenberg(0.1, final_step=1e-3),
        voxel=_VOXEL,
        iterations=15,
        halve_every=5,
        keep=16,
        apart=1 / 60,
    ),
    Stage(
        "gradient_ncc",
        pixel=1 / 44,
        optimiser=Levenberg(1 / 15, final_step=1e-3),
        voxel=_VOXEL,
        iterations=15,
        keep=6,
        apart=1 / 60,
    ),
    Stage(
        "gradient_ncc",
        pixel=1 / 88,
        optimiser=Levenberg(1 / 30, final_step=1 / 3000),
        voxel=_VOXEL,
        iterations=10,
        keep=2,
        apart=1 / 60,
    ),
    AUTO[-1],
)
"""No start needed, or one that is far off."""

FOLLOW: tuple[Stage, ...] = (replace(_GRADIENT[0], apart=1e-6), _GRADIENT[1])
"""From a start within a few degrees and about a centimetre: what a frame's predecessor gives."""

PART: tuple[Stage, ...] = (
    Stage(
        "gradient_ncc",
        pixel=1 / 30,
        optimiser=Levenberg(0.1, final_step=1e-3),
        supersample=2,
        iterations=20,
        starts=48,
        spread=(0.35, 0.12),
        halve_every=4,
        keep=5,
        apart=1 / 30,
    ),
    Stage(
        "gradient_ncc",
        pixel=1 / 80,
        optimiser=Levenberg(1 / 30, final_step=1 / 3000),
        supersample=2,
        iterations=15,
        keep=2,
        apart=1 / 30,
    ),
    Stage(
        "gradient_ncc",
        pixel=1 / 160,
        optimiser=Levenberg(1 / 60, final_step=1 / 30000),
        iterations=20,
    ),
)
"""For a volume that is a part of what the X-ray shows. Nothing but derivatives is compared, in the
surroundings of the object at its start: intensities would follow the neighbours."""

FOLLOW_PART: tuple[Stage, ...] = (replace(PART[0], starts=1), *PART[1:])
"""A part from where it was in the frame before."""

PART_MARGIN = 1 / 6
"""Of those surroundings, a share of the object's extent: the range of starts."""

PIPELINES: dict[str, tuple[Stage | Search, ...]] = {"auto": AUTO, "global": GLOBAL, "part": PART}
"""Names that `register` accepts for stages."""


# Of learned similarities whose notes do not say, mm.
PIXEL_MM = 3.5
PATIENCE = 15  # steps after which they halve, as published


def is_part(stages: Any) -> bool:
    """Whether these are the stages of a part, for which only its surroundings are looked at."""
    return stages is PART or stages is FOLLOW_PART


def resolve_stages(stages: Any) -> tuple[Stage | Search, ...]:
    """The stages of an argument: a name in PIPELINES, one Stage or Search, or several in order.

    Raises:
        TypeError, ValueError: it is none of these, or empty, or has a Search behind a Stage.
    """
    names = " or ".join(repr(name) for name in PIPELINES)
    if isinstance(stages, str):
        if stages not in PIPELINES:
            raise ValueError(f"stages: expected {names} or Stage objects, got {stages!r}")
        return PIPELINES[stages]
    if isinstance(stages, (Stage, Search)):
        return (stages,)
    try:
        found = tuple(stages)
    except TypeError:
        raise TypeError(
            f"stages: expected {names} or Stage objects, got {type(stages).__name__}"
        ) from None
    if not found:
        raise ValueError("stages: expected at least one Stage, got none")
    for number, stage in enumerate(found):
        if not isinstance(stage, (Stage, Search)):
            raise TypeError(f"stages: expected Stage objects, got {type(stage).__name__}")
        if isinstance(stage, Search) and number > 0:
            raise ValueError("stages: expected a Search to be the first stage")
        if isinstance(stage, Stage) and _goes_on(stage):
            _check_continued(found[number - 1] if number else None, stage)
    return found


def _goes_on(stage: Stage) -> bool:
    return isinstance(stage.optimiser, CmaEs) and stage.optimiser.sigma is None


def _check_continued(previous: Stage | Search | None, stage: Stage) -> None:
    """A CmaEs without deviations needs distributions to go on with."""
    if not (
        isinstance(previous, Stage)
        and isinstance(previous.optimiser, CmaEs)
        and isinstance(stage.optimiser, CmaEs)
        and previous.optimiser.population == stage.optimiser.population
        and previous.starts == stage.starts == 1
        and previous.keep is None
    ):
        raise ValueError(
            "stages: CmaEs(sigma=None) expects a CmaEs stage of the same population, one start and "
            "no keep before it, and one start of its own"
        )


def hybrid(
    learned: Similarity | Any,
    *,
    pixel_mm: float | None = None,
    voxel_mm: float | None = None,
    iterations: int = 75,
    step: float = 10.0,
    spread: tuple[float, ...] = (math.radians(15.0), 40.0),
    population: int = 50,
    generations: int = 30,
) -> tuple[Stage, ...]:
    """Stages learned -> CMA-ES -> Levenberg-Marquardt, for starts that are far off.

    A learned similarity's gradient, or a regressor, brings the pose into the reach of a CMA-ES on
    patch gradient NCC, as in Gao et al., IEEE TMI 2024; what `register` does by default ends it.

    Args:
        learned: a LearnedSimilarity (anything with its `prepare`), whose gradient's directions are
            followed; a PoseRegressor (anything with its `update`); or any other similarity, which
            is descended.
        pixel_mm: pixels at the patient that it sees; default those that it was trained with
            (`notes["pixel_mm"]` of a loaded one), or 3.5.
        voxel_mm: voxels of the volume that it sees; default likewise, or the volume's own.
        iterations: most steps with it.
        step: length of the first step along its gradient, mm of motion; directions are followed in
            steps that halve every 15.
        spread: first standard deviations of the CMA-ES, (rad, mm) or three of each.
        population, generations: of the CMA-ES; 0 generations leave it out.

    Raises:
        TypeError, ValueError: as Stage.
    """
    notes: dict[str, Any] = getattr(learned, "notes", {})
    scale: dict[str, Any] = {
        "pixel": pixel_mm or notes.get("pixel_mm", PIXEL_MM),
        "voxel": voxel_mm or notes.get("voxel_mm"),
        "iterations": iterations,
        "mm": True,
    }
    if callable(getattr(learned, "update", None)):
        first = Stage(optimiser=Regressor(learned, final_step=0.5), **scale)
    elif callable(getattr(learned, "prepare", None)):
        steps = Directions(step, PATIENCE, final_step=step / 20)
        first = Stage(learned, optimiser=steps, **scale)
    else:
        first = Stage(learned, optimiser=Descent(step, final_step=step / 20), **scale)
    if generations == 0:
        return (first, *AUTO[1:])
    evolution = Stage(
        "patch_gradient_ncc",
        pixel=PIXEL_MM,
        optimiser=CmaEs(spread, population, final_step=0.5),
        voxel=4.0,
        iterations=generations,
        mm=True,
    )
    return (first, evolution, *AUTO[1:])
