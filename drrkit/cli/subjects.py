"""Which CTs a network is trained on, and which of them are kept out."""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

from drrkit.cli.options import Integers, option
from drrkit.cli.train import anatomy_option, voxel_mm_option, voxels_option
from drrkit.phantoms import ANATOMY_LABELS, random_anatomy
from drrkit.training import k_folds, split
from drrkit.volume import Volume, read_volume

VOLUMES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")
PHANTOMS = 48


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
class SubjectOptions:
    """The CTs; `cohort` finds and splits them, `load` reads one."""

    subjects: tuple[str, ...] = option(
        multiple=True,
        metavar="PATH",
        help="CTs in HU: files, quoted patterns such as 'cts/*.nii.gz', or folders of files or of "
        "DICOM series; may be repeated.  [default: phantoms]",
    )
    subject_pattern: str | None = option(
        metavar="REGEX",
        help="Finds the patient in a file's path, as its first group; its files stay together.  "
        "[default: each file is a patient, in subfolders each folder]",
    )
    labels: str | None = option(
        metavar="SUFFIX", help="The label map of ct.nii.gz is ctSUFFIX.nii.gz; with --select."
    )
    select: tuple[int, ...] | None = option(
        type=Integers(), help="Labels of the bones that are projected."
    )
    voxel_mm: float | None = option(like=voxel_mm_option)
    phantoms: int = option(
        type=click.IntRange(1),
        default=PHANTOMS,
        help="Without --subjects: the number of random phantoms.",
    )
    anatomy: str = option(like=anatomy_option)
    voxels: int = option(like=voxels_option)
    validation: int | None = option(
        type=click.IntRange(0),
        help="Patients to validate on, not to train on.  [default: a tenth, at least one]",
    )
    folds: int | None = option(
        type=click.IntRange(2),
        help="K-fold: the number of parts that patients are split into; that of --fold is left "
        "out.",
    )
    fold: int = option(type=click.IntRange(0), default=0, help="From 0.")

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
        scans = self._found() if self.subjects else self._phantoms()
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
        """A scan's CT in HU, float32 on the CPU, with labels where it has them."""
        if scan.ct is None:
            number = int(scan.name.rpartition("-")[2])
            return random_anatomy(self.anatomy, number, shape=self.voxels)
        ct = read_volume(scan.ct, labels=scan.labels).to(dtype=torch.float32)
        if ct.values.dim() != 3:
            channels = ct.values.shape[0]
            raise ValueError(
                f"{scan.ct}: expected a single-channel volume, got {channels} channels"
            )
        return ct if self.voxel_mm is None else ct.resample((self.voxel_mm,) * 3)

    @property
    def bones(self) -> tuple[int, ...] | None:
        """Labels that are projected; None: by the network's threshold."""
        return self.select if self.subjects else (ANATOMY_LABELS["bone"],)

    def _phantoms(self) -> list[Scan]:
        names = [f"{self.anatomy}-{number}" for number in range(self.phantoms)]
        return [Scan(name, name) for name in names]

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
