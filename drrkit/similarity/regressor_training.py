"""Training pose regressors: pairs of poses about a view, rendered as they are needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, StepLR

from drrkit.geometry import Camera, so3_exp, view_ap, volume_center
from drrkit.metrics import mtre
from drrkit.projector import Projector
from drrkit.similarity.pose_updates import moved
from drrkit.similarity.regressor import Pairs, PoseRegressor
from drrkit.training import generator
from drrkit.volume import Volume

__all__ = ["RECIPES", "PoseSpread", "Recipe", "RegressorTask"]

VALIDATION_STEP = 2**31
"""The number that stands for a step where validation draws: no training step has it."""


@dataclass(frozen=True)
class PoseSpread:
    """How poses scatter about another: turns and shifts in camera axes about the volume's centre.

    Attributes:
        rotation_deg: of the rotation vector along x, y and z: half ranges, or standard deviations.
        shift_mm: of the centre's shift along x, y and z (depth).
        normal: normal rather than uniform.
    """

    rotation_deg: tuple[float, float, float]
    shift_mm: tuple[float, float, float]
    normal: bool = False

    def draw(self, world_to_camera: Tensor, center: Tensor, draws: torch.Generator) -> Tensor:
        """One pose near each of [B, 4, 4] float64: [B, 4, 4]."""
        shape = (len(world_to_camera), 6)
        if self.normal:
            numbers = torch.randn(shape, generator=draws, dtype=torch.float64)
        else:
            numbers = 2 * torch.rand(shape, generator=draws, dtype=torch.float64) - 1
        numbers = numbers.to(world_to_camera.device)
        turn, shift = numbers.split(3, 1)
        turn = turn * torch.tensor(self.rotation_deg).to(turn) * math.pi / 180
        shift = shift * torch.tensor(self.shift_mm).to(shift)
        place = world_to_camera[:, :3, :3] @ center.to(shift) + world_to_camera[:, :3, 3]
        return moved(world_to_camera, so3_exp(turn), place + shift, center)


@dataclass(frozen=True)
class Recipe:
    """How a regressor is trained.

    Attributes:
        targets: true poses about the view.
        starts: poses to improve about the view; None: at the view.
        batch: poses a step.
        rounds: updates in a row that are trained in a step, each from where the last one ended.
        rate: of Adam; with `cycle`, the largest.
        betas, decay: of Adam, decay that of weights.
        cycle: steps in which the rate rises from rate / 100 to `rate`, and in which it falls; None:
            it is multiplied by `factor` every `every` steps.
    """

    targets: PoseSpread
    starts: PoseSpread | None
    batch: int = 16
    rounds: int = 1
    rate: float = 1e-4
    betas: tuple[float, float] = (0.8, 0.999)
    decay: float = 0.0
    cycle: int | None = None
    factor: float = 0.9
    every: int = 1000


_PROST_TARGETS = PoseSpread((15.0, 15.0, 15.0), (25.0, 25.0, 25.0))
_PROST_STARTS = PoseSpread((25.0, 25.0, 25.0), (25.0, 25.0, 60.0), normal=True)

RECIPES: dict[str, Recipe] = {
    "deepim": Recipe(_PROST_TARGETS, _PROST_STARTS, rounds=4),
    "dmw": Recipe(_PROST_TARGETS, _PROST_STARTS),
    "initialiser": Recipe(
        PoseSpread((20.0, 10.0, 10.0), (30.0, 30.0, 75.0)),
        None,
        batch=4,
        rate=1e-3,
        betas=(0.9, 0.999),
        decay=0.01,
        cycle=100,
    ),
}
"""Published recipes by a regressor's kind. DeepIM and DMW: the ProST paper's (TMI 2024), where 20
epochs between falls of the rate are 1000 steps, at its 50 steps an epoch. The initialiser: that of
SOPI's code, whose batches of 1 are accumulated by fours."""


