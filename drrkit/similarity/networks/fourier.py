"""Fast Fourier convolution: a layer that sees the whole image at once.

Chi, Jiang, Mu, "Fast Fourier Convolution", NeurIPS 2020. A convolution whose channels are split in
a local half, convolved 3 x 3, and a global half, whose spectrum is convolved 1 x 1, with all four
connections between them. `norm` names the normalisation (`encoder.normalisation`); batch
normalisation, "batch", is the published one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from drrkit.similarity.networks.encoder import normalisation

__all__ = ["FourierConvolution", "FourierResidual", "FourierUnit", "SpectralTransform"]


class FourierUnit(nn.Module):
    """A 1 x 1 convolution of the spectrum, real and imaginary parts as channels.

    [B, C, rows, cols] -> the same; every output pixel depends on every input pixel. The transform
    is orthonormal, so that spectrum and image have the same power.
    """

    def __init__(self, channels: int, norm: str = "group") -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * channels, 2 * channels, 1, bias=False)
        self.norm = normalisation(norm, 2 * channels)

    def forward(self, image: Tensor) -> Tensor:
        # There is no Fourier transform of what autocast makes of images.
        image = image if image.dtype == torch.float64 else image.float()
        spectrum = torch.view_as_real(torch.fft.rfft2(image, norm="ortho"))
        parts = spectrum.movedim(-1, 2).flatten(1, 2)  # [B, 2 C, rows, cols // 2 + 1]
        parts = self.norm(self.mix(parts)).relu()
        real, imaginary = parts.to(image).unflatten(1, (-1, 2)).unbind(2)
        mixed = torch.complex(real, imaginary)
        return torch.fft.irfft2(mixed, s=image.shape[-2:], norm="ortho")


class SpectralTransform(nn.Module):
    """Global to global: the spectrum of the image and, in a quarter of the channels, of its parts.

    The local unit stacks the four quadrants of the image as channels, transforms them, and repeats
    the result over the image. Rows and columns must be even, channels divisible by 8.
    """

    def __init__(self, channels: int, norm: str = "group") -> None:
        super().__init__()
        half = channels // 2
        if channels % 8:
            raise ValueError(f"channels: expected a multiple of 8, got {channels}")
        self.reduce = nn.Sequential(
            nn.Conv2d(channels, half, 1, bias=False), normalisation(norm, half), nn.ReLU()
        )
        self.whole = FourierUnit(half, norm)
        self.parts = FourierUnit(half, norm)
        self.expand = nn.Conv2d(half, channels, 1, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        reduced = self.reduce(image)
        quarter = reduced[:, : reduced.shape[1] // 4]
        rows = torch.cat(quarter.chunk(2, -2), 1)
        quadrants = torch.cat(rows.chunk(2, -1), 1)
        local = self.parts(quadrants).repeat(1, 1, 2, 2)
        return self.expand(reduced + self.whole(reduced) + local)


class FourierConvolution(nn.Module):
    """(local, global) channels -> the same, in all four combinations, then norm and ReLU."""

    def __init__(self, channels: int, norm: str = "group") -> None:
        super().__init__()
        half = channels // 2

        def convolution() -> nn.Conv2d:
            return nn.Conv2d(half, half, 3, padding=1, padding_mode="reflect", bias=False)

        self.local_to_local, self.local_to_global = convolution(), convolution()
        self.global_to_local = convolution()
        self.global_to_global = SpectralTransform(half, norm)
        self.local_norm, self.global_norm = normalisation(norm, half), normalisation(norm, half)

    def forward(self, local: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
        near = self.local_to_local(local) + self.global_to_local(whole)
        far = self.local_to_global(local) + self.global_to_global(whole)
        return self.local_norm(near).relu(), self.global_norm(far).relu()


class FourierResidual(nn.Module):
    """Two Fourier convolutions around a skip connection: [B, channels, rows, cols] -> the same."""

    def __init__(self, channels: int, norm: str = "group") -> None:
        super().__init__()
        self.first = FourierConvolution(channels, norm)
        self.second = FourierConvolution(channels, norm)

    def forward(self, image: Tensor) -> Tensor:
        local, whole = image.chunk(2, 1)
        return image + torch.cat(self.second(*self.first(local, whole)), 1)
