"""The logs of a training: CSV files that a resumed run continues, TensorBoard, a progress bar."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any, TextIO

from drrkit.files import whole_file


class CsvLog:
    """Rows of numbers by step. Rows after `step` are of a run that was killed and are deleted.

    Args:
        path: of the file, which the first row creates.
        step: of the checkpoint that is resumed; rows up to it are kept.

    Raises:
        ValueError: the file is there and its first column is not the step.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.columns: list[str] = []
        self._stream: TextIO | None = None
        if path.exists():
            self._keep_until(step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends a row.

        Raises:
            ValueError: its names are not those of the first row.
        """
        names = ["step", *values]
        if not self.columns:
            self.columns = names
            self._append(names)
        if names != self.columns:
            raise ValueError(
                f"{self.path}: expected the columns {self.columns} at every step, got {names}"
            )
        self._append([step, *values.values()])

    def sync(self) -> None:
        """Puts the rows on the disk."""
        if self._stream is not None:
            self._stream.flush()
            os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Closes the file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _append(self, row: list[Any]) -> None:
        if self._stream is None:
            self._stream = self.path.open("a", newline="", encoding="utf-8", buffering=1)
        csv.writer(self._stream, lineterminator="\n").writerow(row)

    def _keep_until(self, step: int) -> None:
        # A line without its end was being written when the run was killed.
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = list(csv.reader(line for line in lines if line.endswith("\n")))
        if not rows:
            self.path.unlink()
            return
        if rows[0][:1] != ["step"]:
            raise ValueError(f"{self.path}: expected a log of a training run, got {rows[0][:3]}")
        self.columns = rows[0]
        kept = [r for r in rows[1:] if len(r) == len(self.columns) and int(r[0]) <= step]
        with whole_file(self.path) as place, open(place, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([self.columns, *kept])


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
        self._logs = {
            "training": CsvLog(folder / "log.csv", step),
            "validation": CsvLog(folder / "validation.csv", step),
        }
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
            log.sync()

    def close(self) -> None:
        """Closes all files."""
        for log in self._logs.values():
            log.close()
        if self._board is not None:
            self._board.close()


class StepBar:
    """A progress bar over the steps (tqdm); invisible if not wanted or without tqdm."""

    def __init__(self, wanted: bool, done: int, steps: int) -> None:
        self._bar: Any = None
        if wanted:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                return
            self._bar = tqdm(initial=done, total=steps, unit="step", desc="training")

    def advance(self, loss: float) -> None:
        """One step more."""
        if self._bar is not None:
            self._bar.update(1)
            self._bar.set_postfix(loss=f"{loss:.4g}", refresh=False)

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()
