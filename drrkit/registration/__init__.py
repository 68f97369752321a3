"""2D/3D registration: find the pose of a volume from X-ray images.

A stage says what to minimise, at which resolution and with which step lengths; a pipeline is stages
in order, the result of one starting the next; everything works on a batch of poses.
"""

from drrkit.registration.pipeline import register
from drrkit.registration.result import RegistrationResult, StageRecord
from drrkit.registration.stages import AUTO, SIMILARITIES, Stage

__all__ = ["AUTO", "SIMILARITIES", "RegistrationResult", "Stage", "StageRecord", "register"]
