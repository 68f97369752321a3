"""Closed surfaces (implants, bone models) as volumes of attenuation."""

from __future__ import annotations

import re
from typing import Any, Literal

import numpy as np
import torch

from drrkit.files import PathLike, existing_file
from drrkit.volume.data import Volume

VOXELS, MOST_VOXELS = 100, 256
"""Voxels along the largest extent: by default, and at most."""
COLUMNS = 4
"""Columns across a voxel, along x and along y, whose lengths inside the surface are averaged."""
SMALLEST_MM, LARGEST_MM = 2.0, 2000.0
UNITS_MM = {"um": 1e-3, "mm": 1.0, "cm": 10.0, "m": 1000.0, "inch": 25.4}
CHUNK = 1 << 20  # pairs of triangle and column at a time


def read_mesh(
    path: PathLike,
    mu: float,
    *,
    spacing: float | None = None,
    units: str | None = None,
    space: Literal["LPS", "RAS"] | None = None,
) -> Volume:
    """A closed surface (STL, PLY, OBJ, ...) as a volume of attenuation with smooth edges.

    Args:
        path: of the file. Needs the package trimesh (the extra `mesh`).
        mu: attenuation of what is inside, 1/mm.
        spacing: of the voxels, mm; 1/100 of the largest extent by default.
        units: of the file's coordinates: um, mm, cm, m or inch; mm where None, if the extents are
            plausible then.
        space: patient space of the coordinates; None takes what a comment SPACE=LPS or SPACE=RAS
            says (as 3D Slicer writes it), and LPS where there is none.

    Returns a Volume in mu, values [D, H, W] float32, each the share of the voxel that lies inside,
    times mu; the grid stands along the axes with one empty voxel around the surface.

    Raises FileNotFoundError, ImportError, and ValueError for a file that holds no surface, a
    surface that is not closed, extents below 2 mm or above 2 m without `units`, and more than
    256 voxels along an axis.
    """
    file = existing_file(path)
    try:
        import trimesh
    except ImportError as error:
        raise ImportError(f"{error}: pip install 'drrkit[mesh]' brings it") from error
    try:
        mesh: Any = trimesh.load(file, force="mesh")
        vertices = np.asarray(mesh.vertices, dtype=np.float64)
        faces = np.asarray(mesh.faces, dtype=np.int64)
    except Exception as error:  # the readers of a dozen formats
        raise ValueError(f"{file}: not a surface that trimesh reads ({error})") from error
    if len(faces) == 0 or not np.isfinite(vertices).all():
        raise ValueError(f"{file}: expected triangles with finite corners, got {len(faces)}")
    if units is not None and units not in UNITS_MM:
        raise ValueError(f"units: expected one of {', '.join(UNITS_MM)}, got {units!r}")
    vertices = vertices * UNITS_MM[units or "mm"]
    extents = np.ptp(vertices, axis=0)
    if units is None and not SMALLEST_MM <= extents.max() <= LARGEST_MM:
        size = " x ".join(f"{e:.4g}" for e in extents)
        raise ValueError(f"{file}: is {size} if its unit is mm; say units= ({', '.join(UNITS_MM)})")
    if (space or _space_of(file.read_bytes()[:2000]) or "LPS") == "RAS":
        vertices = vertices * (-1.0, -1.0, 1.0)
    try:
        return mesh_volume(vertices, faces, mu, spacing=spacing)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def mesh_volume(
    vertices: np.ndarray, faces: np.ndarray, mu: float, *, spacing: float | None = None
) -> Volume:
    """`read_mesh` for a surface that is already there.

    vertices  [V, 3] mm, LPS; corners that several triangles share stand once
    faces     [F, 3] indices of corners, counter-clockwise seen from outside (the other way round
              is turned)

    Columns parallel to z, 4 x 4 per voxel, are cut with the triangles; the length inside a voxel
    follows exactly from the signed crossings (the winding number), so that the value is exact
    along z and sampled across it. A column through an edge or a corner is decided by a symbolic
    shift of the column, the same for all triangles, so that none is counted twice or missed.
    """
    _check_closed(faces)
    if not (np.isfinite(mu) and mu > 0.0):
        raise ValueError(f"mu: expected a positive attenuation in 1/mm, got {mu}")
    low, extents = vertices.min(0), np.ptp(vertices, axis=0)
    step = float(extents.max()) / VOXELS if spacing is None else float(spacing)
    if not (np.isfinite(step) and step > 0.0):
        raise ValueError(f"spacing: expected a positive number of mm, got {spacing}")
    shape = np.ceil(extents / step).astype(np.int64) + 2  # x, y, z
    if shape.max() - 2 > MOST_VOXELS:
        raise ValueError(
            f"spacing: {step:g} mm asks for {' x '.join(map(str, shape))} voxels, at most "
            f"{MOST_VOXELS} along an axis; a spacing of {extents.max() / MOST_VOXELS:.3g} mm serves"
        )
    first = low + extents / 2 - step * (shape - 1) / 2  # the centre of voxel (0, 0, 0)
    corner = first - step / 2
    fine = (vertices - corner) / (step / COLUMNS, step / COLUMNS, step)
    columns = (COLUMNS * shape[0], COLUMNS * shape[1])
    inside = np.zeros((columns[1], columns[0], shape[2] + 1))
    flat = inside.reshape(-1)
    for column, height, sign in _crossings(fine, faces, columns[0]):
        voxel = np.floor(height).astype(np.int64)
        above = voxel + 1 - height  # of the voxel that is crossed
        at = column * (shape[2] + 1) + voxel
        flat += np.bincount(at, sign * above, len(flat))
        flat += np.bincount(at + 1, sign * (1.0 - above), len(flat))
    inside = np.cumsum(inside, 2)[:, :, :-1]
    share = inside.reshape(shape[1], COLUMNS, shape[0], COLUMNS, shape[2]).mean((1, 3))
    if share.sum() < 0.0:  # triangles seen from inside
        share = -share
    share = np.clip(share, 0.0, 1.0).round(9)  # without the sums' rounding
    values = torch.from_numpy(share.transpose(2, 0, 1).copy())
    x, y, z = first.tolist()
    return Volume((mu * values).float(), (step, step, step), (x, y, z), unit="mu")


