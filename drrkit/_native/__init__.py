"""How Python meets the kernels: raw ops, autograd Functions, prepared volumes, maps of poses."""

from drrkit._native.functions import call
from drrkit._native.ops import BEAMS, METHODS, VOXELS, Spec, map_flags
from drrkit._native.pack import Pack
from drrkit._native.pose_maps import apply_map
from drrkit._native.products import Backproject, Project, ProjectPacked

__all__ = [
    "BEAMS",
    "METHODS",
    "VOXELS",
    "Backproject",
    "Pack",
    "Project",
    "ProjectPacked",
    "Spec",
    "apply_map",
    "call",
    "map_flags",
]
