"""Cross-validation of NeTT on patients it has not seen, without leaks.

A protocol is a list of `drrkit.training.Split`: `Split(train, test=the_others)` trains on some
subjects, `drrkit.training.k_folds(names, len(names))` leaves one out at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from drrkit.fields.networks.nett import NeTT, TunedCT
from drrkit.fields.scenes import CT
from drrkit.fields.tasks.image_objective import ImageObjective, scene_quality
from drrkit.fields.tasks.train_fields import NeTTTask
from drrkit.fields.tasks.xray_pairs import Pairs, check_subjects
from drrkit.files import whole_file
from drrkit.training import Split, load_checkpoint, train


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

    Resumes: a fold in training goes on from its checkpoint (folder/fold-0 ...), a finished one is
    read from its result.json.

    Args:
        pairs: of all subjects; the splits decide which are trained on.
        splits: see above; validation subjects choose the best weights, otherwise the last count.
        folder: made if missing.
        make: a new network; called with torch's generator seeded.
        objective, steps, batch, supersample, seed: as for NeTTTask.

    Returns:
        one FoldResult for every test subject of every split.

    Raises:
        ValueError: a split names an unknown subject or none to test on, or the same CT or X-ray
            has the names of two subjects.
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
        place = Path(folder) / f"fold-{number}"
        if not (place / "result.json").exists():
            torch.manual_seed(seed)
            learn, choose, test = ([p for name in part for p in by_subject[name]] for part in parts)
            task = NeTTTask(
                make(),
                learn,
                choose,
                objective=objective,
                steps=steps,
                batch=batch,
                supersample=supersample,
                seed=seed,
            )
            _train_fold(task, split, place, progress)
            found = [_tested(task, pairs, number, split) for pairs in test]
            with whole_file(place / "result.json") as staged:
                staged.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")
        results += _read(place / "result.json", split)
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


def _tested(task: NeTTTask, pairs: Pairs, fold: int, split: Split) -> FoldResult:
    scenes = CT(pairs.volume), TunedCT(task.nett.eval(), pairs.volume)
    qualities = (scene_quality(one, pairs, task.objective, task.supersample) for one in scenes)
    return FoldResult(fold, split.train, pairs.subject, *qualities)


def _read(path: Path, split: Split) -> list[FoldResult]:
    found = [
        FoldResult(**(one | {"trained_on": tuple(one["trained_on"])}))
        for one in json.loads(path.read_text())
    ]
    if any(one.trained_on != split.train or one.subject not in split.test for one in found):
        raise ValueError(f"{path}: holds the result of another split; use another folder")
    return found
