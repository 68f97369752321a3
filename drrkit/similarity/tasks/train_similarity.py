"""Training of similarities: patients, the double backward pass of one batch, its validation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR

from drrkit.geometry import (
    Camera,
    GridConstants,
    grid_constants,
    project_points,
    view_ap,
    view_frames,
)
from drrkit.projector import project, render
from drrkit.similarity.networks.cdreg import CDReg, decomposition_loss
from drrkit.similarity.networks.interfaces import BoneNetwork
from drrkit.similarity.networks.layers import CT_ENERGY_KEV
from drrkit.similarity.tasks.objectives import (
    OBJECTIVES,
    cosines,
    direction_distance,
    geodesic_gradient,
    objective_loss,
    pose_gradient,
)
from drrkit.similarity.tasks.pose_sampling import PoseChart, PoseSampling
from drrkit.training import drawn_integer, generator
from drrkit.volume import Volume
from drrkit.xray import simulate_xray

Synthesis = Callable[[Volume, Camera, Tensor, int], Tensor]
"""synthesise(ct in HU, camera, world_to_camera [B, 4, 4], seed) -> X-rays [B, 1, rows, cols] on the
scale of line integrals, without gradient."""

# Keeps the stream of validation's random numbers apart from those of training.
_VALIDATION_STREAM = 7_919

LEAST_IN_VIEW, ENOUGH_IN_VIEW = 0.10, 2 / 3
"""Mean shares of the bone in view: below the first training is refused, below the second warned."""


def simulated(ct: Volume, camera: Camera, world_to_camera: Tensor, seed: int) -> Tensor:
    """The default synthesis: `simulate_xray` with a 90 kV spectrum and 4 rays per pixel."""
    return simulate_xray(ct, camera, world_to_camera, supersample=2, seed=seed)


def bone_center(moving: Volume) -> Tensor:
    """The centre of the box of a moving volume's voxels that are not 0: [3] float64 world mm.

    Raises:
        ValueError: all are 0.
    """
    index = moving.values.nonzero().flip(-1).double()
    if len(index) == 0:
        raise ValueError("moving: expected a volume with bone, got one without")
    return moving.index_to_world((index.amin(0) + index.amax(0)) / 2)


class TrainingPatient(NamedTuple):
    """A CT as training uses it.

    Attributes:
        name: for splits and reports.
        ct: in HU, from which X-rays are synthesised.
        moving: what the network reads of it (`BoneNetwork.moving`), on one device.
        grid: of `moving`.
        chart: theta <-> poses.
    """

    name: str
    ct: Volume
    moving: Volume
    grid: GridConstants
    chart: PoseChart

    @staticmethod
    def of(
        name: str,
        ct: Volume,
        network: BoneNetwork,
        *,
        sod: float = 800.0,
        reference: Tensor | None = None,
        bones: Sequence[int] | None = None,
        moves: str = "patient",
        center: Tensor | None = None,
    ) -> TrainingPatient:
        """A CT in HU, made ready for a network.

        Args:
            sod: distance of `center` from the source in the reference view, an AP view.
            reference: [4, 4] world_to_camera of another reference view, instead of `sod`.
            bones: labels of `ct` that the moving volume shows; None: by the network's threshold.
            moves: see PoseChart.
            center: [3] world mm that views are centred on and poses turn about; default
                `bone_center` of what moves. Registration with the network turns about it best, too.

        Raises:
            ValueError: no voxel of the moving volume is bone.
        """
        scene = (ct if bones is None else ct.select(bones)).to_mu(CT_ENERGY_KEV)
        moving = network.moving(scene)
        if center is None:
            try:
                center = bone_center(moving)
            except ValueError:
                raise ValueError(f"patients: expected bone in all, got none in {name!r}") from None
        if reference is None:
            reference = view_ap(ct, sod)[0]
            ahead = reference.new_tensor((0.0, 0.0, sod))
            reference[:3, 3] = ahead - reference[:3, :3] @ center.to(reference)
        chart = PoseChart(ct, reference, moves, center)
        return TrainingPatient(name, ct, moving, grid_constants(moving), chart)

    def share_in_view(self, camera: Camera, theta: Tensor) -> Tensor:
        """The share of the bone's voxels that poses theta [B, 6] show on the detector: [B]."""
        pose = self.chart.world_to_camera(theta)
        place = project_points(camera, pose, self.bone_points(500)) + 0.5
        size = place.new_tensor(camera.size)
        return ((place >= 0) & (place < size)).all(-1).double().mean(-1)

    def bone_points(self, count: int) -> Tensor:
        """Up to `count` random voxels of bone: [P, 3] float64 world mm."""
        index = self.moving.values.nonzero().flip(-1)
        chosen = torch.randperm(len(index), generator=generator(0))[:count].to(index.device)
        return self.moving.index_to_world(index[chosen].double())


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
        for name in ("batch", "steps", "validation_pairs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)!r}")
        if not self.rate > 0:
            raise ValueError(f"rate: expected a positive number, got {self.rate!r}")


