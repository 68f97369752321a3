"""How Python calls the kernels of csrc; private, the public functions are in drrkit.projector.

ops: the raw ops with fake kernels. products: the six products as autograd Functions. pose_maps: the
maps from pose to frame likewise. functions: the form of a Function that each mode of torch needs.
pack: what a Projector prepares from a constant volume.
"""

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
