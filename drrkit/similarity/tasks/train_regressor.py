"""Training of pose regressors: from moving poses to true ones, rendered as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, StepLR

from drrkit.geometry import Camera
from drrkit.metrics import mtre
from drrkit.projector import render
from drrkit.similarity.networks.interfaces import PosePairs, PoseRegressor
from drrkit.similarity.tasks.pose_sampling import SAMPLINGS, PoseSampling
from drrkit.similarity.tasks.train_similarity import PatientTask, Synthesis, TrainingPatient
from drrkit.training import generator

# Keeps the stream of validation's random numbers apart from those of training.
_VALIDATION_STREAM = 104_729


@dataclass(frozen=True)
class RegressorRecipe:
    """How a regressor is trained.

    Attributes:
        sampling: of moving and true poses.
        batch: image pairs per step, all of one patient.
        rounds: updates in a row that are trained in a step, each from where the last one ended.
        rate: of Adam; with `cycle`, the largest.
        betas: of Adam.
        decay: of weights.
        cycle: steps in which the rate rises from rate / 100 to `rate`, and in which it falls; None:
            it is multiplied by `factor` every `every` steps.
        validation_pairs: pose pairs for each held-out patient.
        points: of bone per patient, for losses and errors.
        seed: of patients, poses and noise.
    """

    sampling: PoseSampling
    batch: int = 16
    rounds: int = 1
    rate: float = 1e-4
    betas: tuple[float, float] = (0.8, 0.999)
    decay: float = 0.0
    cycle: int | None = None
    factor: float = 0.9
    every: int = 1000
    validation_pairs: int = 16
    points: int = 3000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "rounds", "every", "validation_pairs", "points"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)!r}")
        if not self.rate > 0:
            raise ValueError(f"rate: expected a positive number, got {self.rate!r}")


REGRESSOR_RECIPES: dict[str, RegressorRecipe] = {
    "deepim": RegressorRecipe(SAMPLINGS["prost"], rounds=4),
    "dmw": RegressorRecipe(SAMPLINGS["prost"]),
    "initialiser": RegressorRecipe(
        PoseSampling(target=(20.0, 10.0, 10.0, 30.0, 30.0, 75.0), moving=(0.0,) * 6),
        batch=4,
        rate=1e-3,
        betas=(0.9, 0.999),
        decay=0.01,
        cycle=100,
    ),
}
"""Published recipes by a regressor's kind. deepim and dmw: the journal's (ProST, TMI 2024); 20
epochs between falls of the rate are 1000 steps at its 50 steps per epoch. initialiser: that of
SOPI's code, whose batches of one are accumulated by fours; true poses fill its ranges, and moving
ones are the reference view."""


class RegressorTask(PatientTask):
    """Trains a PoseRegressor. Satisfies drrkit.training.Task.

    One batch: a patient, X-rays of the full CT at true poses, renderings of its bones at moving
    poses, and the regressor's `loss` of its predictions. Arguments as of PatientTask, and a recipe,
    by default the published one of the regressor's kind. Without `held_out` the patients
    themselves validate.

    Raises:
        ValueError: no patients, one without bone, or one that is trained and validated on.
    """

    def __init__(
        self,
        model: PoseRegressor,
        patients: Sequence[TrainingPatient],
        held_out: Sequence[TrainingPatient],
        camera: Camera,
        recipe: RegressorRecipe | None = None,
        *,
        synthesise: Synthesis | None = None,
        randomise: Callable[[Tensor, int], Tensor] | None = None,
    ) -> None:
        self.recipe = REGRESSOR_RECIPES[model.kind] if recipe is None else recipe
        sampling = self.recipe.sampling
        super().__init__(model, patients, held_out, camera, sampling, synthesise, randomise)
        everybody = [*patients, *held_out]
        self._points = {p.name: p.bone_points(self.recipe.points) for p in everybody}

    def optimiser(self) -> Optimizer:
        """Adam, by the recipe."""
        recipe = self.recipe
        return Adam(self.weights(), recipe.rate, recipe.betas, weight_decay=recipe.decay)

    def schedule(self, optimiser: Optimizer) -> LRScheduler:
        """Of the learning rate, by the recipe: triangles or steps."""
        rate, cycle = self.recipe.rate, self.recipe.cycle
        if cycle is None:
            return StepLR(optimiser, self.recipe.every, self.recipe.factor)
        return CyclicLR(optimiser, rate / 100, rate, cycle, cycle_momentum=False)

    def losses(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """The mean loss over the rounds as "loss", and the mTRE (mm) after the last one."""
        draw = generator(self.recipe.seed, step, rank)
        pairs = self._pairs(self.drawn_patient(draw), self.recipe.batch, draw, randomised=True)
        loss, end = self._rounds(pairs)
        return {"loss": loss, "mtre": mtre(end, pairs.target, pairs.points).mean()}

    def validate(self) -> dict[str, float]:
        """Of held-out patients at fixed poses: the loss, and the mTRE (mm) before and after.

        "start_mtre", "mtre": means over all pairs before and after the rounds; "median_mtre".
        """
        losses, before, after = [], [], []
        with torch.no_grad():
            for number, patient in enumerate(self.held_out or self.patients):
                draw = generator(self.recipe.seed + _VALIDATION_STREAM, number, 0)
                pairs = self._pairs(patient, self.recipe.validation_pairs, draw, randomised=False)
                loss, end = self._rounds(pairs)
                losses.append(float(loss))
                before.append(mtre(pairs.world_to_camera, pairs.target, pairs.points))
                after.append(mtre(end, pairs.target, pairs.points))
        found = torch.cat(after)
        return {
            "loss": sum(losses) / len(losses),
            "start_mtre": float(torch.cat(before).mean()),
            "mtre": float(found.mean()),
            "median_mtre": float(found.median()),
        }

    def _pairs(
        self, patient: TrainingPatient, count: int, draw: torch.Generator, randomised: bool
    ) -> PosePairs:
        theta, target, xray = self.views(patient, count, draw, randomised)
        pose, true = (patient.chart.world_to_camera(t).to(theta.device) for t in (theta, target))
        points = self._points[patient.name]
        return PosePairs(patient.moving, self.camera, xray, pose, true, points)

    def _rounds(self, pairs: PosePairs) -> tuple[Tensor, Tensor]:
        """The mean of the rounds' losses, and the poses [B, 4, 4] where they end."""
        total = pairs.fixed.new_zeros(())
        for _ in range(self.recipe.rounds):
            with torch.no_grad():
                moving = render(pairs.volume, self.camera, pairs.world_to_camera)
            prediction = self.model.predict(moving, pairs.fixed, pairs.volume)
            total = total + self.model.loss(prediction, pairs).to(total)
            with torch.no_grad():
                end = self.model.apply(prediction, pairs.world_to_camera, pairs.center)
            pairs = replace(pairs, world_to_camera=end)
        return total / self.recipe.rounds, pairs.world_to_camera
