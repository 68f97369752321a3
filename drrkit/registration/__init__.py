"""2D/3D registration: find the pose of a volume from X-ray images.

A stage says what to minimise, at which resolution and with which step lengths; a pipeline is stages
in order, the result of one starting the next; everything works on a batch of poses.
"""

from drrkit.registration.hybrid import hybrid
from drrkit.registration.intrinsics import CalibrationResult, refine_intrinsics
from drrkit.registration.pipeline import register
from drrkit.registration.presets import AUTO, GLOBAL, PIPELINES
from drrkit.registration.problem.bodies import Bodies
from drrkit.registration.problem.landmarks import LandmarkPose, Landmarks
from drrkit.registration.problem.motion import mean_depth, motion_of
from drrkit.registration.problem.prior import PosePrior
from drrkit.registration.problem.views import (
    View,
    downsampling,
    make_views,
    objective,
    pixel_at,
    rig_of,
)
from drrkit.registration.result import DEPTH_LIMIT_MM, TRUSTED, RegistrationResult, StageRecord
from drrkit.registration.sequence import FOLLOW, SequenceResult, register_sequence
from drrkit.registration.stages import OPTIMISERS, SIMILARITIES, Search, Similarity, Stage

__all__ = [
    "AUTO",
    "DEPTH_LIMIT_MM",
    "FOLLOW",
    "GLOBAL",
    "OPTIMISERS",
    "PIPELINES",
    "SIMILARITIES",
    "TRUSTED",
    "Bodies",
    "CalibrationResult",
    "LandmarkPose",
    "Landmarks",
    "PosePrior",
    "RegistrationResult",
    "Search",
    "SequenceResult",
    "Similarity",
    "Stage",
    "StageRecord",
    "View",
    "downsampling",
    "hybrid",
    "make_views",
    "mean_depth",
    "motion_of",
    "objective",
    "pixel_at",
    "refine_intrinsics",
    "register",
    "register_sequence",
    "rig_of",
]
