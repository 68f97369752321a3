"""Phantoms: ellipsoids with exact images and derivatives, a voxelised torso, random subjects.

ellipsoids: closed-form images, Shepp-Logan. torso: one labelled CT. random_anatomy: a pelvis, spine
or skull per seed, whose bones are drawn by bones. shapes: signed distances and the voxel grid that
they are painted into.
"""

from drrkit.phantoms.ellipsoids import Ellipsoids, random_soft_ellipsoids, shepp_logan_3d
from drrkit.phantoms.random_anatomy import ANATOMY_LABELS, FIELD_MM, random_anatomy
from drrkit.phantoms.torso import TORSO_LABELS, torso

__all__ = [
    "ANATOMY_LABELS",
    "FIELD_MM",
    "TORSO_LABELS",
    "Ellipsoids",
    "random_anatomy",
    "random_soft_ellipsoids",
    "shepp_logan_3d",
    "torso",
]
