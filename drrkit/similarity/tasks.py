"""Training of similarities (the double backward pass of one batch) and of pose regressors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, StepLR

from drrkit.geometry import Camera, check_counts, check_numbers, view_frames
from drrkit.metrics import mtre
from drrkit.projector import project, render
from drrkit.similarity.cdreg import CDReg, decomposition_loss
from drrkit.similarity.networks import PosePairs, PoseRegressor
from drrkit.similarity.objectives import (
    OBJECTIVES,
    cosines,
    direction_distance,
    geodesic_gradient,
    objective_loss,
    pose_gradient,
)
from drrkit.similarity.patients import PatientTask, TrainingPatient
from drrkit.similarity.poses import SAMPLINGS, PoseSampling
from drrkit.training import generator


@dataclass(frozen=True)
class TrainingRecipe:
    """How a similarity is trained.

    Attributes:
        objective: see `objectives`.
        batch: image pairs per step, all of one patient, so that the 3D network runs once.
        optimiser: "adam", or "sgd" with momentum 0.9 as published.
        rate: learning rate; with "cyclic" the highest.
        schedule: "cyclic" between rate / 100 and rate, up and down in 200 steps, as published
            (1e-6 to 1e-4); "cosine", down to a hundredth in `steps`, after a rise over the first
            twentieth; "constant".
        steps: of the cosine schedule.
        validation_pairs: pose pairs for each held-out patient.
        seed: of patients, poses and noise.
    """

    objective: str = "direction"
    batch: int = 4
    optimiser: str = "adam"
    rate: float = 1e-3
    schedule: str = "cosine"
    steps: int = 2000
    validation_pairs: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {
            "objective": OBJECTIVES,
            "optimiser": ("adam", "sgd"),
            "schedule": ("cyclic", "cosine", "constant"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {known}, got {getattr(self, name)!r}")
        check_numbers(rate=self.rate)
        check_counts(batch=self.batch, steps=self.steps, validation_pairs=self.validation_pairs)


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
        check_numbers(rate=self.rate)
        check_counts(batch=self.batch, rounds=self.rounds, every=self.every)
        check_counts(validation_pairs=self.validation_pairs, points=self.points)


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


class SimilarityTask(PatientTask):
    """Trains S so that its pose gradient points along that of the geodesic distance.

    One batch: a patient, pairs of a moving and a true pose; X-rays of the full CT at the true
    poses, projections of the network's channels at the moving poses, S, and the objective, whose
    gradient goes through dS / d pose into the weights: twice through the projector.

    Satisfies drrkit.training.Task. Arguments as of PatientTask, with a TrainingRecipe.
    """

    stream = 7_919

    def optimiser(self) -> Optimizer:
        """Of all weights, by the recipe."""
        if self.recipe.optimiser == "sgd":
            return SGD(self.weights(), lr=self.recipe.rate, momentum=0.9)
        return Adam(self.weights(), lr=self.recipe.rate)

    def schedule(self, optimiser: Optimizer) -> LRScheduler | None:
        """Of the learning rate, by the recipe."""
        rate = self.recipe.rate
        if self.recipe.schedule == "cyclic":
            return CyclicLR(optimiser, rate / 100, rate, step_size_up=100, cycle_momentum=False)
        if self.recipe.schedule == "cosine":
            return OneCycleLR(
                optimiser,
                max_lr=rate,
                total_steps=self.recipe.steps + 1,
                pct_start=0.05,
                div_factor=10,
                final_div_factor=10,
                cycle_momentum=False,
            )
        return None

    def losses(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """The objective of one batch as "loss"."""
        patient, theta, target, xray = self.batch(step, rank)
        similarity = self.similarity(patient, theta, xray)
        return {"loss": objective_loss(self.recipe.objective, similarity, theta, target)}

    def batch(self, step: int, rank: int) -> tuple[TrainingPatient, Tensor, Tensor, Tensor]:
        """A patient, moving poses theta [B, 6] that require a gradient, true ones, their X-rays."""
        draw = generator(self.recipe.seed, step, rank)
        patient = self.drawn_patient(draw)
        theta, target, xray = self.views(patient, self.recipe.batch, draw, randomised=True)
        return patient, theta.requires_grad_(), target, xray

    def similarity(
        self, patient: TrainingPatient, theta: Tensor, xray: Tensor, values: Tensor | None = None
    ) -> Tensor:
        """S [B] of a patient at poses theta [B, 6] with X-rays, differentiable in both orders.

        values: the network's channels, if they are known.
        """
        return self.model(self.projections(patient, theta, values), xray)

    def projections(
        self, patient: TrainingPatient, theta: Tensor, values: Tensor | None = None
    ) -> Tensor:
        """A patient's channels at poses theta [B, 6]: [B, C, rows, cols]; arguments as above."""
        if values is None:
            values = self.model.channels(patient.moving.values)
        pose = patient.chart.world_to_camera(theta)
        frames = view_frames(patient.grid, self.camera, pose, extend=True)
        return project(values, frames, self.camera.size, spacing=patient.moving.spacing)

    def validate(self) -> dict[str, float]:
        """On held-out patients at fixed poses: how well pose gradients point.

        "cosine_rotation", "cosine_translation": means over all pairs of the cosine with the
        geodesic gradient; "cosine": of all six numbers, both halves scaled to length one;
        "loss": the direction objective, 4 (1 - cosine).
        """
        found = [self._gradients(patient, number) for number, patient in enumerate(self.held_out)]
        if not found:
            return {}
        gradient, wanted = (torch.cat(part) for part in zip(*found, strict=True))
        rotation, translation = cosines(gradient, wanted)
        return {
            "loss": float(direction_distance(gradient, wanted).mean()),
            "cosine": float((rotation + translation).mean() / 2),
            "cosine_rotation": float(rotation.mean()),
            "cosine_translation": float(translation.mean()),
        }

    def _gradients(self, patient: TrainingPatient, number: int) -> tuple[Tensor, Tensor]:
        """Pose gradients of S and of the geodesic distance, [pairs, 6] each."""
        draw, pairs = self.validation_draw(number), self.recipe.validation_pairs
        theta, target, xray = self.views(patient, pairs, draw, randomised=False)
        with torch.no_grad():
            values = self.model.channels(patient.moving.values)
        theta.requires_grad_()
        with torch.enable_grad():
            gradient = pose_gradient(self.similarity(patient, theta, xray, values), theta)
        return gradient, geodesic_gradient(theta, target)


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


class RegressorTask(PatientTask):
    """Trains a PoseRegressor. Satisfies drrkit.training.Task.

    One batch: a patient, X-rays of the full CT at true poses, renderings of its bones at moving
    poses, and the regressor's `loss` of its predictions. Arguments as of PatientTask, but the poses
    are drawn by the recipe, by default the published one of the regressor's kind. Without
    `held_out` the patients themselves validate.

    Raises:
        ValueError: no patients, one without bone, or one that is trained and validated on.
    """

    stream = 104_729

    def __init__(
        self,
        model: PoseRegressor,
        patients: Sequence[TrainingPatient],
        held_out: Sequence[TrainingPatient],
        camera: Camera,
        recipe: RegressorRecipe | None = None,
        **xrays: Any,
    ) -> None:
        recipe = REGRESSOR_RECIPES[model.kind] if recipe is None else recipe
        super().__init__(model, patients, held_out, camera, recipe.sampling, recipe, **xrays)
        self._points = {p.name: p.bone_points(recipe.points) for p in (*patients, *held_out)}

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
                draw = self.validation_draw(number)
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
