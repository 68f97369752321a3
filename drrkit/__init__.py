"""drrkit: the differentiable X-ray projector for PyTorch, and 2D/3D registration on top of it.

The README has the five-line tour. World coordinates are patient LPS in mm, images are
[B, C, rows, cols] line integrals, poses are 4x4 `world_to_camera` matrices, angles are radians.
"""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version

from drrkit import conversions, losses, metrics, phantoms
from drrkit.geometry import (
    Camera,
    CArm,
    perturb,
    project_points,
    se3_exp,
    se3_log,
    so3_exp,
    so3_log,
    solve_pnp,
    view_ap,
    view_carm,
    view_frames,
    view_left_lateral,
    view_pa,
    view_right_lateral,
    volume_center,
)
from drrkit.projector import Projector, backproject, project, project_with_jacobian, render
from drrkit.registration import RegistrationResult, Stage, register
from drrkit.volume import Volume, read_volume, write_volume
from drrkit.xray import Xray, read_xray, simulate_xray

try:
    __version__ = _version("drrkit")
except PackageNotFoundError:  # used from a source folder that was built in place
    __version__ = "0.1.0"

__all__ = [
    "CArm",
    "Camera",
    "Projector",
    "RegistrationResult",
    "Stage",
    "Volume",
    "Xray",
    "__version__",
    "backproject",
    "conversions",
    "losses",
    "metrics",
    "perturb",
    "phantoms",
    "project",
    "project_points",
    "project_with_jacobian",
    "read_volume",
    "read_xray",
    "register",
    "render",
    "se3_exp",
    "se3_log",
    "simulate_xray",
    "so3_exp",
    "so3_log",
    "solve_pnp",
    "view_ap",
    "view_carm",
    "view_frames",
    "view_left_lateral",
    "view_pa",
    "view_right_lateral",
    "volume_center",
    "write_volume",
]
