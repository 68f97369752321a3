"""Phantoms: ellipsoids with exact images and derivatives, and a voxelised torso in HU."""

from drrkit.phantoms.anatomy import TORSO_LABELS, torso
from drrkit.phantoms.ellipsoids import Ellipsoids, random_soft_ellipsoids, shepp_logan_3d

__all__ = ["TORSO_LABELS", "Ellipsoids", "random_soft_ellipsoids", "shepp_logan_3d", "torso"]
