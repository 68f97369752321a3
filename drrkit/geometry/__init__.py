"""Cameras, C-arm views, rigid motions and the frame of a view.

World: patient LPS in mm (x = left, y = posterior, z = superior). Camera: OpenCV pinhole, source
at its origin, +z towards the detector, x to the right (columns), y down (rows); pixel centres at
integer (row, col). `world_to_camera` is the 4x4 extrinsic matrix for column vectors. A view of a
voxel grid is a frame [4, 3] in the grid's index coordinates, in the order (x, y, z).

camera: intrinsics, where points are seen. frames: pose and camera to frame. views: named poses.
se3: exponential, logarithm, perturbed poses. pnp: poses from points. checks: of arguments, those of
counts and numbers for all packages.
"""

from drrkit.geometry.camera import ORIGINS, Camera, CameraSigma, CArm, project_points
from drrkit.geometry.checks import (
    batched,
    batched_pose,
    check_counts,
    check_floating,
    check_numbers,
    checked_positive,
    checked_size,
)
from drrkit.geometry.frames import (
    GridConstants,
    VolumeLike,
    frames_of_rays,
    grid_constants,
    view_frames,
    volume_center,
)
from drrkit.geometry.pnp import reprojection_rms, solve_pnp
from drrkit.geometry.se3 import (
    assemble,
    perturb,
    quaternion_rotation,
    se3_exp,
    se3_log,
    so3_exp,
    so3_log,
)
from drrkit.geometry.views import view_ap, view_carm, view_left_lateral, view_pa, view_right_lateral

__all__ = [
    "ORIGINS",
    "CArm",
    "Camera",
    "CameraSigma",
    "GridConstants",
    "VolumeLike",
    "assemble",
    "batched",
    "batched_pose",
    "check_counts",
    "check_floating",
    "check_numbers",
    "checked_positive",
    "checked_size",
    "frames_of_rays",
    "grid_constants",
    "perturb",
    "project_points",
    "quaternion_rotation",
    "reprojection_rms",
    "se3_exp",
    "se3_log",
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
]
