"""Errors of each method's images and pose derivatives against a very fine reference.

The reference integrates the trilinearly interpolated volume with samples 0.02 mm apart, in float64.
Errors are relative: rms of the difference over rms of the reference, over all pixels.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

import drrkit
from bench.studies.study import json_file, recorded, write_json

METHODS = {
    "joseph": {"method": "joseph"},
    "siddon": {"method": "siddon"},
    "trilinear, 1 mm": {"method": "trilinear", "step": 1.0},
    "trilinear, 0.25 mm": {"method": "trilinear", "step": 0.25},
    "trilinear, 1 mm, line": {"method": "trilinear", "step": 1.0, "derivative": "line"},
    "trilinear, 1 mm, foot": {"method": "trilinear", "step": 1.0, "anchor": "foot"},
    "trilinear, 0.25 mm, foot": {"method": "trilinear", "step": 0.25, "anchor": "foot"},
}
REFERENCE = {"method": "trilinear", "step": 0.02, "anchor": "foot"}
COLUMNS = ("image", "omega_x", "omega_y", "omega_z", "x", "y", "depth")


def relative_rms(found: torch.Tensor, reference: torch.Tensor) -> float:
    return float((found - reference).norm() / reference.norm())


def errors(volume: drrkit.Volume, camera: drrkit.Camera, pose: torch.Tensor) -> dict[str, dict]:
    """Errors of every method at one pose, with the CPU seconds of its march."""
    truth, truth_jacobian = drrkit.project_with_jacobian(volume, camera, pose, **REFERENCE)
    table = {}
    for name, options in METHODS.items():
        start = time.process_time()
        image, jacobian = drrkit.project_with_jacobian(volume, camera, pose, **options)
        seconds = time.process_time() - start
        found = [relative_rms(image, truth)]
        found += [relative_rms(jacobian[:, :, k], truth_jacobian[:, :, k]) for k in range(6)]
        table[name] = dict(zip(COLUMNS, found, strict=True)) | {"cpu_seconds": seconds}
    return table


def options(add: Any) -> None:
    add("ct", type=Path, help="a CT in HU, any file that drrkit.read_volume takes")
    add("--size", type=int, default=100, help="rows and columns (100)")


def run(options: argparse.Namespace) -> None:
    volume = drrkit.read_volume(options.ct).to(dtype=torch.float64).to_mu()
    camera = drrkit.CArm(1020.0, (options.size, options.size), 400.0 / options.size)
    # A little off the axes: an isocentric view along one puts every sample on a voxel's face.
    views = {
        "AP": drrkit.view_carm(volume, 800.0, 0.031, 0.017),
        "lateral": drrkit.view_carm(volume, 800.0, 1.571 - 0.023, 0.013),
    }
    result = {name: errors(volume, camera, pose) for name, pose in views.items()}
    for view, table in result.items():
        print(f"\n{view:26s}" + "".join(f"{column:>10s}" for column in (*COLUMNS, "CPU s")))
        for name, row in table.items():
            print(f"{name:26s}" + "".join(f"{value:10.2g}" for value in row.values()))
    content = {"ct": options.ct.name, "reference": REFERENCE, "views": result}
    write_json(json_file(options), recorded(options, **content))
