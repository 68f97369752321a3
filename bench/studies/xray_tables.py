"""Writes drrkit/xray/simulate/tables.json: mass attenuation of materials, spectra of X-ray tubes.

Needs pip install xraylib spekpy; --output drrkit/xray/simulate/tables.json.
The attenuation comes from xraylib (BSD licence; cross sections of Kissel and Elam, which follow
NIST's XCOM within a per cent) and the materials' compositions from ICRU report 44 and the NIST
material list; the spectra from SpekPy (MIT licence), tungsten anode, 12 degrees.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

GRID_KEV = (10, 10.8, 11.6, 12.6, 13.6, 14.7, 15.8, 17, 18.4, 20, 22, 24, 26, 28, 30, 32.5, 35, 38)
GRID_KEV += (41, 44, 48, 52, 56, 60, 66, 72, 80, 88, 98, 110, 124, 136, 150)

# Mass fractions by atomic number.
COMPOSITIONS: dict[str, dict[int, float]] = {
    "air": {6: 0.000124, 7: 0.755268, 8: 0.231781, 18: 0.012827},
    "water": {1: 0.111894, 8: 0.888106},
    "adipose": {1: 0.114, 6: 0.598, 7: 0.007, 8: 0.278, 11: 0.001, 16: 0.001, 17: 0.001},
    "soft_tissue": {1: 0.102, 6: 0.143, 7: 0.034, 8: 0.708, 11: 0.002, 15: 0.003}
    | {16: 0.003, 17: 0.002, 19: 0.003},
    "bone": {1: 0.034, 6: 0.155, 7: 0.042, 8: 0.435, 11: 0.001, 12: 0.002, 15: 0.103}
    | {16: 0.003, 20: 0.225},
    "pmma": {1: 0.080538, 6: 0.599848, 8: 0.319614},
    "aluminium": {13: 1.0},
    "titanium": {22: 1.0},
    "iron": {26: 1.0},
    "steel": {14: 0.005, 24: 0.17, 25: 0.015, 26: 0.665, 28: 0.12, 42: 0.025},
    "cobalt_chrome": {24: 0.28, 27: 0.66, 42: 0.06},
    "barium_sulfate": {8: 0.274212, 16: 0.137368, 56: 0.58842},
    "iodine": {53: 1.0},
}
EDGES = {"steel": 42, "cobalt_chrome": 42, "iodine": 53, "barium_sulfate": 56}
"""The element of a material whose K edge lies between 10 and 150 keV."""
# kV: (aluminium in mm, air in mm)
TUBES = {"60kV": (60.0, 3.5), "90kV": (90.0, 4.0), "120kV": (120.0, 4.3)}
BIN_KEV = 2.0
MAX_ERROR = 5e-3


def attenuation(composition: dict[int, float]) -> Callable[[float], float]:
    """Mass attenuation coefficient, coherent scattering included [cm2/g], of a mixture."""
    import xraylib

    total = sum(composition.values())
    return lambda kev: (
        sum(share * xraylib.CS_Total(z, kev) for z, share in composition.items()) / total
    )


def tabulate(name: str) -> list[tuple[float, float]]:
    """Energies and coefficients, a pair of rows at an edge, interpolation checked."""
    import xraylib

    value = attenuation(COMPOSITIONS[name])
    energies = [float(e) for e in GRID_KEV]
    if name in EDGES:
        edge = xraylib.EdgeEnergy(EDGES[name], xraylib.K_SHELL)
        energies = sorted([*energies, edge - 0.001, edge + 0.001])
    values = [float(f"{value(e):.5g}") for e in energies]
    fine = np.geomspace(energies[0] * 1.0001, energies[-1] * 0.9999, 700)
    fine = fine[[min(abs(e - k) for k in energies) > 0.02 for e in fine]]
    between = np.exp(np.interp(np.log(fine), np.log(energies), np.log(values)))
    worst = np.abs(between / [value(e) for e in fine] - 1.0).max()
    if worst > MAX_ERROR:
        raise SystemExit(f"{name}: interpolation is off by {worst:.2%}")
    print(f"{name}: interpolation within {worst:.2%}")
    return list(zip(energies, values, strict=True))


def spectrum(kilovolt: float, aluminium_mm: float) -> list[tuple[float, float]]:
    """(keV, share of the photons) in bins of BIN_KEV from 10 keV; shares sum to one."""
    import spekpy

    tube = spekpy.Spek(kvp=kilovolt, th=12.0, dk=0.1)
    tube.filter("Al", aluminium_mm)
    energies, fluence = tube.get_spectrum()
    edges = np.arange(10.0, kilovolt + BIN_KEV / 2, BIN_KEV)
    counts, _ = np.histogram(energies, bins=edges, weights=fluence)
    counts /= counts.sum()
    mean, layer = tube.get_emean(), tube.get_hvl1()
    print(f"{kilovolt:g} kV: mean {mean:.2f} keV, first half-value layer {layer:.2f} mm Al")
    centers = edges[:-1] + BIN_KEV / 2
    return [(e, float(f"{c:.4g}")) for e, c in zip(centers, counts, strict=True) if c > 1e-5]


def write(path: Path) -> None:
    """One line per material and spectrum: pairs of keV and a number."""
    import xraylib

    sources = f"xraylib {xraylib.__version__} and SpekPy {version('spekpy')}"
    source = f"Written by the study xray_tables, not by hand. From {sources}; "
    source += "compositions of ICRU report 44 and NIST."
    tables = {
        "mass_attenuation": {name: tabulate(name) for name in COMPOSITIONS},
        "spectra": {name: spectrum(*tube) for name, tube in TUBES.items()},
    }
    parts = [f' "source": {json.dumps(source)}']
    for title, table in tables.items():
        lines = ",\n".join(
            f'  "{name}": [{", ".join(f"[{x:g}, {y:g}]" for x, y in pairs)}]'
            for name, pairs in table.items()
        )
        parts.append(f' "{title}": {{\n{lines}\n }}')
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def options(add: Any) -> None:
    """--output alone."""


def run(options: argparse.Namespace) -> None:
    write(options.output)
