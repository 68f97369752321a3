"""2D/3D registration: find the pose of a volume from X-ray images.

A stage says what to minimise, at which resolution and with which step lengths; a pipeline is stages
in order, the result of one starting the next; everything works on a batch of poses.
"""

from drrkit.registration.bodies import Bodies
from drrkit.registration.hybrid import hybrid
from drrkit.registration.intrinsics import CalibrationResult, refine_intrinsics
from drrkit.registration.landmarks import LandmarkPose, Landmarks
from drrkit.registration.pipeline import register
from drrkit.registration.presets import AUTO, GLOBAL, PIPELINES
from drrkit.registration.prior import PosePrior
from drrkit.registration.result import (
    DEPTH_LIMIT_MM,
    TRUSTED,
    RegistrationResult,
    StageRecord,
)
from drrkit.registration.sequence import FOLLOW, SequenceResult, register_sequence
from drrkit.registration.stages import OPTIMISERS, SIMILARITIES, Search, Stage
from drrkit.registration.views import rig_of

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
    "Stage",
    "StageRecord",
    "hybrid",
    "refine_intrinsics",
    "register",
    "register_sequence",
    "rig_of",
]
