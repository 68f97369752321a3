"""Pipelines that `register` knows by name."""

from __future__ import annotations

from typing import Any

from drrkit.registration.stages import Search, Stage

__all__ = ["AUTO", "GLOBAL", "PIPELINES", "resolve_stages"]

AUTO: tuple[Stage, ...] = (
    Stage(
        "ncc",
        optimiser="levenberg",
        pixel_mm=7.0,
        voxel_mm=4.0,
        iterations=15,
        step=30.0,
        final_step=0.3,
        starts=32,
    ),
    Stage(
        "gradient_ncc",
        optimiser="levenberg",
        pixel_mm=3.5,
        voxel_mm=4.0,
        iterations=10,
        step=10.0,
        final_step=0.1,
    ),
    Stage(
        "gradient_ncc",
        optimiser="levenberg",
        pixel_mm=1.75,
        blur=1.0,
        iterations=15,
        step=5.0,
        final_step=0.01,
    ),
)
"""Coarse to fine, for starts within about 10 degrees and 5 cm. NCC on pixels of 7 mm has by far the
widest basin of the similarities here, from starts wide enough for lateral views too; gradient NCC
then ignores most of what the beam's energy changes, and gains nothing from pixels much smaller than
the voxels."""

GLOBAL: tuple[Stage | Search, ...] = (
    Search(),
    Stage(
        "ncc",
        optimiser="levenberg",
        pixel_mm=7.0,
        voxel_mm=4.0,
        iterations=15,
        step=30.0,
        final_step=0.3,
        halve_every=5,
        keep=16,
        apart=5.0,
    ),
    Stage(
        "gradient_ncc",
        optimiser="levenberg",
        pixel_mm=7.0,
        voxel_mm=4.0,
        iterations=15,
        step=20.0,
        final_step=0.3,
        keep=6,
        apart=5.0,
    ),
    Stage(
        "gradient_ncc",
        optimiser="levenberg",
        pixel_mm=3.5,
        voxel_mm=4.0,
        iterations=10,
        step=10.0,
        final_step=0.1,
        keep=2,
        apart=5.0,
    ),
    AUTO[-1],
)
"""No start needed, or one that is far off."""

PIPELINES: dict[str, tuple[Stage | Search, ...]] = {"auto": AUTO, "global": GLOBAL}
"""Names that `register` accepts for stages."""


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
        if isinstance(stage, Stage) and stage.spread is None:
            _check_continued(found[number - 1] if number else None, stage)
    return found


def _check_continued(previous: Stage | Search | None, stage: Stage) -> None:
    """A stage without a spread needs distributions to go on with."""
    if not (
        isinstance(previous, Stage)
        and previous.optimiser == "cmaes"
        and (previous.population, previous.starts) == (stage.population, 1)
        and previous.keep is None
    ):
        raise ValueError(
            "stages: a 'cmaes' stage with spread None expects one of the same population, one "
            "start and no keep before it"
        )
