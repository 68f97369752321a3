"""RTK as a witness: its Joseph projection of a volume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import drrkit


def rtk_module() -> Any:
    """The RTK part of itk; its first filter takes about ten seconds to load."""
    itk = pytest.importorskip("itk", reason="the witness itk-rtk is not installed")
    try:
        return itk.RTK
    except AttributeError:
        pytest.skip("the witness itk-rtk is not installed")


def rtk_joseph(
    volume: drrkit.Volume,
    geometry: Any,
    size: tuple[int, int],
    pitch: tuple[float, float],
    corner: Sequence[float],
    origin: Sequence[float] | None = None,
) -> np.ndarray:
    """Line integrals [rows, cols] float64, row 0 first as RTK counts them.

    geometry  of RTK, with one projection
    pitch     (row, col) mm
    corner    (x, y) mm on the detector of its pixel (0, 0)
    origin    of the volume in RTK's world; default the volume's own
    """
    import itk

    kind = itk.Image[itk.F, 3]
    grid = itk.image_from_array(volume.values.float().numpy())
    grid.SetOrigin([float(o) for o in (volume.origin if origin is None else origin)])
    grid.SetSpacing([float(s) for s in volume.spacing])
    grid.SetDirection(itk.matrix_from_array(volume.direction.numpy()))
    detector = itk.image_from_array(np.zeros((1, *size), np.float32))
    detector.SetSpacing([pitch[1], pitch[0], 1.0])
    detector.SetOrigin([*corner, 0.0])
    projector = itk.RTK.JosephForwardProjectionImageFilter[kind, kind].New()
    projector.SetInput(0, detector)
    projector.SetInput(1, grid)
    projector.SetGeometry(geometry)
    projector.Update()
    return itk.array_from_image(projector.GetOutput())[0].astype(np.float64)
