"""Metal tools in an X-ray: wires, screws and rods as solids of revolution with exact chords."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from drrkit.geometry import Camera
from drrkit.projector import endpoints
from drrkit.volume import Volume
from drrkit.xray.simulate.materials import CM_PER_MM, DENSITIES, check_material


@dataclass(frozen=True)
class Tool:
    """A solid of revolution about its z axis, its tip at the origin, mm.

    profile   corners (z, radius) with rising z: between two of them the radius changes linearly,
              two at the same z are a step
    material  a name of `DENSITIES`

    Raises ValueError for a profile that does not rise, has no length or a negative radius, and for
    an unknown material.
    """

    profile: tuple[tuple[float, float], ...]
    material: str = "steel"

    def __post_init__(self) -> None:
        heights = [z for z, _ in self.profile]
        if len(heights) < 2 or heights != sorted(heights) or heights[0] == heights[-1]:
            raise ValueError(f"profile: expected rising z of some length, got {self.profile}")
        if not all(math.isfinite(z) and 0.0 <= r < math.inf for z, r in self.profile):
            raise ValueError(f"profile: expected finite z and radii >= 0, got {self.profile}")
        check_material("material", self.material)

    @property
    def length(self) -> float:
        """From end to end, mm."""
        return self.profile[-1][0] - self.profile[0][0]

    @property
    def volume(self) -> float:
        """Cubic millimetres."""
        return sum(
            math.pi / 3.0 * (z1 - z0) * (r0 * r0 + r0 * r1 + r1 * r1)
            for (z0, r0), (z1, r1) in pairwise(self.profile)
        )

    def chords(self, camera: Camera, tool_to_camera: Tensor) -> Tensor:
        """Length of each pixel's ray inside the tool, mm: [B, 1, rows, cols] float64.

        tool_to_camera  [B, 4, 4]; the rays start at the source and do not end.
        """
        start, direction = _rays(camera, tool_to_camera)
        total = torch.zeros(direction.shape[:-1], dtype=torch.float64, device=direction.device)
        for (z0, r0), (z1, r1) in pairwise(self.profile):
            if z1 > z0:
                total = total + _frustum_chord(start, direction, z0, r0, z1, r1)
        return total.reshape(total.shape[0], 1, *camera.size)

    def voxelise(self, volume: Volume, tool_to_world: Tensor) -> Tensor:
        """Share of each voxel that the tool fills: [D, H, W], of the volume's dtype and device.

        tool_to_world  [4, 4] world mm; edges are smoothed over a voxel.
        """
        values = volume.values
        index = torch.meshgrid(
            *(torch.arange(n, device=values.device) for n in values.shape[-3:]), indexing="ij"
        )
        world = volume.index_to_world(torch.stack(index[::-1], dim=-1).double())
        pose = tool_to_world.to(world)
        x, y, z = ((world - pose[:3, 3]) @ pose[:3, :3]).unbind(-1)
        outside = self._radial_distance((x * x + y * y).sqrt(), z)
        pitch = math.prod(volume.spacing) ** (1.0 / 3.0)
        return (0.5 - outside / pitch).clamp(0.0, 1.0).to(values)

    def _radial_distance(self, radius: Tensor, z: Tensor) -> Tensor:
        """About the distance to the surface, negative inside; exact on a cylinder's sides."""
        nearest = torch.full_like(z, math.inf)
        for (z0, r0), (z1, r1) in pairwise(self.profile):
            if z1 == z0:
                continue
            share = ((z - z0) / (z1 - z0)).clamp(0.0, 1.0)
            lean = math.hypot(z1 - z0, r1 - r0) / (z1 - z0)
            side = (radius - torch.lerp(z.new_tensor(r0), z.new_tensor(r1), share)) / lean
            # Seams between two parts are no surface.
            low = z0 - z if z0 == self.profile[0][0] else torch.full_like(z, -math.inf)
            high = z - z1 if z1 == self.profile[-1][0] else torch.full_like(z, -math.inf)
            beyond = torch.maximum(z0 - z, z - z1).clamp_min(0.0)
            part = torch.where(beyond > 0.0, torch.hypot(side.clamp_min(0.0), beyond), side)
            nearest = torch.minimum(nearest, torch.maximum(part, torch.maximum(low, high)))
        return nearest


@dataclass(frozen=True, eq=False)
class PlacedTool:
    """A tool and where it is.

    tool_to_world  [4, 4], or [B, 4, 4], one pose per view
    present        [B], whether a view has it; None: all have
    """

    tool: Tool
    tool_to_world: Tensor
    present: Tensor | None = None

    def area_density(self, camera: Camera, world_to_camera: Tensor) -> Tensor:
        """Grams of its material per square centimetre along the rays: [B, 1, rows, cols]."""
        pose = self.tool_to_world.to(world_to_camera.device, torch.float64)
        chords = self.tool.chords(camera, world_to_camera.double() @ pose)
        if self.present is not None:
            chords = chords * self.present.to(chords).reshape(-1, 1, 1, 1)
        return CM_PER_MM * DENSITIES[self.tool.material] * chords

    def for_steps(self, steps: int) -> PlacedTool:
        """The same for views of `steps` poses each: poses and presence per view are repeated."""
        pose, present = self.tool_to_world, self.present
        if pose.dim() == 3:
            pose = pose.repeat_interleave(steps, dim=0)
        if present is not None:
            present = present.repeat_interleave(steps, dim=0)
        return PlacedTool(self.tool, pose, present)


