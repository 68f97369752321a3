"""Phantoms: ellipsoids with exact images and derivatives, a voxelised torso, random subjects."""

from drrkit.phantoms.anatomy import TORSO_LABELS, torso
from drrkit.phantoms.ellipsoids import Ellipsoids, random_soft_ellipsoids, shepp_logan_3d
from drrkit.phantoms.subjects import ANATOMY_LABELS, random_anatomy

__all__ = [
    "ANATOMY_LABELS",
    "TORSO_LABELS",
    "Ellipsoids",
    "random_anatomy",
    "random_soft_ellipsoids",
    "shepp_logan_3d",
    "torso",
]