class RegressorTask:
    """What `drrkit.training.train` minimises for a PoseRegressor.

    A step takes one subject, draws true poses and starts about its AP view, renders X-rays of the
    whole CT at the former and the regressor's own volume at the latter.

    Args:
        model: the regressor.
        subjects: CTs in mu to train on.
        camera: of all X-rays.
        sod: distance of the volume's centre from the source in the AP view, mm.
        recipe: default that of the regressor's kind.
        held_out: CTs in mu to validate on; default the subjects.
        validation_batch: poses a CT to validate on.
        randomise: changes X-rays [B, 1, rows, cols], drawing from a generator: appearance that the
            regressor is not to rely on.
        points: of bone a subject, for losses and errors.
        seed: of everything random, together with step and rank.

    Raises:
        ValueError: no subjects, or one that is not in mu.
    """

    def __init__(
        self,
        model: PoseRegressor,
        subjects: Sequence[Volume],
        camera: Camera,
        sod: float,
        recipe: Recipe | None = None,
        *,
        held_out: Sequence[Volume] = (),
        validation_batch: int = 16,
        randomise: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        points: int = 3000,
        seed: int = 0,
    ) -> None:
        if not subjects:
            raise ValueError("subjects: expected at least one Volume, got none")
        self.model: nn.Module = model
        self.camera, self.randomise, self.seed = camera, randomise, seed
        self.recipe = recipe or RECIPES[model.kind]
        self.validation_batch = validation_batch
        self.subjects = [_Subject(model, s, camera, sod, points) for s in subjects]
        self.held_out = [_Subject(model, s, camera, sod, points) for s in held_out]

    def optimiser(self) -> Optimizer:
        """Adam as the recipe says."""
        recipe = self.recipe
        return Adam(self.model.parameters(), recipe.rate, recipe.betas, weight_decay=recipe.decay)

    def schedule(self, optimiser: Optimizer) -> LRScheduler:
        """The recipe's: triangles or steps."""
        rate, cycle = self.recipe.rate, self.recipe.cycle
        if cycle is None:
            return StepLR(optimiser, self.recipe.every, self.recipe.factor)
        return CyclicLR(optimiser, rate / 100, rate, cycle, cycle_momentum=False)

    def losses(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """The mean loss over the rounds, and the mTRE (mm) after the last one."""
        draws = generator(self.seed, step, rank)
        pick = int(torch.randint(len(self.subjects), (), generator=draws))
        subject = self.subjects[pick]
        pairs = self._pairs(subject, self.recipe.batch, draws)
        total, end = self._rounds(subject, pairs)
        error = mtre(end, pairs.target, pairs.points).mean()
        return {"loss": total / self.recipe.rounds, "mtre": error}

    def validate(self) -> dict[str, float]:
        """Of fixed pairs: the loss, and the mTRE (mm) before and after the rounds."""
        losses, before, after = [], [], []
        with torch.no_grad():
            for number, subject in enumerate(self.held_out or self.subjects):
                draws = generator(self.seed, VALIDATION_STEP, number)
                pairs = self._pairs(subject, self.validation_batch, draws)
                total, end = self._rounds(subject, pairs)
                losses.append(float(total) / self.recipe.rounds)
                before.append(mtre(pairs.world_to_camera, pairs.target, pairs.points))
                after.append(mtre(end, pairs.target, pairs.points))
        start, found = torch.cat(before), torch.cat(after)
        return {
            "loss": sum(losses) / len(losses),
            "start_mtre": float(start.mean()),
            "mtre": float(found.mean()),
            "median_mtre": float(found.median()),
        }

    def _pairs(self, subject: _Subject, count: int, draws: torch.Generator) -> Pairs:
        view = subject.view.expand(count, -1, -1)
        target = self.recipe.targets.draw(view, subject.center, draws)
        starts = self.recipe.starts
        pose = view.clone() if starts is None else starts.draw(view, subject.center, draws)
        with torch.no_grad():
            fixed = subject.xray(target)
            if self.randomise is not None:
                fixed = self.randomise(fixed, draws)
        return Pairs(subject.volume, self.camera, fixed, pose, target, subject.points)

    def _rounds(self, subject: _Subject, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """The sum of the rounds' losses, and the poses [B, 4, 4] where they end."""
        model = self.model
        total = pairs.fixed.new_zeros(())
        for _ in range(self.recipe.rounds):
            with torch.no_grad():
                moving = subject.drr(pairs.world_to_camera)
            prediction = model.predict(moving, pairs.fixed, pairs.volume)
            total = total + model.loss(prediction, pairs).to(total)
            with torch.no_grad():
                end = model.apply(prediction, pairs.world_to_camera, subject.center)
            pairs = replace(pairs, world_to_camera=end)
        return total, pairs.world_to_camera


class _Subject:
    """A CT, what the regressor renders of it, and points on its bones."""

    def __init__(
        self, model: PoseRegressor, scene: Volume, camera: Camera, sod: float, points: int
    ) -> None:
        self.volume = model.prepare(scene)
        self.center = volume_center(self.volume)
        self.view = view_ap(self.volume, sod)
        self.xray = Projector(scene, camera)
        self.drr = Projector(self.volume, camera)
        index = self.volume.values.reshape(self.volume.values.shape[-3:]).nonzero().flip(-1)
        if not len(index):
            raise ValueError("subjects: expected bone in every one, got a volume without")
        chosen = torch.randperm(len(index), generator=generator(0))[:points]
        self.points = self.volume.index_to_world(index[chosen.to(index.device)].double())
