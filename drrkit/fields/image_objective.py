"""How alike a rendered image and an X-ray are: training losses of images, PSNR, SSIM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from drrkit import losses
from drrkit.fields.scenes import FORMATIONS, Scene, absorption
from drrkit.fields.xray_pairs import Pairs

IMAGE_LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": losses.mse,
    "l1": losses.l1,
    "ssim_dice_l1": losses.ssim_dice_l1,
}
"""Losses that fields can be trained with; the last needs whole images or patches."""


def min_max(image: Tensor, mask: Tensor | None = None) -> Tensor:
    """Images [B, C, rows, cols] mapped to [0, 1] one by one; a constant image becomes zero.

    The range is that under the mask (weights above 0), and is part of the gradient.
    """
    pixels = (-1, -2)
    if mask is None:
        low, high = image.amin(pixels, keepdim=True), image.amax(pixels, keepdim=True)
    else:
        inside = mask > 0
        low = torch.where(inside, image, torch.inf).amin(pixels, keepdim=True)
        high = torch.where(inside, image, -torch.inf).amax(pixels, keepdim=True)
        low, high = low.nan_to_num(posinf=0.0), high.nan_to_num(neginf=0.0)
    extent = high - low
    return (image - low) / torch.where(extent > 0, extent, torch.ones_like(extent))


class Normalised:
    """A similarity of images that are both mapped to [0, 1] first, as DiffProj's comparators are.

    Args:
        similarity: (moving, fixed, mask) -> [B], to be minimised.
    """

    def __init__(self, similarity: Callable[..., Tensor]) -> None:
        self.similarity = similarity
        self.__name__ = f"normalised_{getattr(similarity, '__name__', 'similarity')}"

    def __call__(self, moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B], as the similarity's."""
        return self.similarity(min_max(moving, mask), min_max(fixed, mask), mask)


@dataclass(frozen=True)
class ImageObjective:
    """How a rendered image is compared with an X-ray, in training.

    Attributes:
        loss: a name in IMAGE_LOSSES.
        formation: "rc" or "vr", a name in FORMATIONS: what the X-rays are compared with.
        normalised: map both images to [0, 1] first: X-rays of unknown gain and offset.
        rate, final_rate: Adam's learning rate falls from one to the other, geometrically.

    Raises:
        ValueError: an unknown name, or rates that are not positive.
    """

    loss: str = "mse"
    formation: str = "rc"
    normalised: bool = True
    rate: float = 5e-3
    final_rate: float = 5e-4

    def __post_init__(self) -> None:
        for name, known in (("loss", IMAGE_LOSSES), ("formation", FORMATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}: expected one of {sorted(known)}, got {getattr(self, name)!r}"
                )
        if not 0 < self.final_rate <= self.rate:
            raise ValueError(
                f"rate, final_rate: expected 0 < final_rate <= rate, got {self.rate}, "
                f"{self.final_rate}"
            )

    def formed(self, line_integrals: Tensor) -> Tensor:
        """Line integrals in the scale of the formation."""
        return line_integrals if self.formation == "rc" else absorption(line_integrals)

    def compare(self, formed: Tensor, xray: Tensor) -> Tensor:
        """The loss [B] of images [B, 1, rows, cols]."""
        loss = IMAGE_LOSSES[self.loss]
        return (Normalised(loss) if self.normalised else loss)(formed, xray)


def psnr(image: Tensor, reference: Tensor, data_range: float | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, [B]: 10 log10(range^2 / MSE).

    Args:
        image, reference: [B, C, rows, cols]; the reference may be one for all.
        data_range: the peak; default each reference's own range.
    """
    error = (image - reference).square().mean((-1, -2, -3))
    if data_range is None:
        peak = reference.amax((-1, -2, -3)) - reference.amin((-1, -2, -3))
    else:
        peak = torch.full_like(error, data_range)
    return 10.0 * torch.log10(peak.square() / error)


def ssim_index(image: Tensor, reference: Tensor, data_range: float | None = None) -> Tensor:
    """Structural similarity, [B], 1 for equal images; data_range as for `psnr`."""
    return 1.0 - losses.ssim(image, reference, data_range=data_range)


def scene_quality(
    scene: Scene, pairs: Pairs, objective: ImageObjective, supersample: int = 1
) -> dict[str, float]:
    """Mean loss, PSNR (dB) and SSIM of a scene's images against all X-rays of the pairs.

    PSNR and SSIM are of images in [0, 1] where the objective normalises; otherwise their peak is
    the X-ray's own range. SSIM is left out of images smaller than its window of 11 pixels.
    """
    found: dict[str, list[Tensor]] = {"loss": [], "psnr": [], "ssim": []}
    with torch.no_grad():
        for xray, pose in zip(pairs.xrays.split(1), pairs.world_to_camera.split(1), strict=True):
            image = scene.render(pairs.camera, pose, supersample=supersample)
            image = objective.formed(image)
            found["loss"].append(objective.compare(image, xray))
            if objective.normalised:
                image, xray = min_max(image), min_max(xray)
            found["psnr"].append(psnr(image, xray))
            if min(image.shape[-2:]) >= 11:
                found["ssim"].append(ssim_index(image, xray))
    return {name: float(torch.cat(all_).mean()) for name, all_ in found.items() if all_}
