"""2D/3D registration: find the pose of a volume from X-ray images.

A stage says what to minimise, at which resolution and with which step lengths; a pipeline is stages
in order, the result of one starting the next; everything works on a batch of poses.
"""

from drrkit.registration.hybrid import hybrid
from drrkit.registration.pipeline import register
from drrkit.registration.presets import AUTO, GLOBAL, PIPELINES
from drrkit.registration.result import RegistrationResult, StageRecord
from drrkit.registration.stages import OPTIMISERS, SIMILARITIES, Search, Stage

__all__ = [
    "AUTO",
    "GLOBAL",
    "OPTIMISERS",
    "PIPELINES",
    "SIMILARITIES",
    "RegistrationResult",
    "Search",
    "Stage",
    "StageRecord",
    "hybrid",
    "register",
]
