"""The logs of a training: CSV files that a resumed run continues, and TensorBoard's."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from drrkit.files import whole_file


class CsvLog:
    """Rows of numbers by step. Rows after `step` are of a run that was killed and are deleted.

    Args:
        path: of the file, made if missing.
        step: of the checkpoint that is resumed; rows up to it are kept.

    Raises:
        ValueError: the file is there and its first column is not the step.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        # A line without its end was being written when the run was killed.
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        rows = list(csv.reader(line for line in lines if line.endswith("\n")))
        self.columns = rows[0] if rows else []
        if rows and self.columns[:1] != ["step"]:
            raise ValueError(f"{path}: expected a log of a training run, got {self.columns[:3]}")
        kept = [r for r in rows[1:] if len(r) == len(self.columns) and int(r[0]) <= step]
        with whole_file(path) as place, open(place, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([*rows[:1], *kept])
        self.stream = path.open("a", newline="", encoding="utf-8", buffering=1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends a row.

        Raises:
            ValueError: its names are not those of the first row.
        """
        writer, names = csv.writer(self.stream, lineterminator="\n"), ["step", *values]
        if not self.columns:
            self.columns = names
            writer.writerow(names)
        if names != self.columns:
            raise ValueError(
                f"{self.path}: expected the columns {self.columns} at every step, got {names}"
            )
        writer.writerow([step, *values.values()])


class Logs:
    """log.csv, validation.csv and TensorBoard's files of a run's folder, continued at a step.

    Args:
        folder: of the run; None: nothing is written.
        step: of the checkpoint that is resumed.
    """

    def __init__(self, folder: Path | None, step: int) -> None:
        self._logs: dict[str, CsvLog] = {}
        self._board: Any = None
        if folder is None:
            return
        for group, name in (("training", "log.csv"), ("validation", "validation.csv")):
            self._logs[group] = CsvLog(folder / name, step)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, group: str, step: int, values: dict[str, float]) -> None:
        """A row of "training" or "validation"."""
        if group in self._logs:
            self._logs[group].write(step, values)
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, step)

    def sync(self) -> None:
        """Puts all rows on the disk, before the checkpoint that relies on them."""
        for log in self._logs.values():
            os.fsync(log.stream.fileno())

    def close(self) -> None:
        """Closes all files."""
        for log in self._logs.values():
            log.stream.close()
        if self._board is not None:
            self._board.close()
