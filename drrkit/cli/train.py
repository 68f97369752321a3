"""`drrkit train`: the group, how a training is run, and which CTs it is run on."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

from drrkit.cli.command import Answer, LazyGroup
from drrkit.cli.configuration import run_record
from drrkit.cli.options import (
    COUNT,
    POSITIVE,
    Numbers,
    device_option,
    option,
    out_option,
    quiet_option,
    read_ct,
    seed_option,
)
from drrkit.cli.register import INTERRUPTED
from drrkit.phantoms import ANATOMY_LABELS, FIELD_MM, random_anatomy
from drrkit.training import (
    PRECISIONS,
    Processes,
    Task,
    TrainingResult,
    k_folds,
    load_checkpoint,
    split,
    train,
)
from drrkit.volume import Volume

VOLUMES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")
PHANTOMS = 48
FREE = ("out", "steps", "validate_every", "save_every", "device", "quiet", "show")
"""Options that may have other values when a run is resumed."""


@click.group("train", cls=LazyGroup)
def train_group() -> None:
    """Train networks for registration; a training that was killed resumes where it was.

    Under torchrun, processes and machines train one network together.
    """


for _name, _module, _summary in (
    ("similarity", "train_similarity", "Train a similarity by its pose gradient."),
    ("regressor", "train_similarity", "Train a network that predicts better poses."),
    ("nett", "train_fields", "Train NeTT, which tunes CTs until DRRs look like X-rays."),
    ("mnerf", "train_fields", "Train mNeRF, a field of one subject's attenuation."),
):
    train_group.add_lazy(_name, f"drrkit.cli.{_module}:{_name}_command", _summary)


@dataclass(frozen=True)
class TrainingOptions:
    """How long to train and where to write."""

    out: Path = out_option(
        "Folder for checkpoints, logs and the network; a training there is resumed."
    )
    steps: int = option("Training steps in all.", type=COUNT, default=2000)
    validate_every: int = option("Steps between validations.", type=COUNT, default=100)
    save_every: int = option("Steps between checkpoints.", type=COUNT, default=100)
    clip_norm: float = option("Largest norm of a gradient.", type=POSITIVE, default=10.0)
    accumulate: int = option(
        "Batches averaged per step; the same as that many times the processes.",
        type=COUNT,
        default=1,
    )
    precision: str = option(
        "Precision of the network; the projector's is float32.",
        type=click.Choice(list(PRECISIONS)),
        default="float32",
    )
    seed: int = seed_option("Seed of weights, patients, poses and noise.")
    device: torch.device = device_option()
    quiet: bool = quiet_option()

    @property
    def own_device(self) -> torch.device:
        """The device of this process."""
        return Processes.of_environment().device(self.device)


def run_training(
    task: Task,
    network: torch.nn.Module,
    options: TrainingOptions,
    notes: dict[str, Any],
    name: str,
    save: Callable[[Path, TrainingResult], None],
) -> Answer | None:
    """Trains a network and saves it with its best weights, or its last where none was validated.

    The options of the command that is running go into the checkpoints' config.

    Args:
        task: what is trained.
        network: which the task trains.
        options: how.
        notes: more for the config: what a resumed run has to agree with.
        name: of the network's file in the folder.
        save: writes the network there; called in the process that writes.

    Returns:
        the command's answer; None in processes that do not write.
    """
    processes = Processes.of_environment()
    run = run_record()
    kept = {name: value for name, value in run["options"].items() if name not in FREE}
    how = {name: value for name, value in vars(options).items() if name not in ("device", "quiet")}
    folder = how.pop("out")
    result = train(
        task,
        folder,
        **how,
        progress=not options.quiet,
        config={"command": run["command"], "options": kept, **notes},
        about={"run": run},
    )
    written = result.last.with_name(name)
    if processes.writes:
        best = result.best if result.best_step else result.last
        network.load_state_dict(load_checkpoint(best).model)
        save(written, result)
    if not result.interrupted:
        processes.leave()
    code = INTERRUPTED if result.interrupted else 0
    if not processes.writes:
        click.get_current_context().exit(code)
    content = {**result.as_dict(), "written": str(written)}
    return Answer(content, _sentence(result, options.steps, written), code)


def _sentence(result: TrainingResult, steps: int, written: Path) -> str:
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
    lines = [f"step {result.step} of {steps} after {result.seconds:.0f} s; {metrics}"]
    if result.best_step:
        lines.append(f"best at step {result.best_step}: {result.best_value:.4g}")
    if result.skipped:
        lines.append(f"{result.skipped} steps were left out: their gradient was not finite")
    if result.interrupted:
        lines.append("interrupted; the same command resumes it")
    return "\n".join([*lines, f"wrote {written}"])


# ---- which CTs a network is trained on, and which of them are kept out


class Scan(NamedTuple):
    """A CT: its own name, its patient's, where it is (None: a phantom), and its label map."""

    name: str
    subject: str
    ct: Path | None = None
    labels: Path | None = None


