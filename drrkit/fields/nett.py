"""NeTT: a network that tunes the attenuation of a CT so that its DRRs look like X-rays.

mu' = mu exp(f(gamma(mu / reference))): a function of the density alone, so that one network serves
every patient. Its last layer starts at zero, so that the tuned CT starts as the CT itself, to the
bit; air stays air. Source: arXiv 2308.00214, which gives the idea and the encoding of the density
(its Eq. 5); the exponential form and the sizes are drrkit's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from drrkit._arguments import check_attenuation
from drrkit.fields.encodings import Perceptron, encoded_size, positional_encoding
from drrkit.fields.scenes import CT
from drrkit.geometry import check_counts, check_numbers
from drrkit.volume import Volume

LOCAL_FEATURES: dict[str, int] = {"gradient": 1, "neighbourhood": 26}
"""What NeTT may see besides a voxel's own density, with the numbers each adds: the magnitude of the
gradient, and the densities of the 26 voxels around."""

# A change by the reference attenuation over this distance is a gradient of one.
_GRADIENT_MM = 10.0


class NeTT(nn.Module):
    """Tunes attenuation voxel by voxel: `nett(volume)` is the tuned Volume, differentiable.

    A function of the density alone is evaluated at `knots` densities and interpolated linearly:
    a grid then costs one table look-up per voxel, whatever the network. With local features the
    network sees every voxel that attenuates.

    Args:
        octaves: of the positional encoding of the density.
        width, depth: of the hidden layers.
        features: names in LOCAL_FEATURES; they depend on the voxel size, so train and apply at
            about the same one.
        reference: mu (1/mm) that counts as density 1; denser voxels are tuned as this one is.
        knots: densities between 0 and 1 at which a function of the density alone is tabulated.

    Raises:
        ValueError: an unknown feature, or a number that makes no sense.
    """

    SETTINGS = ("octaves", "width", "depth", "features", "reference", "knots")

    def __init__(
        self,
        *,
        octaves: int = 5,
        width: int = 64,
        depth: int = 3,
        features: Sequence[str] = (),
        reference: float = 0.06,
        knots: int = 2048,
    ) -> None:
        super().__init__()
        unknown = [name for name in features if name not in LOCAL_FEATURES]
        if unknown or len(set(features)) != len(features):
            raise ValueError(
                f"features: expected some of {sorted(LOCAL_FEATURES)}, each once, got {features!r}"
            )
        check_numbers(reference=reference)
        check_counts(0, octaves=octaves)
        check_counts(2, knots=knots)
        self.octaves, self.width, self.depth = octaves, width, depth
        self.features, self.reference, self.knots = tuple(features), float(reference), knots
        inputs = encoded_size(1, octaves) + sum(LOCAL_FEATURES[name] for name in features)
        self.network = Perceptron(inputs, width, depth)
        nn.init.zeros_(self.network.last.weight)
        nn.init.zeros_(self.network.last.bias)

    def forward(self, volume: Volume) -> Volume:
        """The tuned volume in mu; gradients flow to the network and to the volume's values.

        Raises:
            TypeError, ValueError: the argument is no Volume in mu.
        """
        check_attenuation(volume)
        if self.features:
            exponent = self._by_voxel(volume)
        else:
            exponent = self._by_density(volume.values)
        compute = torch.promote_types(volume.values.dtype, torch.float32)
        tuned = volume.values.to(compute) * exponent.to(compute).exp()
        return replace(volume, values=tuned.to(volume.values.dtype))

    def curve(self, mu: Tensor) -> Tensor:
        """The tuned attenuation (1/mm) of any attenuation, same shape.

        Raises:
            ValueError: the network has local features, so that there is no such curve.
        """
        if self.features:
            raise ValueError(f"curve: expected a function of density, it sees {self.features} too")
        return mu * self._by_density(mu).to(mu.dtype).exp()

    def _density(self, values: Tensor) -> Tensor:
        return (values / self.reference).clamp(0.0, 1.0)

    def _by_density(self, values: Tensor) -> Tensor:
        """The exponent of every voxel, interpolated between the knots."""
        weight = self.network.last.weight
        knots = torch.linspace(0, 1, self.knots, dtype=weight.dtype, device=weight.device)
        table = self.network(positional_encoding(knots[:, None], self.octaves))[:, 0]
        compute = torch.promote_types(values.dtype, table.dtype)
        place = self._density(values.to(compute)) * (self.knots - 1)
        below = place.detach().floor().clamp_max(self.knots - 2)
        share = place - below
        index = below.long().flatten()
        # index_select: its backward is a plain sum over voxels.
        low, high = table.index_select(0, index), table.index_select(0, index + 1)
        return torch.lerp(low.to(compute), high.to(compute), share.flatten()).reshape(values.shape)

    def _by_voxel(self, volume: Volume, at_once: int = 1 << 17) -> Tensor:
        """The exponent of every voxel that attenuates, from its density and surroundings."""
        weight = self.network.last.weight
        density = self._density(volume.values.to(weight.dtype))
        density = density.reshape(-1, *density.shape[-3:])
        padded = functional.pad(density[:, None], (1,) * 6, mode="replicate")[:, 0]
        where = (density > 0).nonzero(as_tuple=True)
        strides = padded.stride()
        base = where[0] * strides[0] + sum(
            (axis + 1) * stride for axis, stride in zip(where[1:], strides[1:], strict=True)
        )
        flat, parts = padded.flatten(), []
        for chunk in base.split(at_once):
            run = (flat, chunk, (strides[1], strides[2], strides[3]), volume.spacing)
            if torch.is_grad_enabled() and base.numel() > at_once:
                parts.append(checkpoint(self._exponent, *run, use_reentrant=False))
            else:
                parts.append(self._exponent(*run))
        exponent = torch.zeros_like(density)
        if parts:
            exponent = exponent.index_put(where, torch.cat(parts))
        return exponent.reshape(volume.values.shape)

    def _exponent(
        self,
        flat: Tensor,
        index: Tensor,
        strides: tuple[int, int, int],
        spacing: tuple[float, float, float],
    ) -> Tensor:
        """The exponent [n] of the voxels at these places of the padded, flattened grid."""
        inputs = [positional_encoding(flat[index, None], self.octaves)]
        if "gradient" in self.features:
            slopes = [
                (flat[index + stride] - flat[index - stride]) / (2 * side)
                for stride, side in zip(reversed(strides), spacing, strict=True)
            ]
            # The small term keeps the root's derivative finite where nothing changes.
            steepness = torch.stack(slopes, -1).square().sum(-1, keepdim=True).add(1e-12).sqrt()
            inputs.append(steepness * _GRADIENT_MM)
        if "neighbourhood" in self.features:
            steps = [s for s in itertools.product((-1, 0, 1), repeat=3) if s != (0, 0, 0)]
            jumps = [sum(a * b for a, b in zip(s, strides, strict=True)) for s in steps]
            inputs.append(flat[index[:, None] + index.new_tensor(jumps)])
        return self.network(torch.cat(inputs, -1))[:, 0]


class TunedCT(CT):
    """A CT tuned by NeTT, as a scene. The tuned grid is kept until the network changes.

    While the network trains (`nett.training`, and gradients are on) every image is rendered from a
    grid tuned anew, through `drrkit.project`'s volume gradient to the weights. Otherwise an image
    costs what the CT's does.

    Args:
        nett: the network; shared, not copied.
        volume: the CT, a Volume in mu.

    Raises:
        TypeError, ValueError: the volume is not a Volume in mu.
    """

    def __init__(self, nett: NeTT, volume: Volume) -> None:
        super().__init__(volume)
        self.nett = nett
        self._tuned: Volume | None = None
        self._seen: tuple[Any, ...] = ()

    @property
    def volume(self) -> Volume:
        """The tuned Volume in mu, without gradient."""
        now = tuple((id(p), p.data_ptr(), p._version) for p in self.nett.parameters())
        if self._tuned is None or now != self._seen:
            with torch.no_grad():
                self._tuned = self.nett(self._given)
            self._seen = now
        return self._tuned

    def _rendered(self) -> Volume:
        wanted = any(p.requires_grad for p in self.nett.parameters())
        trains = self.nett.training and wanted and torch.is_grad_enabled()
        return self.nett(self._given) if trains else self.volume
