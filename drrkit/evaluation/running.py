"""Runs cases, in one or several processes, into CSV files of one row each that resume."""

from __future__ import annotations

import csv
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drrkit.evaluation.protocols import Case, Protocol, Subject
from drrkit.files import whole_file
from drrkit.geometry import check_counts, so3_log, volume_center
from drrkit.metrics import mtre, rotation_error
from drrkit.projector import render
from drrkit.registration import RegistrationResult, register
from drrkit.training import Processes

Method = Callable[[Case], RegistrationResult]
"""A registration of a case: its X-ray and camera from its start, its truth untouched."""


@dataclass(frozen=True)
class Row:
    """One case: what was run, the errors of its start and of its result. mm and degrees.

    rotation_x ... translation_z are the components of the error: the rotation vector from the true
    to the found rotation and the shift of the volume's centre, both along the camera's axes, z in
    depth. image_difference is the relative L2 norm of the difference of the DRRs at the two poses.
    """

    method: str
    protocol: str
    subject: str
    number: int
    start_mtre: float
    start_rotation: float
    mtre: float
    rotation: float
    translation: float
    rotation_x: float
    rotation_y: float
    rotation_z: float
    translation_x: float
    translation_y: float
    translation_z: float
    image_difference: float
    loss: float
    confidence: float
    seconds: float
    cpu_seconds: float
    stages: int
    stop_reason: str
    device: str

    @property
    def key(self) -> tuple[str, str, str, int]:
        """Method, protocol, subject and number: what identifies a row."""
        return self.method, self.protocol, self.subject, self.number

    def line(self) -> str:
        """The row in words."""
        return (
            f"{self.method} {self.protocol} {self.subject} {self.number:3d}  mTRE "
            f"{self.start_mtre:6.1f} -> {self.mtre:7.3f} mm  confidence {self.confidence:.3f}  "
            f"{self.seconds:5.2f} s"
        )


def evaluate(
    methods: dict[str, Any],
    protocols: Sequence[Protocol],
    subjects: Sequence[Subject],
    cases: int,
    folder: Path,
    *,
    progress: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Run this process's share of the cases, leaving out those in the folder; return all rows.

    Under torchrun every process takes every WORLD_SIZE-th case, with all methods, and writes a file
    of its own, whole after every row, so that an interrupted evaluation resumes where it stopped.

    Args:
        methods: by name: stages for `register`, or a Method.
        cases: numbers 0 to cases - 1 of every protocol and subject.
        folder: made if missing.
        progress: called with every new row.

    Returns:
        the rows of the folder, of all processes that have written there so far.

    Raises:
        ValueError: cases is not positive, or two protocols or subjects have one name.
        KeyboardInterrupt: a registration was interrupted; its case is left for next time.
    """
    check_counts(cases=cases)
    for kind, named in (("protocols", protocols), ("subjects", subjects)):
        names = [one.name for one in named]
        if len(set(names)) < len(names):
            raise ValueError(f"{kind}: expected different names, got {names}")
    folder.mkdir(parents=True, exist_ok=True)
    processes = Processes.of_environment()
    rank, world = processes.rank, processes.world
    done = {row.key for row in read_rows(folder)}
    own = folder / f"rows.{rank}.csv"
    rows = list(_read(own)) if own.exists() else []
    drawn = list(itertools.product(protocols, range(cases), subjects))
    for protocol, number, subject in drawn[rank::world]:
        key = protocol.name, subject.name, number
        missing = [name for name in methods if (name, *key) not in done]
        if not missing:
            continue
        # One X-ray for all methods: simulating it takes longer than some of them.
        case = protocol.case(subject, number)
        for name in missing:
            row = measure(name, methods[name], case)
            if row.stop_reason == "interrupted":  # `register` returns the best up to then
                raise KeyboardInterrupt
            rows.append(row)
            _write(own, rows)
            if progress is not None:
                progress(row)
    return read_rows(folder)


def measure(name: str, method: Any, case: Case) -> Row:
    """Register a case and compare with its truth."""
    device = case.subject.attenuation.values.device
    before, cpu = time.perf_counter(), time.process_time()
    result = method(case) if callable(method) else _registered(case, method)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds, cpu = time.perf_counter() - before, time.process_time() - cpu
    found = result.world_to_camera.detach().cpu().double()
    turn, shift = _error_components(found, case)
    return Row(
        method=name,
        protocol=case.protocol.name,
        subject=case.subject.name,
        number=case.number,
        start_mtre=float(mtre(case.start, case.truth, case.subject.points)),
        start_rotation=math.degrees(float(rotation_error(case.start, case.truth))),
        mtre=float(mtre(found, case.truth, case.subject.points)),
        rotation=math.degrees(float(rotation_error(found, case.truth))),
        translation=math.dist(shift, (0.0, 0.0, 0.0)),
        **dict(zip(("rotation_x", "rotation_y", "rotation_z"), turn, strict=True)),
        **dict(zip(("translation_x", "translation_y", "translation_z"), shift, strict=True)),
        image_difference=_image_difference(found, case),
        loss=result.loss,
        confidence=math.nan if result.confidence is None else result.confidence,
        seconds=seconds,
        cpu_seconds=cpu,
        stages=len(result.history),
        stop_reason=result.stop_reason,
        device=str(device),
    )


def read_rows(folder: Path) -> list[Row]:
    """All rows of an evaluation, of every process, each case once.

    Raises:
        ValueError: a file is not one of `evaluate`.
    """
    rows = [row for file in sorted(folder.glob("rows.*.csv")) for row in _read(file)]
    return list({row.key: row for row in rows}.values())


def _registered(case: Case, stages: Any) -> RegistrationResult:
    device = case.subject.attenuation.values.device
    with warnings.catch_warnings():
        # The same in every case; the errors along z show it in numbers.
        warnings.filterwarnings("ignore", message="depth is not observable")
        return register(
            case.subject.attenuation,
            case.camera,
            case.xray,
            case.start.to(device),
            stages=stages,
            seed=case.number,
        )


def _error_components(found: Tensor, case: Case) -> tuple[list[float], list[float]]:
    """Rotation vector (degrees) and shift of the centre (mm) from the truth to a pose."""
    turn = so3_log(found[:3, :3] @ case.truth[:3, :3].mT)
    center = volume_center(case.subject.ct).cpu()
    difference = found - case.truth
    shift = difference[:3, :3] @ center + difference[:3, 3]
    return torch.rad2deg(turn).tolist(), shift.tolist()


def _image_difference(found: Tensor, case: Case) -> float:
    volume = case.subject.attenuation
    poses = torch.stack((found, case.truth)).to(volume.values.device)
    with torch.no_grad():
        first, second = render(volume, case.camera, poses)
    return float((first - second).norm() / second.norm())


def _read(file: Path) -> Iterator[Row]:
    kinds: dict[str, Any] = {"str": str, "int": int, "float": float}
    with open(file, newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        wanted = [field.name for field in fields(Row)]
        if reader.fieldnames != wanted:
            raise ValueError(f"{file}: expected the columns {wanted}, got {reader.fieldnames}")
        for record in reader:
            yield Row(**{f.name: kinds[str(f.type)](record[f.name]) for f in fields(Row)})


def _write(file: Path, rows: Iterable[Row]) -> None:
    """The rows as CSV, whole or not at all."""
    with whole_file(file) as staged, open(staged, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