class PatientTask:
    """The part that trainings of similarities and of regressors share: patients and their X-rays.

    Args:
        model: the network, on the patients' device.
        patients: to train on, made for this network (`TrainingPatient.of`).
        held_out: to validate on, none of them in `patients`.
        camera: of all images.
        sampling: of the poses.
        synthesise: makes the X-rays; default `simulated`.
        randomise: domain randomisation of X-rays: (images [B, 1, r, c], seed) -> images; not used
            in validation.

    Raises:
        ValueError: no patients, one that is trained and validated on, or one of whose bone the
            drawn poses show less than 10 % on average; below two thirds there is a warning.
    """

    def __init__(
        self,
        model: BoneNetwork,
        patients: Sequence[TrainingPatient],
        held_out: Sequence[TrainingPatient],
        camera: Camera,
        sampling: PoseSampling,
        synthesise: Synthesis | None,
        randomise: Callable[[Tensor, int], Tensor] | None,
    ) -> None:
        if not patients:
            raise ValueError("patients: expected at least one, got none")
        shared = {p.name for p in patients} & {p.name for p in held_out}
        if shared:
            raise ValueError(f"held_out: {sorted(shared)} are trained on, too")
        self.model: Any = model
        self.patients, self.held_out = list(patients), list(held_out)
        self.camera, self.sampling = camera, sampling
        self.synthesise = simulated if synthesise is None else synthesise
        self.randomise = randomise
        self._check_views()

    def _check_views(self) -> None:
        shares: dict[str, float] = {}
        for patient in (*self.patients, *self.held_out):
            theta = torch.cat(self.sampling.draw(patient.chart, 32, generator(0)))
            shares[patient.name] = float(patient.share_in_view(self.camera, theta).mean())
        worst = min(shares, key=shares.__getitem__)
        share = 100 * shares[worst]
        said = f"{share:.0f} % of the bone of {worst!r} is in view on average over the drawn poses"
        if shares[worst] < LEAST_IN_VIEW:
            raise ValueError(
                f"patients: {said}, expected at least {100 * LEAST_IN_VIEW:.0f} %; select a "
                "smaller bone, or use a larger detector"
            )
        if shares[worst] < ENOUGH_IN_VIEW:
            warnings.warn(f"patients: only {said}", stacklevel=4)

    def example(self, count: int = 4) -> Tensor:
        """A training batch to look at: images [count, 3, rows, cols].

        Channels: the X-ray as the network is trained on it; the bone at its true pose; the bone at
        the moving pose.
        """
        draw = generator(0)
        patient = self.drawn_patient(draw)
        theta, target, xray = self.views(patient, count, draw, randomised=True)
        with torch.no_grad():
            bones = [
                render(patient.moving, self.camera, patient.chart.world_to_camera(t))
                for t in (target, theta)
            ]
        return torch.cat((xray, *(bone.to(xray) for bone in bones)), 1)

    def weights(self) -> list[torch.nn.Parameter]:
        """The parameters that are trained."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def drawn_patient(self, draw: torch.Generator) -> TrainingPatient:
        """One of the patients to train on."""
        return self.patients[drawn_integer(draw, len(self.patients))]

    def views(
        self, patient: TrainingPatient, count: int, draw: torch.Generator, randomised: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Moving and true poses theta [count, 6], and X-rays [count, 1, r, c] at the true ones."""
        theta, target = self.sampling.draw(patient.chart, count, draw)
        device = patient.moving.values.device
        with torch.no_grad():
            pose = patient.chart.world_to_camera(target).to(device)
            xray = self.synthesise(patient.ct, self.camera, pose, drawn_integer(draw)).float()
        if randomised and self.randomise is not None:
            xray = self.randomise(xray, drawn_integer(draw))
        return theta.to(device), target.to(device), xray


class SimilarityTask(PatientTask):
    """Trains S so that its pose gradient points along that of the geodesic distance.

    One batch: a patient, pairs of a moving and a true pose; X-rays of the full CT at the true
    poses, projections of the network's channels at the moving poses, S, and the objective, whose
    gradient goes through dS / d pose into the weights: twice through the projector.

    Satisfies drrkit.training.Task. Arguments as of PatientTask, and a recipe.
    """

    def __init__(
        self,
        model: BoneNetwork,
        patients: Sequence[TrainingPatient],
        held_out: Sequence[TrainingPatient],
        camera: Camera,
        sampling: PoseSampling,
        recipe: TrainingRecipe,
        *,
        synthesise: Synthesis | None = None,
        randomise: Callable[[Tensor, int], Tensor] | None = None,
    ) -> None:
        super().__init__(model, patients, held_out, camera, sampling, synthesise, randomise)
        self.recipe = recipe

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
        draw = generator(self.recipe.seed + _VALIDATION_STREAM, number, 0)
        pairs = self.recipe.validation_pairs
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
