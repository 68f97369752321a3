"""X-ray images with their cameras and masks, at any resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from drrkit.geometry import Camera, check_floating
from drrkit.registration.lengths import pixel_at
from drrkit.xray import gaussian_blur, open_field

if TYPE_CHECKING:
    from drrkit.registration.stages import Stage

__all__ = [
    "View",
    "blurred",
    "check_rotations",
    "downsampling",
    "downsamplings",
    "make_views",
    "negatives",
    "rig_of",
    "scaled_views",
    "within_fields",
]

# An X-ray is not made smaller than this by a stage that chooses its own resolution.
FEWEST_PIXELS = 24

# And not registered below this: derivatives of images need neighbours.
FEWEST_SIDE = 3

# Images brighter than this overflow when they are squared and summed.
_BRIGHTEST = 1e12


@dataclass(frozen=True, eq=False)
class View:
    """One X-ray image: xray and mask [1, 1, rows, cols], rig_to_camera [4, 4] float64 or None."""

    camera: Camera
    xray: Tensor
    mask: Tensor | None
    rig_to_camera: Tensor | None

    def pose(self, world_to_camera: Tensor) -> Tensor:
        """The poses [B, 4, 4] of this view's camera when the first camera's are given."""
        if self.rig_to_camera is None:
            return world_to_camera
        return self.rig_to_camera @ world_to_camera

    def downsampled(self, factor: int) -> View:
        """The same view with pixels factor times larger, averaged."""
        if factor == 1:
            return self
        if factor > min(self.camera.size):
            raise ValueError(
                f"downsample: expected at most {min(self.camera.size)} for an X-ray of "
                f"{self.camera.size} pixels, got {factor}"
            )
        mask = None if self.mask is None else functional.avg_pool2d(self.mask, factor)
        xray = _averaged(self.xray, self.mask, factor)
        return replace(self, camera=self.camera.rescale(factor), xray=xray, mask=mask)

    def blurred(self, sigma_px: float) -> View:
        """The same view with a blurred image."""
        return replace(self, xray=blurred(self.xray, self.mask, sigma_px))


def downsampling(stage: Stage, camera: Camera, depth: float) -> int:
    """The stage's downsampling for a camera whose patient stands `depth` mm from the source.

    Raises:
        ValueError: the stage's pixels are a share of an extent: `Stage.in_mm` converts.
    """
    if stage.pixel is None:
        return stage.downsample
    if not stage.mm:
        raise ValueError("stage: expected lengths in mm, got shares; stage.in_mm(extent) converts")
    largest = max(1, min(camera.size) // FEWEST_PIXELS)
    return min(max(1, round(stage.pixel / pixel_at(camera, depth))), largest)


def downsamplings(stage: Stage, views: Sequence[View], depth: float) -> list[int]:
    """The stage's downsampling for every view, so that all see pixels of about one size.

    depth: of the patient, mm from the first view's source; the others are taken to stand as far in
    units of their source-to-detector distance.
    """
    first = float(torch.as_tensor(views[0].camera.sdd).mean())
    shares = [depth / first * float(torch.as_tensor(view.camera.sdd).mean()) for view in views]
    return [downsampling(stage, view.camera, own) for view, own in zip(views, shares, strict=True)]


def scaled_views(views: Sequence[View], stage: Stage, factor: int | Sequence[int]) -> list[View]:
    """The views at a stage's resolution; factor: one number or one a view."""
    factors = [factor] * len(views) if isinstance(factor, int) else factor
    return [
        view.downsampled(own).blurred(stage.blur) for view, own in zip(views, factors, strict=True)
    ]


def _averaged(image: Tensor, mask: Tensor | None, factor: int) -> Tensor:
    """Means of factor x factor pixels, of those alone that the mask does not leave out.

    A shutter is far darker than any patient: a larger pixel that it touches would otherwise be an
    outlier with a weight. Pixels of which nothing is left are as bright as the mean of all others.
    """
    if mask is None:
        return functional.avg_pool2d(image, factor)
    inside = mask > 0
    share = functional.avg_pool2d(inside.to(image), factor)
    seen = functional.avg_pool2d(torch.where(inside, image, 0.0), factor)
    mean = seen.sum() / share.sum()
    return torch.where(share > 0, seen / share.clamp_min(1 / factor**2), mean)


