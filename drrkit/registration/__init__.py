"""2D/3D registration: find the pose of a volume from X-ray images.

A stage says what to minimise, at which resolution and with which step lengths; a pipeline is stages
in order, the result of one starting the next; everything works on a batch of poses.
"""

from drrkit.registration.bodies import Bodies
from drrkit.registration.landmarks import LandmarkPose, Landmarks
from drrkit.registration.pipeline import register
from drrkit.registration.presets import AUTO, GLOBAL, PIPELINES
from drrkit.registration.prior import PosePrior
from drrkit.registration.result import DEPTH_LIMIT_MM, RegistrationResult, StageRecord
from drrkit.registration.stages import OPTIMISERS, SIMILARITIES, Search, Stage
from drrkit.registration.views import rig_of

__all__ = [
    "AUTO",
    "DEPTH_LIMIT_MM",
    "GLOBAL",
    "OPTIMISERS",
    "PIPELINES",
    "SIMILARITIES",
    "Bodies",
    "LandmarkPose",
    "Landmarks",
    "PosePrior",
    "RegistrationResult",
    "Search",
    "Stage",
    "StageRecord",
    "register",
    "rig_of",
]
