"""Pipelines that begin with a learned similarity."""

from __future__ import annotations

import math
from typing import Any

from drrkit.registration.presets import AUTO
from drrkit.registration.stages import Similarity, Stage

__all__ = ["hybrid"]

PIXEL_MM = 3.5
PATIENCE = 15  # steps after which they halve, as published


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
        spread: first standard deviations of the CMA-ES, as in Stage.
        population, generations: of the CMA-ES; 0 generations leave it out.

    Raises:
        TypeError, ValueError: as Stage.
    """
    notes: dict[str, Any] = getattr(learned, "notes", {})
    scale: dict[str, Any] = {
        "pixel_mm": pixel_mm or notes.get("pixel_mm", PIXEL_MM),
        "voxel_mm": voxel_mm or notes.get("voxel_mm"),
        "iterations": iterations,
    }
    if callable(getattr(learned, "update", None)):
        first = Stage(optimiser="regressor", regressor=learned, final_step=0.5, **scale)
    elif callable(getattr(learned, "prepare", None)):
        lengths: dict[str, Any] = {"step": step, "patience": PATIENCE, "final_step": step / 20}
        first = Stage(learned, optimiser="directions", **lengths, **scale)
    else:
        first = Stage(learned, optimiser="gradient", step=step, final_step=step / 20, **scale)
    if generations == 0:
        return (first, *AUTO[1:])
    evolution = Stage(
        "patch_gradient_ncc",
        optimiser="cmaes",
        pixel_mm=PIXEL_MM,
        voxel_mm=4.0,
        iterations=generations,
        population=population,
        spread=spread,
        final_step=0.5,
    )
    return (first, evolution, *AUTO[1:])