def blurred(image: Tensor, mask: Tensor | None, sigma_px: float) -> Tensor:
    """A Gaussian blur in which pixels count by the mask, so that nothing leaks out of it."""
    if sigma_px == 0:
        return image
    if mask is None:
        return gaussian_blur(image, sigma_px)
    weight = gaussian_blur(mask, sigma_px)
    inside = (weight > 1e-6).to(weight)
    return gaussian_blur(image * mask, sigma_px) * inside / weight.clamp_min(1e-6)


def make_views(
    camera: Camera | Sequence[Camera],
    xray: Tensor | Sequence[Tensor],
    mask: Tensor | Sequence[Tensor | None] | None,
    rig_to_camera: Tensor | None,
    like: Tensor,
) -> list[View]:
    """The views of a registration, checked against each other.

    Args:
        camera, xray, mask: one, or as many as there are cameras.
        rig_to_camera: [V, 4, 4] for several cameras, the first one the identity.
        like: a tensor of the dtype and device to compute in.

    Raises:
        TypeError, ValueError: an argument does not fit the others, or an image is not finite.
    """
    for one in _cameras(camera):
        _check_camera(one)
    if isinstance(camera, Camera):
        if rig_to_camera is not None:
            raise ValueError("rig_to_camera: expected None for a single camera")
        return [View(camera, _image(xray, camera, "xray", like), _mask(mask, camera, like), None)]
    cameras = list(camera)
    xrays = _as_many(xray, "xray", len(cameras))
    masks = [None] * len(cameras) if mask is None else _as_many(mask, "mask", len(cameras))
    poses = _rig(rig_to_camera, len(cameras), like.device)
    return [
        View(one, _image(image, one, "xray", like), _mask(weight, one, like), pose)
        for one, image, weight, pose in zip(cameras, xrays, masks, poses, strict=True)
    ]


def rig_of(world_to_camera: Tensor) -> Tensor:
    """The fixed maps [V, 4, 4] float64 from a first camera's coordinates to those of V cameras.

    Args:
        world_to_camera: [V, 4, 4], the calibrated cameras at one moment in any common world.

    Raises:
        TypeError, ValueError: it is not a floating point tensor of that shape.
    """
    check_floating("world_to_camera", world_to_camera, (4, 4))
    if world_to_camera.dim() != 3 or len(world_to_camera) == 0:
        shape = tuple(world_to_camera.shape)
        raise ValueError(f"world_to_camera: expected shape [V, 4, 4], got {shape}")
    poses = world_to_camera.detach().double()
    rig = poses @ torch.linalg.inv(poses[0])
    rig[0] = torch.eye(4).to(rig)
    return rig


def within_fields(views: Sequence[View]) -> tuple[list[View], bool]:
    """The views with masks of their open fields where none was given, and whether one was found.

    What a mask leaves out is filled from its rim, so that no derivative sees the step there.
    """
    found, inferred = [], False
    for view in views:
        if view.mask is None:
            field = open_field(view.xray)
            inferred = inferred or field is not None
            view = view if field is None else replace(view, mask=field.to(view.xray))
        found.append(view if view.mask is None else _continued(view))
    return found, inferred


def _continued(view: View) -> View:
    assert view.mask is not None
    return replace(view, xray=_filled(view.xray, (view.mask > 0).to(view.xray)))


def _filled(image: Tensor, weight: Tensor) -> Tensor:
    """The image with pixels of no weight as bright as about the nearest ones that have some.

    Coarser and coarser pixels of what is seen fill what is left (push and pull, Gortler et al.,
    SIGGRAPH 1996, section 3.4).
    """
    if bool((weight > 0).all()) or min(image.shape[-2:]) < 2:
        return image
    share = functional.avg_pool2d(weight, 2, ceil_mode=True)
    coarse = functional.avg_pool2d(image * weight, 2, ceil_mode=True) / share.clamp_min(1e-30)
    coarse = _filled(torch.where(share > 0, coarse, 0.0), (share > 0).to(share))
    fine = functional.interpolate(coarse, scale_factor=2.0, mode="bilinear")
    return torch.where(weight > 0, image, fine[..., : image.shape[-2], : image.shape[-1]])


def negatives(views: Sequence[View]) -> list[View]:
    """The same views with their X-rays negated: dark becomes bright."""
    return [replace(view, xray=-view.xray) for view in views]


