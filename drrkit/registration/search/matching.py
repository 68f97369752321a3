"""Where an X-ray, turned and scaled, fits best into wider images: gradient correlation by FFT.

A template is the X-ray resampled at the pitch of the wide images, turned by a roll and scaled; its
centre is the principal ray. The score of a template at an offset is the normalised correlation of
Sobel derivatives,

    sum_p w g . h / sqrt(sum_p w |g|^2  sum_p w |h|^2),

g the template's derivatives, h the image's under it, w the template's weight: 0 outside the X-ray
and where its mask is 0 or the image is not known. Numerator and sums are cross-correlations, so
every offset comes from products of spectra. Offsets are not estimated from phases: every one is
scored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from drrkit.losses import sobel
from drrkit.registration.problem.views import View

__all__ = ["Peaks", "Templates", "fast_size", "make_templates"]

# Samples of the X-ray averaged in a template's pixel, along each side.
_SUBPIXELS = 3

# Share of an image's largest windowed energy below which a window counts as empty.
_EMPTY = 1e-3

# A template of which less than this share of its energy is where the image is known is scored as if
# it were so much: little may match by chance.
_LEAST_SEEN = 0.5

# Local maxima kept of each pair of image and template.
_PEAKS = 2


@dataclass(frozen=True)
class Peaks:
    """Local maxima of the scores, N of them: indices of image and template, offset (x, y), score.

    Offsets are in pixels, from the wide image's centre to the template's. Where negative scores
    count, `score` is the magnitude and `sign` [N] says which is which.
    """

    image: Tensor
    template: Tensor
    offset: Tensor
    score: Tensor
    sign: Tensor

    def best(self, count: int) -> Peaks:
        """The `count` highest, highest first."""
        return self.chosen(self.score.argsort(descending=True, stable=True)[:count])

    def chosen(self, index: Tensor) -> Peaks:
        """Some of them, by index or mask."""
        return Peaks(*(getattr(self, field.name)[index] for field in fields(self)))

    def joined(self, other: Peaks) -> Peaks:
        """These and others."""
        names = [field.name for field in fields(self)]
        return Peaks(*(torch.cat((getattr(self, name), getattr(other, name))) for name in names))


@dataclass(frozen=True)
class Templates:
    """The X-ray at every roll and scale, smallest rolls first.

    Attributes:
        roll, scale: [Q] float64, rad and ratio.
        gradient: [Q, 2, T, T], derivatives along x and y, masked, of unit energy.
        weight: [Q, T, T].
        reach: largest offset along either axis that is scored, pixels.
        allowed: [Q, 2 reach + 1, 2 reach + 1] bool, the offsets (y, x) of each that are scored.
    """

    roll: Tensor
    scale: Tensor
    gradient: Tensor
    weight: Tensor
    reach: int
    allowed: Tensor

    @property
    def image_size(self) -> int:
        """Side S of the square images that hold every template at every offset, good for the FFT.

        Their centre is pixel (S // 2, S // 2).
        """
        return fast_size(2 * self.reach + self.weight.shape[-1] + 1)

    def first(self, largest_roll: float) -> int:
        """How many templates are turned by at most this."""
        return int((self.roll.abs() <= largest_roll + 1e-9).sum())

    @cached_property
    def _spectra(self) -> Tensor:
        """Conjugate spectra [3, Q, S, S // 2 + 1] of the derivatives and the weight."""
        layers = torch.cat((self.gradient, self.weight[:, None]), 1).transpose(0, 1)
        size = self.image_size
        # The template's centre goes to the origin, so that a peak's place is its offset.
        half = self.weight.shape[-1] // 2
        padded = functional.pad(layers, (0, size - layers.shape[-1]) * 2)
        return torch.fft.rfft2(padded.roll((-half, -half), (-1, -2))).conj()

    @cached_property
    def _energies(self) -> Tensor:
        """Conjugate spectrum [Q, S, S // 2 + 1] of the derivatives' energy, which sums to 1."""
        energy = self.gradient.square().sum(1) / self.weight.clamp_min(1e-6)
        size, half = self.image_size, self.weight.shape[-1] // 2
        padded = functional.pad(energy, (0, size - energy.shape[-1]) * 2)
        return torch.fft.rfft2(padded.roll((-half, -half), (-1, -2))).conj()

    def scores(self, images: Tensor, count: int, known: Tensor | None = None) -> Tensor:
        """Scores [B, count, 2 reach + 1, 2 reach + 1] of the first templates in images [B, S, S].

        Offsets (y, x) run from -reach to reach; those not allowed score 0. Pixels of the images
        whose derivatives are not `known` [B, 1, S, S] match nothing.
        """
        size = images.shape[-1]
        gradient = torch.cat(
            sobel(functional.pad(images[:, None], (1, 1, 1, 1), mode="replicate")), 1
        )
        if known is not None:
            gradient = gradient * known
        gradient = torch.cat((gradient, gradient.square().sum(1, keepdim=True)), 1)
        spectrum = torch.fft.rfft2(gradient)[:, :, None]
        template = self._spectra[:, :count]
        matched = template[0] * spectrum[:, 0] + template[1] * spectrum[:, 1]
        energy = self._windows(template[2] * spectrum[:, 2], size)
        empty = _EMPTY * energy.amax((-1, -2), keepdim=True) + torch.finfo(energy.dtype).tiny
        energy = torch.maximum(energy, empty)
        if known is not None:
            seen = self._windows(self._energies[:count] * torch.fft.rfft2(known), size)
            energy = energy * seen.clamp(_LEAST_SEEN, 1.0)
        score = self._windows(matched, size) / energy.sqrt()
        return torch.where(self.allowed[:count], score, 0.0)

    def _windows(self, spectrum: Tensor, size: int) -> Tensor:
        """Inverse transform, only at the offsets within reach of the centre."""
        reach = self.reach
        offset = torch.arange(-reach, reach + 1, device=spectrum.device) + size // 2
        columns = torch.fft.ifft(spectrum, dim=-2)[..., offset, :]
        return torch.fft.irfft(columns, n=size, dim=-1)[..., offset]

    def peaks(
        self,
        images: Tensor,
        count: int,
        either_sign: bool = False,
        known: Tensor | None = None,
    ) -> Peaks:
        """The highest local maxima of each of the first templates in images [B, S, S].

        either_sign: of the scores' magnitudes, as an inverted X-ray's are negative.
        """
        signed = self.scores(images, count, known)
        score = signed.abs() if either_sign else signed
        summit = functional.max_pool2d(score, 3, stride=1, padding=1) == score
        side = score.shape[-1]
        value, place = torch.where(summit, score, 0.0).flatten(2).topk(_PEAKS, -1)
        image = torch.arange(images.shape[0], device=images.device)[:, None, None]
        template = torch.arange(count, device=images.device)[:, None]
        offset = torch.stack((place % side, place // side), -1) - self.reach
        sign = signed.flatten(2).gather(-1, place).sign()
        found = value > 0
        image, template = image.expand_as(place), template.expand_as(place)
        return Peaks(image[found], template[found], offset[found], value[found], sign[found])


def fast_size(least: int) -> int:
    """The smallest even number of at least `least` with no prime factor above 5."""
    size = least + least % 2
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 2


def make_templates(
    view: View,
    focal: float,
    roll: Tensor,
    scale: Tensor,
    reach: float | None,
) -> Templates:
    """Templates of a view for wide images of a focal length in pixels.

    Args:
        view: cone beam.
        focal: of the wide images, pixels.
        roll, scale: [Q] float64, combinations to make, in the order wanted.
        reach: largest offset in pixels at scale 1, whatever leaves the X-ray; or None: the wide
            image's centre must fall inside the X-ray.
    """
    rows, cols = view.camera.size
    K = view.camera.K.reshape(-1, 3, 3)[0].to(view.xray)
    pooled = view.downsampled(max(1, int(min(K[0, 0], K[1, 1]) / focal / _SUBPIXELS)))
    ends = torch.cartesian_prod(torch.tensor([-0.5, cols - 0.5]), torch.tensor([-0.5, rows - 0.5]))
    corners = torch.linalg.solve(K, torch.cat((ends, torch.ones(4, 1)), 1).to(K).mT)[:2] * focal
    largest = float(scale.max())
    half = math.ceil(float(corners.norm(dim=0).max()) * largest) + 1
    image, weight = _resampled(pooled, focal, roll, scale, half)
    gradient = torch.cat(sobel(image), 1)
    weight = -functional.max_pool2d(-weight, 3, stride=1)
    gradient = gradient * weight
    energy = (gradient * gradient / weight.clamp_min(1e-6)).sum((1, 2, 3), keepdim=True)
    gradient = gradient / energy.clamp_min(torch.finfo(energy.dtype).tiny).sqrt()
    wide = float(corners.abs().max()) * largest if reach is None else reach * largest
    offsets = math.ceil(wide)
    allowed = _allowed(view, K, focal, roll, scale, offsets, reach)
    return Templates(roll, scale, gradient, weight[:, 0], offsets, allowed)


def _resampled(
    view: View, focal: float, roll: Tensor, scale: Tensor, half: int
) -> tuple[Tensor, Tensor]:
    """Turned and scaled X-rays and their weights, [Q, 1, 2 half + 1, 2 half + 1] each."""
    n, side = _SUBPIXELS, 2 * half + 1
    line = (torch.arange(side * n).to(view.xray) + 0.5) / n - 0.5 - half
    pixel = _pixels(view, focal, roll, scale, line)
    rows, cols = view.camera.size
    extent = pixel.new_tensor((max(cols - 1, 1), max(rows - 1, 1)))
    grid = 2.0 * pixel / extent - 1.0
    inside = ((pixel > -0.5) & (pixel < extent + 0.5)).all(-1).to(view.xray)[:, None]

    def sample(image: Tensor) -> Tensor:
        wide = image.expand(grid.shape[0], -1, -1, -1)
        return functional.grid_sample(wide, grid, padding_mode="border", align_corners=True)

    weight = inside if view.mask is None else inside * sample(view.mask)
    # The least weight of a pixel's samples: a pixel half outside is outside.
    return functional.avg_pool2d(sample(view.xray), n), -functional.max_pool2d(-weight, n)


def _pixels(view: View, focal: float, roll: Tensor, scale: Tensor, line: Tensor) -> Tensor:
    """The X-ray's pixels (col, row) [Q, n, n, 2] at template offsets line x line (y, x)."""
    y, x = torch.meshgrid(line, line, indexing="ij")
    c, s = (torch.cos(roll).to(line), torch.sin(roll).to(line))
    c, s = c[:, None, None], s[:, None, None]
    length = (scale.to(line) * focal)[:, None, None]
    ray = torch.stack(((c * x + s * y) / length, (c * y - s * x) / length), -1)
    K = view.camera.K.reshape(-1, 3, 3)[0].to(line)
    return ray @ K[:2, :2].mT + K[:2, 2]


def _allowed(
    view: View,
    K: Tensor,
    focal: float,
    roll: Tensor,
    scale: Tensor,
    offsets: int,
    reach: float | None,
) -> Tensor:
    """Offsets [Q, n, n] at which the wide image's centre is where `make_templates` wants it."""
    line = torch.arange(-offsets, offsets + 1).to(view.xray)
    if reach is not None:
        near = line.abs() <= reach * scale.to(line)[:, None] + 0.5
        return near[:, :, None] & near[:, None, :]
    rows, cols = view.camera.size
    # Seen from a template at an offset, the wide image's centre is at minus the offset.
    pixel = _pixels(view, focal, roll, scale, -line)
    return ((pixel > -0.5) & (pixel < pixel.new_tensor((cols - 0.5, rows - 0.5)))).all(-1)
