"""Pictures of a scene at poses, with their Jacobians: what can be prepared once, is.

A scene is a Volume in mu, Bodies, or anything that renders itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

from drrkit.geometry import Camera, perturb, volume_center
from drrkit.projector import Projector
from drrkit.registration.problem.bodies import Bodies
from drrkit.registration.problem.truncation import CutFaces
from drrkit.volume import Volume

__all__ = ["Renderer", "SceneRenderer", "renderer"]

# What `register` asks of a projector unless told otherwise.
DEFAULT_METHOD = "joseph"


class Renderer:
    """A scene in one camera: poses of that camera [B, 4, 4] -> line integrals [B, C, rows, cols].

    For Bodies the poses are [B, n, 4, 4].
    """

    def __call__(self, world_to_camera: Tensor) -> Tensor:
        raise NotImplementedError

    def with_jacobian(
        self, world_to_camera: Tensor, rig_to_camera: Tensor | None, center: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Image [B, C, rows, cols] and d image / d xi [B, C, D, rows, cols], both detached.

        Args:
            world_to_camera: [B, 4, 4] of the rig's first camera; xi is in its axes.
            rig_to_camera: [4, 4] from there to this camera; None: this is the one.
            center: [3] world mm, what xi turns about; [n, 3] for n bodies.
        """
        raise NotImplementedError


class SceneRenderer:
    """A scene with a projector method: resampled volumes and Projectors, made once and kept.

    Args:
        scene: a Volume in mu, Bodies, or another scene. Its values must not change afterwards.
        method: projector method.
        gain: of a comparison by intensity: what is rendered is 1 - exp(-gain L) of line integrals
            L; 0 for these themselves.
        part: the scene is a part of what X-rays show: what is beside it is missing anyway, so that
            rays through faces at which it was cut off are not left out.
    """

    def __init__(
        self, scene: Any, method: str = DEFAULT_METHOD, gain: float = 0.0, part: bool = False
    ) -> None:
        self.scene, self.method, self.gain = scene, method, gain
        self.cut = CutFaces(None if part else scene)
        self.wide_images: dict[Any, dict[int, Any]] = {}  # a search's, see GlobalSearch
        self._resampled: dict[Any, Any] = {}
        self._prepared: dict[Any, Any] = {}
        self._renderers: dict[Any, Renderer] = {}

    def at_voxels(self, voxel_mm: float | None) -> Any:
        """The scene with voxels of about this size, or its own; one without voxels as it is."""
        if voxel_mm is None or not isinstance(self.scene, (Volume, Bodies)):
            return self.scene
        bodies = self.scene.bodies if isinstance(self.scene, Bodies) else (self.scene,)
        key = tuple(_multiples(body, voxel_mm) for body in bodies)
        if key not in self._resampled:
            coarser = partial(_coarser, voxel_mm=voxel_mm)
            one = isinstance(self.scene, Volume)
            self._resampled[key] = coarser(self.scene) if one else self.scene.map(coarser)
        return self._resampled[key]

    def renderer(
        self,
        camera: Camera,
        voxel_mm: float | None = None,
        supersample: int = 1,
        similarity: Any = None,
    ) -> Renderer:
        """The scene as a similarity wants it (what its `prepare` makes of it) in a camera."""
        scene = self.prepared_for(similarity, voxel_mm)
        key = (id(scene), supersample, _numbers(camera))
        if key not in self._renderers:
            self._renderers[key] = renderer(scene, camera, supersample, self.method, self.gain)
        return self._renderers[key]

    def prepared_for(self, similarity: Any, voxel_mm: float | None = None) -> Any:
        """The scene as a similarity wants it: what its `prepare` makes of it, where it has one."""
        scene = self.at_voxels(voxel_mm)
        prepare = getattr(similarity, "prepare", None)
        if prepare is None:
            return scene
        key = (id(similarity), id(scene))
        if key not in self._prepared:
            made = scene.map(prepare) if isinstance(scene, Bodies) else prepare(scene)
            self._prepared[key] = made, similarity  # kept: an id is one object's while it lives
        return self._prepared[key][0]


def renderer(
    scene: Any, camera: Camera, supersample: int, method: str, gain: float = 0.0
) -> Renderer:
    """A scene in a camera, prepared for many calls.

    Raises:
        ValueError: a method for a scene whose `render` has no such option.
    """
    if gain:  # of single rays: what a pixel shows is their mean
        fine = camera if supersample == 1 else camera.rescale(1.0 / supersample)
        return _Absorption(renderer(scene, fine, 1, method), gain, supersample)
    if isinstance(scene, Bodies):
        return _OfBodies([renderer(one, camera, supersample, method) for one in scene.bodies])
    if callable(getattr(scene, "render", None)):
        return _OfScene(scene, camera, supersample, method)
    return _OfVolume(scene, camera, supersample, method)


class _Absorption(Renderer):
    """The absorbed share of the beam, 1 - exp(-gain L), averaged over pool x pool rays a pixel."""

    def __init__(self, line: Renderer, gain: float, pool: int) -> None:
        self.line, self.gain, self.pool = line, gain, pool

    def __call__(self, world_to_camera: Tensor) -> Tensor:
        return self._pooled(-torch.expm1(-self.gain * self.line(world_to_camera)))

    def with_jacobian(
        self, world_to_camera: Tensor, rig_to_camera: Tensor | None, center: Tensor
    ) -> tuple[Tensor, Tensor]:
        image, jacobian = self.line.with_jacobian(world_to_camera, rig_to_camera, center)
        absorbed = -torch.expm1(-self.gain * image)
        jacobian = jacobian * (self.gain * (1.0 - absorbed)).unsqueeze(2)
        columns = jacobian.shape[1:3]
        return self._pooled(absorbed), self._pooled(jacobian.flatten(1, 2)).unflatten(1, columns)

    def _pooled(self, image: Tensor) -> Tensor:
        return image if self.pool == 1 else functional.avg_pool2d(image, self.pool)