def _cameras(camera: Any) -> list[Any]:
    """The cameras of the argument, not yet checked."""
    if isinstance(camera, Camera):
        return [camera]
    if not isinstance(camera, (list, tuple)) or not camera:
        found = "an empty list" if isinstance(camera, (list, tuple)) else type(camera).__name__
        raise TypeError(f"camera: expected a Camera or a list of them, got {found}")
    return list(camera)


def _check_camera(camera: Any) -> None:
    if not isinstance(camera, Camera):
        raise TypeError(f"camera: expected a Camera or a list of them, got {type(camera).__name__}")
    if camera.K.numel() != 9 or torch.as_tensor(camera.sdd).numel() != 1:
        raise ValueError(
            f"camera: expected a single one, got a batch with K {tuple(camera.K.shape)}; several "
            "views of one patient are a list of cameras"
        )
    if min(camera.size) < FEWEST_SIDE:
        raise ValueError(
            f"camera: expected at least {FEWEST_SIDE} rows and columns, got {camera.size}"
        )


def _as_many(value: Any, name: str, count: int) -> list[Any]:
    if isinstance(value, Tensor) or not isinstance(value, Sequence) or len(value) != count:
        found = f"{len(value)}" if isinstance(value, (list, tuple)) else type(value).__name__
        raise ValueError(f"{name}: expected a list of {count}, one a camera, got {found}")
    return list(value)


def _rig(rig_to_camera: Tensor | None, count: int, device: torch.device) -> Tensor:
    if not isinstance(rig_to_camera, Tensor):
        found = type(rig_to_camera).__name__
        raise TypeError(f"rig_to_camera: expected a tensor [{count}, 4, 4], got {found}")
    if rig_to_camera.shape != (count, 4, 4):
        raise ValueError(
            f"rig_to_camera: expected shape [{count}, 4, 4], got {tuple(rig_to_camera.shape)}"
        )
    rig = rig_to_camera.detach().to(device=device, dtype=torch.float64)
    if not torch.allclose(rig[0], torch.eye(4, dtype=rig.dtype, device=device), atol=1e-9):
        raise ValueError("rig_to_camera: expected the identity for the first camera")
    check_rotations("rig_to_camera", rig)
    return rig


def check_rotations(name: str, pose: Tensor) -> None:
    """Raises ValueError where poses [..., 4, 4] are not finite, or no rotations and shifts."""
    if not bool(pose.isfinite().all()):
        raise ValueError(f"{name}: expected finite poses, got values that are not")
    rotation = pose[..., :3, :3]
    error = (rotation @ rotation.mT - torch.eye(3, dtype=pose.dtype, device=pose.device)).abs()
    if float(error.max()) > 1e-3 or bool((torch.linalg.det(rotation) < 0).any()):
        raise ValueError(
            f"{name}: expected rotations, got matrices off by {float(error.max()):.2g} "
            "or of negative determinant"
        )


def _image(image: Any, camera: Camera, name: str, like: Tensor) -> Tensor:
    """An image [rows, cols], [1, rows, cols] or [1, 1, rows, cols] as [1, 1, rows, cols]."""
    rows, cols = camera.size
    if not isinstance(image, Tensor):
        raise TypeError(f"{name}: expected a tensor [1, 1, rows, cols], got {type(image).__name__}")
    if image.shape[-2:] != (rows, cols) or image.numel() != rows * cols:
        raise ValueError(
            f"{name}: expected shape [1, 1, {rows}, {cols}] as the camera has, "
            f"got {tuple(image.shape)}"
        )
    if not image.dtype.is_floating_point:
        raise TypeError(f"{name}: expected a floating point tensor, got {image.dtype}")
    image = image.detach().reshape(1, 1, rows, cols).to(device=like.device, dtype=like.dtype)
    if not bool(image.isfinite().all()):
        bad = int((~image.isfinite()).sum())
        raise ValueError(f"{name}: expected finite values, got {bad} that are not")
    largest = float(image.abs().max())
    if largest > _BRIGHTEST:
        raise ValueError(f"{name}: expected values up to {_BRIGHTEST:g}, got {largest:g}")
    return image


def _mask(mask: Any, camera: Camera, like: Tensor) -> Tensor | None:
    if mask is None:
        return None
    mask = _image(mask, camera, "mask", like)
    if bool((mask < 0).any()) or not bool((mask > 0).any()):
        raise ValueError("mask: expected weights >= 0, some of them positive")
    return mask