def k_wire(diameter: float = 2.0, length: float = 150.0, material: str = "steel") -> Tool:
    """A Kirschner wire: a rod with a conical tip three diameters long; mm."""
    radius = 0.5 * diameter
    return Tool(((0.0, 0.0), (min(3.0 * diameter, length), radius), (length, radius)), material)


def rod(diameter: float = 5.5, length: float = 80.0, material: str = "titanium") -> Tool:
    """A cylinder; mm."""
    return Tool(((0.0, 0.5 * diameter), (length, 0.5 * diameter)), material)


def screw(
    diameter: float = 6.5, length: float = 45.0, pitch: float = 2.75, material: str = "titanium"
) -> Tool:
    """A screw with a conical tip, a thread (as ridges) and a cylindrical head; mm."""
    major, minor = 0.5 * diameter, 0.36 * diameter
    tip = min(diameter, 0.5 * length)
    corners = [(0.0, 0.0), (tip, minor)]
    turns = max(1, int((length - tip) / pitch))
    step = (length - tip) / turns
    for turn in range(turns):
        start = tip + turn * step
        corners += [(start + 0.6 * step, minor), (start + 0.85 * step, major)]
        corners += [(start + step, minor)]
    head = 1.2 * diameter
    return Tool((*corners, (length, 0.5 * head * 1.5), (length + head, 0.5 * head * 1.5)), material)


def random_tool_pose(
    center: Tensor,
    generator: torch.Generator,
    count: int = 1,
    *,
    spread_mm: float = 30.0,
    depth_mm: float = 20.0,
) -> Tensor:
    """Poses of tools that point at a place from any direction: tool_to_world [count, 4, 4] float64.

    The direction is uniform on the sphere; the tip lies N(0, spread_mm) along every axis around
    `center` [3] (world mm), and up to depth_mm further along the tool. On the generator's device.
    """
    options: dict[str, Any] = {
        "generator": generator,
        "device": generator.device,
        "dtype": torch.float64,
    }
    axis = torch.nn.functional.normalize(torch.randn(count, 3, **options), dim=-1)
    tip = center.to(axis) + spread_mm * torch.randn(count, 3, **options)
    tip = tip - depth_mm * torch.rand(count, 1, **options) * axis
    across = torch.eye(3, dtype=axis.dtype, device=axis.device)[axis.abs().argmin(dim=-1)]
    x = torch.nn.functional.normalize(torch.linalg.cross(across, axis), dim=-1)
    pose = torch.eye(4, dtype=axis.dtype, device=axis.device).repeat(count, 1, 1)
    pose[:, :3, :3] = torch.stack([x, torch.linalg.cross(axis, x), axis], dim=-1)
    pose[:, :3, 3] = tip
    return pose


def _rays(camera: Camera, tool_to_camera: Tensor) -> tuple[Tensor, Tensor]:
    """Starts and unit directions of the pixels' rays in tool coordinates, [B, rows * cols, 3]."""
    frame = camera.pixel_rays().to(tool_to_camera.device)
    frame = frame if frame.dim() == 3 else frame[None]
    rows, cols = (torch.arange(n, dtype=torch.float64, device=frame.device) for n in camera.size)
    start, end = endpoints(frame, torch.cartesian_prod(rows, cols), camera.beam).unbind(2)
    rotation, shift = tool_to_camera[:, :3, :3], tool_to_camera[:, None, :3, 3]
    start, end = (start - shift) @ rotation, (end - shift) @ rotation
    return start, torch.nn.functional.normalize(end - start, dim=-1)


def _frustum_chord(
    start: Tensor, direction: Tensor, z0: float, r0: float, z1: float, r1: float
) -> Tensor:
    """Length of rays (from t = 0 on) inside a truncated cone between z0 and z1."""
    (px, py, pz), (dx, dy, dz) = start.unbind(-1), direction.unbind(-1)
    slope = (r1 - r0) / (z1 - z0)
    radius = r0 + slope * (pz - z0)  # of the cone at the start's height
    a = dx * dx + dy * dy - (slope * dz) ** 2
    b = px * dx + py * dy - slope * radius * dz
    c = px * px + py * py - radius * radius
    # The slab z0 <= z <= z1, cut to t >= 0.
    steep = torch.where(dz.abs() < 1e-12, torch.full_like(dz, 1e-12), dz)
    t0, t1 = (z0 - pz) / steep, (z1 - pz) / steep
    low, high = torch.minimum(t0, t1).clamp_min(0.0), torch.maximum(t0, t1).clamp_min(0.0)
    # Inside where a t^2 + 2 b t + c <= 0; for a = 0 a hair of curvature changes nothing.
    a = torch.where(a.abs() < 1e-12, torch.full_like(a, 1e-12), a)
    discriminant = b * b - a * c
    # Stable roots: the sum of terms of one sign, and c over it.
    q = -(b + torch.where(b < 0.0, -1.0, 1.0) * discriminant.clamp_min(0.0).sqrt())
    first, second = q / a, torch.where(q == 0.0, torch.zeros_like(q), c / q)
    near, far = torch.minimum(first, second), torch.maximum(first, second)

    def overlap(begin: Tensor, end: Tensor) -> Tensor:
        return (torch.minimum(end, high) - torch.maximum(begin, low)).clamp_min(0.0)

    between = torch.where(discriminant > 0.0, overlap(near, far), torch.zeros_like(near))
    whole = overlap(low, high)
    # A ray steeper than the cone is inside before and behind the roots, of which one at most
    # lies on this side of the apex.
    outer = torch.where(discriminant > 0.0, whole - overlap(near, far), whole)
    return torch.where(a > 0.0, between, outer)
