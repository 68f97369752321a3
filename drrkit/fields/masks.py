"""Where the anatomy is: thresholding, largest component, filling, a margin."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from drrkit.geometry import check_numbers
from drrkit.volume import BODY_THRESHOLD, Volume

# In mu, half of water's attenuation: -500 HU at any energy between 40 and 120 keV is close to it.
_BODY_MU = 0.010


def body_mask(volume: Volume, threshold: float | None = None, margin_mm: float = 0.0) -> Tensor:
    """The largest connected piece above a threshold, filled, with a margin: bool [D, H, W].

    Voxels that share a face are connected. What is enclosed within an axial slice (the index axes
    x, y) is filled: lungs and gas, also where the volume ends within them.

    Args:
        volume: one channel, in HU or mu.
        threshold: in the volume's unit; default -500 HU, or 0.01 / mm.
        margin_mm: the mask grows by this distance along every axis, rounded up to whole voxels.

    Raises:
        ValueError: several channels, nothing above the threshold, or a negative margin.
        ImportError: SimpleITK is missing.
    """
    if volume.values.dim() != 3:
        raise ValueError(f"volume: expected one channel, got {tuple(volume.values.shape)}")
    check_numbers(True, margin_mm=margin_mm)
    if threshold is None:
        threshold = BODY_THRESHOLD["HU"] if volume.unit == "HU" else _BODY_MU
    above = volume.values.detach() > threshold
    if not bool(above.any()):
        raise ValueError(
            f"threshold: no voxel lies above {threshold:g} {volume.unit}; the highest value is "
            f"{float(volume.values.max()):g}"
        )
    mask = _largest_filled(above.cpu()).to(above.device)
    x, y, z = (math.ceil(margin_mm / side - 1e-9) for side in volume.spacing)
    return dilated(mask, (x, y, z))


def dilated(mask: Tensor, voxels: tuple[int, int, int]) -> Tensor:
    """A mask [D, H, W] grown by whole voxels along (x, y, z), as a box grows."""
    grown = mask[None, None].float()
    for dim, steps in zip((4, 3, 2), voxels, strict=True):
        kernel, padding = [1, 1, 1], [0, 0, 0]
        kernel[dim - 2], padding[dim - 2] = 2 * steps + 1, steps
        grown = functional.max_pool3d(grown, kernel, stride=1, padding=padding)
    return grown[0, 0] > 0


def eroded(mask: Tensor, voxels: tuple[int, int, int]) -> Tensor:
    """A mask [D, H, W] without its border of whole voxels along (x, y, z); outside is no mask."""
    x, y, z = voxels
    outside = functional.pad(~mask, (x, x, y, y, z, z), value=True)
    shrunk = ~dilated(outside, voxels)
    depth, height, width = mask.shape
    return shrunk[z : z + depth, y : y + height, x : x + width]


def _largest_filled(above: Tensor) -> Tensor:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(above.to(torch.uint8).numpy())
    labels = sitk.GetArrayFromImage(sitk.ConnectedComponent(image)).astype("int64")
    sizes = torch.bincount(torch.from_numpy(labels).flatten())
    sizes[0] = 0  # the background
    largest = (labels == int(sizes.argmax())).astype("uint8")
    planes = (sitk.BinaryFillhole(sitk.GetImageFromArray(plane)) for plane in largest)
    return torch.stack([torch.from_numpy(sitk.GetArrayFromImage(plane)) for plane in planes]) > 0
