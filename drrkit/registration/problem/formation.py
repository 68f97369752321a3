"""Image formation: whether line integrals are compared, or the share of the beam that they absorb.

Line integrals L of opaque things tell little: behind a few mm of metal no photons are left, and
what a detector shows is 1 - exp(-g L). With formation "intensity" that is what is rendered, ray by
ray, before the rays of a pixel are averaged, and derivatives have the factor g exp(-g L).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from drrkit.registration.optimisers import Regressor
from drrkit.registration.problem.views import View
from drrkit.registration.stages import Search, Stage
from drrkit.volume import Volume

__all__ = [
    "FORMATIONS",
    "MEASURED",
    "METAL",
    "as_measured",
    "gain_of",
    "is_implant",
    "is_metal",
]

FORMATIONS = ("auto", "line", "intensity")
MEASURED = ("line", "display")
"""What the X-ray of a comparison by intensity may be: line integrals, or a picture, bone bright."""

METAL = 0.2
"""Attenuation in 1/mm above which a voxel is metal: cortical bone has 0.12 at 40 keV, where it is
densest to X-rays, titanium 0.25 at 70 keV, cobalt-chromium more."""

# Half of a body's attenuation must be metal's for it to be an implant.
_SHARE = 0.5

# Line integrals above this are no measured ones: 1e13 photons per pixel would leave one.
_LARGEST_LINE = 30.0


def is_metal(scene: Any) -> bool:
    """Whether one of the scene's volumes is mostly metal."""
    return any(map(_mostly_metal, getattr(scene, "bodies", (scene,))))


def is_implant(scene: Any) -> bool:
    """Whether all of the scene's volumes are mostly metal."""
    return all(map(_mostly_metal, getattr(scene, "bodies", (scene,))))


def _mostly_metal(body: Any) -> bool:
    if not isinstance(body, Volume) or body.unit != "mu":
        return False
    values = body.values.detach()
    total = float(values.double().sum())
    dense = float(torch.where(values > METAL, values, 0.0).double().sum())
    return total > 0.0 and dense >= _SHARE * total


def gain_of(
    scene: Any, stages: Sequence[Stage | Search], formation: str, gain: float, xray_kind: str
) -> float:
    """The gain of a comparison by intensity, 0 for one of line integrals.

    Raises:
        TypeError, ValueError: an argument is not what `register` describes, or a trained network,
            which knows line integrals, is to compare intensities.
    """
    for name, value, known in (
        ("formation", formation, FORMATIONS),
        ("xray_kind", xray_kind, MEASURED),
    ):
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    number = isinstance(gain, (int, float)) and not isinstance(gain, bool)
    if not number or not 0.0 < gain < math.inf:
        raise ValueError(f"gain: expected a positive number, got {gain!r}")
    if formation == "line" or (formation == "auto" and not is_metal(scene)):
        return 0.0
    for stage in stages:
        trained = isinstance(stage, Stage) and (
            callable(getattr(stage.similarity, "prepare", None))
            or isinstance(stage.optimiser, Regressor)
        )
        if trained and formation == "auto":
            return 0.0
        if trained:
            raise ValueError(
                f"formation: expected 'line' for the trained network of stage {stage.name!r}, "
                f"got {formation!r}"
            )
    return float(gain)


def as_measured(views: Sequence[View], xray_kind: str) -> list[View]:
    """Views whose X-rays are the absorbed share of the beam, as a comparison by intensity wants.

    xray_kind: "line": x becomes 1 - exp(-x); "display": a picture of it, taken as it is.

    Raises:
        ValueError: "line" of an X-ray whose values are no line integrals.
    """
    if xray_kind == "display":
        return list(views)
    for view in views:
        largest = float(view.xray.amax())
        if largest > _LARGEST_LINE:
            raise ValueError(
                f"xray: expected line integrals, at most {_LARGEST_LINE:g}, to compare as "
                f"intensity, got values up to {largest:g}; xray_kind='display' takes a picture, "
                "bone bright, as it is"
            )
    return [replace(view, xray=-torch.expm1(-view.xray)) for view in views]
