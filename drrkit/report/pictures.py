"""Pictures: named display conversions, edges, overlays, image files.

The projector returns line integrals; whatever is made of them here has a name. Pictures are uint8,
[rows, cols] grey or [rows, cols, 3] RGB.
"""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from drrkit.files import whole_file
from drrkit.geometry import Camera
from drrkit.projector import render
from drrkit.volume import Volume, readable_errors
from drrkit.xray import gaussian_blur

IMAGE_SUFFIXES = (".png", ".npy", ".tif", ".tiff", ".nii.gz", ".nii", ".nrrd", ".mha")
"""What save_image writes: PNG for pictures, the others for numbers (float32)."""

GREEN = (0, 255, 0)
OVERLAY_ROWS = 512
"""Overlays are enlarged by a whole factor to at least this many rows: edges are thin then."""


def line_to_transmission(line: Tensor) -> Tensor:
    """Share of photons that pass, exp(-I), of line integrals of any shape; bone is dark."""
    return torch.exp(-line)


def line_to_absorption(line: Tensor) -> Tensor:
    """Share of photons that are stopped, 1 - exp(-I), of line integrals of any shape."""
    return -torch.expm1(-line)


def to_display(
    image: Tensor, *, window: Sequence[float] = (0.5, 99.5), invert: bool = False
) -> Tensor:
    """An image as grey values: linear between two percentiles, clipped outside.

    Args:
        image: [rows, cols], or with leading dimensions of size 1; finite.
        window: percentiles that become black and white, 0 <= low < high <= 100.
        invert: exchange black and white.

    Returns:
        [rows, cols] uint8 on the CPU; black for a constant image.

    Raises:
        TypeError, ValueError: not an image of finite numbers, or a window that means nothing.
    """
    numbers = _plane("image", image).double().numpy()
    if len(window) != 2 or not 0 <= window[0] < window[1] <= 100:
        raise ValueError(f"window: expected percentiles 0 <= low < high <= 100, got {window!r}")
    black, white = np.percentile(numbers, window)
    # Percentiles may coincide (a few bright pixels on a flat field): then the whole range.
    if white <= black:
        black, white = numbers.min(), numbers.max()
    grey = np.clip((numbers - black) / max(white - black, np.finfo(float).tiny), 0, 1)
    return torch.from_numpy(np.rint(255 * (1 - grey if invert else grey)).astype(np.uint8))


def edges(image: Tensor, *, sigma_px: float = 1.5, low: float = 0.6, high: float = 0.8) -> Tensor:
    """Canny's edges, relative to their surroundings: the spine's beside those of the hip.

    Ridges of the smoothed gradient, its length divided by its local mean, are kept where they are
    strong or join strong ones.

    Args:
        image: [rows, cols], or with leading dimensions of size 1; finite.
        sigma_px: of the Gaussian that smooths first, pixels.
        low, high: thresholds as quantiles of the relative length on its ridges, 0 to 1.

    Returns:
        [rows, cols] bool on the CPU, one pixel wide.

    Raises:
        TypeError, ValueError: not an image of finite numbers, or thresholds out of order.
    """
    if not 0 <= low <= high <= 1:
        raise ValueError(f"low, high: expected 0 <= low <= high <= 1, got {low!r} and {high!r}")
    if not sigma_px > 0:
        raise ValueError(f"sigma_px: expected a positive number of pixels, got {sigma_px!r}")
    smooth = gaussian_blur(_plane("image", image).double()[None, None], sigma_px)
    padded = functional.pad(smooth, (1, 1, 1, 1), mode="replicate")
    across = padded[0, 0, 1:-1, 2:] - padded[0, 0, 1:-1, :-2]
    down = padded[0, 0, 2:, 1:-1] - padded[0, 0, :-2, 1:-1]
    length = torch.hypot(across, down)
    # Rounding makes gradients of a flat image, too: they are nothing beside its values.
    length[length <= 1e-9 * smooth.abs().max()] = 0.0
    surroundings = _broad_mean(length, 10.0 * sigma_px) + 0.5 * length.mean()
    length = length / surroundings.clamp_min(torch.finfo(length.dtype).tiny)
    ridge = _ridges(length, across, down)
    if not bool(ridge.any()):
        return ridge
    weak_limit, strong_limit = np.quantile(length[ridge].numpy(), (low, high))
    weak = ridge & (length >= float(weak_limit))
    return _connected(ridge & (length >= float(strong_limit)), weak)


