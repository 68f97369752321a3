"""Training of NeTT and mNeRF by `drrkit.training.train`, from X-rays with known poses.

Sources: arXiv 2308.00214 trains both through the projector on pairs of X-ray and pose; NeRF's Adam
from 5e-4 to 5e-5. Batches, losses and normalisation are options.

A protocol of cross-validation is a list of `drrkit.training.Split`: `Split(train, test=the_others)`
trains on some subjects, `drrkit.training.k_folds(names, len(names))` leaves one out at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from drrkit.fields.image_objective import ImageObjective, scene_quality
from drrkit.fields.mnerf import MNeRF
from drrkit.fields.nett import NeTT, TunedCT
from drrkit.fields.scenes import CT
from drrkit.fields.xray_pairs import Pairs, check_subjects
from drrkit.geometry import check_counts, view_frames
from drrkit.training import Split, generator, load_checkpoint, train


class _FieldTask:
    """The part that both trainings share: Adam, and the fall of its rate."""

    model: nn.Module
    objective: ImageObjective
    steps: int

    def optimiser(self) -> Optimizer:
        """Adam."""
        return Adam(self.model.parameters(), lr=self.objective.rate)

    def schedule(self, optimiser: Optimizer) -> LRScheduler:
        """A geometric fall of the learning rate, to the final one within `steps`."""
        share = self.objective.final_rate / self.objective.rate
        return LambdaLR(optimiser, lambda step: share ** min(step / self.steps, 1.0))


class NeTTTask(_FieldTask):
    """Trains NeTT on the pairs of one or more subjects; a step sees a few X-rays of one of them.

    Args:
        nett: the network, the task's `model`.
        train: pairs to train on.
        validation: pairs of other subjects; none: validate on the training pairs.
        objective: loss, formation, rates.
        steps: after which the learning rate is the final one.
        batch: X-rays per step.
        supersample: n x n rays per pixel.
        seed: of which X-rays are seen when.

    Raises:
        ValueError: a validation subject is also trained on, under the same or another name.
    """

    def __init__(
        self,
        nett: NeTT,
        train: Sequence[Pairs],
        validation: Sequence[Pairs] = (),
        *,
        objective: ImageObjective | None = None,
        steps: int = 1000,
        batch: int = 4,
        supersample: int = 1,
        seed: int = 0,
    ) -> None:
        check_subjects([*train, *validation])
        both = {p.subject for p in train} & {p.subject for p in validation}
        if both:
            raise ValueError(f"validation: subjects {sorted(both)} are trained on")
        check_counts(steps=steps, batch=batch, supersample=supersample)
        self.model: nn.Module = nett
        self.nett = nett
        self.train_pairs, self.validation_pairs = list(train), list(validation)
        self.objective = objective or ImageObjective()
        self.steps, self.batch, self.supersample, self.seed = steps, batch, supersample, seed

    def losses(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """The mean loss of `batch` X-rays of one subject, drawn from (seed, step, rank)."""
        draw = generator(self.seed, step, rank)
        subject = int(torch.randint(len(self.train_pairs), (1,), generator=draw))
        pairs = self.train_pairs[subject]
        pairs = pairs.chosen(torch.randint(len(pairs), (self.batch,), generator=draw))
        scene = TunedCT(self.nett, pairs.volume)
        image = scene.render(pairs.camera, pairs.world_to_camera, supersample=self.supersample)
        image = self.objective.formed(image)
        return {"loss": self.objective.compare(image, pairs.xrays).mean()}

    def validate(self) -> dict[str, float]:
        """Mean loss, PSNR and SSIM over the validation subjects."""
        found = [
            scene_quality(TunedCT(self.nett, pairs.volume), pairs, self.objective, self.supersample)
            for pairs in self.validation_pairs or self.train_pairs
        ]
        return {name: sum(one[name] for one in found) / len(found) for name in found[0]}


class MNeRFTask(_FieldTask):
    """Trains mNeRF on the X-rays of its one subject; other X-rays of it validate.

    A step draws `rays` pixels of each of `images` X-rays; with "ssim_dice_l1", which compares
    neighbourhoods, square patches of about as many pixels instead. A set of pixels is normalised as
    an image is.

    Args:
        field: the field, the task's `model`.
        train: pairs to train on.
        validation: pairs of the same subject that are not trained on; None: the training pairs.
        objective: loss, formation, rates. Without `normalised` the field's attenuation is in 1/mm.
        steps: after which the learning rate is the final one.
        images, rays: X-rays per step and pixels of each.
        seed: of which rays are seen when, and of where on them the samples are.

    Raises:
        ValueError: validation is of another subject, or an X-ray of it is trained on.
    """

    def __init__(
        self,
        field: MNeRF,
        train: Pairs,
        validation: Pairs | None = None,
        *,
        objective: ImageObjective | None = None,
        steps: int = 2000,
        images: int = 8,
        rays: int = 128,
        seed: int = 0,
    ) -> None:
        if validation is not None:
            if validation.subject != train.subject:
                raise ValueError(
                    f"validation: a field is of one subject, expected X-rays of "
                    f"{train.subject!r}, got {validation.subject!r}"
                )
            if train.view_fingerprints() & validation.view_fingerprints():
                raise ValueError("validation: some of these X-rays are trained on")
        check_counts(steps=steps, images=images, rays=rays)
        self.model: nn.Module = field
        self.field, self.train_pairs, self.validation_pairs = field, train, validation
        self.objective = objective or ImageObjective(normalised=False)
        self.steps, self.images, self.rays, self.seed = steps, images, rays, seed
        self.side = min(max(11, round(rays**0.5)), *train.camera.size)
        if self.objective.loss == "ssim_dice_l1" and self.side < 11:
            raise ValueError("loss: 'ssim_dice_l1' needs X-rays of 11 x 11 pixels at least")

    def losses(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """The mean loss of the pixels drawn from (seed, step, rank)."""
        draw = generator(self.seed, step, rank)
        pairs = self.train_pairs
        chosen = pairs.chosen(torch.randint(len(pairs), (self.images,), generator=draw))
        pixels, shape = self._pixels(draw)  # [images, P, 2]
        frames = view_frames(self.field.grid, pairs.camera, chosen.world_to_camera)
        line = self.field(frames, pixels, beam=pairs.camera.beam, generator=draw)
        row, col = pixels.long().to(chosen.xrays.device).unbind(-1)
        xray = chosen.xrays[:, 0].gather(1, row[..., None].expand(-1, -1, chosen.xrays.shape[-1]))
        xray = xray.gather(2, col[..., None])[..., 0]
        image = self.objective.formed(line).reshape(self.images, 1, *shape)
        return {"loss": self.objective.compare(image, xray.reshape_as(image).to(image)).mean()}

    def validate(self) -> dict[str, float]:
        """Mean loss, PSNR and SSIM over the X-rays held out."""
        pairs = self.train_pairs if self.validation_pairs is None else self.validation_pairs
        return scene_quality(self.field, pairs, self.objective)

    def _pixels(self, draw: torch.Generator) -> tuple[Tensor, tuple[int, int]]:
        """Pixels (row, col) [images, P, 2] float64, and how they lie beside each other."""
        rows, cols = self.train_pairs.camera.size
        if self.objective.loss != "ssim_dice_l1":
            place = torch.rand(self.images, self.rays, 2, generator=draw, dtype=torch.float64)
            return (place * place.new_tensor((rows, cols))).floor(), (1, self.rays)
        side = self.side
        free = torch.tensor((rows - side + 1, cols - side + 1), dtype=torch.float64)
        corner = (torch.rand(self.images, 1, 2, generator=draw, dtype=torch.float64) * free).floor()
        patch = torch.cartesian_prod(torch.arange(side), torch.arange(side)).double()
        return corner + patch, (side, side)


# ---- cross-validation of NeTT on patients it has not seen


@dataclass(frozen=True)
class FoldResult:
    """One test subject of one fold: the quality of the CT's images and of the tuned CT's.

    untuned and tuned have loss, psnr (dB) and ssim, see `scene_quality`.
    """

    fold: int
    trained_on: tuple[str, ...]
    subject: str
    untuned: dict[str, float]
    tuned: dict[str, float]


def cross_validate(
    pairs: Sequence[Pairs],
    splits: Sequence[Split],
    folder: Path | str,
    *,
    make: Callable[[], NeTT] = NeTT,
    objective: ImageObjective | None = None,
    steps: int = 500,
    batch: int = 4,
    supersample: int = 1,
    seed: int = 0,
    progress: bool = False,
) -> list[FoldResult]:
    """Train a new NeTT for every split and test it on that split's test subjects only.

    Resumes: a fold goes on from its checkpoint (folder/fold-0 ...); a finished one is only tested.

    Args:
        pairs: of all subjects; the splits decide which are trained on.
        splits: see above; validation subjects choose the best weights, otherwise the last count.
        folder: made if missing.
        make: a new network; called with torch's generator seeded.
        objective, steps, batch, supersample, seed: as for NeTTTask.

    Returns:
        one FoldResult for every test subject of every split.

    Raises:
        ValueError: a split names an unknown subject or none to test on, the same CT or X-ray has
            the names of two subjects, or the folder holds another split.
    """
    by_subject = check_subjects(pairs)
    objective = objective or ImageObjective()
    results = []
    for number, split in enumerate(splits):
        parts = (split.train, split.validation, split.test)
        unknown = {name for part in parts for name in part} - set(by_subject)
        if unknown or not split.test or not split.train:
            raise ValueError(
                f"splits: expected subjects {sorted(by_subject)} with some to train and to test "
                f"on, got {split}"
            )
        torch.manual_seed(seed)
        learn, choose, test = ([p for name in part for p in by_subject[name]] for part in parts)
        how = {"steps": steps, "batch": batch, "supersample": supersample, "seed": seed}
        task = NeTTTask(make(), learn, choose, objective=objective, **how)
        _train_fold(task, split, Path(folder) / f"fold-{number}", progress)
        for one in test:
            scenes = CT(one.volume), TunedCT(task.nett.eval(), one.volume)
            found = (scene_quality(scene, one, objective, supersample) for scene in scenes)
            results.append(FoldResult(number, split.train, one.subject, *found))
    return results


def _train_fold(task: NeTTTask, split: Split, place: Path, progress: bool) -> None:
    config = {"train": list(split.train), "validation": list(split.validation), "steps": task.steps}
    every = max(1, task.steps // 10)
    done = train(
        task,
        place,
        steps=task.steps,
        validate_every=every,
        save_every=every,
        seed=task.seed,
        progress=progress,
        config=config,
    )
    if done.interrupted:
        raise KeyboardInterrupt
    if split.validation:
        task.model.load_state_dict(load_checkpoint(done.best).model)
