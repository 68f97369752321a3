"""An X-ray at the size at which people look at it, and the volume rendered for that size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from drrkit.geometry import Camera
from drrkit.projector import render
from drrkit.report.pictures import edges, overlay_edges, to_display
from drrkit.volume import Volume

OVERLAY_ROWS = 512
"""Overlays are enlarged by a whole factor to at least this many rows: edges are thin then."""


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
    volume: Volume, camera: Camera, xray: Tensor, poses: Sequence[Tensor], *, method: str = "joseph"
) -> Tensor:
    """The X-ray in grey with the edges of the rendered volume in green, one panel per pose.

    Args:
        volume: in mu.
        camera: the X-ray's.
        xray: [rows, cols], or with leading dimensions of size 1, bone bright.
        poses: world_to_camera [4, 4] each, e.g. before and after a registration; left to right.
        method: projector method, as in `render`.

    Returns:
        [rows, cols, 3] uint8, enlarged by a whole factor to OVERLAY_ROWS rows or more, 8 white
        columns between the panels.

    Raises:
        TypeError, ValueError: the X-ray's shape is not the camera's, no pose, or as `render`.
    """
    if len(poses) == 0:
        raise ValueError("poses: expected at least one pose, got none")
    screen = Screen.of(camera, xray, least=OVERLAY_ROWS)
    picture, parts = screen.picture, []
    for pose in poses:
        edge = screen.edges(screen.rendered(volume, pose, method))
        parts += [overlay_edges(picture, edge), picture.new_full((len(picture), 8, 3), 255)]
    return torch.cat(parts[:-1], dim=1)