def overlay_edges(picture: Tensor, edge: Tensor, *, color: tuple[int, int, int] = GREEN) -> Tensor:
    """A grey picture [rows, cols] uint8 with edges [rows, cols] bool in colour: [rows, cols, 3].

    Raises ValueError when the two differ in shape.
    """
    _check_same_shape("edge", picture, edge)
    colored = picture[..., None].repeat(1, 1, 3)
    colored[edge] = torch.tensor(color, dtype=torch.uint8)
    return colored


def checkerboard(first: Tensor, second: Tensor, *, fields: int = 8) -> Tensor:
    """Two pictures [rows, cols] uint8 in alternating fields: contours run on where they agree.

    fields: along the shorter side. Raises ValueError when the shapes differ.
    """
    _check_same_shape("second", first, second)
    side = max(1, min(first.shape) // fields)
    row, col = (torch.arange(n) // side for n in first.shape)
    even = (row[:, None] + col[None]) % 2 == 0
    return torch.where(even, first, second)


def difference(first: Tensor, second: Tensor) -> Tensor:
    """The difference of two pictures [rows, cols] uint8: grey where equal, [rows, cols] uint8.

    Raises ValueError when the shapes differ.
    """
    _check_same_shape("second", first, second)
    return ((first.int() - second.int()) // 2 + 128).clamp(0, 255).to(torch.uint8)


def save_image(
    image: Tensor, path: str | os.PathLike[str], *, pixel_spacing: Sequence[float] | None = None
) -> None:
    """Writes an image by its suffix; the file appears whole or not at all.

    Args:
        image: for .png a picture, uint8 [rows, cols] or [rows, cols, 3]; for .npy, .tif, .tiff,
            .nii.gz, .nii, .nrrd and .mha numbers [rows, cols] (or with leading dimensions of size
            1), stored as float32.
        path: the file.
        pixel_spacing: (row, col) mm, stored where the format can.

    Raises:
        TypeError, ValueError: an unknown suffix, or an image that does not fit it.
        OSError: the place cannot be written to.
    """
    target = Path(path)
    name = target.name.lower()
    if not name.endswith(IMAGE_SUFFIXES):
        raise ValueError(f"{target}: expected one of {', '.join(IMAGE_SUFFIXES)}")
    if name.endswith(".png"):
        pixels = _picture(image).numpy()
    else:
        pixels = _plane("image", image).float().contiguous().numpy()
    with whole_file(target) as staged:
        if name.endswith(".npy"):
            np.save(staged, pixels)
        else:
            _write_itk(pixels, staged, target, pixel_spacing)


def data_uri(picture: Tensor) -> str:
    """A picture, uint8 [rows, cols] or [rows, cols, 3], as the address of a PNG within a page."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "picture.png"
        save_image(picture, file)
        return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


@dataclass(frozen=True, eq=False)
class Screen:
    """An X-ray enlarged or reduced by a whole factor, and the camera of that size.

    Attributes:
        line: [rows, cols] float64 on the CPU, bone bright.
        camera: whose pixels these are.
        factor: rows here for one of the X-ray's.
    """

    line: Tensor
    camera: Camera
    factor: float

    @classmethod
    def of(cls, camera: Camera, xray: Tensor, least: int = 400, most: int = 1 << 30) -> Screen:
        """The X-ray [rows, cols] (leading dimensions of size 1 allowed) in `least` rows or more.

        One of more than `most` rows is averaged over squares of pixels.

        Raises:
            ValueError: the X-ray does not have the camera's pixels.
        """
        rows, cols = camera.size
        if tuple(xray.shape[-2:]) != (rows, cols) or xray.numel() != rows * cols:
            raise ValueError(
                f"xray: expected {(rows, cols)} pixels as the camera has, got {tuple(xray.shape)}"
            )
        image = xray.detach().cpu().double().reshape(1, 1, rows, cols)
        larger, smaller = max(1, -(-least // rows)), max(1, min(-(-rows // most), cols))
        if larger > 1:
            image = functional.interpolate(
                image, scale_factor=larger, mode="bicubic", align_corners=False
            )
        elif smaller > 1:
            image = functional.avg_pool2d(image, smaller)
        factor = larger / smaller
        return cls(image[0, 0], camera.rescale(1 / factor), factor)

    @property
    def picture(self) -> Tensor:
        """The X-ray, [rows, cols] uint8."""
        return to_display(self.line)

    def rendered(self, volume: Volume, pose: Tensor, method: str = "joseph") -> Tensor:
        """Line integrals of the volume at world_to_camera [4, 4]: [rows, cols] on the CPU."""
        pose = pose.detach().reshape(4, 4).to(volume.values.device)
        with torch.no_grad():
            return render(volume, self.camera, pose, method=method).sum(1)[0].cpu()

    def edges(self, drr: Tensor) -> Tensor:
        """Edges [rows, cols] bool of what was rendered, of structures as large as its pixels."""
        return edges(drr, sigma_px=1.2 * max(1.0, self.factor))

    def matched(self, drr: Tensor) -> Tensor:
        """What was rendered, [rows, cols] uint8 on the X-ray's grey scale.

        Gain and offset are those of least squares; where they would invert it, and where the X-ray
        is of one value, its own grey scale is taken.
        """
        x, y = drr.double().flatten(), self.line.flatten()
        centred = x - x.mean()
        gain = float((centred @ (y - y.mean())) / (centred @ centred).clamp_min(1e-30))
        shares = torch.tensor((0.005, 0.995), dtype=torch.float64)
        low, high = torch.quantile(y[:: max(1, y.numel() // 100_000)], shares).tolist()
        if gain <= 0 or high <= low:
            return to_display(drr)
        matched = y.mean() + gain * (drr.double() - x.mean())
        return (255 * ((matched - low) / (high - low)).clamp(0, 1)).round().to(torch.uint8)


def pose_overlays(
    volume: Volume,
    camera: Camera,
    xray: Tensor,
    poses: Sequence[Tensor],
    *,
    method: str = "joseph",
    rows: tuple[int, int] | None = None,
) -> Tensor:
    """The X-ray in grey with the edges of the rendered volume in green, one panel per pose.

    Args:
        volume: in mu.
        camera: the X-ray's.
        xray: [rows, cols], or with leading dimensions of size 1, bone bright.
        poses: world_to_camera [4, 4] each, e.g. before and after a registration; left to right.
        method: projector method, as in `render`.
        rows: the fewest rows, reached by a whole factor, and about the most; default OVERLAY_ROWS
            and no bound.

    Returns:
        [rows, cols, 3] uint8, 8 white columns between the panels.

    Raises:
        TypeError, ValueError: the X-ray's shape is not the camera's, no pose, or as `render`.
    """
    if len(poses) == 0:
        raise ValueError("poses: expected at least one pose, got none")
    screen = Screen.of(camera, xray, *(rows or (OVERLAY_ROWS,)))
    drawn = (screen.edges(screen.rendered(volume, pose, method)) for pose in poses)
    return tiled([[overlay_edges(screen.picture, edge) for edge in drawn]])


def tiled(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Pictures [rows, cols, 3] uint8 side by side and in rows, 8 white pixels between them."""
    heights = [max(len(picture) for picture in row) for row in rows]
    width = max(sum(picture.shape[1] + 8 for picture in row) for row in rows) - 8
    canvas = rows[0][0].new_full((sum(heights) + 8 * (len(rows) - 1), width, 3), 255)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for picture in row:
            down, across = picture.shape[:2]
            canvas[top : top + down, left : left + across] = picture
            left += across + 8
        top += height + 8
    return canvas


def _check_same_shape(name: str, first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or first.dim() != 2:
        raise ValueError(
            f"{name}: expected [rows, cols] as the picture, {tuple(first.shape)}, got "
            f"{tuple(second.shape)}"
        )


def _plane(name: str, image: Any) -> Tensor:
    """An image [rows, cols] on the CPU, leading dimensions of size 1 removed."""
    if not isinstance(image, Tensor):
        raise TypeError(f"{name}: expected a tensor [rows, cols], got {type(image).__name__}")
    if image.dim() < 2 or image.numel() == 0 or image.numel() != image.shape[-1] * image.shape[-2]:
        raise ValueError(f"{name}: expected one image [rows, cols], got {tuple(image.shape)}")
    plane = image.detach().cpu().reshape(image.shape[-2:])
    if not bool(torch.isfinite(plane).all()):
        bad = int((~torch.isfinite(plane)).sum())
        raise ValueError(f"{name}: contains {bad} non-finite values")
    return plane


def _picture(image: Any) -> Tensor:
    if not isinstance(image, Tensor) or image.dtype != torch.uint8:
        found = image.dtype if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(f"image: expected uint8 for .png (to_display converts), got {found}")
    grey, color = image.dim() == 2, image.dim() == 3 and image.shape[-1] == 3
    if not (grey or color) or image.numel() == 0:
        raise ValueError(
            f"image: expected [rows, cols] or [rows, cols, 3], got {tuple(image.shape)}"
        )
    return image.cpu().contiguous()


def _write_itk(
    pixels: np.ndarray, file: Path, target: Path, pixel_spacing: Sequence[float] | None
) -> None:
    """Writes pixels with SimpleITK; `target` is the name the file will get, for messages."""
    import SimpleITK as sitk

    itk_image = sitk.GetImageFromArray(pixels, isVector=pixels.ndim == 3)
    if pixel_spacing is not None:
        row, col = (float(s) for s in pixel_spacing)
        itk_image.SetSpacing((col, row))
    with readable_errors(target, "write"):
        sitk.WriteImage(itk_image, os.fspath(file))


def _broad_mean(image: Tensor, sigma_px: float) -> Tensor:
    """A wide Gaussian blur of an image [rows, cols], computed on fewer pixels."""
    factor = min(max(1, int(sigma_px / 4.0)), *image.shape)
    few = functional.avg_pool2d(image[None, None], factor, ceil_mode=True)
    smooth = gaussian_blur(few, sigma_px / factor)
    rows, cols = image.shape
    many = functional.interpolate(smooth, scale_factor=factor, mode="bilinear", align_corners=False)
    return many[0, 0, :rows, :cols]


def _ridges(length: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Where the gradient's length is greatest along the gradient: [rows, cols] bool."""
    padded = functional.pad(length[None, None], (1, 1, 1, 1))[0, 0]
    rows, cols = length.shape

    def neighbour(row: int, col: int) -> Tensor:
        return padded[1 + row : 1 + row + rows, 1 + col : 1 + col + cols]

    # The direction in steps of 45 degrees; opposite ones are the same line.
    octant = torch.round(torch.atan2(down, across) * (4 / torch.pi)).long() % 4
    ridge = torch.zeros_like(length, dtype=torch.bool)
    for number, (row, col) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        # ">" on one side and ">=" on the other: a plateau of two gives one pixel.
        top = (length > neighbour(-row, -col)) & (length >= neighbour(row, col))
        ridge |= (octant == number) & top
    # At the border the gradient is one-sided and its other neighbour unknown.
    ridge[0], ridge[-1], ridge[:, 0], ridge[:, -1] = False, False, False, False
    return ridge


def _connected(seed: Tensor, allowed: Tensor) -> Tensor:
    """The allowed pixels that a chain of allowed ones, of 8 neighbours, joins to a seed."""
    import SimpleITK as sitk

    marker, mask = (sitk.GetImageFromArray(one.numpy().astype(np.uint8)) for one in (seed, allowed))
    joined = sitk.BinaryReconstructionByDilation(
        marker, mask, backgroundValue=0.0, foregroundValue=1.0, fullyConnected=True
    )
    return torch.from_numpy(sitk.GetArrayFromImage(joined) > 0)
