"""Grids, cameras and poses that the tests of drrkit.geometry share."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from drrkit.geometry import Camera, perturb, so3_exp, view_ap, volume_center

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
F64 = torch.float64
LEFT, POSTERIOR, SUPERIOR = torch.eye(3, dtype=F64)
SDD, SOD = 1020.0, 800.0


def tensor(*numbers):
    return torch.tensor(numbers, dtype=F64)


def random(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def make_volume(direction=None, shape=(20, 30, 40), spacing=(1.0, 1.5, 2.0)):
    """A grid and nothing else; shape [D, H, W], so 40 x 30 x 20 voxels along x, y, z."""
    direction = torch.eye(3, dtype=F64) if direction is None else direction
    origin = (-31.0, 17.0, 240.0)
    return SimpleNamespace(
        values=torch.zeros(shape), spacing=spacing, origin=origin, direction=direction
    )


def oblique():
    return so3_exp(tensor(0.3, -0.5, 0.2))


def left_handed():
    return oblique() @ torch.diag(tensor(1.0, -1.0, 1.0))


VOLUMES = {
    "axis-aligned": lambda: make_volume(),
    "oblique": lambda: make_volume(oblique()),
    "left-handed": lambda: make_volume(left_handed()),
}


def skewed_camera(beam="cone"):
    K = tensor([510.0, 7.0, 66.5], [0.0, 430.0, 41.25], [0.0, 0.0, 1.0])
    return Camera(K, (90, 120), SDD, beam)


def some_poses(volume, count=3, seed=0):
    """Views all around, the volume in front of the source."""
    xi = torch.cat((random(count, 3, seed=seed), random(count, 3, seed=seed + 1, scale=20.0)), 1)
    return perturb(view_ap(volume, SOD), xi, volume_center(volume))


def affine(volume):
    """[4, 4] index -> world, written down once more."""
    matrix = torch.eye(4, dtype=F64)
    matrix[:3, :3] = volume.direction @ torch.diag(tensor(*volume.spacing))
    matrix[:3, 3] = tensor(*volume.origin)
    return matrix


def to_world(volume, index):
    return index @ affine(volume)[:3, :3].mT + affine(volume)[:3, 3]


def ray_ends(frames, row, col, beam="cone"):
    source, center, step_col, step_row = frames.unbind(-2)
    shift = col * step_col + row * step_row
    return (source + shift if beam == "parallel" else source), center + shift


def source_of(pose):
    return torch.linalg.inv(pose)[..., :3, 3]


def detector_of(pose, distance=1.0):
    """The world point on the central ray at a distance from the source."""
    return (torch.linalg.inv(pose) @ tensor(0, 0, distance, 1))[..., :3]