class Cohort(NamedTuple):
    """Scans by what they are for; `test` are those that a training must not see."""

    train: list[Scan]
    validation: list[Scan]
    test: list[Scan]

    def as_dict(self) -> dict[str, list[str]]:
        """The scans' names."""
        return {part: [scan.name for scan in getattr(self, part)] for part in self._fields}


@dataclass(frozen=True)
class ScanOptions:
    """How CTs are read, and the phantoms that stand in for them."""

    voxel_mm: float | None = option(
        "Resample CTs to cubes of this size.  [default: their own]", type=POSITIVE
    )
    anatomy: str = option(
        "Anatomy of the phantoms.", type=click.Choice(list(FIELD_MM)), default="pelvis"
    )
    voxels: int = option(
        "Voxels of a phantom along each side.", type=click.IntRange(8, 512), default=48
    )

    def phantom(self, number: int) -> Volume:
        """A random phantom in HU."""
        return random_anatomy(self.anatomy, number, shape=self.voxels)

    def read(self, path: Path, labels: Path | None = None) -> Volume:
        """A CT in HU; raises as `read_ct`."""
        ct = read_ct(path, labels=labels)
        return ct if self.voxel_mm is None else ct.resample((self.voxel_mm,) * 3)


@dataclass(frozen=True)
class SubjectOptions(ScanOptions):
    """The CTs; `cohort` finds and splits them, `load` reads one."""

    subjects: tuple[str, ...] = option(
        "CTs in HU: files, quoted patterns such as 'cts/*.nii.gz', or folders of files or of "
        "DICOM series; may be repeated.  [default: phantoms]",
        multiple=True,
        metavar="PATH",
    )
    subject_pattern: str | None = option(
        "Finds the patient in a file's path, as its first group; its files stay together.  "
        "[default: each file is a patient, in subfolders each folder]",
        metavar="REGEX",
    )
    labels: str | None = option(
        "The label map of ct.nii.gz is ctSUFFIX.nii.gz; with --select.", metavar="SUFFIX"
    )
    select: tuple[int, ...] | None = option(
        "Labels of the bones that are projected.", type=Numbers("N,N,...", kind=int)
    )
    phantoms: int = option(
        "Number of random phantoms without --subjects.",
        type=COUNT,
        default=PHANTOMS,
    )
    validation: int | None = option(
        "Patients to validate on, not to train on.  [default: a tenth, at least one]",
        type=click.IntRange(0),
    )
    folds: int | None = option(
        "Split patients into so many parts and leave out that of --fold (cross-validation).",
        type=click.IntRange(2),
    )
    fold: int = option("The part left out, from 0.", type=click.IntRange(0), default=0)

    def cohort(self, seed: int) -> Cohort:
        """All scans, split by patient; the same for the same scans and seed.

        Raises:
            click.UsageError: options that contradict each other.
            ValueError, OSError: scans that are not there, or too few patients.
        """
        if (self.labels is None) != (self.select is None):
            raise click.UsageError("--labels and --select belong together: give both or none.")
        if self.folds is not None and self.fold >= self.folds:
            raise click.UsageError(f"--fold: expected 0 to {self.folds - 1}, got {self.fold}.")
        phantoms = (f"{self.anatomy}-{number}" for number in range(self.phantoms))
        scans = self._found() if self.subjects else [Scan(name, name) for name in phantoms]
        names = [scan.subject for scan in scans]
        different = len(set(names))
        validation = self.validation
        if validation is None:
            validation = 0 if different == 1 else max(1, different // 10)
        if self.folds is None:
            parts = split(names, validation, seed)
        else:
            parts = k_folds(names, self.folds, validation, seed)[self.fold]
        chosen: Any = (
            [scan for scan in scans if scan.subject in part]
            for part in (parts.train, parts.validation, parts.test)
        )
        return Cohort(*chosen)

    def load(self, scan: Scan) -> Volume:
        """A scan's CT in HU, with labels where it has them."""
        if scan.ct is None:
            return self.phantom(int(scan.name.rpartition("-")[2]))
        return self.read(scan.ct, scan.labels)

    @property
    def bones(self) -> tuple[int, ...] | None:
        """Labels that are projected; None: by the network's threshold."""
        return self.select if self.subjects else (ANATOMY_LABELS["bone"],)

    def _found(self) -> list[Scan]:
        files = sorted({path for word in self.subjects for path in self._volumes(word)})
        scans = [self._scan(path) for path in files]
        twice = {s.name for s in scans if sum(s.name == other.name for other in scans) > 1}
        return [
            s._replace(name=s.ct.resolve().as_posix()) if s.name in twice and s.ct else s
            for s in scans
        ]

    def _volumes(self, word: str) -> list[Path]:
        """The CTs that an argument names; label maps are none."""
        path = Path(word)
        if path.is_dir():
            found = self._in_folder(path)
        elif path.exists():
            found = [path]
        else:
            found = [Path(name) for name in glob.glob(word, recursive=True)]
        found = [p for p in found if not self._is_labels(p)]
        if not found:
            raise ValueError(f"--subjects {word}: no CTs ({', '.join(VOLUMES)} or DICOM) there")
        return found

    def _in_folder(self, folder: Path) -> list[Path]:
        inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
        files = [p for p in inside if p.is_file() and p.name.lower().endswith(VOLUMES)]
        if files:
            return files
        folders = [p for p in inside if p.is_dir()]
        if folders:
            return [path for inner in folders for path in self._in_folder(inner)]
        return [folder] if inside else []

    def _is_labels(self, path: Path) -> bool:
        return self.labels is not None and _stem(path).endswith(self.labels)

    def _scan(self, path: Path) -> Scan:
        name = _stem(path)
        subject = name if path.is_dir() else self._patient(path)
        if self.subject_pattern is not None:
            try:
                found = re.search(self.subject_pattern, path.as_posix())
                subject = found[1] if found else ""
            except (re.error, IndexError) as error:
                raise ValueError(f"--subject-pattern: expected one group ({error})") from None
            if not subject:
                raise ValueError(f"--subject-pattern: finds no patient in {path}")
        if self.labels is None:
            return Scan(name, subject, path)
        labels = path.with_name(f"{name}{self.labels}{path.name[len(name) :]}")
        if not labels.exists():
            raise ValueError(f"--labels {self.labels}: there is no {labels}")
        return Scan(name, subject, path, labels)

    def _patient(self, path: Path) -> str:
        """The subfolder where --subjects names a folder of folders; else the file's name."""
        for word in self.subjects:
            folder = Path(word)
            if folder.is_dir() and path.is_relative_to(folder) and path.parent != folder:
                return path.relative_to(folder).parts[0]
        return _stem(path)


def _stem(path: Path) -> str:
    """A file's name without the endings of volumes."""
    for ending in sorted(VOLUMES, key=len, reverse=True):
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return path.name
