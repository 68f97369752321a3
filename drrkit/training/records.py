"""What a run writes down while it trains: CSV files that a resumed run continues, TensorBoard."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any, TextIO

from drrkit.files import write_whole

__all__ = ["CsvLog", "NoRecords", "Records", "ScalarBoard", "progress_bar"]


class CsvLog:
    """Rows of numbers by step. Rows after `step` are of a run that was killed: they go.

    Args:
        path: made with the first row.
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
        """On the disk, before the checkpoint that relies on it."""
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
        kept = io.StringIO(newline="")
        writer = csv.writer(kept, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows(r for r in rows[1:] if len(r) == len(rows[0]) and int(r[0]) <= step)
        write_whole(self.path, lambda stream: stream.write(kept.getvalue().encode()))


class ScalarBoard:
    """Scalars for TensorBoard in a folder; does nothing where TensorBoard is not installed."""

    def __init__(self, folder: Path, step: int) -> None:
        self._writer = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, group: str, step: int, values: dict[str, float]) -> None:
        """One point of each curve."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        """Flushes and closes."""
        if self._writer is not None:
            self._writer.close()


class Records:
    """log.csv, validation.csv and TensorBoard's files of a run's folder, continued at a step."""

    def __init__(self, folder: Path, step: int) -> None:
        self._logs = {
            "training": CsvLog(folder / "log.csv", step),
            "validation": CsvLog(folder / "validation.csv", step),
        }
        self._board = ScalarBoard(folder / "tensorboard", step)

    def write(self, group: str, step: int, values: dict[str, float]) -> None:
        """A row of "training" or "validation"."""
        self._logs[group].write(step, values)
        self._board.write(group, step, values)

    def sync(self) -> None:
        """Rows on the disk, before the checkpoint that relies on them."""
        for log in self._logs.values():
            log.sync()

    def close(self) -> None:
        """Closes all files."""
        for log in self._logs.values():
            log.close()
        self._board.close()


class NoRecords:
    """What the processes write that do not write."""

    def write(self, group: str, step: int, values: dict[str, float]) -> None: ...
    def sync(self) -> None: ...
    def close(self) -> None: ...


class _NoBar:
    """Stands in for a progress bar."""

    def set_postfix(self, **values: Any) -> None: ...
    def update(self, steps: int) -> None: ...
    def close(self) -> None: ...


def progress_bar(wanted: bool, done: int, steps: int) -> Any:
    """A bar over the steps (tqdm; silently none without it)."""
    if not wanted:
        return _NoBar()
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _NoBar()
    return tqdm(initial=done, total=steps, unit="step", desc="training")
