"""Does a NeTT serve patients it has not seen? Cross-subject and leave-one-out, without leaks.

A protocol is a list of `drrkit.training.Split`: `cross_subject` trains on some subjects and tests
on all others, `drrkit.training.k_folds(names, len(names))` leaves one out at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from drrkit.fields.networks.nett import NeTT, TunedCT
from drrkit.fields.scenes import CT
from drrkit.fields.tasks.field_tasks import ImageObjective, NeTTTask, scene_quality
from drrkit.fields.tasks.pairs import Pairs, check_subjects
from drrkit.files import whole_file
from drrkit.training import Split, load_checkpoint, train

__all__ = ["FoldResult", "cross_subject", "cross_validate"]


@dataclass(frozen=True)
class FoldResult:
    """One test subject of one fold: what the CT's and the tuned CT's images are like.

    untuned and tuned have loss, psnr (dB) and ssim, see `scene_quality`.
    """

    fold: int
    trained_on: tuple[str, ...]
    subject: str
    untuned: dict[str, float]
    tuned: dict[str, float]


def cross_subject(subjects: Sequence[str], train_on: Sequence[str]) -> Split:
    """Train on some subjects, test on all others.

    Raises:
        ValueError: a name that is no subject, or nobody to train or to test on.
    """
    unknown = sorted(set(train_on) - set(subjects))
    if unknown:
        raise ValueError(f"train_on: {unknown} are not among the subjects {sorted(set(subjects))}")
    others = sorted(set(subjects) - set(train_on))
    if not train_on or not others:
        raise ValueError("train_on: expected some of the subjects, not all and not none")
    return Split(tuple(sorted(set(train_on))), test=tuple(others))


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
        pairs: of all subjects; which are trained on is the split's to say.
        splits: see above; validation subjects choose the best weights, otherwise the last count.
        folder: made if missing.
        make: a new network; called with torch's generator seeded.
        objective, steps, batch, supersample, seed: as for NeTTTask.

    Returns:
        one FoldResult for every test subject of every split.

    Raises:
        ValueError: a split names an unknown subject or nobody to test on, or the same CT or X-ray
            has the names of two subjects.
    """
    by_subject = check_subjects(pairs)
    objective = objective or ImageObjective()
    results = []
    for number, split in enumerate(splits):
        unknown = {*split.train, *split.validation, *split.test} - set(by_subject)
        if unknown or not split.test or not split.train:
            raise ValueError(
                f"splits: expected subjects {sorted(by_subject)} with some to train and to test "
                f"on, got {split}"
            )
        place = Path(folder) / f"fold-{number}"
        if not (place / "result.json").exists():
            torch.manual_seed(seed)
            task = NeTTTask(
                make(),
                _of(by_subject, split.train),
                _of(by_subject, split.validation),
                objective=objective,
                steps=steps,
                batch=batch,
                supersample=supersample,
                seed=seed,
            )
            _train_fold(task, split, place, progress)
            found = _tested(task, split, _of(by_subject, split.test), number)
            _write(place / "result.json", found)
        results += _read(place / "result.json", split)
    return results


def _train_fold(task: NeTTTask, split: Split, place: Path, progress: bool) -> None:
    config = {"train": list(split.train), "validation": list(split.validation), "steps": task.steps}
    done = train(
        task,
        place,
        steps=task.steps,
        validate_every=max(1, task.steps // 10),
        save_every=max(1, task.steps // 10),
        seed=task.seed,
        progress=progress,
        config=config,
    )
    if done.interrupted:
        raise KeyboardInterrupt
    if split.validation:
        task.model.load_state_dict(load_checkpoint(done.best).model)


def _tested(task: NeTTTask, split: Split, test: Sequence[Pairs], fold: int) -> list[FoldResult]:
    task.nett.eval()
    found = []
    for pairs in test:
        if pairs.subject in split.train or pairs.subject in split.validation:
            raise ValueError(f"splits: {pairs.subject!r} is tested on and trained on")
        qualities = [
            scene_quality(scene, pairs, task.objective, task.supersample)
            for scene in (CT(pairs.volume), TunedCT(task.nett, pairs.volume))
        ]
        found.append(FoldResult(fold, split.train, pairs.subject, *qualities))
    return found


def _of(by_subject: dict[str, list[Pairs]], names: Sequence[str]) -> list[Pairs]:
    return [one for name in names for one in by_subject[name]]


def _write(path: Path, found: Sequence[FoldResult]) -> None:
    with whole_file(path) as place:
        place.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")


def _read(path: Path, split: Split) -> list[FoldResult]:
    found = [
        FoldResult(**(one | {"trained_on": tuple(one["trained_on"])}))
        for one in json.loads(path.read_text())
    ]
    if any(one.trained_on != split.train or one.subject not in split.test for one in found):
        raise ValueError(f"{path}: holds the result of another split; use another folder")
    return found