def _crossings(vertices: np.ndarray, faces: np.ndarray, columns: int):
    """Where columns (x, y) = (i + 1/2, j + 1/2) cross triangles: j columns + i, z, and the sign
    of the crossing, +1 where the column enters; in chunks."""
    corners = vertices[faces]  # [F, 3, 3]
    area = _cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    low = np.ceil(corners[:, :, :2].min(1) - 0.5).astype(np.int64)
    high = np.floor(corners[:, :, :2].max(1) - 0.5).astype(np.int64)
    counts = np.where(area != 0.0, np.prod(np.maximum(high - low + 1, 0), 1), 0)
    ends = np.cumsum(counts)
    begin = 0
    while begin < len(faces):
        base = ends[begin - 1] if begin else 0
        end = max(int(np.searchsorted(ends, base + CHUNK, "right")), begin + 1)
        part = np.repeat(np.arange(begin, end), counts[begin:end])
        rank = np.arange(len(part)) - (ends[part] - counts[part] - base)
        width = high[part, 0] - low[part, 0] + 1
        i, j = low[part, 0] + rank % width, low[part, 1] + rank // width
        point = np.stack((i + 0.5, j + 0.5), 1)
        turn = np.sign(area[part])
        edges, hit = [], np.ones(len(part), dtype=bool)
        for a, b in ((1, 2), (2, 0), (0, 1)):
            value, side = _side(vertices, faces[part, a], faces[part, b], point)
            edges.append(value)
            hit &= side == turn
        weights = np.stack(edges, 1)[hit] / area[part[hit], None]
        height = (weights * corners[part[hit], :, 2]).sum(1)
        yield j[hit] * columns + i[hit], height, -turn[hit]
        begin = end


def _side(
    vertices: np.ndarray, a: np.ndarray, b: np.ndarray, point: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """On which side of the edges from corner a to b points lie: twice the signed area, and its
    sign, never zero: points on the line count as moved by (e, e^2), e infinitely small. Computed
    from the lower to the higher corner, so that both triangles of an edge get the same number."""
    swap = np.where(a < b, 1.0, -1.0)
    first, last = vertices[np.minimum(a, b), :2], vertices[np.maximum(a, b), :2]
    along = last - first
    value = _cross(along, point - first)
    shifted = np.where(along[:, 1] != 0.0, -along[:, 1], along[:, 0])
    return swap * value, swap * np.sign(np.where(value != 0.0, value, shifted))


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def _check_closed(faces: np.ndarray) -> None:
    """Every edge belongs to as many triangles in one direction as in the other."""
    ways = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    sign = np.where(ways[:, 0] < ways[:, 1], 1, -1)
    edges, where = np.unique(np.sort(ways, 1), axis=0, return_inverse=True)
    open_edges = int((np.bincount(where.reshape(-1), sign, len(edges)) != 0).sum())
    if open_edges:
        raise ValueError(
            f"expected a closed surface, got {open_edges} of {len(edges)} edges where triangles "
            "are missing or turned over; repair it (e.g. with MeshLab's hole filling)"
        )


def _space_of(beginning: bytes) -> str | None:
    found = re.search(rb"SPACE\s*=\s*(LPS|RAS)", beginning)
    return found.group(1).decode() if found else None
