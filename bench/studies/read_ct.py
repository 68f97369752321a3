"""Reading a CT of 300 slices in DICOM: `read_volume` beside SimpleITK's series reader.

Both read the same folder, of 512 x 512 pixels with slope and intercept, into float32; in turns, so
that both meet the same machine. Wall and processor seconds: the least and the median.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.studies.study import in_turns, json_file, recorded, write_json
from drrkit.volume import Volume, read_volume, write_volume


def options(add: Any) -> None:
    add("--slices", type=int, default=300, help="of the series (300)")
    add("--rounds", type=int, default=9, help="readings by each (9)")


def run(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "ct"
        noise = torch.Generator().manual_seed(0)
        shape = (options.slices, 512, 512)
        values = torch.randint(-1000, 2000, shape, generator=noise).float()
        write_volume(Volume(values, (0.7, 0.7, 1.0)), folder)
        rows = measured(folder, values.numpy(), options.rounds)
    for name, row in rows.items():
        print(f"{name:12}" + "  ".join(f"{what} {value:.3f}" for what, value in row.items()))
    ratio = {w: rows["drrkit"][w] / rows["SimpleITK"][w] for w in rows["drrkit"]}
    print(f"{'ratio':12}" + "  ".join(f"{what} {value:.3f}" for what, value in ratio.items()))
    write_json(json_file(options), recorded(options, rows=rows, ratio=ratio))


def measured(folder: Path, values: np.ndarray, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of each reader; both must give these values."""
    readers = {"drrkit": _by_drrkit, "SimpleITK": _by_simpleitk}
    for name, read in readers.items():  # imports and the file cache, too
        assert np.array_equal(read(folder), values), name
    return in_turns({name: partial(read, folder) for name, read in readers.items()}, rounds)


def _by_drrkit(folder: Path) -> np.ndarray:
    return read_volume(folder).values.numpy()


def _by_simpleitk(folder: Path) -> np.ndarray:
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return sitk.GetArrayFromImage(sitk.Cast(reader.Execute(), sitk.sitkFloat32))
