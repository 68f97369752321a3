"""drrkit and its peers behind one call: a pose in, an image out, same volume, same rays.

Every tool gets the same attenuation (1/mm), the same camera and the same world-to-camera matrix,
converted to its own conventions by the functions here; the conversion is differentiable and part of
what is timed (some ten microseconds).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any

import torch
from torch import Tensor

import drrkit

SAMPLES = 500  # samples a ray of the sampling peers: one voxel of the chest CT's dominant axis


@dataclass(frozen=True)
class Case:
    """One method of one tool.

    render      world_to_camera [1, 4, 4] float64 -> image [rows, cols] of line integrals
    values      what a volume gradient is taken of; the tool's own copy in its own layout
    operations  which of "forward", "pose" and "volume" are measured
    same_as     the drrkit method that computes the same integral, for the images' difference
    """

    tool: str
    method: str
    version: str
    render: Callable[[Tensor], Tensor]
    values: Tensor
    operations: tuple[str, ...]
    same_as: str

    @property
    def name(self) -> str:
        return f"{self.tool} {self.method}"


def drrkit_cases(volume: drrkit.Volume, camera: drrkit.Camera) -> Iterator[Case]:
    """joseph, siddon, and trilinear with a step of one (smallest) voxel, as the sampling peers."""
    options: dict[str, dict[str, Any]] = {
        "joseph": {},
        "trilinear": {"step": min(volume.spacing)},
        "siddon": {},
    }
    for method, extra in options.items():

        def render(pose: Tensor, method: str = method, extra: dict[str, Any] = extra) -> Tensor:
            return drrkit.render(volume, camera, pose, method=method, **extra)[0, 0]

        yield Case(
            "drrkit",
            method,
            drrkit.__version__,
            render,
            volume.values,
            ("forward", "pose", "volume"),
            method,
        )


def nanodrr_cases(volume: drrkit.Volume, camera: drrkit.Camera) -> Iterator[Case]:
    """nanodrr's functional render, torch backend (the only one it has on a CPU)."""
    subject_type = import_module("nanodrr.data").Subject
    renderer = import_module("nanodrr.drr").render
    subject = subject_type.from_images(_torchio_image(volume), convert_to_mu=False)
    # Its pixel centres stand at half-integers.
    intrinsics = camera.K.double().clone()
    intrinsics[:2, 2] += 0.5
    k_inv = torch.linalg.inv(intrinsics).float()[None]
    sdd = torch.tensor([float(camera.sdd)])
    rows, cols = camera.size

    def render(pose: Tensor) -> Tensor:
        rt_inv = _ras_from_camera(pose).float()
        return renderer(subject, k_inv, rt_inv, sdd, rows, cols, n_samples=SAMPLES)[0, 0]

    yield Case(
        "nanodrr",
        "trilinear",
        metadata.version("nanodrr"),
        render,
        subject.image,
        ("forward", "pose", "volume"),
        "trilinear",
    )


def diffdrr_cases(volume: drrkit.Volume, camera: drrkit.Camera) -> Iterator[Case]:
    """DiffDRR's two renderers; the density buffer holds mu in place of its normalised density."""
    read = import_module("diffdrr.data").read
    drr_type = import_module("diffdrr.drr").DRR
    transform = import_module("diffdrr.pose").RigidTransform
    row_pitch, col_pitch = camera.pixel_spacing
    rows, cols = camera.size
    # reorient = identity and no reversed axis: its camera then has y up, ours has it down.
    subject = read(_torchio_image(volume), orientation=None)
    flip = torch.diag(torch.tensor((1.0, -1.0, 1.0, 1.0), dtype=torch.float64))
    to_centre = torch.eye(4, dtype=torch.float64)
    to_centre[:3, 3] = -_lps_from_ras()[:3, :3] @ drrkit.volume_center(volume)
    options: dict[str, dict[str, Any]] = {"trilinear": {"n_points": SAMPLES}, "siddon": {}}
    for method, extra in options.items():
        drr = drr_type(
            subject,
            sdd=float(camera.sdd),
            height=rows,
            width=cols,
            delx=col_pitch,
            dely=row_pitch,
            renderer=method,
            reverse_x_axis=False,
        )
        drr.density.copy_(volume.values.permute(2, 1, 0))

        def render(pose: Tensor, drr: Any = drr, extra: dict[str, Any] = extra) -> Tensor:
            matrix = to_centre @ _ras_from_camera(pose) @ flip
            return drr(transform(matrix.float()), **extra)[0, 0]

        yield Case(
            "DiffDRR",
            method,
            metadata.version("diffdrr"),
            render,
            drr.density,
            ("forward", "pose"),
            method,
        )


def available(volume: drrkit.Volume, camera: drrkit.Camera) -> tuple[list[Case], dict[str, str]]:
    """Every case that can run here, and for each tool that cannot the reason."""
    cases, absent = list(drrkit_cases(volume, camera)), {}
    for tool, factory in (("nanodrr", nanodrr_cases), ("DiffDRR", diffdrr_cases)):
        try:
            cases += factory(volume, camera)
        except ImportError as error:
            absent[tool] = f"{type(error).__name__}: {error}"
    return cases, absent


def _lps_from_ras() -> Tensor:
    return torch.diag(torch.tensor((-1.0, -1.0, 1.0, 1.0), dtype=torch.float64))


def _ras_from_camera(world_to_camera: Tensor) -> Tensor:
    """Camera-to-world [B, 4, 4] with the world in RAS, of a world-to-camera [B, 4, 4] in LPS."""
    turn = world_to_camera[..., :3, :3].mT
    source = -turn @ world_to_camera[..., :3, 3:]
    last = world_to_camera[..., 3:, :]
    return _lps_from_ras() @ torch.cat((torch.cat((turn, source), -1), last), -2)


def _torchio_image(volume: drrkit.Volume) -> Any:
    """A torchio ScalarImage [1, x, y, z] with a RAS affine."""
    torchio = import_module("torchio")
    tensor = volume.values.detach().permute(2, 1, 0)[None].contiguous()
    return torchio.ScalarImage(tensor=tensor, affine=(_lps_from_ras() @ volume.affine).numpy())
