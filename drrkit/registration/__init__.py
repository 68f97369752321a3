"""2D/3D registration: find the pose of a volume from X-ray images.

A stage says what to minimise, at which resolution and with which optimiser; a pipeline is stages in
order, the result of one starting the next; everything works on a batch of poses.

pipeline: register(). stages, presets: what pipelines are made of. problem/: X-rays, cameras,
bodies, starts and the loss. search/: without a start. optimisers/: from a start. similarities,
lengths: what is compared and measured by. result, certainty: what comes out and how sure it is.
sequence: frames of a moving patient. intrinsics: focal length and principal point. progress: bars
and Ctrl-C.
"""

from drrkit.registration.intrinsics import CalibrationResult, refine_intrinsics
from drrkit.registration.lengths import Share, extent_mm, mean_depth, pixel_at
from drrkit.registration.optimisers import (
    OPTIMISERS,
    CmaEs,
    Descent,
    Directions,
    Levenberg,
    Optimiser,
    Regressor,
    TrustRegion,
)
from drrkit.registration.pipeline import Registrar, register
from drrkit.registration.presets import AUTO, FOLLOW, FOLLOW_PART, GLOBAL, PART, PIPELINES, hybrid
from drrkit.registration.problem.bodies import Bodies
from drrkit.registration.problem.formation import FORMATIONS, is_implant
from drrkit.registration.problem.landmarks import LandmarkPose, Landmarks
from drrkit.registration.problem.loss import objective
from drrkit.registration.problem.motion import motion_of
from drrkit.registration.problem.prior import PosePrior
from drrkit.registration.problem.scan import ScanScene
from drrkit.registration.problem.views import View, downsampling, make_views, rig_of
from drrkit.registration.result import (
    DEPTH_LIMIT_MM,
    REASONS,
    SURE,
    TRUSTED,
    RegistrationResult,
    RunnerUp,
    StageRecord,
    is_accepted,
)
from drrkit.registration.sequence import SequenceResult, register_sequence, smooth_poses
from drrkit.registration.similarities import SIMILARITIES, Similarity
from drrkit.registration.stages import Search, Stage

__all__ = [
    "AUTO",
    "DEPTH_LIMIT_MM",
    "FOLLOW",
    "FOLLOW_PART",
    "FORMATIONS",
    "GLOBAL",
    "OPTIMISERS",
    "PART",
    "PIPELINES",
    "REASONS",
    "SIMILARITIES",
    "SURE",
    "TRUSTED",
    "Bodies",
    "CalibrationResult",
    "CmaEs",
    "Descent",
    "Directions",
    "LandmarkPose",
    "Landmarks",
    "Levenberg",
    "Optimiser",
    "PosePrior",
    "Registrar",
    "RegistrationResult",
    "Regressor",
    "RunnerUp",
    "ScanScene",
    "Search",
    "SequenceResult",
    "Share",
    "Similarity",
    "Stage",
    "StageRecord",
    "TrustRegion",
    "View",
    "downsampling",
    "extent_mm",
    "hybrid",
    "is_accepted",
    "is_implant",
    "make_views",
    "mean_depth",
    "motion_of",
    "objective",
    "pixel_at",
    "refine_intrinsics",
    "register",
    "register_sequence",
    "rig_of",
    "smooth_poses",
]
