"""Training CDreg: the pose gradient's objective and the decomposition of features, weighed."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from drrkit.similarity.networks.cdreg import CDReg, decomposition_loss
from drrkit.similarity.tasks.objectives import objective_loss
from drrkit.similarity.tasks.similarity_task import SimilarityTask

__all__ = ["CDRegTask"]


class CDRegTask(SimilarityTask):
    """A SimilarityTask with CDreg's second loss: L_appro and L_decomp under learned uncertainties.

    L_appro is the recipe's objective; published is the geodesic one. Arguments as there, the model
    a CDReg.
    """

    def losses(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """ "loss", the weighted sum of "approach" and "decomposition", and these."""
        patient, theta, target, xray = self.batch(step, rank)
        model = cast(CDReg, self.model)
        features = model.features(self.projections(patient, theta), xray)
        similarity = model.score(features)
        approach = objective_loss(self.recipe.objective, similarity, theta, target)
        decomposition = decomposition_loss(features).to(approach)
        loss = model.uncertainty(approach, decomposition)
        return {"loss": loss, "approach": approach, "decomposition": decomposition}
