"""Learned similarities: networks whose gradient in the pose is trained to point at the true pose.

`build` makes one by name, `save_similarity` and `load_similarity` keep it; `drrkit.register` takes
it wherever a Stage takes a similarity. `SimilarityTask` is what `drrkit.training.train` trains.
Pose regressors, which the learned similarities are compared with, are built and kept alike;
`RegressorTask` trains them, and Stage(optimiser=Regressor(...)) uses them.

networks: interfaces, and layers that several networks share. prost, cdreg, sopi, regressors: the
published networks. storage: networks by name and in files. objectives: the losses of gradients.
poses, patients: what training draws. tasks: one batch of training, recipes.
"""

from drrkit.similarity.networks import BoneNetwork, LearnedSimilarity, PosePairs, PoseRegressor
from drrkit.similarity.objectives import (
    OBJECTIVES,
    cosines,
    direction_distance,
    geodesic_distance,
    geodesic_gradient,
    geodesic_loss,
    objective_loss,
    pose_gradient,
)
from drrkit.similarity.patients import Synthesis, TrainingPatient, bone_center, simulated
from drrkit.similarity.poses import SAMPLINGS, PoseChart, PoseSampling
from drrkit.similarity.storage import (
    KINDS,
    MEASURED,
    NETWORKS,
    Configuration,
    build,
    construct,
    load_similarity,
    save_similarity,
)
from drrkit.similarity.tasks import (
    REGRESSOR_RECIPES,
    CDRegTask,
    RegressorRecipe,
    RegressorTask,
    SimilarityTask,
    TrainingRecipe,
)

__all__ = [
    "KINDS",
    "MEASURED",
    "NETWORKS",
    "OBJECTIVES",
    "REGRESSOR_RECIPES",
    "SAMPLINGS",
    "BoneNetwork",
    "CDRegTask",
    "Configuration",
    "LearnedSimilarity",
    "PoseChart",
    "PosePairs",
    "PoseRegressor",
    "PoseSampling",
    "RegressorRecipe",
    "RegressorTask",
    "SimilarityTask",
    "Synthesis",
    "TrainingPatient",
    "TrainingRecipe",
    "bone_center",
    "build",
    "construct",
    "cosines",
    "direction_distance",
    "geodesic_distance",
    "geodesic_gradient",
    "geodesic_loss",
    "load_similarity",
    "objective_loss",
    "pose_gradient",
    "save_similarity",
    "simulated",
]
