"""Registration methods that evaluations know by name."""

from __future__ import annotations

import math
from dataclasses import replace

from drrkit.registration import AUTO, GLOBAL, CmaEs, Search, Stage, TrustRegion

Stages = tuple[Stage | Search, ...]

# One CMA-ES from the start as published for this comparison: population 300, 45 degrees and
# 200 mm, patch gradient NCC, 40 generations on 64 x 64 pixels (of an X-ray of 128 x 128), 20 more
# with the same distribution on 128 x 128, both from voxels of 4 mm; then a bounded refinement on
# the CT's own voxels, within 2.5 degrees, 5 mm and 10 mm of depth, as xreg has it.
_CMAES: Stages = (
    Stage(
        "patch_gradient_ncc",
        optimiser=CmaEs(sigma=(math.radians(45.0), 200.0), population=300, final_step=0.1),
        downsample=2,
        voxel=4.0,
        iterations=40,
        mm=True,
    ),
    Stage(
        "patch_gradient_ncc",
        optimiser=CmaEs(sigma=None, population=300, final_step=0.1),
        voxel=4.0,
        iterations=20,
        mm=True,
    ),
    Stage(
        "patch_gradient_ncc",
        optimiser=TrustRegion(
            bounds=(math.radians(2.5),) * 3 + (5.0, 5.0, 10.0), step=2.0, final_step=0.02
        ),
        iterations=30,
        mm=True,
    ),
)

METHODS: dict[str, Stages] = {"auto": AUTO, "global": GLOBAL, "cmaes": _CMAES}
"""auto and global: the pipelines of `register`. cmaes: one CMA-ES with a bounded refinement."""


def with_similarity(stages: Stages, similarity: str, *, all_stages: bool = False) -> Stages:
    """The same stages with another similarity in the last one, or in all; a Search has its own.

    Raises:
        ValueError: similarity is no name in SIMILARITIES.
    """
    first = 0 if all_stages else len(stages) - 1
    return tuple(
        replace(stage, similarity=similarity)
        if number >= first and isinstance(stage, Stage)
        else stage
        for number, stage in enumerate(stages)
    )