class _OfVolume(Renderer):
    def __init__(self, volume: Volume, camera: Camera, supersample: int, method: str) -> None:
        self.projector = Projector(volume, camera, supersample=supersample, method=method)
        self.middle = volume_center(volume)

    def __call__(self, world_to_camera: Tensor) -> Tensor:
        return self.projector(world_to_camera)

    def with_jacobian(
        self, world_to_camera: Tensor, rig_to_camera: Tensor | None, center: Tensor
    ) -> tuple[Tensor, Tensor]:
        pose = world_to_camera if rig_to_camera is None else rig_to_camera @ world_to_camera
        image, jacobian = self.projector.with_jacobian(pose)
        offset = self.middle - center
        if rig_to_camera is None and not bool((offset.abs() > 1e-9).any()):
            return image, jacobian
        change = _change_of_twist(world_to_camera, rig_to_camera, offset).to(jacobian)
        rows = (change.mT @ jacobian.movedim(1, 2).flatten(2)).unflatten(
            2, (jacobian.shape[1], *jacobian.shape[3:])
        )
        return image, rows.movedim(2, 1)


class _OfBodies(Renderer):
    """Images add, Jacobians stand side by side."""

    def __init__(self, parts: Sequence[Renderer]) -> None:
        self.parts = parts

    def __call__(self, world_to_camera: Tensor) -> Tensor:
        images = [one(world_to_camera[:, i]) for i, one in enumerate(self.parts)]
        return torch.stack(images).sum(0)

    def with_jacobian(
        self, world_to_camera: Tensor, rig_to_camera: Tensor | None, center: Tensor
    ) -> tuple[Tensor, Tensor]:
        found = [
            one.with_jacobian(world_to_camera[:, i], rig_to_camera, center[i])
            for i, one in enumerate(self.parts)
        ]
        images, jacobians = zip(*found, strict=True)
        return torch.stack(images).sum(0), torch.cat(jacobians, 2)


class _OfScene(Renderer):
    """A scene with a `render` of its own, which may take method and supersample or not."""

    def __init__(self, scene: Any, camera: Camera, supersample: int, method: str) -> None:
        parameters = inspect.signature(scene.render).parameters.values()
        taken = {one.name for one in parameters}
        anything = any(one.kind is one.VAR_KEYWORD for one in parameters)
        options: dict[str, Any] = {}
        if anything or "method" in taken:
            options["method"] = method
        elif method != DEFAULT_METHOD:
            raise ValueError(
                f"method: expected {DEFAULT_METHOD!r} for a {type(scene).__name__}, whose render() "
                f"takes no method, got {method!r}"
            )
        self.pool = 1
        if anything or "supersample" in taken:
            options["supersample"] = supersample
        elif supersample > 1:
            self.pool, camera = supersample, camera.rescale(1.0 / supersample)
        self.draw = partial(scene.render, camera, **options)

    def __call__(self, world_to_camera: Tensor) -> Tensor:
        image = self.draw(world_to_camera)
        return image if self.pool == 1 else functional.avg_pool2d(image, self.pool)

    def with_jacobian(
        self, world_to_camera: Tensor, rig_to_camera: Tensor | None, center: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Six tangents by forward-mode differentiation."""
        count = world_to_camera.shape[0]
        pose = world_to_camera.repeat_interleave(6, 0)
        axes = torch.eye(6).to(pose).repeat(count, 1)
        with torch.no_grad(), forward_ad.dual_level():
            xi = forward_ad.make_dual(torch.zeros_like(axes), axes)
            pose = perturb(pose, xi, center)
            pose = pose if rig_to_camera is None else rig_to_camera @ pose
            image, tangent = forward_ad.unpack_dual(self(pose))
        if tangent is None:
            tangent = torch.zeros_like(image)
        return image[::6], tangent.unflatten(0, (count, 6)).movedim(1, 2)


def _change_of_twist(pose: Tensor, rig: Tensor | None, offset: Tensor) -> Tensor:
    """[B, 6, 6] from twists about a point in the first camera to twists about another in its own.

    offset: [3] world mm from the first point to the second. A turn omega about the one moves the
    other by omega x d, d = R offset.
    """
    d = (pose[:, :3, :3] @ offset.to(pose)[:, None])[..., 0]
    change = torch.eye(6).to(pose).repeat(pose.shape[0], 1, 1)
    x, y, z = d.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack((zero, z, -y, -z, zero, x, y, -x, zero), -1).unflatten(-1, (3, 3))
    change[:, 3:, :3] = cross  # omega x d = -d x omega
    if rig is None:
        return change
    turn = torch.block_diag(rig[:3, :3], rig[:3, :3])
    return turn.to(change) @ change


def _multiples(volume: Volume, voxel_mm: float) -> tuple[int, ...]:
    """By how much to enlarge voxels along each axis: whole multiples, so that all poses of about
    one depth share a resampled volume."""
    return tuple(max(1, round(voxel_mm / own)) for own in volume.spacing)


def _coarser(volume: Volume, voxel_mm: float) -> Volume:
    """A volume resampled to voxels of about this size, where its own are much smaller."""
    multiples = _multiples(volume, voxel_mm)
    if max(multiples) == 1:
        return volume
    return volume.resample([own * n for own, n in zip(volume.spacing, multiples, strict=True)])


def _numbers(camera: Camera) -> tuple[Any, ...]:
    """What two cameras that see alike have in common."""
    sdd = torch.as_tensor(camera.sdd).reshape(-1).tolist()
    return tuple(camera.K.flatten().tolist()), camera.size, tuple(sdd), camera.beam
