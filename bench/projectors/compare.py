"""How far the tools' results lie from drrkit's and from a very fine reference.

The reference is the trilinearly interpolated volume, sampled 2000 times per ray with torch's
grid_sample in float64 along rays from K, sdd and world_to_camera: it uses none of drrkit's kernels
or frames.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bench.projectors.plan import Workload
from bench.projectors.scene import Scene
from drrkit.geometry import Camera
from drrkit.volume import Volume

REFERENCE_RAYS = 2600
"""About how many rays of a view have a reference."""
MOST_REFERENCE_SIZE = 512


def relative(found: np.ndarray, truth: np.ndarray, physical: bool = True) -> float:
    """Relative L2 difference; where the scale is not physical, after the best common factor."""
    found, truth = found.astype(np.float64), truth.astype(np.float64)
    if not physical:
        found = found * (float((found * truth).sum()) / max(float((found**2).sum()), 1e-300))
    return float(np.linalg.norm(found - truth) / max(np.linalg.norm(truth), 1e-300))


def differences(
    operation: str, found: np.ndarray, own: np.ndarray, physical: bool
) -> dict[str, float]:
    """Differences of a result from drrkit's, by name: of images, of gradients in rotation and
    translation (over all views), of gradients in voxels (as means over blocks)."""
    if operation == "forward":
        return {"image": relative(found, own, physical)}
    if operation == "pose":
        return {
            "rotation": relative(found[:, :3], own[:, :3], physical),
            "translation": relative(found[:, 3:], own[:, 3:], physical),
        }
    return {"gradient": relative(found, own, physical)}


class Reference:
    """The fine reference of single views, computed once per view and size, on some of the rows."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], np.ndarray] = {}

    def difference(
        self, work: Workload, scene: Scene, image: np.ndarray, physical: bool
    ) -> float | None:
        """Of images [1, rows, cols]; None for workloads without a reference."""
        plain = work.section == "main" and work.operation == "forward" and work.views == 1
        if not plain or work.size > MOST_REFERENCE_SIZE:
            return None
        every = max(1, work.size**2 // REFERENCE_RAYS)
        key = (work.view, work.size)
        if key not in self.rows:
            pose, camera = scene.poses(work.view, 1), scene.camera(work.size)
            self.rows[key] = fine_integrals(scene.volume, camera, pose, every).numpy()
        return relative(image[0, ::every], self.rows[key], physical)


def comparison(
    work: Workload,
    scene: Scene,
    answer: np.ndarray,
    own: np.ndarray | None,
    physical: bool,
    reference: Reference,
) -> dict[str, float]:
    """All differences of a result; own is drrkit's, None for drrkit itself."""
    found = {} if own is None else differences(work.operation, answer, own, physical)
    fine = reference.difference(work, scene, answer, physical)
    return found if fine is None else found | {"image_to_fine": fine}


def fine_integrals(
    volume: Volume,
    camera: Camera,
    world_to_camera: Tensor,
    every: int = 1,
    samples: int = 2000,
) -> Tensor:
    """Midpoint sums of `samples` equal parts of each ray's stay in the volume: [rows, cols].

    volume [D, H, W] in 1/mm, interpolated against zeros beyond its outermost voxel centres;
    world_to_camera [1, 4, 4]; of the detector's rows only 0, every, 2 every, ... are computed.
    Rays run from the source to the detector. float64.
    """
    source, target = _rays_in_index_coordinates(volume, camera, world_to_camera)
    count = torch.tensor(volume.shape_xyz, dtype=torch.float64)
    direction = target - source
    faces = torch.stack((-1.0 - source, count - source))[:, None, None]  # of the support
    crossings = faces / direction  # [2, rows, cols, 3]
    enter = crossings.amin(0).amax(-1, keepdim=True).clamp(0.0, 1.0)
    leave = crossings.amax(0).amin(-1, keepdim=True).clamp(0.0, 1.0).maximum(enter)
    spacing = torch.tensor(volume.spacing, dtype=torch.float64)
    length = ((spacing * direction).norm(dim=-1, keepdim=True) * (leave - enter))[..., 0]

    values = volume.values.detach().double()[None, None]
    where = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples
    rows = []
    for row in range(0, camera.size[0], every):  # a row at a time keeps the memory small
        t = enter[row] + (leave - enter)[row] * where  # [cols, samples]
        points = source + t[..., None] * direction[row][:, None]
        grid = (2.0 * points + 1.0) / count - 1.0
        sampled = torch.nn.functional.grid_sample(values, grid[None, None], align_corners=False)
        rows.append(sampled[0, 0, 0].mean(-1) * length[row])
    return torch.stack(rows)


def _rays_in_index_coordinates(
    volume: Volume, camera: Camera, world_to_camera: Tensor
) -> tuple[Tensor, Tensor]:
    """Source [3] and pixel centres [rows, cols, 3], index coordinates (x, y, z)."""
    rows, cols = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float64) for n in camera.size), indexing="ij"
    )
    pixels = torch.stack((cols, rows, torch.ones_like(rows), torch.zeros_like(rows)), -1)
    seen = torch.eye(4, dtype=torch.float64)
    seen[:3, :3] = float(camera.sdd) * torch.linalg.inv(camera.K.double())
    index_from_camera = torch.linalg.inv(world_to_camera[0].double() @ volume.affine)
    source = index_from_camera[:3, 3]
    return source, source + (pixels @ seen.mT @ index_from_camera.mT)[..., :3]
